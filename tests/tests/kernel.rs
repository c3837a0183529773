//! What depends on the kernel's mechanism for attaching uprobes, tested on every kernel: TLS is
//! observed, and no mount is kept busy. Needs only curl.

use anyhow::{Context as _, Result, ensure};
use lab::{agent::Agent, memory::differences, wait_for, web::WebServer};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// An emulated machine is slow.
const LIMIT: Duration = Duration::from_secs(30);

/// curl's libraries, as its loader finds them.
fn libraries() -> Result<Vec<PathBuf>> {
    let curl = std::env::split_paths(&std::env::var_os("PATH").context("a PATH")?)
        .map(|directory| directory.join("curl"))
        .find(|path| path.is_file())
        .context("no curl")?;
    let output = Command::new(curl)
        .arg("--version")
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once("=> ")?.1.split(" (").next())
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

fn copy_libraries(into: &Path) -> Result<PathBuf> {
    let mut ssl = None;
    for library in libraries()? {
        let name = library.file_name().context("a name")?;
        // The loader and the C library belong together.
        if name.to_string_lossy().starts_with("libssl") {
            ssl = Some(into.join(name));
            fs::copy(&library, into.join(name))?;
        }
    }
    ssl.context("curl has no libssl")
}

/// Every probe that this kernel has reports what the agent does to test it; a false alarm would
/// restart the agent.
#[test]
fn every_attached_probe_is_heard() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let line = wait_for("the probes were tested", Duration::from_secs(30), || {
        let log = agent.log_text();
        let mut lines = log.lines();
        Ok(lines
            .find(|line| line.contains("the probes were tested"))
            .map(str::to_owned))
    })
    .with_context(|| agent.log_text())?;
    let number = |name: &str| {
        let rest = line.split(name).nth(1).unwrap_or_default();
        rest.split(' ')
            .next()
            .and_then(|text| text.parse::<u32>().ok())
    };
    let (heard, tested) = (number("heard="), number("tested="));
    ensure!(heard == tested && heard >= Some(10), "{line}");
    Ok(())
}

#[test]
fn curl_is_observed_with_function_probes_only() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let server = WebServer::start("127.0.0.1")?;
    let ssl = libraries()?
        .into_iter()
        .find(|path| path.to_string_lossy().contains("libssl"))
        .context("curl has no libssl")?;
    let ssl = fs::canonicalize(ssl)?;
    let secret = "FAKE.of-this-kernel-000000000";
    let mut curl = Command::new("curl")
        .args(["-sS", "-K", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let differing = wait_for("probes in curl", LIMIT, || {
        let found = differences(curl.id(), &ssl).unwrap_or_default();
        Ok((!found.is_empty()).then_some(found))
    })
    .with_context(|| agent.log_text())?;
    let mut stdin = curl.stdin.take().context("its input")?;
    write!(
        stdin,
        "url = https://{}/\ninsecure\nhttp1.1\nheader = \"Authorization: Bearer {secret}\"\n",
        server.address
    )?;
    drop(stdin);
    ensure!(curl.wait()?.success());
    // One byte per function: SSL_write, SSL_write_ex, SSL_free, and SSL_ctrl if it is used.
    ensure!(
        (3..=4).contains(&differing.len()),
        "probes at {differing:x?}"
    );
    agent.await_presented(secret, LIMIT, || Ok(()))
}

#[test]
fn no_mount_is_kept_busy() -> Result<()> {
    const ROUNDS: usize = 20;
    // Until the agent has its own copy of a mount, it has the process's open: in an emulated machine
    // an unmount at once may meet that. On a real one, `node.rs` allows none.
    const INSPECTION: Duration = Duration::from_millis(500);
    const MOMENTS_MAX: usize = 2;
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let point = directory.path().join("mount");
    fs::create_dir(&point)?;
    let (mut kept, mut moments) = (0, 0);
    for _ in 0..ROUNDS {
        mount("lab", &point, "tmpfs", MountFlags::empty(), None)?;
        let copied = copy_libraries(&point)?;
        fs::read(&copied)?;
        let status = Command::new("curl")
            .arg("--version")
            .env("LD_LIBRARY_PATH", &point)
            .stdout(Stdio::null())
            .status()?;
        ensure!(status.success());
        if unmount(&point, UnmountFlags::empty()).is_err() {
            moments += 1;
            let unmounted = || Ok(unmount(&point, UnmountFlags::empty()).ok());
            if wait_for("it is not busy any more", INSPECTION, unmounted).is_err() {
                kept += 1;
                unmount(&point, UnmountFlags::DETACH)?;
            }
        }
    }
    println!("{ROUNDS} mounts: {kept} kept busy, {moments} while a file was inspected");
    ensure!(
        kept == 0 && moments <= MOMENTS_MAX,
        "{kept} of {ROUNDS} were kept busy, {moments} while a file was inspected: {}",
        agent.log_text()
    );
    Ok(())
}
