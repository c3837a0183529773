//! Invalid input and a broken environment: each produces one clear line, and the right exit status.

use anyhow::{Context as _, Result, ensure};
use lab::{
    agent::{Agent, binary},
    server::TlsServer,
    wait_for,
    web::WebServer,
    workload::{aws_credentials, sh},
};
use serde_json::Value;
use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

fn keytrail(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(binary()?)
        .args(arguments)
        .stdin(Stdio::null())
        .output()?)
}

/// Runs the agent in a mount namespace of its own, after `prepare`.
fn in_namespace(prepare: &str, state: &Path) -> Result<Output> {
    let script = format!(
        "{prepare} && exec timeout 20 {} run --listen 127.0.0.1:0 --state-dir {}",
        binary()?.display(),
        state.display()
    );
    Ok(Command::new("unshare")
        .args(["--mount", "bash", "-c", &script])
        .stdin(Stdio::null())
        .output()?)
}

/// Checks the exit status, and the one line that says why.
fn assert_fails(output: &Output, status: i32, parts: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{error}");
    let told: Vec<&str> = error
        .lines()
        .filter(|line| line.starts_with("keytrail: "))
        .collect();
    assert_eq!(told.len(), 1, "{error}");
    for part in parts {
        assert!(told[0].contains(part), "`{part}` is not in: {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
}

#[test]
fn not_root() -> Result<()> {
    let state = tempfile::tempdir()?;
    let binary = binary()?;
    // A copy that any user can run.
    let copy = state.path().join("keytrail");
    std::fs::copy(&binary, &copy)?;
    sh(
        &format!("chmod 755 {} {}", state.path().display(), copy.display()),
        &[],
    )?;
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["run", "--state-dir", "/tmp/keytrail-not-root"])
        .output()?;
    assert_fails(&output, 1, &["root", "CAP_BPF"]);
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .arg("doctor")
        .output()?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("CAP_BPF"));
    Ok(())
}

#[test]
fn no_btf() -> Result<()> {
    let state = tempfile::tempdir()?;
    let output = in_namespace("mount -t tmpfs none /sys/kernel/btf", state.path())?;
    assert_fails(
        &output,
        1,
        &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"],
    );
    Ok(())
}

#[test]
fn no_cgroup_v2() -> Result<()> {
    let state = tempfile::tempdir()?;
    let script = format!(
        "umount -a -t cgroup2; {} doctor; status=$?; timeout -s TERM 6 {} run --listen 127.0.0.1:0 --state-dir {} ; exit $status",
        binary()?.display(),
        binary()?.display(),
        state.path().display()
    );
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", &script])
        .output()?;
    assert_eq!(
        output.status.code(),
        Some(1),
        "doctor: a needed probe is missing"
    );
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(
        report.contains("no cgroup v2 file system is mounted"),
        "{report}"
    );
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        log.contains("connections and TLS server names are not observed"),
        "{log}"
    );
    assert!(log.contains("ready"), "the rest keeps working: {log}");
    Ok(())
}

#[test]
fn a_broken_policy() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("policy.yaml");
    std::fs::write(
        &file,
        "credentials:\n  - name: x\n    match: { file: /x }\n    destinatons: []\n",
    )?;
    let path = file.display().to_string();
    for arguments in [
        vec!["policy", "check", &path],
        vec!["run", "--config", &path, "--state-dir", "/tmp/unused"],
    ] {
        assert_fails(
            &keytrail(&arguments)?,
            2,
            &["policy.yaml:4:", "destinatons"],
        );
    }
    std::fs::write(
        &file,
        "credentials:\n  - name: x\n    match: { file: /x }\n",
    )?;
    let output = keytrail(&["policy", "check", &path])?;
    assert!(
        output.status.success()
            && String::from_utf8_lossy(&output.stdout).contains("1 credentials")
    );
    assert_fails(
        &keytrail(&["policy", "check", "/nonexistent.yaml"])?,
        2,
        &["/nonexistent.yaml"],
    );
    Ok(())
}

