//! Measures the cost of Keytrail, compared with an empty program on the same hooks and with other
//! tools, alternating within one run. `cargo xtask bench` runs it on this machine and in a virtual
//! machine.

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Btf, Ebpf,
    programs::{FEntry, Lsm, RawTracePoint, TracePoint, loaded_programs},
    sys::{Stats, enable_stats},
};
use clap::Parser;
use lab::{
    agent::{Agent, binary},
    baseline::{
        self, AuditRules, BackgroundLoad, EXECSNOOP, OPENSNOOP, bpftrace, load_empty, median,
        program,
    },
    workload::aws_credentials,
};
use serde_json::Value;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

#[derive(Debug, Parser)]
struct BenchArguments {
    /// The probes' object file, for the empty programs
    #[arg(long)]
    probes: PathBuf,
    /// A small static program that exits at once
    #[arg(long)]
    program: PathBuf,
    /// Number of rounds, of which medians are taken
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Duration of each load test in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only tasks whose names contain this, and no load tests
    #[arg(long)]
    task: Option<String>,
}

/// A tool under measurement.
struct Contender {
    name: &'static str,
    start: fn(&BenchLab) -> Result<BackgroundLoad>,
}

/// Something that programs do, and its budget.
struct BenchTask {
    name: &'static str,
    contenders: &'static [Contender],
    /// Returns nanoseconds per operation; NaN if it cannot run here.
    run: fn(&BenchLab) -> Result<f64>,
}

const KEYTRAIL: Contender = Contender {
    name: "keytrail",
    start: |place| Ok(Some(Box::new(place.agent()?))),
};

const TASKS: &[BenchTask] = &[
    BenchTask {
        name: "open and close of one file",
        contenders: &[
            Contender {
                name: "empty program",
                start: |place| place.empty_open(),
            },
            KEYTRAIL,
            Contender {
                name: "bpftrace opensnoop",
                start: |_| bpftrace(OPENSNOOP),
            },
            Contender {
                name: "auditd with a watch",
                start: |_| audit(),
            },
        ],
        run: |place| place.opens(1),
    },
    BenchTask {
        name: "open and close of 4,096 files in turn",
        contenders: &[
            Contender {
                name: "empty program",
                start: |place| place.empty_open(),
            },
            KEYTRAIL,
        ],
        run: |place| place.opens(FILES),
    },
    BenchTask {
        name: "connect, write and close",
        contenders: &[KEYTRAIL],
        run: |place| place.connects(b"ping"),
    },
    BenchTask {
        name: "connect, ClientHello and close",
        contenders: &[KEYTRAIL],
        run: |place| place.connects(&client_hello()),
    },
    BenchTask {
        name: "write to an open connection",
        contenders: &[
            Contender {
                name: "empty program",
                start: |place| place.empty_egress(),
            },
            KEYTRAIL,
        ],
        run: BenchLab::writes,
    },
    BenchTask {
        name: "16 KiB handed to OpenSSL, no header",
        contenders: &[
            Contender {
                name: "empty program",
                start: |place| place.empty_uprobe(),
            },
            KEYTRAIL,
        ],
        run: |place| place.tls_writes("plain"),
    },
    BenchTask {
        name: "1 KiB of headers with a credential handed to OpenSSL",
        contenders: &[
            Contender {
                name: "empty program",
                start: |place| place.empty_uprobe(),
            },
            KEYTRAIL,
        ],
        run: |place| place.tls_writes("head"),
    },
    BenchTask {
        name: "fork, exec and exit, 2 KiB environment",
        contenders: &[
            Contender {
                name: "empty programs",
                start: |place| place.empty_process(),
            },
            KEYTRAIL,
            Contender {
                name: "bpftrace execsnoop",
                start: |_| bpftrace(EXECSNOOP),
            },
        ],
        run: |place| place.execs(2 << 10),
    },
    BenchTask {
        name: "fork, exec and exit, 32 KiB environment",
        contenders: &[KEYTRAIL],
        run: |place| place.execs(32 << 10),
    },
];

