//! Evasions of a monitor, each tried for real. Either a scenario is observed, or the gap that hides
//! it is declared by `keytrail doctor` on this kernel; anything else is a failure. The same
//! scenarios run on this machine and in virtual machines with other kernels, and each result is
//! written to the file named by `KEYTRAIL_COVERAGE`, one JSON object per line.

use anyhow::{Context as _, Result, bail, ensure};
use lab::{
    agent::{Agent, binary},
    server::TlsServer,
    workload::{TestUnit, aws_credentials, sh},
};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, UdpSocket},
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};
use tempfile::TempDir;

/// The result of a scenario.
enum EvasionResult {
    Seen,
    /// Not observed, and declared by `doctor` in these words.
    Gap(&'static str),
    /// This machine lacks what the scenario needs.
    NotHere(String),
}

type EvasionFn = fn(&EvasionLab) -> Result<EvasionResult>;

/// Name, name prefix of the programs concerned, and the scenario.
const SCENARIOS: &[(&str, &str, EvasionFn)] = &[
    ("a file is opened by its name", "file_open", |s| {
        s.read("open", TestKey::plain)
    }),
    ("through a symbolic link", "file_open", |s| {
        s.read("open", TestKey::symlink)
    }),
    ("by a relative path", "file_open", relative),
    (
        "by a process that has just opened it to write",
        "file_open",
        written,
    ),
    ("with openat2", "file_open", |s| {
        s.read("openat2", TestKey::plain)
    }),
    ("by file handle", "file_open", |s| {
        s.read("handle", TestKey::plain)
    }),
    (
        "through a hard link, read before under its name",
        "file_open",
        |s| s.read("open", TestKey::hard_link),
    ),
    (
        "through a hard link, never read under its name",
        "file_open",
        |s| s.read("open", TestKey::early_link),
    ),
    ("after a rename", "file_open", |s| {
        s.read("open", TestKey::renamed)
    }),
    ("mounted under another name", "file_open", mounted_away),
    (
        "an ordinary file mounted over it",
        "file_open",
        mounted_in_place,
    ),
    ("below a path longer than a record", "file_open", deep),
    ("on an overlay, once", "file_open", on_overlay),
    ("with io_uring", "file_open", |s| {
        s.read("uring", TestKey::plain)
    }),
    ("a descriptor from a socket", "file_receive", |s| {
        s.read("received", TestKey::plain)
    }),
    (
        "a descriptor from before a change of user",
        "file_inherited",
        inherited,
    ),
    ("through /proc/PID/fd", "file_open", |s| {
        s.read("proc-fd", TestKey::plain)
    }),
    ("through /proc/PID/root", "file_open", |s| {
        s.read("open", TestKey::by_root)
    }),
    (
        "read in one thread, connected in another",
        "file_open",
        |s| s.read("thread", TestKey::plain),
    ),
    ("a projected volume that is rotated", "file_open", rotated),
    ("a reused inode number", "file_open", reused),
    ("an executable in memory", "process_exec", in_memory),
    ("an executable that is deleted", "process_exec", deleted),
    (
        "a short-lived child, and its environment",
        "environ_",
        short_lived,
    ),
    ("connected with io_uring", "connect_v4", |s| {
        s.connect("uring")
    }),
    ("connected with TCP fast open", "connect_v4", |s| {
        s.connect("fast-open")
    }),
    ("a connected datagram socket", "connect_v4", datagrams),
    ("IPv4 in IPv6", "connect_v6", mapped),
    (
        "a connection that is refused is no hop",
        "connect_outcome",
        refused,
    ),
    ("a ClientHello larger than a packet", "hello_", |s| {
        s.connect("large")
    }),
    ("a ClientHello cut over several writes", "hello_", |s| {
        s.connect("cut")
    }),
    ("the environ of another process", "file_open", |s| {
        s.look("environ")
    }),
    (
        "the environ of another process, by its thread",
        "file_open",
        |s| s.look("task"),
    ),
    (
        "the environ of another process, in another procfs",
        "memory_",
        other_procfs,
    ),
    ("the mem of another process", "file_open", |s| s.look("mem")),
    ("process_vm_readv", "memory_", |s| s.look("vm-readv")),
    ("ptrace", "memory_", |s| s.look("ptrace")),
];

struct EvasionLab {
    agent: Agent,
    server: TlsServer,
    directory: TempDir,
    doctor: Value,
    number: AtomicU32,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(None)).exit_code();
    }
    match EvasionLab::new() {
        Ok(scene) => libtest_mimic::run(&arguments, trials(Some(Arc::new(scene)))).exit_code(),
        Err(error) => {
            eprintln!("the scene is not set: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn trials(scene: Option<Arc<EvasionLab>>) -> Vec<Trial> {
    // One scenario at a time: each is evaluated by its own effects.
    let turn = Arc::new(Mutex::new(()));
    SCENARIOS
        .iter()
        .map(|(name, program, run)| {
            let (scene, turn) = (scene.clone(), Arc::clone(&turn));
            Trial::test(*name, move || {
                let _turn = turn
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                let scene = scene.as_ref().ok_or_else(|| Failed::from("no scene"))?;
                scene
                    .judge(name, program, *run)
                    .map_err(|error| Failed::from(format!("{error:#}")))
            })
        })
        .collect()
}

impl EvasionLab {
    fn new() -> Result<Self> {
        ensure!(lab::is_root(), "the scenarios need root");
        let doctor = Command::new(binary()?)
            .args(["doctor", "--output", "json"])
            .output()?;
        let doctor: Value = serde_json::from_slice(&doctor.stdout).context("doctor's answer")?;
        ensure!(
            !doctor.to_string().contains("its prototype"),
            "a hook is not what the programs take it for: {doctor}"
        );
        let directory = tempfile::Builder::new()
            .prefix("keytrail-lab-")
            .tempdir_in("/var/tmp")?;
        // Other users must be able to access it.
        fs::set_permissions(
            directory.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        Ok(Self {
            agent: Agent::start(directory.path(), &[])?,
            server: TlsServer::start("127.0.0.1")?,
            directory,
            doctor,
            number: AtomicU32::new(1),
        })
    }

    fn judge(&self, name: &str, program: &str, run: EvasionFn) -> Result<()> {
        let came = run(self)?;
        let mechanism = self.mechanism(program);
        let (result, detail) = match &came {
            EvasionResult::Seen => ("seen", mechanism),
            EvasionResult::Gap(words) => ("gap", (*words).to_owned()),
            EvasionResult::NotHere(why) => ("not here", why.clone()),
        };
        println!("{name}: {result} ({detail})");
        if let Some(path) = std::env::var_os("KEYTRAIL_COVERAGE") {
            let line = json!({ "scenario": name, "result": result, "detail": detail });
            writeln!(
                fs::File::options().create(true).append(true).open(path)?,
                "{line}"
            )?;
        }
        Ok(())
    }

    /// The hook of the first such program that `doctor` lists.
    fn mechanism(&self, program: &str) -> String {
        let probes = self.doctor["probes"].as_array();
        probes
            .into_iter()
            .flatten()
            .find(|line| {
                line["attached"] == true
                    && line["program"]
                        .as_str()
                        .is_some_and(|name| name.starts_with(program))
            })
            .and_then(|line| line["mechanism"].as_str())
            .unwrap_or("none")
            .to_owned()
    }

    /// Whether `doctor` declares a gap in these words.
    fn declares(&self, words: &str) -> bool {
        self.doctor["missed"].as_array().is_some_and(|gaps| {
            gaps.iter()
                .any(|gap| gap.as_str().is_some_and(|gap| gap.contains(words)))
        })
    }

    fn key(&self) -> Result<TestKey> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let home = self.directory.path().join(format!("home-{number}"));
        fs::create_dir_all(&home)?;
        fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let path = write_key(&home, number)?;
        Ok(TestKey { number, home, path })
    }

    fn actor(&self) -> Result<PathBuf> {
        let name = "lab-actor";
        Ok(binary()?.with_file_name(name))
    }

    /// A command line of the actor that connects to a name of its own.
    fn act(&self, arguments: &str, connect: &str, name: &str) -> Result<String> {
        Ok(self.act_as(&self.actor()?, arguments, connect, name))
    }

    /// As [`act`](Self::act), for a copy of the actor.
    fn act_as(&self, actor: &Path, arguments: &str, connect: &str, name: &str) -> String {
        format!(
            "{} {arguments} --connect {connect} --to {} --name {name}",
            actor.display(),
            self.server.address
        )
    }

    /// Reads a key in some way, connects, and waits for the actor's hop.
    fn read(
        &self,
        get: &str,
        prepare: fn(&TestKey, &Self) -> Result<PathBuf>,
    ) -> Result<EvasionResult> {
        let key = self.key()?;
        let path = prepare(&key, self)?;
        let unit = TestUnit::new(&format!("evade-{}.service", key.number))?;
        let gap = match get {
            "uring" => "files opened through io_uring",
            "received" => "received from another process",
            _ => "",
        };
        let line = self.act(
            &format!("--get {get} --path '{}'", path.display()),
            "tls",
            &key.host(),
        )?;
        if let Err(error) = unit.sh(&line, &[]) {
            // A kernel without io_uring, or with io_uring disabled.
            if get == "uring" && format!("{error:#}").contains("io_uring") {
                return Ok(EvasionResult::NotHere(
                    format!("{error:#}").replace('\n', " "),
                ));
            }
            return Err(error);
        }
        if !gap.is_empty()
            && self.declares(gap)
            && !(get == "uring" && self.declares("direct descriptor"))
        {
            return Ok(EvasionResult::Gap(gap));
        }
        self.hop(&key, &unit_name(&key))
    }

    /// Waits for the hop of a key to the name that only its scenario uses.
    fn hop(&self, key: &TestKey, unit: &str) -> Result<EvasionResult> {
        let answer = self
            .agent
            .await_json(&["query", "where", &key.id()], |answer| {
                hop_of(answer, key, unit).is_some()
            })?;
        let hop = hop_of(&answer, key, unit).context("the hop")?;
        ensure!(hop["evidence"] == "sole", "{hop}");
        Ok(EvasionResult::Seen)
    }

    /// Connects in some way with a key that was read normally.
    fn connect(&self, connect: &str) -> Result<EvasionResult> {
        let key = self.key()?;
        let unit = TestUnit::new(&unit_name(&key))?;
        let line = self.act(
            &format!("--get open --path '{}'", key.path.display()),
            connect,
            &key.host(),
        )?;
        if let Err(error) = unit.sh(&line, &[]) {
            let text = format!("{error:#}").replace('\n', " ");
            if text.contains("io_uring") || text.contains("MSG_FASTOPEN") {
                return Ok(EvasionResult::NotHere(text));
            }
            bail!(text);
        }
        self.hop(&key, &unit_name(&key))
    }

    /// Has one workload read another, which holds a token.
    fn look(&self, look: &str) -> Result<EvasionResult> {
        self.look_in(look, "/proc")
    }

    fn look_in(&self, look: &str, procfs: &str) -> Result<EvasionResult> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let victim = format!("victim-{number}.service");
        let thief = format!("thief-{number}.service");
        let (victim_unit, thief_unit) = (TestUnit::new(&victim)?, TestUnit::new(&thief)?);
        let token = format!("ghp_FAKEevadeFAKEevadeFAKEevadeFA{number:07}");
        let mut held = TokenHolder::start(self, &victim_unit, &token)?;
        // Reading oneself is not a finding.
        let actor = self.actor()?;
        thief_unit.sh(
            &format!("{} --look itself", actor.display()),
            &[("GH_TOKEN", &token)],
        )?;
        let line = format!(
            "{} --look {look} --pid {} --address {} --procfs {procfs}",
            actor.display(),
            held.child.id(),
            held.address
        );
        thief_unit.sh(&line, &[])?;
        let finding = self.agent.await_finding(|finding| {
            finding["rule"] == "foreign-process-read"
                && finding["workload"]["unit"] == thief.as_str()
        })?;
        held.end()?;
        ensure!(finding["severity"] == "high", "{finding}");
        ensure!(
            finding["credential"]["class"] == "github-token",
            "{finding}"
        );
        let summary = finding["summary"].as_str().unwrap_or_default();
        ensure!(summary.contains(&victim), "the victim is named: {summary}");
        let by_itself = self.agent.findings()?.into_iter().any(|finding| {
            finding["rule"] == "foreign-process-read"
                && finding["workload"]["unit"] == victim.as_str()
        });
        ensure!(!by_itself, "a process that looks at itself is nothing");
        Ok(EvasionResult::Seen)
    }
}

fn unit_name(key: &TestKey) -> String {
    format!("evade-{}.service", key.number)
}

fn hop_of<'a>(answer: &'a Value, key: &TestKey, unit: &str) -> Option<&'a Value> {
    answer["hops"].as_array()?.iter().find(|hop| {
        hop["destination"]["name"] == key.host().as_str()
            && (unit.is_empty() || hop["workload"]["unit"] == unit)
    })
}