#[test]
fn a_policy_that_breaks_later_does_not_replace_the_old_one() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("config.yaml");
    let policy = |name: &str| {
        format!(
            "credentials:\n  - name: {name}\n    match: {{ file: '{}/**' }}\n",
            directory.path().display()
        )
    };
    std::fs::write(&config, policy("first"))?;
    let agent = Agent::start(
        directory.path(),
        &["--config", &config.display().to_string()],
    )?;
    let reloaded = |wanted: f64| {
        wait_for(
            "the configuration is looked at",
            Duration::from_secs(10),
            || Ok((agent.metric("keytrail_config_reload_success", &[])? == wanted).then_some(())),
        )
    };
    std::fs::write(&config, "credentials: [")?;
    reloaded(0.0)?;
    let key = aws_credentials(
        directory.path(),
        "AKIAFAKEFAULTS000001",
        "FAKE/faults/secret/FAKE/faults/secret/01",
    )?;
    sh(&format!("cat {} >/dev/null", key.display()), &[])?;
    agent.await_json(&["query", "who", "first"], |answer| {
        answer["uses"]
            .as_array()
            .is_some_and(|uses| !uses.is_empty())
    })?;
    std::fs::write(&config, policy("second"))?;
    reloaded(1.0)?;
    sh(&format!("cat {} >/dev/null", key.display()), &[])?;
    agent.await_json(&["query", "who", "second"], |_| true)?;
    Ok(())
}

/// As with Prometheus and Falco: the file that logrotate has moved away is reopened, and the
/// configuration is reloaded.
#[test]
fn sighup_does_not_stop_the_agent() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("config.yaml");
    std::fs::write(&config, "mode: alert\n")?;
    let config = config.display().to_string();
    let agent = Agent::start(directory.path(), &["--config", &config])?;
    let aside = directory.path().join("findings.1");
    std::fs::rename(&agent.findings, &aside)?;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(agent.pid() as i32).context("a number")?,
        rustix::process::Signal::HUP,
    )?;
    agent.await_loaded()?;
    let key = aws_credentials(
        directory.path(),
        "AKIAFAKEFAULTS000009",
        "FAKE/faults/secret/FAKE/faults/secret/09",
    )?;
    sh(&format!("cat {} >/dev/null", key.display()), &[])?;
    wait_for(
        "the finding is in the new file",
        Duration::from_secs(10),
        || {
            let text = std::fs::read_to_string(&agent.findings).unwrap_or_default();
            Ok(text.contains("long-lived-credential").then_some(()))
        },
    )?;
    Ok(())
}

/// A client that opens connections and sends nothing gets only a share of them, and loses those.
#[test]
fn silent_connections_are_limited() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let descriptors =
        || -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count()) };
    let before = descriptors()?;
    let silent: Vec<std::net::TcpStream> = (0..300)
        .map(|_| std::net::TcpStream::connect(agent.listen))
        .collect::<Result<_, _>>()?;
    wait_for("the rest is let go", Duration::from_secs(10), || {
        // Each has two descriptors.
        let most = before + 140;
        // Connections beyond the limit are closed by the agent.
        let closed = silent.iter().filter(|stream| {
            let mut byte = [0];
            stream
                .set_nonblocking(true)
                .and_then(|()| stream.peek(&mut byte))
                .is_ok_and(|read| read == 0)
        });
        Ok((closed.count() >= 200 && descriptors()? <= most).then_some(()))
    })?;
    // It answers at once, though the rest is open.
    let asked = Instant::now();
    assert_eq!(agent.get_anonymously("/readyz")?.0, 200);
    ensure!(
        asked.elapsed() < Duration::from_secs(1),
        "{:?}",
        asked.elapsed()
    );
    drop(silent);
    Ok(())
}

/// The shipped unit runs with these capabilities: TLS is observed all the same, whichever mechanism
/// the kernel allows.
#[test]
fn the_capabilities_of_doctor_suffice() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start_with_capabilities(
        directory.path(),
        &[],
        &[
            "bpf",
            "perfmon",
            "net_admin",
            "sys_ptrace",
            "dac_read_search",
        ],
    )?;
    let server = WebServer::start("127.0.0.1")?;
    let token = "ghp_FAKEcaps00000000000000000000000000001";
    sh(
        &format!(
            "curl -sSk -o /dev/null -H 'Authorization: token {token}' https://{}/",
            server.address
        ),
        &[],
    )?;
    let id = agent.id_of(token)?;
    let finding = agent.await_finding(|finding| {
        finding["rule"] == "unexpected-hop" && finding["credential"]["id"] == id.as_str()
    })?;
    assert_eq!(finding["evidence"], "presented", "{finding:#}");
    Ok(())
}

