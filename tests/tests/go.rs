//! Go programs with every link mode: what they present is observed, they run undisturbed, and
//! probes are attached only at function entries.

use anyhow::{Context as _, Result, bail, ensure};
use lab::{agent::Agent, client, memory::differences, wait_for, web::WebServer};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// How a program is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkMode {
    Plain,
    Cgo,
    External,
    Pie,
    PieExternal,
    StaticPie,
}

const SHAPES: [LinkMode; 6] = [
    LinkMode::Plain,
    LinkMode::Cgo,
    LinkMode::External,
    LinkMode::Pie,
    LinkMode::PieExternal,
    LinkMode::StaticPie,
];

/// The compiler: Debian's oldest, and the newest available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GoCompiler {
    Debian,
    Newest,
}

impl GoCompiler {
    fn program(self) -> Result<PathBuf> {
        match self {
            Self::Debian => Ok("go".into()),
            Self::Newest => std::env::var_os("KEYTRAIL_GO_NEWEST")
                .map(PathBuf::from)
                .context("KEYTRAIL_GO_NEWEST is not set: run `cargo xtask scenarios go`"),
        }
    }
}

type GoMatrixCell = (GoCompiler, LinkMode, bool);

/// The cells of an ordinary run; `KEYTRAIL_TEST_ALL=1` tests every combination.
const ORDINARY: [GoMatrixCell; 6] = [
    (GoCompiler::Newest, LinkMode::External, false),
    (GoCompiler::Newest, LinkMode::Pie, true),
    (GoCompiler::Newest, LinkMode::StaticPie, true),
    (GoCompiler::Debian, LinkMode::Plain, true),
    (GoCompiler::Debian, LinkMode::PieExternal, false),
    (GoCompiler::Debian, LinkMode::StaticPie, false),
];

fn cells() -> Vec<GoMatrixCell> {
    if std::env::var_os("KEYTRAIL_TEST_ALL").is_none() {
        return ORDINARY.to_vec();
    }
    let each = [GoCompiler::Debian, GoCompiler::Newest]
        .into_iter()
        .flat_map(|go| {
            SHAPES
                .into_iter()
                .flat_map(move |shape| [false, true].map(|stripped| (go, shape, stripped)))
        });
    // A third of them in an extended shard.
    let part: Option<usize> = std::env::var("KEYTRAIL_GO_PART")
        .ok()
        .and_then(|part| part.parse().ok());
    each.enumerate()
        .filter(|(number, _)| part.is_none_or(|part| number % 3 == part))
        .map(|(_, cell)| cell)
        .collect()
}

/// Builds the client.
fn build((go, shape, stripped): GoMatrixCell, directory: &Path) -> Result<PathBuf> {
    let program = directory.join(format!("{go:?}-{shape:?}-{stripped}"));
    let (mut linker, mut mode) = (Vec::new(), None);
    let cgo = matches!(
        shape,
        LinkMode::Cgo | LinkMode::External | LinkMode::PieExternal | LinkMode::StaticPie
    );
    if matches!(
        shape,
        LinkMode::Pie | LinkMode::PieExternal | LinkMode::StaticPie
    ) {
        mode = Some("-buildmode=pie");
    }
    if matches!(
        shape,
        LinkMode::External | LinkMode::PieExternal | LinkMode::StaticPie
    ) {
        linker.push("-linkmode=external");
    }
    if shape == LinkMode::StaticPie {
        linker.push("-extldflags=-static-pie");
    }
    if stripped {
        linker.extend(["-s", "-w"]);
    }
    let mut command = Command::new(go.program()?);
    command
        .args(["build", "-o"])
        .arg(&program)
        .args(mode)
        .arg(format!("-ldflags={}", linker.join(" ")))
        .current_dir(client("go"))
        .env("CGO_ENABLED", if cgo { "1" } else { "0" })
        .env("GO111MODULE", "off")
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "");
    if shape == LinkMode::StaticPie {
        // The C library's resolver requires shared libraries.
        command.args(["-tags", "netgo,osusergo"]);
    }
    command.arg("main.go");
    if let Some(cache) = std::env::var_os("KEYTRAIL_GO_CACHE") {
        command.env("GOCACHE", cache);
    } else {
        command.env("GOCACHE", directory.join("go-cache"));
    }
    let output = command.output().context("no such compiler of Go")?;
    ensure!(
        output.status.success(),
        "it does not build: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(program)
}

/// Whether a Go function begins at a file offset: after padding or aligned, with a comparison of
/// the stack limit.
fn begins_function(program: &Path, offset: u64) -> Result<bool> {
    let mut bytes = [0; 16];
    File::open(program)?.read_exact_at(&mut bytes, offset)?;
    let compares = bytes.starts_with(&[0x49, 0x3b, 0x66, 0x10])
        || (bytes.starts_with(&[0x4c, 0x8d])
            && bytes.windows(3).any(|part| part == [0x4d, 0x3b, 0x66]));
    Ok(compares && offset.is_multiple_of(16))
}