/// A process with a token in its environment, which waits.
struct TokenHolder {
    child: Child,
    address: String,
}

impl TokenHolder {
    fn start(scene: &EvasionLab, unit: &TestUnit, token: &str) -> Result<Self> {
        let mut child = unit
            .command(&format!("exec {} --wait", scene.actor()?.display()))
            .env("GH_TOKEN", token)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut address)?;
        Ok(Self {
            child,
            address: u64::from_str_radix(address.trim().trim_start_matches("0x"), 16)?.to_string(),
        })
    }

    fn end(&mut self) -> Result<()> {
        drop(self.child.stdin.take());
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for TokenHolder {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An AWS key of one scenario.
struct TestKey {
    number: u32,
    home: PathBuf,
    path: PathBuf,
}

impl TestKey {
    fn host(&self) -> String {
        format!("evade-{}.example", self.number)
    }

    /// The name for queries: the path under which the agent first recognises it.
    fn id(&self) -> String {
        self.path.display().to_string()
    }

    fn plain(&self, _: &EvasionLab) -> Result<PathBuf> {
        Ok(self.path.clone())
    }

    fn symlink(&self, _: &EvasionLab) -> Result<PathBuf> {
        let link = self.home.join("innocent");
        symlink(&self.path, &link)?;
        Ok(link)
    }

    fn hard_link(&self, scene: &EvasionLab) -> Result<PathBuf> {
        self.read_once(scene)?;
        self.early_link(scene)
    }

    fn early_link(&self, scene: &EvasionLab) -> Result<PathBuf> {
        // By now the agent has observed the write, because records are ordered.
        scene.settled()?;
        let link = self.home.join("innocent");
        fs::hard_link(&self.path, &link)?;
        Ok(link)
    }

    fn renamed(&self, scene: &EvasionLab) -> Result<PathBuf> {
        self.read_once(scene)?;
        let other = self.home.join("innocent");
        fs::rename(&self.path, &other)?;
        Ok(other)
    }

    fn by_root(&self, _: &EvasionLab) -> Result<PathBuf> {
        let inside = self.path.strip_prefix("/")?;
        Ok(Path::new("/proc")
            .join(std::process::id().to_string())
            .join("root")
            .join(inside))
    }

    /// It is read once by its name, so that the agent knows it.
    fn read_once(&self, scene: &EvasionLab) -> Result<()> {
        sh(&format!("cat '{}' >/dev/null", self.path.display()), &[])?;
        scene
            .agent
            .await_json(&["query", "who", &self.id()], |answer| {
                answer["uses"]
                    .as_array()
                    .is_some_and(|uses| !uses.is_empty())
            })?;
        Ok(())
    }
}

impl EvasionLab {
    /// Waits until the agent has processed everything that happened before this call.
    fn settled(&self) -> Result<()> {
        self.key()?.read_once(self)
    }
}

fn relative(scene: &EvasionLab) -> Result<EvasionResult> {
    let key = scene.key()?;
    let unit = TestUnit::new(&unit_name(&key))?;
    let line = scene.act("--get open --path credentials", "tls", &key.host())?;
    unit.sh(&format!("cd '{}/.aws' && {line}", key.home.display()), &[])?;
    scene.hop(&key, &unit_name(&key))
}

fn written(scene: &EvasionLab) -> Result<EvasionResult> {
    let key = scene.key()?;
    let unit = TestUnit::new(&unit_name(&key))?;
    let line = scene.act(
        &format!("--get open --path '{}'", key.path.display()),
        "tls",
        &key.host(),
    )?;
    let path = key.path.display();
    unit.sh(&format!("exec 3>>'{path}'; exec 3>&-; exec {line}"), &[])?;
    scene.hop(&key, &unit_name(&key))
}

/// The path is truncated: the credential is known by the end of its path, and its use is observed.
fn deep(scene: &EvasionLab) -> Result<EvasionResult> {
    let key = scene.key()?;
    let unit = TestUnit::new(&unit_name(&key))?;
    let mut directory = key.home.clone();
    for level in 0..40 {
        directory.push(format!("a-directory-with-a-rather-long-name-{level:04}"));
    }
    fs::create_dir_all(directory.join(".aws"))?;
    let path = directory.join(".aws/credentials");
    fs::copy(&key.path, &path)?;
    let line = scene.act(
        &format!("--get open --path '{}'", path.display()),
        "tls",
        &key.host(),
    )?;
    unit.sh(&line, &[])?;
    let radius =
        scene
            .agent
            .await_json(&["query", "blast-radius", &unit_name(&key)], |answer| {
                answer["credentials"]
                    .as_array()
                    .is_some_and(|found| !found.is_empty())
            })?;
    let credential = &radius["credentials"][0]["credential"];
    ensure!(credential["class"] == "aws-access-key", "{radius}");
    let id = credential["id"].as_str().context("an id")?;
    let answer = scene.agent.await_json(&["query", "where", id], |answer| {
        hop_of(answer, &key, &unit_name(&key)).is_some()
    })?;
    let place = answer["credentials"][0]["sources"][0]["place"]
        .as_str()
        .unwrap_or_default();
    ensure!(
        place.starts_with("/…/") && place.ends_with("/.aws/credentials"),
        "{answer}"
    );
    Ok(EvasionResult::Seen)
}

/// In a mount namespace of its own, which is gone when the agent looks.
fn mounted_away(scene: &EvasionLab) -> Result<EvasionResult> {
    let key = scene.key()?;
    let unit = TestUnit::new(&unit_name(&key))?;
    let other = key.home.join("innocent");
    fs::write(&other, "")?;
    let line = scene.act(
        &format!("--get open --path '{}'", other.display()),
        "tls",
        &key.host(),
    )?;
    let script = format!(
        "unshare -m bash -c \"mount --bind '{}' '{}' && exec {line}\"",
        key.path.display(),
        other.display()
    );
    unit.sh(&script, &[])?;
    scene.hop(&key, &unit_name(&key))
}

fn mounted_in_place(scene: &EvasionLab) -> Result<EvasionResult> {
    let mut key = scene.key()?;
    let unit = TestUnit::new(&unit_name(&key))?;
    let innocent = key.home.join("innocent");
    fs::rename(&key.path, &innocent)?;
    fs::create_dir_all(key.home.join("there/.aws"))?;
    let there = key.home.join("there/.aws/credentials");
    fs::write(&there, "")?;
    key.path = there.clone();
    let line = scene.act(
        &format!("--get open --path '{}'", there.display()),
        "tls",
        &key.host(),
    )?;
    let script = format!(
        "unshare -m bash -c \"mount --bind '{}' '{}' && exec {line}\"",
        innocent.display(),
        there.display()
    );
    unit.sh(&script, &[])?;
    scene.hop(&key, &unit_name(&key))
}

/// Writes the key of a number below a directory.
fn write_key(home: &Path, number: u32) -> Result<PathBuf> {
    aws_credentials(
        home,
        &format!("AKIAFAKEEVADE{number:07}"),
        &format!("FAKE/evade/{number:029}"),
    )
}

fn on_overlay(scene: &EvasionLab) -> Result<EvasionResult> {
    let mut key = scene.key()?;
    let unit = TestUnit::new(&unit_name(&key))?;
    let base = tempfile::Builder::new()
        .prefix("keytrail-lab-")
        .tempdir_in("/dev/shm")?;
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(base.path().join(name))?;
    }
    // Not a copy of the key's file: to read that is a use too.
    write_key(&base.path().join("lower"), key.number)?;
    let at = base.path().display();
    let mount = format!(
        "mount -t overlay overlay -o lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work {at}/merged"
    );
    key.path = base.path().join("merged/.aws/credentials");
    let line = scene.act(
        &format!("--get open --path '{}'", key.path.display()),
        "tls",
        &key.host(),
    )?;
    if sh(&format!("unshare -m bash -c '{mount}'"), &[]).is_err() {
        return Ok(EvasionResult::NotHere(
            "overlay cannot be mounted".to_owned(),
        ));
    }
    unit.sh(
        &format!("unshare -m bash -c \"{mount} && exec {line}\""),
        &[],
    )?;
    scene.hop(&key, &unit_name(&key))?;
    let answer = scene
        .agent
        .await_json(&["query", "who", &key.id()], |answer| {
            answer["uses"]
                .as_array()
                .is_some_and(|uses| !uses.is_empty())
        })?;
    let uses = answer["uses"].as_array().map_or(0, Vec::len);
    ensure!(
        uses == 1,
        "the file below the overlay is no other: {answer}"
    );
    Ok(EvasionResult::Seen)
}

fn inherited(scene: &EvasionLab) -> Result<EvasionResult> {
    let key = scene.key()?;
    key.read_once(scene)?;
    let unit = TestUnit::new(&unit_name(&key))?;
    // The other user may not be able to access the build directory.
    let copy = scene.directory.path().join("heir");
    fs::copy(scene.actor()?, &copy)?;
    let inherit = format!("--inherit '{}'", key.path.display());
    unit.sh(&scene.act_as(&copy, &inherit, "tls", &key.host()), &[])?;
    let answer = scene
        .agent
        .await_json(&["query", "where", &key.id()], |answer| {
            hop_of(answer, &key, &unit_name(&key)).is_some()
        })?;
    let hop = hop_of(&answer, &key, &unit_name(&key)).context("the hop")?;
    ensure!(hop["process"]["uid"] == 1000, "{hop}");
    Ok(EvasionResult::Seen)
}

/// `..data` points to another directory after the swap, as with the kubelet.
fn rotated(scene: &EvasionLab) -> Result<EvasionResult> {
    let number = scene.number.fetch_add(1, Ordering::Relaxed);
    let volume = PathBuf::from(format!("/run/secrets/keytrail-lab-rotated-{number}"));
    let write = |stamp: &str, token: &str| -> Result<()> {
        let payload = volume.join(stamp);
        fs::create_dir_all(&payload)?;
        fs::write(payload.join("token"), token)?;
        let swap = volume.join("..data_tmp");
        symlink(stamp, &swap)?;
        fs::rename(&swap, volume.join("..data"))?;
        Ok(())
    };
    fs::create_dir_all(&volume)?;
    let mut ids = Vec::new();
    for (stamp, token) in [
        ("..2026_01_01", "FAKE-rotated-first"),
        ("..2026_01_02", "FAKE-rotated-second"),
    ] {
        write(stamp, &format!("{token}-{number}"))?;
        if ids.is_empty() {
            symlink("..data/token", volume.join("token"))?;
        }
        sh(&format!("cat '{}/token' >/dev/null", volume.display()), &[])?;
        let place = volume.join("token").display().to_string();
        let answer = scene.agent.await_json(&["query", "who", &place], |answer| {
            answer["credentials"]
                .as_array()
                .is_some_and(|found| found.len() > ids.len())
        });
        let answer = answer.inspect_err(|_| drop(fs::remove_dir_all(&volume)))?;
        ids.push(answer["credentials"].as_array().map_or(0, Vec::len));
    }
    fs::remove_dir_all(&volume)?;
    ensure!(ids == [1, 2], "each version is a credential: {ids:?}");
    Ok(EvasionResult::Seen)
}

/// A new file that gets the inode number of a deleted credential file.
fn reused(scene: &EvasionLab) -> Result<EvasionResult> {
    let key = scene.key()?;
    key.read_once(scene)?;
    let inode = fs::metadata(&key.path)?.ino();
    fs::remove_file(&key.path)?;
    let innocent = (0..64)
        .map(|number| key.home.join(format!("innocent-{number}")))
        .find(|path| {
            fs::write(path, "nothing secret").is_ok()
                && fs::metadata(path).is_ok_and(|metadata| metadata.ino() == inode)
        });
    let Some(innocent) = innocent else {
        return Ok(EvasionResult::NotHere(
            "this file system uses no number again soon".to_owned(),
        ));
    };
    let unit = TestUnit::new(&unit_name(&key))?;
    let line = scene.act(
        &format!("--get open --path '{}'", innocent.display()),
        "tls",
        &key.host(),
    )?;
    unit.sh(&line, &[])?;
    scene.settled()?;
    let answer = scene.agent.json(&["query", "where", &key.id()])?;
    let hop = answer.as_ref().and_then(|answer| hop_of(answer, &key, ""));
    ensure!(hop.is_none(), "the new file is not the old one: {hop:?}");
    Ok(EvasionResult::Seen)
}

/// Waits for a scenario's hop by its executable; returns the hop.
fn by_executable(scene: &EvasionLab, key: &TestKey, wanted: &str) -> Result<Value> {
    let answer = scene
        .agent
        .await_json(&["query", "where", &key.id()], |answer| {
            hop_of(answer, key, "").is_some()
        })?;
    let hop = hop_of(&answer, key, "").context("the hop")?;
    let exe = hop["process"]["exe"].as_str().unwrap_or_default();
    ensure!(exe.contains(wanted), "{hop}");
    Ok(hop.clone())
}

fn in_memory(scene: &EvasionLab) -> Result<EvasionResult> {
    let key = scene.key()?;
    let unit = TestUnit::new(&unit_name(&key))?;
    let open = format!("--in-memory -- --get open --path '{}'", key.path.display());
    unit.sh(&scene.act(&open, "tls", &key.host())?, &[])?;
    let hop = by_executable(scene, &key, "memfd:")?;
    let finding = scene.agent.await_finding(|finding| {
        finding["rule"] == "untrusted-binary" && finding["credential"]["id"] == hop["credential"]
    })?;
    ensure!(finding["severity"] == "high", "{finding}");
    Ok(EvasionResult::Seen)
}

fn deleted(scene: &EvasionLab) -> Result<EvasionResult> {
    let key = scene.key()?;
    let unit = TestUnit::new(&unit_name(&key))?;
    let copy = key.home.join("gone");
    fs::copy(scene.actor()?, &copy)?;
    let open = format!("--unlink --get open --path '{}'", key.path.display());
    unit.sh(&scene.act_as(&copy, &open, "tls", &key.host()), &[])?;
    by_executable(scene, &key, "gone")?;
    Ok(EvasionResult::Seen)
}

fn short_lived(scene: &EvasionLab) -> Result<EvasionResult> {
    const GAP: &str = "before the agent has read its environment";
    let number = scene.number.fetch_add(1, Ordering::Relaxed);
    let name = format!("LAB_SHORT_{number}_TOKEN");
    sh(
        "exec /bin/true",
        &[(&name, &format!("FAKE-short-lived-{number:08}"))],
    )?;
    if scene.declares(GAP) {
        return Ok(EvasionResult::Gap(GAP));
    }
    scene
        .agent
        .await_json(&["query", "who", &format!("env:{name}")], |answer| {
            answer["uses"]
                .as_array()
                .is_some_and(|uses| !uses.is_empty())
        })?;
    Ok(EvasionResult::Seen)
}

/// A documentation address on loopback, because unnamed loopback is not a hop.
struct TestAddress(&'static str);

impl TestAddress {
    fn add(address: &'static str) -> Result<Self> {
        sh(&format!("ip addr add {address}/32 dev lo"), &[])?;
        Ok(Self(address))
    }
}

impl Drop for TestAddress {
    fn drop(&mut self) {
        // The scenario has already failed if this fails.
        let _ = sh(&format!("ip addr del {}/32 dev lo", self.0), &[]);
    }
}

fn datagrams(scene: &EvasionLab) -> Result<EvasionResult> {
    let key = scene.key()?;
    let unit = TestUnit::new(&unit_name(&key))?;
    let address = TestAddress::add("192.0.2.7")?;
    let server = UdpSocket::bind((address.0, 0))?;
    let to = server.local_addr()?;
    let line = format!(
        "{} --get open --path '{}' --connect udp --to {to}",
        scene.actor()?.display(),
        key.path.display()
    );
    unit.sh(&line, &[])?;
    scene
        .agent
        .await_json(&["query", "where", &key.id()], |answer| {
            answer["hops"].as_array().is_some_and(|hops| {
                hops.iter().any(|hop| {
                    hop["destination"]["address"] == address.0
                        && hop["destination"]["port"] == to.port()
                        && hop["destination"]["transport"] == "udp"
                })
            })
        })?;
    Ok(EvasionResult::Seen)
}

fn mapped(scene: &EvasionLab) -> Result<EvasionResult> {
    let key = scene.key()?;
    let unit = TestUnit::new(&unit_name(&key))?;
    let line = format!(
        "{} --get open --path '{}' --connect tls --to [::ffff:127.0.0.1]:{} --name {}",
        scene.actor()?.display(),
        key.path.display(),
        scene.server.address.port(),
        key.host()
    );
    unit.sh(&line, &[])?;
    let answer = scene
        .agent
        .await_json(&["query", "where", &key.id()], |answer| {
            hop_of(answer, &key, "").is_some()
        })?;
    let hop = hop_of(&answer, &key, "").context("the hop")?;
    ensure!(hop["destination"]["address"] == "127.0.0.1", "{hop}");
    Ok(EvasionResult::Seen)
}

fn refused(scene: &EvasionLab) -> Result<EvasionResult> {
    let key = scene.key()?;
    let unit = TestUnit::new(&unit_name(&key))?;
    let address = TestAddress::add("192.0.2.9")?;
    let silent = TcpListener::bind((address.0, 0))?;
    let closed = {
        let listener = TcpListener::bind((address.0, 0))?;
        listener.local_addr()?
    };
    // Neither sends anything. When the accepted connection is reported, the refused one would have
    // been too.
    for to in [closed, silent.local_addr()?] {
        let line = format!(
            "{} --get open --path '{}' --connect tcp --to {to} --wait </dev/null",
            scene.actor()?.display(),
            key.path.display()
        );
        unit.sh(&line, &[])?;
    }
    let port = silent.local_addr()?.port();
    let answer = scene
        .agent
        .await_json(&["query", "where", &key.id()], |answer| {
            answer["hops"]
                .as_array()
                .is_some_and(|hops| hops.iter().any(|hop| hop["destination"]["port"] == port))
        })?;
    let refused = answer["hops"].as_array().is_some_and(|hops| {
        hops.iter()
            .any(|hop| hop["destination"]["port"] == closed.port())
    });
    ensure!(!refused, "a refusal is no hop: {answer}");
    Ok(EvasionResult::Seen)
}

fn other_procfs(scene: &EvasionLab) -> Result<EvasionResult> {
    let at = scene.directory.path().join("other-proc");
    fs::create_dir_all(&at)?;
    sh(&format!("mount -t proc proc '{}'", at.display()), &[])?;
    let came = scene.look_in("environ", &at.display().to_string());
    sh(&format!("umount '{}'", at.display()), &[])?;
    came
}
