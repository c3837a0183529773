//! From recorded history to expectations: recorded, suggested, checked, tested, and in force.

use anyhow::{Context as _, Result, ensure};
use lab::{
    agent::{Agent, binary},
    server::TlsServer,
    workload::{TestUnit, aws_credentials},
};
use serde_json::Value;
use std::{fs, path::Path, process::Command};

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// Runs `keytrail policy …`; returns its standard output.
fn policy(arguments: &[&str]) -> Result<String> {
    let output = Command::new(binary()?)
        .arg("policy")
        .args(arguments)
        .output()?;
    ensure!(
        output.status.success(),
        "policy {arguments:?}: {}",
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

fn rules(answer: &Value, of: &str) -> Vec<(String, String)> {
    answer[of]
        .as_array()
        .into_iter()
        .flatten()
        .map(|finding| {
            let word = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
            (word("rule"), word("severity"))
        })
        .collect()
}

#[test]
fn learned_history_becomes_expectations() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("keytrail.yaml");
    fs::write(&config, "mode: learn\n")?;
    let agent = Agent::start(
        directory.path(),
        &["--config", &config.display().to_string()],
    )?;
    let server = TlsServer::start("127.0.0.1")?;
    let home = directory.path().join("home");
    fs::create_dir(&home)?;
    let key = aws_credentials(
        &home,
        "AKIAFAKELEARN0000001",
        "FAKE/learn/secret/00000000000000000001",
    )?;
    let key = key.display().to_string();
    let unit = TestUnit::new("lab-learner.service")?;
    let visit = |host: &str| {
        format!(
            "curl -sS --insecure --connect-to ::127.0.0.1:{} https://{host}/ >/dev/null",
            server.address.port()
        )
    };
    // Its home, one partner, and many servers of another.
    let present =
        |host: &str| visit(host).replace("curl", "curl -H 'X-Api-Key: AKIAFAKELEARN0000001'");
    let mut script = format!("K=$(cat {key}); {}", visit("status.example"));
    for host in (0..6)
        .map(|n| format!("n{n}.partner.example"))
        .chain(["db.internal", "s3.eu-central-1.amazonaws.com"].map(str::to_owned))
    {
        script = format!("{script}; {}", present(&host));
    }
    unit.sh(&script, &[])?;
    let hops = |answer: &Value, evidence: &str| {
        let hops = answer["hops"].as_array();
        let with = |hop: &&Value| hop["evidence"] == evidence;
        hops.map_or(0, |hops| hops.iter().filter(with).count())
    };
    let answer = agent.await_json(&["query", "where", &key], |answer| {
        hops(answer, "presented") == 8 && hops(answer, "sole") >= 1
    })?;
    let id = answer["credentials"][0]["id"]
        .as_str()
        .context("an id")?
        .to_owned();
    let state = agent.state_dir.display().to_string();
    ensure!(
        !agent
            .findings()?
            .iter()
            .any(|finding| finding["rule"] == "unexpected-hop"),
        "learning raises nothing of what an expectation would settle"
    );

    let drawn = policy(&["suggest", "--state-dir", &state])?;
    for line in [
        "*.partner.example:",
        "db.internal:",
        "lab-learner.service",
        "newly allows",
    ] {
        ensure!(drawn.contains(line), "no {line} in\n{drawn}");
    }
    let line_of = |text: &str| drawn.lines().find(|line| line.contains(text));
    let is_proposed = |text: &str| line_of(text).is_some_and(|line| line.trim().starts_with("- "));
    ensure!(is_proposed("amazonaws"), "the home is listed:\n{drawn}");
    ensure!(is_proposed("db.internal"), "{drawn}");
    ensure!(
        line_of("status.example").is_some() && !is_proposed("status.example"),
        "to hold a credential is no reason to present it:\n{drawn}"
    );
    let file = directory.path().join("drawn.yaml");
    fs::write(&file, &drawn)?;
    let file = file.display().to_string();
    ensure!(policy(&["check", &file])?.contains("valid"), "it is valid");
    let try_on = |file: &str| -> Result<Value> {
        let said = policy(&[
            "test",
            file,
            "--since",
            "1h",
            "--output",
            "json",
            "--state-dir",
            &state,
        ])?;
        Ok(serde_json::from_str(&said)?)
    };
    let tried = try_on(&file)?;
    let (rule, severity) = ("unexpected-hop".to_owned(), "medium".to_owned());
    let found = rules(&tried, "findings");
    let hops = found.iter().filter(|(rule, _)| rule == "unexpected-hop");
    ensure!(hops.eq([&(rule, severity)]), "only status.example: {tried}");
    ensure!(
        !found.iter().any(|(rule, _)| rule == "unexpected-reader"),
        "{tried}"
    );
    // Expectations without the partner.
    let strict = directory.path().join("strict.yaml");
    fs::write(
        &strict,
        format!(
            "credentials:\n- name: k\n  match: {{ file: {key} }}\n  readers: [ {{ unit: other.service }} ]\n  destinations: [ 'db.internal:*' ]\n"
        ),
    )?;
    let tried = try_on(&strict.display().to_string())?;
    let found = rules(&tried, "findings");
    let count = |rule: &str, severity: &str| {
        found
            .iter()
            .filter(|(one, other)| one == rule && other == severity)
            .count()
    };
    assert_eq!(count("unexpected-hop", "critical"), 6, "{tried}");
    assert_eq!(count("unexpected-hop", "medium"), 1, "{tried}");
    assert_eq!(count("unexpected-reader", "high"), 1, "{tried}");
    // An error is reported with a suggestion, and the expectations in force stay.
    let wrong = directory.path().join("wrong.yaml");
    fs::write(&wrong, "credentials:\n- name: k\n  match: { flie: /x }\n")?;
    let output = Command::new(binary()?)
        .args(["policy", "check", &wrong.display().to_string()])
        .output()?;
    assert_eq!(output.status.code(), Some(2));
    ensure!(
        text(&output.stderr).contains("wrong.yaml:3:")
            && text(&output.stderr).contains("did you mean `file`?"),
        "{}",
        text(&output.stderr)
    );

    // In force: the partner is expected, and an unknown host is not.
    fs::write(&config, format!("policies: [ {file} ]\n"))?;
    agent.await_loaded()?;
    let before = Command::new("date").args(["-u", "+%FT%T.%NZ"]).output()?;
    let before = text(&before.stdout).trim().to_owned();
    unit.sh(
        &format!(
            "K=$(cat {key}); {}; {}",
            visit("n9.partner.example"),
            visit("paste.example")
        ),
        &[],
    )?;
    let finding = agent.await_finding(|finding| {
        finding["rule"] == "unexpected-hop" && finding["destination"]["name"] == "paste.example"
    })?;
    assert_eq!(finding["severity"], "medium", "an expectation was written");
    ensure!(
        !agent
            .findings()?
            .iter()
            .any(|finding| finding["destination"]["name"] == "n9.partner.example"),
        "the glob allows it"
    );
    let new = agent.await_json(&["query", "first-use", &id, "--after", &before], |answer| {
        answer["new_destinations"].as_array().map_or(0, Vec::len) == 2
    })?;
    assert_eq!(new["known"], serde_json::json!(["lab-learner.service"]));
    assert_eq!(new["new"], serde_json::json!([]));

    answers_as_graphs(&agent, &id)?;
    let copy = directory.path().join("copy");
    fs::create_dir(&copy)?;
    back_up(&agent, &copy, &id)
}

/// Each graph is valid DOT: balanced, and about the right subject.
fn answers_as_graphs(agent: &Agent, id: &str) -> Result<()> {
    for question in [
        vec!["query", "who", id],
        vec!["query", "where", id],
        vec!["query", "chain", id],
        vec!["query", "blast-radius", "lab-learner.service"],
        vec!["query", "timeline", "--credential", id],
    ] {
        let mut arguments = question.clone();
        arguments.extend(["--output", "dot"]);
        let output = agent.query(&arguments)?;
        let drawn = text(&output.stdout);
        ensure!(
            drawn.starts_with("digraph ") && drawn.ends_with("}\n") && drawn.contains(id),
            "{question:?}: {drawn}"
        );
        ensure!(
            question[1] == "chain" || drawn.contains("lab-learner.service"),
            "{question:?}: {drawn}"
        );
    }
    Ok(())
}

fn back_up(agent: &Agent, to: &Path, id: &str) -> Result<()> {
    let file = to.join("ledger.sqlite");
    let output = agent.query(&["backup", &file.display().to_string()])?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    let output = Command::new(binary()?)
        .args(["query", "where", id, "--output", "json", "--state-dir"])
        .arg(to)
        .output()?;
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        answer["hops"]
            .as_array()
            .is_some_and(|hops| hops.len() == 19),
        "{answer}"
    );
    Ok(())
}
