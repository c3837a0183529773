//! A flood of irrelevant events does not hide relevant ones, and losses are reported as such.

use anyhow::{Context as _, Result};
use lab::{
    agent::{Agent, binary},
    server::TlsServer,
    workload::{TestUnit, aws_credentials},
};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStdout, Stdio},
};

/// A storm that continues until it is stopped.
struct ExecStorm {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl ExecStorm {
    fn start(unit: &TestUnit, arguments: &str) -> Result<Self> {
        let actor = binary()?.with_file_name("lab-actor");
        let mut child = unit
            .command(&format!("exec {} --storm {arguments}", actor.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("its output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        Ok(Self { child, output })
    }

    /// Stops it, or waits for its end; returns the number of repetitions.
    fn count(&mut self, stop: bool) -> Result<f64> {
        if stop {
            drop(self.child.stdin.take());
        }
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        self.child.wait()?;
        Ok(line.trim().parse()?)
    }
}

impl Drop for ExecStorm {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn key(directory: &Path, number: u32) -> Result<String> {
    let path = aws_credentials(
        &directory.join(number.to_string()),
        &format!("AKIAFAKEFLOOD{number:07}"),
        &format!("FAKE/flood/{number:029}"),
    )?;
    Ok(path.display().to_string())
}

fn hops(answer: &Value) -> usize {
    answer["hops"].as_array().map_or(0, Vec::len)
}

#[test]
fn a_credential_is_found_in_a_storm_of_forks_and_opens() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let server = TlsServer::start("127.0.0.1")?;
    let key = key(directory.path(), 1)?;
    let innocent = directory.path().join("innocent");
    std::fs::write(&innocent, "nothing")?;
    let storm = TestUnit::new("storm.service")?;
    let mut forks = ExecStorm::start(&storm, "forks")?;
    let mut opens = ExecStorm::start(&storm, &format!("opens --path {}", innocent.display()))?;
    let quiet = TestUnit::new("quiet.service")?;
    let actor = binary()?.with_file_name("lab-actor");
    quiet.sh(
        &format!(
            "{} --get open --path {key} --connect tls --to {} --name flood.example",
            actor.display(),
            server.address
        ),
        &[],
    )?;
    let answer = agent.await_json(&["query", "where", &key], |answer| hops(answer) == 1)?;
    let (forks, opens) = (forks.count(true)?, opens.count(true)?);
    println!("beside {forks} forks and {opens} opens");
    assert!(forks > 100.0 && opens > 1000.0, "it was a storm");
    let hop = &answer["hops"][0];
    assert_eq!(hop["destination"]["name"], "flood.example");
    assert_eq!(hop["workload"]["unit"], "quiet.service");
    assert_eq!(hop["evidence"], "sole");
    for probe in ["file", "connect", "hello"] {
        let labels = [format!("probe=\"{probe}\""), "stage=\"ring\"".to_owned()];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        assert!(
            agent.metric("keytrail_events_lost_total", &labels)? < 0.5,
            "the {probe} probe lost nothing"
        );
    }
    Ok(())
}

#[test]
fn every_read_of_one_process_is_counted() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let key = key(directory.path(), 2)?;
    let unit = TestUnit::new("reader.service")?;
    let mut reads = ExecStorm::start(&unit, &format!("opens --path {key} --times 20000"))?;
    let expected = reads.count(false)?;
    let answer = agent.await_json(&["query", "who", &key], |answer| {
        answer["uses"][0]["count"]
            .as_f64()
            .is_some_and(|count| count >= expected)
    })?;
    assert_eq!(
        answer["uses"][0]["count"].as_f64(),
        Some(expected),
        "{answer}"
    );
    assert_eq!(answer["uses"].as_array().map(Vec::len), Some(1));
    Ok(())
}

#[test]
fn losses_are_counted_by_workload_and_shown_as_a_gap() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let key = key(directory.path(), 3)?;
    let unit = TestUnit::new("greedy.service")?;
    // With the agent stopped, nothing reads the rings.
    let pid = rustix::process::Pid::from_raw(agent.pid() as i32).context("a pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
    let mut readers = ExecStorm::start(&unit, &format!("readers --path {key} --times 6000"))?;
    let counted = readers.count(false);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
    let counted = counted?;
    let labels = ["probe=\"file\"", "workload=\"greedy.service\""];
    agent.await_json(&["query", "who", &key], |answer| {
        answer["gaps"].as_array().is_some_and(|gaps| {
            gaps.iter().any(|gap| {
                gap["probe"] == "file"
                    && gap["detail"]
                        .as_str()
                        .is_some_and(|detail| detail.contains("greedy.service"))
            })
        })
    })?;
    let lost = agent.metric("keytrail_workload_events_lost_total", &labels)?;
    assert!(lost > 0.0, "the ring was full");
    // The total is exact, and includes what other processes lost meanwhile; the counts by workload
    // can miss events that two CPUs count at once.
    let sum = agent.metric(
        "keytrail_events_lost_total",
        &["probe=\"file\"", "stage=\"ring\""],
    )?;
    assert!(lost <= sum && lost > sum * 0.9, "{lost} of {sum}");
    let seen = |answer: &Value| -> f64 {
        let uses = answer["uses"].as_array();
        let counts = uses.into_iter().flatten();
        counts.filter_map(|used| used["count"].as_f64()).sum()
    };
    let answer = agent.await_json(&["query", "who", &key], |answer| {
        seen(answer) + sum >= counted
    })?;
    assert!(
        seen(&answer) + lost <= counted,
        "seen {}, lost {lost} of {sum}, done {counted}",
        seen(&answer)
    );
    Ok(())
}