#[test]
fn a_damaged_and_a_newer_ledger() -> Result<()> {
    let state = tempfile::tempdir()?;
    let directory = state.path().join("state");
    std::fs::create_dir(&directory)?;
    std::fs::write(
        directory.join("ledger.sqlite"),
        "this was a ledger once, and something has written over all of it",
    )?;
    let path = directory.display().to_string();
    assert_fails(
        &keytrail(&["inventory", "--state-dir", &path])?,
        1,
        &["ledger.sqlite", "damaged"],
    );
    // The agent sets it aside, reports it, and continues.
    let mut agent = Agent::start(state.path(), &[])?;
    agent.await_json(&["inventory"], |answer| {
        answer["gaps"]
            .as_array()
            .is_some_and(|gaps| gaps.iter().any(|gap| gap["kind"] == "ledger-damaged"))
    })?;
    assert!(agent.log_text().contains("started a new one"));
    assert!(agent.stop()?.success(), "{}", agent.log_text());
    drop(agent);
    // The header of a SQLite file with 99 as its user version.
    let newer = state.path().join("state/ledger.sqlite");
    for leftover in ["state/ledger.sqlite-wal", "state/ledger.sqlite-shm"] {
        let _ = std::fs::remove_file(state.path().join(leftover));
    }
    let mut bytes = std::fs::read(&newer)?;
    bytes[60..64].copy_from_slice(&99u32.to_be_bytes());
    std::fs::write(&newer, bytes)?;
    let path = state.path().join("state").display().to_string();
    assert_fails(
        &keytrail(&["run", "--listen", "127.0.0.1:0", "--state-dir", &path])?,
        1,
        &["schema 99", "newer"],
    );
    assert_fails(
        &keytrail(&["findings", "--state-dir", &path])?,
        1,
        &["schema 99"],
    );
    Ok(())
}

/// A thousand and twenty-five addresses ended every agent, and six thousand credentials took half a
/// gigabyte.
#[test]
fn a_policy_that_is_too_large() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("keytrail.yaml");
    let good = "credentials: [ { name: kept, match: { environment: BAO_TOKEN } } ]\n";
    std::fs::write(&config, good)?;
    let addresses = |count: usize| {
        let each =
            (0..count).map(|number| format!("\"10.1.{}.{}:443\"", number / 256, number % 256));
        let all: Vec<String> = each.collect();
        format!(
            "{good}authenticators: [ {{ name: many, destinations: [ {} ] }} ]\n",
            all.join(", ")
        )
    };
    let credentials = |count: usize| {
        let each = (0..count).map(|number| {
            format!("  - {{ name: c{number}, match: {{ file: /srv/c{number} }}, readers: [ {{ namespace: n{number} }} ] }}\n")
        });
        format!(
            "credentials:\n  - {{ name: kept, match: {{ environment: BAO_TOKEN }} }}\n{}",
            each.collect::<String>()
        )
    };
    let path = config.display().to_string();
    let agent = Agent::start(directory.path(), &["--config", &path])?;
    let reloaded = |expected: f64| {
        wait_for("the configuration is read", Duration::from_secs(10), || {
            let state = agent.metric("keytrail_config_reload_success", &[])?;
            Ok((state == expected).then_some(()))
        })
        .with_context(|| agent.log_text())
    };
    for (text, fits) in [
        (addresses(1_025), false),
        (addresses(1_024), true),
        (credentials(5_000), false),
        (credentials(4_999), true),
    ] {
        std::fs::write(&config, text)?;
        reloaded(if fits { 1.0 } else { 0.0 })?;
        let checked = keytrail(&["policy", "check", &path])?;
        assert_eq!(checked.status.code(), Some(if fits { 0 } else { 2 }));
        // Either way, one that has this name is in force.
        sh("BAO_TOKEN=FAKE-policy-that-is-large /bin/true", &[])?;
        agent.await_used("kept")?;
    }
    Ok(())
}

#[test]
fn used_and_invalid_listen_addresses() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let taken = agent.listen.to_string();
    let other = directory.path().join("other").display().to_string();
    assert_fails(
        &keytrail(&["run", "--listen", &taken, "--state-dir", &other])?,
        1,
        &[&taken, "in use"],
    );
    assert_fails(
        &keytrail(&["run", "--listen", "nowhere", "--state-dir", &other])?,
        2,
        &["nowhere"],
    );
    let same = agent.state_dir.display().to_string();
    assert_fails(
        &keytrail(&["run", "--listen", "127.0.0.1:0", "--state-dir", &same])?,
        1,
        &["another agent"],
    );
    Ok(())
}