const FILES: usize = 4096;
fn main() -> Result<()> {
    ensure!(
        lab::is_root(),
        "the benchmarks attach probes to the kernel and need root"
    );
    let place = BenchLab::new(BenchArguments::parse())?;
    println!("kernel {}, file probe {}\n", kernel(), place.file_hook);
    println!("| what | with | ns | adds | of bare | of empty |");
    println!("|---|---|---:|---:|---:|---:|");
    let only = place.arguments.task.clone().unwrap_or_default();
    let tasks = || TASKS.iter().filter(|task| task.name.contains(&only));
    for task in tasks() {
        print!("{}", measure(&place, task)?);
    }
    println!("\n| what | program | runs | ns a run |");
    println!("|---|---|---:|---:|");
    for task in tasks() {
        print!("{}", programs(&place, task)?);
    }
    println!();
    if place.arguments.task.is_some() {
        return Ok(());
    }
    load(&place)?;
    storm(&place)
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Every round measures all contenders, so that other activity on the machine affects them alike. A
/// figure is the median over the rounds of the time added within a round.
fn measure(place: &BenchLab, task: &BenchTask) -> Result<String> {
    let mut bare = Vec::new();
    if (task.run)(place)?.is_nan() {
        return Ok(format!("| {} | not here | | | | |\n", task.name));
    }
    let mut added: Vec<Vec<f64>> = vec![Vec::new(); task.contenders.len()];
    for _ in 0..place.arguments.rounds {
        let without = (task.run)(place)?;
        bare.push(without);
        for (contender, added) in task.contenders.iter().zip(&mut added) {
            let Some(running) = (contender.start)(place)? else {
                continue;
            };
            // Measured with and without in direct succession, so that both see the same conditions.
            let with = (task.run)(place)?;
            drop(running);
            let again = (task.run)(place)?;
            added.push(with - f64::midpoint(without, again).min(again));
        }
    }
    let bare = median(&mut bare);
    let mut out = String::new();
    writeln!(out, "| {} | nothing | {bare:.0} | | | |", task.name)?;
    let mut empty = None;
    for (contender, added) in task.contenders.iter().zip(&mut added) {
        if added.is_empty() {
            writeln!(out, "| | {} | not here | | | |", contender.name)?;
            continue;
        }
        let adds = median(added);
        let of_empty =
            empty.map_or_else(String::new, |empty: f64| format!("{:.2} ×", adds / empty));
        if contender.name.starts_with("empty") {
            empty = Some(adds);
        }
        writeln!(
            out,
            "| | {} | {:.0} | {adds:.0} | {:.1} % | {of_empty} |",
            contender.name,
            bare + adds,
            adds / bare * 100.0
        )?;
    }
    Ok(out)
}

/// The time of each program according to the kernel's statistics, which include their own overhead:
/// that of an empty program. On a noisy machine wall-clock time does not show a small share of a
/// task; this does.
fn programs(place: &BenchLab, task: &BenchTask) -> Result<String> {
    let _enabled = enable_stats(Stats::RunTime)?;
    let mut times: BTreeMap<String, (u64, Vec<f64>)> = BTreeMap::new();
    let ours = |contender: &&Contender| {
        contender.name.starts_with("empty") || contender.name == KEYTRAIL.name
    };
    for _ in 0..place.arguments.rounds {
        for contender in task.contenders.iter().filter(ours) {
            let others: BTreeSet<u32> = program_stats()?.into_keys().collect();
            let Some(running) = (contender.start)(place)? else {
                continue;
            };
            let before = program_stats()?;
            (task.run)(place)?;
            let after = program_stats()?;
            drop(running);
            for (id, (name, time, runs)) in after {
                let Some((_, time_before, runs_before)) = before.get(&id) else {
                    continue;
                };
                let runs = runs - runs_before;
                // A program with few runs does not belong to the task.
                if others.contains(&id) || runs < 100 {
                    continue;
                }
                let entry = times.entry(name).or_default();
                entry.0 += runs;
                entry
                    .1
                    .push((time - *time_before).as_nanos() as f64 / runs as f64);
            }
        }
    }
    let mut out = String::new();
    for (name, (runs, mut each)) in times {
        let typical = median(&mut each);
        writeln!(out, "| {} | `{name}` | {runs} | {typical:.0} |", task.name)?;
    }
    Ok(out)
}

/// Name, time and runs of every loaded program, by id.
fn program_stats() -> Result<BTreeMap<u32, (String, Duration, u64)>> {
    let mut accounts = BTreeMap::new();
    for program in loaded_programs() {
        // A program unloaded meanwhile is not ours.
        let Ok(program) = program else { continue };
        let name = program.name_as_str().unwrap_or_default().to_owned();
        accounts.insert(
            program.id(),
            (name, program.run_time(), program.run_count()),
        );
    }
    Ok(accounts)
}

struct BenchLab {
    arguments: BenchArguments,
    directory: tempfile::TempDir,
    files: Vec<PathBuf>,
    file_hook: String,
    sink: TcpListener,
    /// Present if there is a Python that can be observed.
    writer: Option<RefCell<TlsWriter>>,
}

/// A process that writes through OpenSSL on request.
struct TlsWriter {
    _running: ChildProcess,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    library: PathBuf,
}

impl TlsWriter {
    fn start(directory: &Path) -> Result<Self> {
        let certified = rcgen::generate_simple_self_signed(vec!["bench.example".to_owned()])?;
        let certificate = directory.join("server.pem");
        fs::write(
            &certificate,
            certified.cert.pem() + &certified.signing_key.serialize_pem(),
        )?;
        let mut child = Command::new("python3")
            .arg(lab::client("python_writes.py"))
            .arg(&certificate)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().context("its input")?;
        let mut output = BufReader::new(child.stdout.take().context("its output")?);
        let running = ChildProcess(child);
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "it has not begun");
        Ok(Self {
            _running: running,
            input,
            output,
            library: line.trim().into(),
        })
    }

    fn write(&mut self, task: &str) -> Result<f64> {
        writeln!(self.input, "{task}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }
}

impl BenchLab {
    fn new(arguments: BenchArguments) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let files: Vec<PathBuf> = (0..FILES)
            .map(|number| directory.path().join(format!("ordinary-file-{number}.txt")))
            .collect();
        for file in &files {
            fs::write(file, b"nothing secret")?;
        }
        let doctor = Command::new(binary()?)
            .args(["doctor", "--output", "json"])
            .output()?;
        let doctor: Value = serde_json::from_slice(&doctor.stdout).context("doctor's answer")?;
        let file_hook = doctor["probes"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|line| line["probe"] == "file" && line["attached"] == true)
            .and_then(|line| line["mechanism"].as_str())
            .context("no file probe is attached")?
            .to_owned();
        let sink = TcpListener::bind("127.0.0.1:0")?;
        let accepting = sink.try_clone()?;
        std::thread::spawn(move || {
            // Each connection is read to its end, one after the other.
            for stream in accepting.incoming().flatten() {
                drain(stream);
            }
        });
        let writer = match TlsWriter::start(directory.path()) {
            Ok(writer) => Some(RefCell::new(writer)),
            Err(error) => {
                eprintln!("no writes to OpenSSL: {error:#}");
                None
            }
        };
        Ok(Self {
            arguments,
            directory,
            files,
            file_hook,
            sink,
            writer,
        })
    }

    fn agent(&self) -> Result<Agent> {
        let state = tempfile::tempdir_in(self.directory.path())?.keep();
        Agent::start(&state, &[])
    }

    fn load_empty(&self) -> Result<Ebpf> {
        load_empty(&self.arguments.probes)
    }

    /// An empty program on the hook that the agent uses here.
    fn empty_open(&self) -> Result<BackgroundLoad> {
        let mut ebpf = self.load_empty()?;
        match self.file_hook.split('/').next() {
            Some("lsm") => {
                let program: &mut Lsm = program(&mut ebpf, "empty_lsm")?.try_into()?;
                program.load("file_open", &Btf::from_sys_fs()?)?;
                program.attach()?;
            }
            Some("fentry") => {
                let program: &mut FEntry = program(&mut ebpf, "empty_fentry")?.try_into()?;
                program.load("security_file_open", &Btf::from_sys_fs()?)?;
                program.attach()?;
            }
            Some("tracepoint") => {
                let program: &mut TracePoint =
                    program(&mut ebpf, "empty_tracepoint")?.try_into()?;
                program.load()?;
                program.attach("syscalls", "sys_exit_openat")?;
            }
            _ => return Ok(None),
        }
        Ok(Some(Box::new(ebpf)))
    }

    fn empty_process(&self) -> Result<BackgroundLoad> {
        let mut ebpf = self.load_empty()?;
        let program: &mut RawTracePoint = program(&mut ebpf, "empty_raw")?.try_into()?;
        program.load()?;
        for hook in [
            "sched_process_fork",
            "sched_process_exec",
            "sched_process_exit",
        ] {
            program.attach(hook)?;
        }
        Ok(Some(Box::new(ebpf)))
    }

    fn empty_egress(&self) -> Result<BackgroundLoad> {
        baseline::empty_egress(&self.arguments.probes)
    }

    fn empty_uprobe(&self) -> Result<BackgroundLoad> {
        match &self.writer {
            Some(writer) => {
                baseline::empty_uprobe(&self.arguments.probes, &writer.borrow().library)
            }
            None => Ok(None),
        }
    }

    fn tls_writes(&self, task: &str) -> Result<f64> {
        match &self.writer {
            Some(writer) => writer.borrow_mut().write(task),
            None => Ok(f64::NAN),
        }
    }

    fn opens(&self, files: usize) -> Result<f64> {
        timed(200, 500, |number| {
            drop(File::open(&self.files[number % files])?);
            Ok(())
        })
    }

    fn connects(&self, first: &[u8]) -> Result<f64> {
        let to = self.sink.local_addr()?;
        timed(2_000, 1, |_| {
            let mut stream = TcpStream::connect(to)?;
            stream.write_all(first)?;
            Ok(())
        })
    }

    fn writes(&self) -> Result<f64> {
        // A separate listener, because the connection stays open.
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut stream = TcpStream::connect(listener.local_addr()?)?;
        let (accepted, _) = listener.accept()?;
        std::thread::spawn(move || drain(accepted));
        stream.set_nodelay(true)?;
        // The first payloads of a connection are examined.
        for _ in 0..20 {
            stream.write_all(b"x")?;
        }
        timed(200, 100, |_| Ok(stream.write_all(b"x")?))
    }

    fn execs(&self, environment: usize) -> Result<f64> {
        let variables: Vec<(String, String)> = (0..environment / 64)
            .map(|number| (format!("ORDINARY_{number:05}"), "v".repeat(64 - 16)))
            .collect();
        timed(200, 1, |_| {
            let status = Command::new(&self.arguments.program)
                .arg("true")
                .env_clear()
                .envs(variables.iter().map(|(name, value)| (name, value)))
                .status()?;
            ensure!(status.success(), "the small program failed");
            Ok(())
        })
    }
}

/// Nanoseconds per operation, from many short runs of `each`: the lower decile, because
/// disturbances only add time.
fn timed(runs: usize, each: usize, mut work: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(runs);
    for run in 0..runs {
        let begin = Instant::now();
        for number in 0..each {
            work(run * each + number)?;
        }
        times.push(begin.elapsed().as_nanos() as f64 / each as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[runs / 10])
}

fn drain(mut stream: TcpStream) {
    let mut bytes = [0u8; 4096];
    while stream.read(&mut bytes).is_ok_and(|read| read > 0) {}
}

/// Like a TLS 1.3 client's: 517 bytes, with a server name.
fn client_hello() -> Vec<u8> {
    let name = b"bench.example";
    let mut extensions = vec![
        0,
        0,
        0,
        name.len() as u8 + 5,
        0,
        name.len() as u8 + 3,
        0,
        0,
        name.len() as u8,
    ];
    extensions.extend(name);
    let padding = 512 - 4 - 2 - 32 - 1 - 4 - 2 - 2 - extensions.len() - 4;
    extensions.extend([0, 21, (padding >> 8) as u8, padding as u8]);
    extensions.resize(extensions.len() + padding, 0);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

/// A child that is killed when dropped.
struct ChildProcess(Child);

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The kernel's audit of what the agent observes.
fn audit() -> Result<BackgroundLoad> {
    let places = ["/etc/shadow", "/root/.aws", "/root/.ssh", "/run/secrets"];
    let rules = places.iter().filter(|path| Path::new(path).exists());
    let rules: Vec<[&str; 4]> = rules.map(|path| ["-w", path, "-p", "r"]).collect();
    Ok(AuditRules::set(rules.iter().map(<[&str; 4]>::as_slice)))
}

/// CPU and memory of the agent, idle and under steady load.
fn load(place: &BenchLab) -> Result<()> {
    let begin = Instant::now();
    let agent = place.agent()?;
    println!(
        "- start to ready: {:.0} ms",
        begin.elapsed().as_secs_f64() * 1000.0
    );
    let length = Duration::from_secs(place.arguments.seconds);
    let before = ticks(agent.pid())?;
    std::thread::sleep(length);
    let idle = share(agent.pid(), before, length)?;
    println!(
        "- agent idle: {idle:.2} % of a core, {} KiB resident",
        resident(agent.pid())?
    );
    let over = Arc::new(AtomicBool::new(false));
    let (opened, connected) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let file = place.files[0].clone();
    let opener = steady(Arc::clone(&over), Arc::clone(&opened), 50_000, move || {
        drop(File::open(&file)?);
        Ok(())
    });
    let to = place.sink.local_addr()?;
    let connector = steady(
        Arc::clone(&over),
        Arc::clone(&connected),
        1_000,
        move || {
            TcpStream::connect(to)?.write_all(b"ping")?;
            Ok(())
        },
    );
    let before = ticks(agent.pid())?;
    let begin = Instant::now();
    std::thread::sleep(length);
    let passed = begin.elapsed();
    let busy = share(agent.pid(), before, passed)?;
    over.store(true, Ordering::Relaxed);
    for thread in [opener, connector] {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("a load panicked"))??;
    }
    let rate = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64 / passed.as_secs_f64();
    println!(
        "- agent at {:.0} opens/s of an ordinary file and {:.0} connects/s: {busy:.2} % of a core, {} KiB resident",
        rate(&opened),
        rate(&connected),
        resident(agent.pid())?
    );
    println!(
        "- events lost meanwhile: {}",
        agent.metric("keytrail_events_lost_total", &[])?
    );
    Ok(())
}

/// Repeats an action at a steady rate, in slices of 10 ms, until told to stop.
fn steady(
    over: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    rate: u64,
    work: impl Fn() -> Result<()> + Send + 'static,
) -> std::thread::JoinHandle<Result<()>> {
    std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            let slice = Instant::now();
            for _ in 0..rate / 100 {
                work()?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(rest) = Duration::from_millis(10).checked_sub(slice.elapsed()) {
                std::thread::sleep(rest);
            }
        }
        Ok(())
    })
}

