//! Workloads that attack the agent: they must not stop it, blind it, or have it read for them.

use anyhow::{Context as _, Result, ensure};
use lab::{
    agent::{Agent, Surroundings, binary, children_of},
    server::TlsServer,
    treasure::{Treasure, stop_in_time},
    wait_for,
    web::WebServer,
    workload::{MemoryLimit, aws_credentials, sh},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The memory that a hardened installation gives the agent.
const MEMORY: u64 = 128 << 20;

/// A file system whose daemon answers nobody but `cat`; unmounted when dropped.
struct HoldingMount {
    daemon: Child,
    place: PathBuf,
}

impl HoldingMount {
    fn start(place: &Path) -> Result<Self> {
        fs::create_dir_all(place)?;
        sh("[ -e /dev/fuse ] || mknod /dev/fuse c 10 229", &[])?;
        let mut daemon = Command::new(binary()?.with_file_name("lab-fuse"))
            .arg(place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = daemon.stdout.take().context("its output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line == "mounted\n", "the daemon says {line:?}");
        Ok(Self {
            daemon,
            place: place.to_owned(),
        })
    }
}

impl Drop for HoldingMount {
    fn drop(&mut self) {
        // Whoever waits for it gets an error.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
    }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid.try_into()?).context("a pid")?;
    Ok(kill_process(pid, signal)?)
}

fn failures(agent: &Agent, reason: &str) -> Result<f64> {
    let label = format!("reason=\"{reason}\"");
    agent.metric("keytrail_reader_failures_total", &[&label])
}

/// The state of a process as `/proc` shows it; `None` if it is gone.
fn state_of(pid: u32) -> Option<char> {
    state_of_task(Path::new(&format!("/proc/{pid}")))
}

#[test]
fn a_file_system_that_answers_the_thief_but_not_the_agent() -> Result<()> {
    assert!(lab::is_root(), "it mounts a file system");
    let limit = MemoryLimit::new("hostile", MEMORY)?;
    let treasure = Treasure::new()?;
    let mut agent = treasure.agent(Some(&limit.path))?;
    let mount = HoldingMount::start(&treasure.directory.path().join("mnt"))?;
    let keys = format!("cat {}/{{0..9}}.key >/dev/null", mount.place.display());
    sh(&keys, &[])?;
    let first = treasure.steal(&agent)?;
    wait_for("a reader is abandoned", Duration::from_secs(5), || {
        Ok((failures(&agent, "abandoned")? > 0.0).then_some(()))
    })
    .with_context(|| agent.log_text())?;
    sh(&keys, &[])?;
    let second = treasure.steal(&agent)?;
    wait_for("the rest is refused", Duration::from_secs(5), || {
        Ok((failures(&agent, "refused")? >= 10.0).then_some(()))
    })?;
    assert_eq!(
        failures(&agent, "abandoned")?,
        1.0,
        "one hangs, the rest is not opened"
    );
    for theft in [first, second] {
        assert!(theft < Duration::from_secs(1), "found after {theft:?}");
    }
    assert_eq!(agent.get("/healthz")?.0, 200);
    // What was not read is known by its place, and a gap says so.
    let key = format!("{}/7.key", mount.place.display());
    let answer = agent.await_used(&key)?;
    let gaps = answer["gaps"].as_array().cloned().unwrap_or_default();
    assert!(
        gaps.iter().any(|gap| gap["kind"] == "unread"),
        "no gap: {answer}"
    );
    let stuck: Vec<u32> = agent
        .children()?
        .into_iter()
        .filter(|pid| state_of(*pid) == Some('D'))
        .collect();
    assert_eq!(stuck.len(), 1, "{stuck:?}");
    stop_in_time(&mut agent)?;
    drop(mount);
    wait_for("the reader ends", Duration::from_secs(5), || {
        Ok(state_of(stuck[0])
            .is_none_or(|state| state == 'Z')
            .then_some(()))
    })?;
    if let Some(peak) = limit.peak() {
        assert!(peak < MEMORY, "{peak} bytes");
    }
    Ok(())
}

#[test]
fn a_file_system_that_responds_again_is_read_again() -> Result<()> {
    assert!(lab::is_root(), "it mounts a file system");
    let treasure = Treasure::new()?;
    let agent = treasure.agent(None)?;
    let place = treasure.directory.path().join("mnt");
    let mount = HoldingMount::start(&place)?;
    sh(&format!("cat {}/0.key >/dev/null", place.display()), &[])?;
    wait_for("a reader is abandoned", Duration::from_secs(5), || {
        Ok((failures(&agent, "abandoned")? > 0.0).then_some(()))
    })?;
    // The daemon ends; another one serves files at the same place.
    drop(mount);
    let again = place.join(".aws");
    fs::create_dir_all(&again)?;
    aws_credentials(&place, "AKIAFAKEHOSTILE00002", "FAKE/hostile/2")?;
    sh(
        &format!("cat {}/credentials >/dev/null", again.display()),
        &[],
    )?;
    let id = agent.id_of("AKIAFAKEHOSTILE00002")?;
    agent.await_used(&id)?;
    Ok(())
}

/// Stops the processes that an agent starts, as soon as they are there, until it is dropped.
struct StoppedReaders {
    ends: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl StoppedReaders {
    fn of(pid: u32) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Acquire) {
                // The agent may have ended. One that has not begun the reader's program yet would
                // keep the agent's descriptors, and with them its probes.
                for reader in children_of(pid).unwrap_or_default() {
                    if is_reader(reader) {
                        let _ = signal(reader, Signal::STOP);
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self {
            ends,
            thread: Some(thread),
        }
    }
}

fn is_reader(pid: u32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).nth(1) == Some(b"reader")
}

impl Drop for StoppedReaders {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It cannot panic.
            let _ = thread.join();
        }
    }
}

/// What each thread of a process does.
fn threads(pid: u32) -> String {
    let of = |task: &Path, name: &str| {
        let text = fs::read_to_string(task.join(name)).unwrap_or_default();
        text.trim().to_owned()
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    tasks
        .flatten()
        .map(|task| {
            let task = task.path();
            let state = state_of_task(&task).unwrap_or('?');
            format!("{} {state} {}\n", of(&task, "comm"), of(&task, "syscall"))
        })
        .collect()
}

fn state_of_task(task: &Path) -> Option<char> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The readers, the ledger, the output, the log, the configuration and the state directory: none of
/// them responds, and what the probes report is processed all the same.
#[test]
fn everything_outside_the_agent_stops_responding() -> Result<()> {
    assert!(lab::is_root(), "it mounts a file system");
    let treasure = Treasure::new()?;
    let base = treasure.directory.path();
    let configuration = base.join("configuration");
    fs::create_dir(&configuration)?;
    let config = configuration.join("config.yaml");
    fs::copy(&treasure.config, &config)?;
    // A pipe that is full, and that nobody reads.
    let (_reader, writer) = std::io::pipe()?;
    let mut writer = File::from(OwnedFd::from(writer));
    rustix::io::ioctl_fionbio(&writer, true)?;
    while writer.write(&[b'\n'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false)?;
    let surroundings = Surroundings {
        stdout: Some(&writer),
        ..Surroundings::default()
    };
    let config = config.display().to_string();
    let mut agent = Agent::start_in(base, &["--config", &config], &surroundings)?;
    let lock = "import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=10)
connection.execute('begin exclusive')
print('locked', flush=True)
sys.stdin.read()";
    let mut holder = Command::new("python3")
        .args(["-c", lock])
        .arg(agent.state_dir.join("ledger.sqlite"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(holder.stdout.take().context("its output")?).read_line(&mut line)?;
    ensure!(line == "locked\n", "it says {line:?}");
    let stopped = StoppedReaders::of(agent.pid());
    let mounts = [
        HoldingMount::start(&configuration)?,
        HoldingMount::start(&agent.state_dir)?,
    ];
    let found = || agent.metric("keytrail_findings_total", &["rule=\"unexpected-reader\""]);
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    // The state directory is used every 30 s.
    while began.elapsed() < Duration::from_secs(35) {
        let before = found()?;
        let stole = Instant::now();
        treasure.thief()?;
        wait_for("the theft is counted", Duration::from_secs(10), || {
            Ok((found()? > before).then_some(()))
        })
        .with_context(|| format!("after {:?}: {}", began.elapsed(), threads(agent.pid())))?;
        slowest = slowest.max(stole.elapsed());
        ensure!(agent.get("/healthz")?.0 == 200);
    }
    println!("the slowest theft was found after {slowest:?}");
    ensure!(slowest < Duration::from_secs(5), "after {slowest:?}");
    // A process cannot end while one of its threads waits for a file system.
    drop(mounts);
    let began = Instant::now();
    let status = agent.stop()?;
    ensure!(status.success(), "{status}");
    let stopping = began.elapsed();
    ensure!(stopping < Duration::from_secs(12), "after {stopping:?}");
    drop(stopped);
    drop(holder.stdin.take());
    holder.wait()?;
    Ok(())
}

/// Each mount has a device of its own, so that one refusal is not enough.
#[test]
fn overlays_of_a_user_without_privileges_over_a_file_system_that_does_not_respond() -> Result<()> {
    assert!(lab::is_root(), "it mounts a file system");
    let treasure = Treasure::new()?;
    let mut agent = treasure.agent(None)?;
    let base = treasure.directory.path().join("layers");
    let mount = HoldingMount::start(&base.join("mnt"))?;
    let empty = base.join("empty");
    fs::create_dir_all(&empty)?;
    let overlay = format!(
        "mount -t overlay o -o lowerdir={mount}:{empty} {empty} && exec cat {empty}/0.key -",
        mount = mount.place.display(),
        empty = empty.display(),
    );
    // They stay, as their mounts end with them.
    let mut hostile = Vec::new();
    for _ in 0..4 {
        let mut child = Command::new("unshare")
            .args(["-U", "-r", "-m", "sh", "-c", &overlay])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        ensure!(line.contains("PRIVATE KEY"), "it says {line:?}");
        hostile.push(child);
    }
    wait_for("the rest is refused", Duration::from_secs(20), || {
        Ok((failures(&agent, "refused")? >= 2.0).then_some(()))
    })
    .with_context(|| agent.log_text())?;
    assert_eq!(failures(&agent, "abandoned")?, 2.0);
    // What those with privileges have mounted is read all the same, overlays included.
    let theft = treasure.steal(&agent)?;
    assert!(theft < Duration::from_secs(1), "found after {theft:?}");
    let image = base.join("image");
    aws_credentials(&image, "AKIAFAKEHOSTILE00003", "FAKE/hostile/3")?;
    let root = base.join("root");
    fs::create_dir_all(&root)?;
    let layers = format!("lowerdir={}:{}", image.display(), empty.display());
    let container = format!(
        "mount -t overlay o -o {layers} {root} && cat {root}/.aws/credentials >/dev/null",
        root = root.display(),
    );
    sh(&container, &[])?;
    let id = agent.id_of("AKIAFAKEHOSTILE00003")?;
    let used = agent.await_used(&id);
    sh(&format!("umount {}", root.display()), &[])?;
    used?;
    stop_in_time(&mut agent)?;
    drop(mount);
    for mut child in hostile {
        // Its input ends.
        drop(child.stdin.take());
        child.wait()?;
    }
    Ok(())
}

/// Hiding a secret behind too many others leaves a trace.
#[test]
fn what_is_too_large_to_be_examined_is_counted() -> Result<()> {
    let treasure = Treasure::new()?;
    let agent = treasure.agent(None)?;
    let base = treasure.directory.path();
    let netrc = base.join(".netrc");
    let many: String = (0..300)
        .map(|number| format!("machine h{number} login a password FAKE-many-{number}\n"))
        .collect();
    let latin = b"machine a login b password FAKE-text\nmachine c login d password FAKE-\xfc\n";
    let mut large = b"TOKEN=FAKE-large\n# ".to_vec();
    large.resize(2 << 20, b'x');
    let dotenv = base.join(".env");
    for (file, contents, reason) in [
        (&netrc, many.as_bytes(), "too-many-secrets"),
        (&netrc, latin, "not-text"),
        (&dotenv, &large, "too-large"),
    ] {
        fs::write(file, contents)?;
        sh(&format!("cat {} >/dev/null", file.display()), &[])?;
        wait_for(reason, Duration::from_secs(5), || {
            Ok((failures(&agent, reason)? > 0.0).then_some(()))
        })
        .with_context(|| agent.log_text())?;
    }
    for known in ["FAKE-many-0", "FAKE-text", "FAKE-large"] {
        agent.await_used(&agent.id_of(known)?)?;
    }
    let lost = || {
        let labels = ["probe=\"environ\"", "stage=\"read\""];
        agent.metric("keytrail_events_lost_total", &labels)
    };
    let before = lost()?;
    let names: Vec<String> = (0..5000).map(|number| format!("NAME_{number}")).collect();
    let status = Command::new("true")
        .env_clear()
        .envs(names.iter().map(|name| (name, "x")))
        .status()?;
    ensure!(status.success(), "{status}");
    wait_for("variables are counted", Duration::from_secs(5), || {
        Ok((lost()? > before).then_some(()))
    })?;
    Ok(())
}

/// The first name was constructed to have the second one's hash, as long as hashes had no key: what
/// was remembered of it hid the other.
#[test]
fn a_name_that_was_constructed_to_hide_another() -> Result<()> {
    let treasure = Treasure::new()?;
    let agent = treasure.agent(None)?;
    let secrets: Vec<String> = (0..20)
        .map(|number| format!("FAKE-collision-{number:04}"))
        .collect();
    for secret in &secrets {
        let script = "DB_P3NOXAA0=plain-value /bin/true; DB_PASSWORD=$SECRET /bin/true";
        sh(script, &[("SECRET", secret)])?;
    }
    for secret in &secrets {
        agent.await_used(&agent.id_of(secret)?)?;
    }
    Ok(())
}

/// Somebody sends a token as a part of a host name, over TLS and in plaintext: it must be in no
/// output, and one that is known was used there.
#[test]
fn a_token_in_a_host_name() -> Result<()> {
    const MARKED: &str = "ghp_FAKE0host0name0FAKE0host0name0FAKE00";
    const KNOWN: &str = "FAKEknownInAName0001";
    let treasure = Treasure::new()?;
    let agent = treasure.agent(None)?;
    sh("BAO_TOKEN=$SECRET /bin/true", &[("SECRET", KNOWN)])?;
    agent.await_used(&agent.id_of(KNOWN)?)?;
    let tls = TlsServer::start("127.0.0.1")?;
    let web = WebServer::start_plain("127.0.0.1")?;
    let (tls_port, web_port) = (tls.address.port(), web.address.port());
    // The plaintext probe reports names in lower case, in which one without a mark is not known.
    let lower = KNOWN.to_ascii_lowercase();
    sh("BAO_TOKEN=$SECRET /bin/true", &[("SECRET", &lower)])?;
    agent.await_used(&agent.id_of(&lower)?)?;
    for secret in [MARKED, KNOWN] {
        sh(
            &format!(
                "openssl s_client -connect 127.0.0.1:{tls_port} -servername {secret}.tls.example </dev/null || true"
            ),
            &[],
        )?;
        let host = format!("{secret}.web.example");
        sh(
            &format!(
                "curl -s -o /dev/null --resolve {host}:{web_port}:127.0.0.1 http://{host}:{web_port}/"
            ),
            &[],
        )?;
    }
    agent.await_json(&["query", "where", &agent.id_of(KNOWN)?], |answer| {
        let hops = answer["hops"].as_array().cloned().unwrap_or_default();
        hops.iter().any(|hop| {
            let place = &hop["destination"];
            hop["evidence"] == "presented"
                && place["name"] == "(secret).tls.example"
                && place["port"] == tls_port
        })
    })?;
    agent.await_presented(&lower, Duration::from_secs(5), || Ok(()))?;
    ensure_in_no_output(&agent, &[MARKED, KNOWN])
}

/// Somebody puts tokens into the path of a credential and of a program, and into the names of a
/// variable and of a library that cannot be attached to.
#[test]
fn a_token_in_a_path_and_in_the_name_of_a_variable() -> Result<()> {
    const MARKED: &str = "ghp_FAKE0path0name0FAKE0path0name0FAKE00";
    const KNOWN: &str = "FAKEknownInAPath0001";
    let treasure = Treasure::new()?;
    let agent = treasure.agent(None)?;
    sh("BAO_TOKEN=$SECRET /bin/true", &[("SECRET", KNOWN)])?;
    agent.await_used(&agent.id_of(KNOWN)?)?;
    let directory = tempfile::tempdir()?;
    let home = directory.path().join(MARKED).join(KNOWN);
    let key = "AKIAFAKEPATHNAME0001";
    let path = aws_credentials(&home, key, "FAKE/hostile/path")?;
    // A program of that name: the kernel shows the start of it as the name of the process.
    let program = directory.path().join(MARKED).join(MARKED);
    fs::copy("/bin/cat", &program)?;
    sh(
        &format!("{} {} >/dev/null", program.display(), path.display()),
        &[],
    )?;
    let variable = format!("{}_TOKEN", MARKED.to_uppercase());
    const VALUE: &str = "FAKE-value-of-a-variable";
    sh(
        &format!("env {variable}=$SECRET /bin/true"),
        &[("SECRET", VALUE)],
    )?;
    let used = agent.await_used(&agent.id_of(key)?)?["uses"][0].clone();
    let place = used["place"].as_str().unwrap_or_default();
    ensure!(
        place.ends_with("/(github-token)/(secret)/.aws/credentials"),
        "{used:#}"
    );
    let shown = used["process"].clone();
    ensure!(
        shown["comm"] == "(github-token)"
            && shown["exe"]
                .as_str()
                .is_some_and(|exe| exe.ends_with("/(github-token)/(github-token)")),
        "{shown:#}"
    );
    let used = agent.await_used(&agent.id_of(VALUE)?)?["uses"][0].clone();
    assert_eq!(used["place"], "env:(github-token)", "{used:#}");
    // Its first bytes, too, are in nobody's name.
    ensure_in_no_output(&agent, &[&MARKED[..15], KNOWN])
}

/// None of some secrets is in the agent's files and answers, after everything was written.
fn ensure_in_no_output(agent: &Agent, secrets: &[&str]) -> Result<()> {
    let mut outputs = vec![
        agent.log_text(),
        agent.get("/metrics")?.1,
        fs::read_to_string(&agent.findings)?,
        agent.get("/api/v1/hops?limit=500")?.1,
        agent.get("/api/v1/timeline")?.1,
    ];
    for entry in fs::read_dir(&agent.state_dir)? {
        let bytes = fs::read(entry?.path()).unwrap_or_default();
        outputs.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    for secret in secrets {
        for output in &outputs {
            let lower = output.to_ascii_lowercase();
            let found = lower.find(&secret.to_ascii_lowercase());
            ensure!(
                found.is_none(),
                "{secret} is in an output: {}",
                found.map_or("", |at| lower.get(at.saturating_sub(200)..at).unwrap_or(""))
            );
        }
    }
    Ok(())
}

#[test]
fn a_reader_that_is_killed_again_and_again() -> Result<()> {
    let treasure = Treasure::new()?;
    let agent = treasure.agent(None)?;
    for number in 0..10 {
        for reader in agent.children()? {
            // It may have ended since.
            sh(&format!("kill -9 {reader} || true"), &[])?;
        }
        let key = format!("AKIAFAKEKILLED{number:06}");
        let home = treasure.directory.path().join(number.to_string());
        let path = aws_credentials(&home, &key, "FAKE/hostile/3")?;
        let id = agent.id_of(&key)?;
        // A read that no reader survived is known by its place.
        let read = format!("cat {} >/dev/null", path.display());
        sh(&read, &[])?;
        agent.await_used(&path.display().to_string())?;
        wait_for("the key is read", Duration::from_secs(5), || {
            let known = agent.json(&["query", "who", &id])?;
            if known.is_none() {
                sh(&read, &[])?;
            }
            Ok(known.map(drop))
        })?;
    }
    assert_eq!(agent.get("/healthz")?.0, 200);
    assert!(treasure.steal(&agent)? < Duration::from_secs(1));
    Ok(())
}

#[test]
fn a_recycled_pid_of_a_reader_is_observed() -> Result<()> {
    let treasure = Treasure::new()?;
    let agent = treasure.agent(None)?;
    let home = treasure.directory.path().join("recycled");
    let path = aws_credentials(&home, "AKIAFAKERECYCLED0001", "FAKE/hostile/4")?;
    let readers = agent.children()?;
    let reader = *readers.first().context("no reader")?;
    for reader in &readers {
        sh(&format!("kill -9 {reader}"), &[])?;
    }
    // The agent notices with its next read or inspection.
    wait_for("the reader's pid is free", Duration::from_secs(5), || {
        treasure.steal(&agent)?;
        Ok(state_of(reader).is_none().then_some(()))
    })?;
    let script = format!(
        "echo {} > /proc/sys/kernel/ns_last_pid; cat {} >/dev/null & echo $!; wait",
        reader - 1,
        path.display()
    );
    wait_for("a process with that pid", Duration::from_secs(20), || {
        let output = sh(&script, &[])?;
        let pid: u32 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        Ok((pid == reader).then_some(()))
    })?;
    let id = agent.id_of("AKIAFAKERECYCLED0001")?;
    agent.await_used(&id)?;
    Ok(())
}

/// A directory of user nobody, and a directory of root that nobody may not enter.
fn two_homes(base: &Path) -> Result<(PathBuf, PathBuf)> {
    let (thief, victim) = (base.join("thief"), base.join("victim"));
    for (home, key) in [
        (&thief, "AKIAFAKETHIEF0000001"),
        (&victim, "AKIAFAKEVICTIM000001"),
    ] {
        aws_credentials(home, key, "FAKE/hostile/5")?;
    }
    sh(
        &format!(
            "chmod 755 {0}; chown -R nobody {1}; chmod 700 {2}",
            base.display(),
            thief.display(),
            victim.display()
        ),
        &[],
    )?;
    Ok((thief, victim))
}

#[test]
fn a_directory_that_is_swapped_before_the_agent_reads() -> Result<()> {
    let treasure = Treasure::new()?;
    let agent = treasure.agent(None)?;
    let base = treasure.directory.path();
    let (thief, victim) = two_homes(base)?;
    let stopped = |signal: &str| -> Result<()> {
        for reader in agent.children()? {
            sh(&format!("kill -{signal} {reader}"), &[])?;
        }
        Ok(())
    };
    for swap in [
        // A link to the victim's directory.
        format!(
            "mv {0} {0}.away && ln -s {1} {0}",
            thief.display(),
            victim.display()
        ),
        // The directory itself, which only root could put there.
        format!("rm {0}; mv {1} {0}", thief.display(), victim.display()),
    ] {
        // Readers are busy, as they can be kept by other files.
        stopped("STOP")?;
        let read = format!(
            "setpriv --reuid nobody --clear-groups cat {}/.aws/credentials",
            thief.display()
        );
        let away = format!("{0}.away", thief.display());
        if Path::new(&away).exists() {
            // Opened under its own name again.
            sh(
                &format!("mv {0} {0}.link; mv {away} {0}", thief.display()),
                &[],
            )?;
            sh(&read, &[])?;
            sh(
                &format!("mv {0} {away}; mv {0}.link {0}", thief.display()),
                &[],
            )?;
        } else {
            sh(&read, &[])?;
        }
        sh(&swap, &[])?;
        stopped("CONT")?;
    }
    // Both reads are known by their place.
    let place = format!("{}/.aws/credentials", thief.display());
    agent.await_used(&place)?;
    // What the agent reads afterwards has its answer, so it has dealt with the others.
    treasure.steal(&agent)?;
    let stolen = agent.id_of("AKIAFAKEVICTIM000001")?;
    let known = agent.json(&["query", "who", &stolen])?;
    assert!(
        known.is_none(),
        "the agent read the victim's file: {known:?}"
    );
    wait_for("both reads are refused", Duration::from_secs(5), || {
        let refused = failures(&agent, "unreadable")? + failures(&agent, "replaced")?;
        Ok((refused >= 2.0).then_some(()))
    })
}

#[test]
fn readers_have_few_rights() -> Result<()> {
    let treasure = Treasure::new()?;
    let agent = treasure.agent(None)?;
    treasure.steal(&agent)?;
    let readers = agent.children()?;
    assert!(!readers.is_empty());
    for reader in readers {
        let status = fs::read_to_string(format!("/proc/{reader}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim_start_matches(':').trim().to_owned())
        };
        assert_eq!(
            field("Seccomp").as_deref(),
            Some("2"),
            "system calls are filtered"
        );
        assert_eq!(field("NoNewPrivs").as_deref(), Some("1"));
        // DAC_READ_SEARCH, SYS_PTRACE, SYS_ADMIN and CHECKPOINT_RESTORE.
        let held = u64::from_str_radix(&field("CapEff").context("capabilities")?, 16)?;
        assert_eq!(
            held & !(1 << 2 | 1 << 19 | 1 << 21 | 1 << 40),
            0,
            "{held:x}"
        );
        let limits = fs::read_to_string(format!("/proc/{reader}/limits"))?;
        let limited = |name: &str| {
            let line = limits.lines().find(|line| line.starts_with(name));
            line.is_some_and(|line| !line[name.len()..].trim().starts_with("unlimited"))
        };
        for name in [
            "Max address space",
            "Max open files",
            "Max file size",
            "Max core file size",
        ] {
            assert!(limited(name), "{name}: {limits}");
        }
        let environment = fs::read(format!("/proc/{reader}/environ"))?;
        let variables = environment
            .split(|byte| *byte == 0)
            .filter(|entry| !entry.is_empty());
        assert_eq!(
            variables.count(),
            1,
            "{}",
            String::from_utf8_lossy(&environment)
        );
    }
    Ok(())
}