#[test]
fn a_state_directory_that_cannot_be_used() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("a-file");
    std::fs::write(&file, "")?;
    let path = file.display().to_string();
    assert_fails(
        &keytrail(&["run", "--listen", "127.0.0.1:0", "--state-dir", &path])?,
        1,
        &["a-file"],
    );
    assert_fails(
        &keytrail(&["query", "who", "x", "--state-dir", &path])?,
        1,
        &["a-file"],
    );
    let empty = directory.path().display().to_string();
    assert_fails(
        &keytrail(&["inventory", "--state-dir", &empty])?,
        1,
        &["no ledger"],
    );
    Ok(())
}

#[test]
fn wrong_arguments() -> Result<()> {
    for arguments in [
        vec!["query", "who"],
        vec!["findings", "--since", "yesterday"],
        vec!["inventory", "--output", "xml"],
        vec!["nothing"],
    ] {
        assert_eq!(
            keytrail(&arguments)?.status.code(),
            Some(2),
            "{arguments:?}"
        );
    }
    assert_fails(
        &keytrail(&["findings", "--rule", "no-such-rule"])?,
        2,
        &["no-such-rule", "unexpected-hop"],
    );
    Ok(())
}

#[test]
fn a_broken_recording() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("recording");
    std::fs::write(
        &file,
        "{\"event\":\"tick\",\"time\":\"2026-01-01T00:00:00Z\"}\n{\"event\":\"nonsense\"}\n",
    )?;
    let path = file.display().to_string();
    assert_fails(&keytrail(&["replay", &path])?, 1, &["recording:2"]);
    std::fs::write(&file, [0xff, 0xfe, b'\n'])?;
    assert_fails(&keytrail(&["replay", &path])?, 1, &["recording:1"]);
    Ok(())
}

/// Made by version 0.1, whose findings are beside it: only the wording of `summary` may change.
#[test]
fn a_recording_of_version_0_1() -> Result<()> {
    let fixtures = lab::root().join("tests/fixtures");
    let recording = fixtures.join("recording-0.1.jsonl").display().to_string();
    let replayed = keytrail(&["replay", &recording])?;
    let findings = |text: &str| -> Result<Vec<Value>> {
        text.lines()
            .map(|line| {
                let mut finding: Value = serde_json::from_str(line)?;
                if let Some(finding) = finding.as_object_mut() {
                    finding.remove("summary");
                }
                Ok(finding)
            })
            .collect()
    };
    let expected = std::fs::read_to_string(fixtures.join("recording-0.1.findings.jsonl"))?;
    let expected = findings(&expected)?;
    ensure!(expected.len() == 6, "{} findings", expected.len());
    assert_eq!(findings(&String::from_utf8(replayed.stdout)?)?, expected);
    Ok(())
}

#[test]
fn a_recording_replays_to_the_agents_findings() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = TlsServer::start("127.0.0.1")?;
    let key = aws_credentials(
        directory.path(),
        "AKIAFAKEFAULTS000002",
        "FAKE/faults/secret/FAKE/faults/secret/02",
    )?;
    let recording = directory.path().join("recording");
    let live = directory.path().join("live");
    let mut recorder = Command::new(binary()?)
        .arg("record")
        .arg(&recording)
        .arg("--state-dir")
        .arg(directory.path().join("state"))
        .stdout(std::fs::File::create(&live)?)
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = recorder.stderr.take().context("its log")?;
    let mut log = std::io::BufRead::lines(std::io::BufReader::new(stderr));
    log.find(|line| line.as_ref().is_ok_and(|line| line.contains("ready")))
        .context("it is ready")??;
    std::thread::spawn(move || log.for_each(drop));
    sh(
        &format!(
            "K=$(cat {}); curl -sS -k --connect-to ::127.0.0.1:{} https://paste.example/",
            key.display(),
            server.address.port()
        ),
        &[],
    )?;
    let found = wait_for(
        "the finding while recording",
        Duration::from_secs(10),
        || {
            Ok(std::fs::read_to_string(&live)?
                .lines()
                .find(|line| line.contains("paste.example"))
                .map(str::to_owned))
        },
    )?;
    let pid = rustix::process::Pid::from_child(&recorder);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    assert!(recorder.wait()?.success());
    let replayed = keytrail(&["replay", &recording.display().to_string()])?;
    assert!(
        replayed.status.success(),
        "{}",
        String::from_utf8_lossy(&replayed.stderr)
    );
    let replayed = String::from_utf8(replayed.stdout)?;
    assert!(
        replayed.lines().any(|line| line == found),
        "{found}\nis not in\n{replayed}"
    );
    assert!(
        !std::fs::read_to_string(&recording)?.contains("FAKE/faults"),
        "a secret in the recording"
    );
    Ok(())
}