/// Credential reads at full speed, with a concurrent fork storm.
fn storm(place: &BenchLab) -> Result<()> {
    let agent = place.agent()?;
    let key = aws_credentials(
        place.directory.path(),
        "AKIAFAKEBENCH0000001",
        "FAKE/bench/0000000000000000000000000001",
    )?;
    let actor = binary()?.with_file_name("lab-actor");
    let start = |storm: &str| -> Result<(ChildProcess, BufReader<std::process::ChildStdout>)> {
        let mut child = Command::new(&actor)
            .args(["--storm", storm, "--path"])
            .arg(&key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("its output")?);
        output.read_line(&mut String::new())?;
        Ok((ChildProcess(child), output))
    };
    let begin = Instant::now();
    let mut storms = [start("opens")?, start("forks")?];
    std::thread::sleep(Duration::from_secs(place.arguments.seconds));
    let mut counts = Vec::new();
    for (running, output) in &mut storms {
        drop(running.0.stdin.take());
        let mut line = String::new();
        output.read_line(&mut line)?;
        counts.push(line.trim().parse::<f64>()? / begin.elapsed().as_secs_f64());
    }
    let lost = |probe: &str| -> Result<f64> {
        agent.metric(
            "keytrail_events_lost_total",
            &[&format!("probe=\"{probe}\""), "stage=\"ring\""],
        )
    };
    let [reads, forks] = counts[..] else {
        bail!("two storms were counted")
    };
    println!(
        "- {reads:.0} credential reads/s beside {forks:.0} forks/s for {} s: lost {} of the file probe, {} of the process probe",
        place.arguments.seconds,
        lost("file")?,
        lost("process")?
    );
    let (within, all) = (
        agent.metric(
            "keytrail_detection_latency_seconds_bucket",
            &["le=\"0.05\""],
        )?,
        agent.metric("keytrail_detection_latency_seconds_count", &[])?,
    );
    println!("- from the event to its record within 50 ms: {within} of {all}");
    Ok(())
}

/// The share of a core, in percent, used by a process since it had this many ticks.
fn share(pid: u32, before: u64, passed: Duration) -> Result<f64> {
    // A tick is a hundredth of a second on every supported architecture.
    Ok((ticks(pid)? - before) as f64 / passed.as_secs_f64())
}

fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit(')').next().context("no stat")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let number =
        |index: usize| -> Result<u64> { Ok(fields.get(index).context("short stat")?.parse()?) };
    Ok(number(11)? + number(12)?)
}

fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
