//! A day of an honest host: no finding above `low`.

use anyhow::{Result, ensure};
use lab::{agent::Agent, server::TlsServer, wait_for};
use std::{collections::BTreeMap, process::Command, time::Duration};

#[test]
fn an_honest_day_raises_nothing_above_low() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    // Not in a temporary directory, where home directories never are.
    let directory = tempfile::Builder::new()
        .prefix("keytrail-day-")
        .tempdir_in("/opt")?;
    let state = tempfile::tempdir()?;
    let agent = Agent::start(state.path(), &[])?;
    let server = TlsServer::start("127.0.0.1")?;
    let output = Command::new("bash")
        .arg(lab::client("day.sh"))
        .arg(directory.path())
        .arg(server.address.to_string())
        .output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Everything before has been processed, including hops that wait for a payload.
    let marker = directory.path().join("home/.netrc");
    std::fs::read(&marker)?;
    agent.await_json(&["query", "who", &marker.display().to_string()], |answer| {
        let own = std::process::id();
        answer["uses"]
            .as_array()
            .is_some_and(|uses| uses.iter().any(|used| used["process"]["pid"] == own))
    })?;
    let ended = std::time::Instant::now();
    wait_for("connections settle", Duration::from_secs(10), || {
        Ok((ended.elapsed() > Duration::from_secs(3)).then_some(()))
    })?;
    let findings = agent.findings()?;
    let mut by: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut above = Vec::new();
    for finding in &findings {
        let word = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        *by.entry((word("severity"), word("rule"))).or_default() += 1;
        if word("severity") != "low" {
            above.push(format!(
                "{} {}: {}",
                word("severity"),
                word("rule"),
                word("summary")
            ));
        }
    }
    for ((severity, rule), count) in by {
        println!("{severity} {rule}: {count}");
    }
    ensure!(above.is_empty(), "above low:\n{}", above.join("\n"));
    ensure!(!findings.is_empty(), "a day without anything was not seen");
    Ok(())
}