#[test]
fn kill_and_start_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let key = aws_credentials(
        directory.path(),
        "AKIAFAKEFAULTS000003",
        "FAKE/faults/secret/FAKE/faults/secret/03",
    )?;
    let key = key.display().to_string();
    let mut agent = Agent::start(directory.path(), &[])?;
    let mut reads = 0;
    let begin = Instant::now();
    let mut settled = 0;
    while begin.elapsed() < Duration::from_secs(4) {
        sh(&format!("cat {key} >/dev/null"), &[])?;
        reads += 1;
        if begin.elapsed() < Duration::from_secs(3) {
            settled = reads;
        }
    }
    agent.kill()?;
    let count = |agent: &Agent| -> Result<u64> {
        let answer = agent
            .json(&["query", "who", &key])?
            .context("the ledger opens again")?;
        Ok(answer["uses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|used| used["count"].as_u64())
            .sum())
    };
    let kept = count(&agent)?;
    assert!(
        kept >= settled,
        "{kept} of {reads} reads kept, {settled} were older than a second"
    );
    drop(agent);
    let mut agent = Agent::start(directory.path(), &[])?;
    assert_eq!(count(&agent)?, kept);
    agent.await_json(&["inventory"], |answer| {
        answer["gaps"]
            .as_array()
            .is_some_and(|gaps| gaps.iter().any(|gap| gap["kind"] == "agent-down"))
    })?;
    sh(&format!("cat {key} >/dev/null"), &[])?;
    agent.await_json(&["query", "who", &key], |answer| {
        answer["uses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|used| used["count"].as_u64())
            .sum::<u64>()
            == kept + 1
    })?;
    // Being killed is a finding, and being stopped is not.
    let blind = |agent: &Agent, part: &str| -> Result<usize> {
        let findings = agent.findings()?;
        let found = findings.iter().filter(|finding| {
            let summary = finding["summary"].as_str().unwrap_or_default();
            finding["rule"] == "blind" && summary.contains(part)
        });
        Ok(found.count())
    };
    let finding = agent.await_finding(|finding| finding["rule"] == "blind")?;
    assert_eq!(finding["severity"], "high");
    assert_eq!(finding["gaps"][0]["kind"], "agent-down");
    assert_eq!(blind(&agent, "killed")?, 1);
    // So is a read of its memory, and listing processes is not.
    let pid = agent.pid();
    sh(
        &format!("cat /proc/{pid}/environ /proc/{pid}/status >/dev/null"),
        &[],
    )?;
    sh(
        &format!("python3 -c 'open(\"/proc/{pid}/mem\", \"rb\").close()'"),
        &[],
    )?;
    agent.await_finding(|finding| {
        finding["rule"] == "blind"
            && finding["summary"]
                .as_str()
                .is_some_and(|summary| summary.contains("opened the memory of the agent"))
    })?;
    assert_eq!(blind(&agent, "")?, 2);
    assert!(agent.stop()?.success(), "{}", agent.log_text());
    drop(agent);
    let agent = Agent::start(directory.path(), &[])?;
    assert_eq!(blind(&agent, "killed")?, 1);
    Ok(())
}

#[test]
fn processes_older_than_the_agent_are_scanned() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut early = Command::new("sleep")
        .arg("60")
        .env("DOPPLER_TOKEN", "dp.pt.FAKEfaultsFAKEfaultsFAKEfaults")
        .spawn()?;
    let agent = Agent::start(directory.path(), &[])?;
    let answer = agent.await_json(&["query", "who", "env:DOPPLER_TOKEN"], |answer| {
        answer["uses"]
            .as_array()
            .is_some_and(|uses| !uses.is_empty())
    });
    early.kill()?;
    early.wait()?;
    assert_eq!(answer?["uses"][0]["process"]["pid"], early.id());
    Ok(())
}