/// The function's file offset according to the Go tools; `None` if the program is stripped.
fn by_go_tool(go: GoCompiler, program: &Path) -> Result<Option<u64>> {
    let output = Command::new(go.program()?)
        .args(["tool", "nm"])
        .arg(program)
        .env("GOTOOLCHAIN", "local")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .find(|line| line.ends_with("T crypto/tls.(*Conn).Write"));
    let Some(address) = line.and_then(|line| line.split_ascii_whitespace().next()) else {
        return Ok(None);
    };
    let address = u64::from_str_radix(address, 16)?;
    let headers = Command::new("readelf")
        .args(["-lW"])
        .arg(program)
        .output()?;
    let headers = String::from_utf8_lossy(&headers.stdout).into_owned();
    for line in headers
        .lines()
        .filter(|line| line.trim().starts_with("LOAD"))
    {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16);
        let (offset, start, size) = (hex(words[1])?, hex(words[2])?, hex(words[4])?);
        if (start..start + size).contains(&address) {
            return Ok(Some(offset + address - start));
        }
    }
    bail!("the address of the function is in no segment")
}

/// The result of one cell: `seen`, or the reason why not.
fn check(
    agent: &Agent,
    servers: &[WebServer; 2],
    cell: GoMatrixCell,
    directory: &Path,
) -> Result<()> {
    let program = build(cell, directory)?;
    let url = |server: usize| format!("https://{}/", servers[server].address);
    let attached = format!("TLS probes attached file={} stack=go", program.display());
    wait_for("probes in the new program", Duration::from_secs(20), || {
        let output = Command::new(&program)
            .args(["1.1", &url(0), "X-Plain", "x"])
            .output()?;
        ensure!(output.status.success(), "it does not run: {output:?}");
        Ok(agent.log_text().contains(&attached).then_some(()))
    })?;
    let secrets = ["one", "two"].map(|name| {
        format!("FAKE.go-{:?}-{name}-{}", cell, "0".repeat(8)).replace([' ', ',', '(', ')'], "-")
    });
    let mut command = Command::new(&program);
    command.arg("1.1");
    for (server, secret) in secrets.iter().enumerate() {
        command.args([&url(server), "Authorization", &format!("Bearer {secret}")]);
    }
    let mut child = command
        .env("WAIT", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
    let differing = differences(child.id(), &program);
    drop(child.stdin.take());
    let status = child.wait()?;
    ensure!(
        line == "waiting\n" && status.success(),
        "it ended with {status}"
    );
    let differing = differing?;
    ensure!(differing.len() == 1, "the memory differs at {differing:x?}");
    ensure!(
        begins_function(&program, differing[0])?,
        "no function begins at {:x}",
        differing[0]
    );
    if let Some(expected) = by_go_tool(cell.0, &program)? {
        ensure!(
            differing[0] == expected,
            "the probe is at {:x}, the function at {expected:x}",
            differing[0]
        );
    }
    for (server, secret) in secrets.iter().enumerate() {
        let expected = servers[server].address.to_string();
        wait_for("what it presented", Duration::from_secs(3), || {
            let presented = agent.presented(secret)?;
            Ok(presented
                .iter()
                .any(|(place, count)| *place == expected && *count == 1)
                .then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn every_shape_of_a_go_program() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let servers = [
        WebServer::start("127.0.0.1")?,
        WebServer::start("127.0.0.2")?,
    ];
    let mut failed = Vec::new();
    for cell in cells() {
        match check(&agent, &servers, cell, directory.path()) {
            Ok(()) => println!("{cell:?}: presented, probe at the function"),
            Err(error) => failed.push(format!("{cell:?}: {error:#}")),
        }
    }
    ensure!(
        failed.is_empty(),
        "{}\nthe agent's log:\n{}",
        failed.join("\n"),
        agent.log_text()
    );
    Ok(())
}

/// Some linkers merge the tables with other data: then they are found by their contents.
#[test]
fn tables_in_a_merged_section() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let server = WebServer::start("127.0.0.1")?;
    let built = build(
        (GoCompiler::Newest, LinkMode::Plain, true),
        directory.path(),
    )?;
    let merged = directory.path().join("merged");
    let status = Command::new("objcopy")
        .args(["--rename-section", ".gopclntab=.merged"])
        .args(["--rename-section", ".go.module=.more"])
        .args([&built, &merged])
        .status()?;
    ensure!(status.success(), "objcopy ended with {status}");
    let secret = "FAKE.go-merged-000000000000";
    agent.await_presented(secret, Duration::from_secs(20), || {
        let status = Command::new(&merged)
            .args(["1.1", &format!("https://{}/", server.address)])
            .args(["Authorization", &format!("Bearer {secret}")])
            .status()?;
        ensure!(status.success());
        Ok(())
    })
}

/// A program whose tables contradict each other gets no probe, keeps running, and is reported by
/// name.
#[test]
fn unproven_functions_are_reported_and_not_attached() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let server = WebServer::start("127.0.0.1")?;
    let built = build(
        (GoCompiler::Newest, LinkMode::Plain, true),
        directory.path(),
    )?;
    // The text address in the module data differs from the table's: it is in the data, 22 words
    // after the address of the table.
    let mut bytes = fs::read(&built)?;
    let magic = [0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8];
    let table = bytes
        .windows(8)
        .position(|part| part == magic)
        .context("a table of functions")?;
    // The number of functions: with one less, the module data disagrees.
    let count = u64::from_le_bytes(bytes[table + 8..table + 16].try_into()?);
    bytes[table + 8..table + 16].copy_from_slice(&(count - 1).to_le_bytes());
    let broken = directory.path().join("broken");
    fs::write(&broken, bytes)?;
    fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut child = Command::new(&broken)
        .args([
            "1.1",
            &format!("https://{}/", server.address),
            "X-Plain",
            "x",
        ])
        .env("WAIT", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let name = broken.display().to_string();
    wait_for("the warning", Duration::from_secs(10), || {
        Ok((agent.logged(&["no TLS probes attached", &name]) > 0).then_some(()))
    })?;
    let doctor = Command::new(lab::agent::binary()?)
        .args(["doctor", "--output", "json"])
        .output()?;
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout)?;
    let named = report["not_attached"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    ensure!(
        named.iter().any(|one| one["file"] == name.as_str()),
        "doctor names it: {named:?}"
    );
    ensure!(
        differences(child.id(), &broken)?.is_empty(),
        "no probe is in it"
    );
    drop(child.stdin.take());
    ensure!(child.wait()?.success(), "it ran to its end");
    agent.await_json(&["query", "timeline"], |answer| {
        let gaps = answer["gaps"].as_array().cloned().unwrap_or_default();
        gaps.iter().any(|gap| {
            gap["kind"] == "tls-not-attached"
                && gap["detail"]
                    .as_str()
                    .is_some_and(|detail| detail.contains(&name))
        })
    })?;
    Ok(())
}

/// Programs built by others, with all their options.
#[test]
fn programs_built_by_others() -> Result<()> {
    let Some(programs) = std::env::var_os("KEYTRAIL_GO_PROGRAMS") else {
        return lab::skip::defer("programs built by others");
    };
    let programs: BTreeMap<String, PathBuf> = std::env::split_paths(&programs)
        .filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)))
        .collect();
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let server = WebServer::start("127.0.0.1")?;
    let url = format!("https://{}", server.address);
    for (name, secret) in [
        ("kubectl", "FAKE.kubectl-0000000000000"),
        ("bao", "hvs.FAKEbao0000000000000000000"),
    ] {
        let program = programs.get(name).with_context(|| format!("no {name}"))?;
        let run = || {
            let mut command = Command::new(program);
            match name {
                "kubectl" => command.args([
                    "--server",
                    &url,
                    "--token",
                    secret,
                    "--insecure-skip-tls-verify",
                    "get",
                    "--raw",
                    "/",
                ]),
                _ => command.args(["token", "lookup"]).envs([
                    ("BAO_ADDR", url.as_str()),
                    ("BAO_TOKEN", secret),
                    ("BAO_SKIP_VERIFY", "1"),
                ]),
            };
            command.env("HOME", directory.path()).output()?;
            Ok(())
        };
        agent
            .await_presented(secret, Duration::from_secs(60), run)
            .context(name)?;
        println!("{name}: presented");
    }
    // A server: it presents nothing, and is either attached to or reported.
    let nats = programs.get("nats-server").context("no nats-server")?;
    let port = lab::free_port()?.to_string();
    let mut child = Command::new(nats)
        .args(["-a", "127.0.0.1", "-p", &port])
        .stderr(Stdio::null())
        .spawn()?;
    let name = nats.display().to_string();
    let found = wait_for("nats-server", Duration::from_secs(30), || {
        Ok(agent
            .log_text()
            .lines()
            .find(|line| line.contains(&name))
            .map(str::to_owned))
    });
    let differing = differences(child.id(), nats);
    child.kill()?;
    child.wait()?;
    println!(
        "nats-server: {}, memory differs at {:x?}",
        found?, differing?
    );
    Ok(())
}