#[test]
fn open_files_and_connections_older_than_the_agent_are_scanned() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let key = aws_credentials(
        directory.path(),
        "AKIAFAKEFAULTS000077",
        "FAKE/faults/held/open/000000000000000077",
    )?;
    // An address that is not unnamed loopback.
    sh("ip addr add 192.0.2.77/32 dev lo", &[])?;
    let taken_in = || -> Result<serde_json::Value> {
        let silent = std::net::TcpListener::bind("192.0.2.77:0")?;
        let to = silent.local_addr()?;
        let mut early = Command::new(binary()?.with_file_name("lab-actor"))
            .args(["--hold", "--path"])
            .arg(&key)
            .args(["--to", &to.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = early.stdout.take().context("its output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        let agent = Agent::start(directory.path(), &[])?;
        let key = key.display().to_string();
        let answer = agent.await_json(&["query", "where", &key], |answer| {
            answer["hops"].as_array().is_some_and(|hops| {
                hops.iter()
                    .any(|hop| hop["destination"]["port"] == to.port())
            })
        });
        drop(early.stdin.take());
        early.wait()?;
        let who = agent.await_json(&["query", "who", &key], |answer| {
            answer["uses"][0]["process"]["pid"] == early.id()
        });
        answer.and_then(|answer| who.map(|_| answer))
    };
    let answer = taken_in();
    sh("ip addr del 192.0.2.77/32 dev lo", &[])?;
    let answer = answer?;
    assert_eq!(answer["hops"][0]["evidence"], "sole", "{answer}");
    let gaps = answer["gaps"].to_string();
    assert!(gaps.contains("started-before-agent"), "{gaps}");
    Ok(())
}

/// A program reads its key once, and presents it after the agent was restarted: an expectation
/// about the file still applies.
#[test]
fn a_key_that_was_read_before_a_restart() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    let home = directory.path().join("home");
    let key = lab::workload::aws_credentials(
        &home,
        "AKIAFAKERESTART00001",
        "FAKE/restart/secret/0000000000000000001",
    )?;
    let config = directory.path().join("keytrail.yaml");
    std::fs::write(
        &config,
        format!(
            "credentials:\n- {{ name: mine, match: {{ file: {} }}, destinations: [ \"*.partner.example\" ] }}\n",
            key.display()
        ),
    )?;
    let config = config.to_str().context("a name")?;
    let mut agent = Agent::start(directory.path(), &["--config", config])?;
    let server = lab::server::TlsServer::start("127.0.0.1")?;
    let port = server.address.port();
    // It continues when it reads a line.
    let mut program = Command::new("bash")
        .arg("-c")
        .arg(format!(
            "k=$(<'{}'); id=$(sed -n 's/^aws_access_key_id = //p' <<<\"$k\"); read -r; \
             curl -sS --insecure --aws-sigv4 aws:amz:eu-central-1:s3 --user \"$id:FAKE\" --connect-to ::127.0.0.1:{port} https://eu.partner.example:{port}/ >/dev/null",
            key.display()
        ))
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    agent.await_json(&["query", "who", "mine"], |answer| {
        answer["uses"]
            .as_array()
            .is_some_and(|uses| !uses.is_empty())
    })?;
    let first_seen = |agent: &Agent| {
        let name = "keytrail_credential_first_seen_timestamp_seconds";
        agent.metric(name, &["credential=\"mine\""])
    };
    let before = first_seen(&agent)?;
    ensure!(before > 0.0, "it was seen");
    ensure!(agent.stop()?.success(), "the agent stops");
    drop(agent);
    let agent = Agent::start(directory.path(), &["--config", config])?;
    std::io::Write::write_all(&mut program.stdin.take().context("a pipe")?, b"go\n")?;
    let ended = program.wait()?;
    ensure!(ended.success(), "the program: {ended}");
    let answer = agent.await_json(&["query", "where", "mine"], |answer| {
        answer["hops"]
            .as_array()
            .is_some_and(|hops| hops.iter().any(|hop| hop["evidence"] == "presented"))
    })?;
    let again = first_seen(&agent)?;
    ensure!(
        (before - again).abs() < 1.0,
        "{before}, and {again} after a restart"
    );
    for hop in answer["hops"].as_array().context("hops")? {
        assert_eq!(hop["verdict"], "expected", "{hop}");
    }
    let found = agent.findings()?;
    ensure!(
        !found
            .iter()
            .any(|finding| finding["rule"] == "unexpected-hop"),
        "{found:?}"
    );
    Ok(())
}
