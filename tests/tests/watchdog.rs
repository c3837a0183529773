//! An agent that is broken by root says so: in a finding `blind`, in a gap, in its metrics and
//! health checks. Each way of breaking it has an agent of its own.

use anyhow::{Context as _, Result, ensure};
use lab::{
    agent::Agent,
    child::KilledChild,
    tamper::{detach_cgroup_links, empty_maps, remove_breakpoints},
    wait_for,
    workload::{aws_credentials, sh},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

/// Within this time it must be reported.
const LIMIT: Duration = Duration::from_secs(30);
/// Each probe was tested by then.
const TESTED: Duration = Duration::from_secs(10);

struct Broken {
    directory: tempfile::TempDir,
    agent: Agent,
    began: Instant,
}

fn await_tested(agent: &Agent) -> Result<()> {
    wait_for("the probes were tested", TESTED, || {
        Ok((agent.logged(&["the probes were tested"]) > 0).then_some(()))
    })
    .with_context(|| agent.log_text())
}

impl Broken {
    /// An agent whose probes were tested, and then broken.
    fn by(break_it: impl FnOnce(&Agent) -> Result<usize>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let agent = Agent::start(directory.path(), &[])?;
        await_tested(&agent)?;
        ensure!(agent.logged(&["silent"]) == 0, "{}", agent.log_text());
        ensure!(agent.get("/healthz")?.0 == 200, "before");
        let count = break_it(&agent)?;
        ensure!(count > 0, "nothing was broken");
        Ok(Self {
            directory,
            agent,
            began: Instant::now(),
        })
    }

    /// Waits for a finding `blind` with a gap of this kind whose detail contains a text.
    fn await_blind(&self, kind: &str, text: &str) -> Result<Value> {
        let found = wait_for(&format!("blind: {text}"), LIMIT, || {
            let findings = self.agent.findings()?;
            Ok(findings.into_iter().find(|finding| {
                finding["rule"] == "blind"
                    && finding["severity"] == "high"
                    && finding["gaps"][0]["kind"] == kind
                    && finding["summary"]
                        .as_str()
                        .is_some_and(|summary| summary.contains(text))
            }))
        })
        .with_context(|| self.agent.log_text())?;
        println!("{text}: after {:?}", self.began.elapsed());
        Ok(found)
    }

    /// A silent probe is shown as not attached, and a restart would help.
    fn expect_silent(&self, probe: &str, hook: &str) -> Result<()> {
        let labels = [
            &format!("probe=\"{probe}\"")[..],
            &format!("mechanism=\"{hook}\""),
        ];
        let attached = self.agent.metric("keytrail_probe_attached", &labels)?;
        ensure!(attached == 0.0, "{probe} at {hook} is still attached");
        let (status, reasons) = self.agent.get("/healthz")?;
        ensure!(
            status == 503 && reasons.contains(hook),
            "{status}: {reasons}"
        );
        Ok(())
    }

    fn gaps(&self) -> Result<Vec<Value>> {
        let answer = self.agent.await_json(&["query", "timeline"], |_| true)?;
        Ok(answer["gaps"].as_array().cloned().unwrap_or_default())
    }
}

#[test]
fn programs_that_are_detached_from_the_cgroup() -> Result<()> {
    let broken = Broken::by(|agent| detach_cgroup_links(agent.pid()))?;
    for (probe, hook) in [
        ("connect", "cgroup/connect4"),
        ("connect", "cgroup/sendmsg4"),
        ("hello", "cgroup_skb/egress"),
        ("dns", "cgroup_skb/ingress"),
    ] {
        broken.await_blind("probe-silent", &format!("the {probe} probe ({hook})"))?;
        broken.expect_silent(probe, hook)?;
    }
    // What does not depend on them still works.
    let file = aws_credentials(
        broken.directory.path(),
        "AKIAFAKEWATCHDOG0001",
        "FAKE/watchdog",
    )?;
    sh(&format!("cat {}", file.display()), &[])?;
    broken.agent.await_used(&file.display().to_string())?;
    Ok(())
}

#[test]
fn maps_that_are_emptied() -> Result<()> {
    let broken = Broken::by(|agent| empty_maps(agent.pid()))?;
    broken.await_blind("probe-silent", "the file probe (")?;
    let (status, reasons) = broken.agent.get("/healthz")?;
    ensure!(status == 503, "{reasons}");
    Ok(())
}

/// A probe that was removed from the canary's function stands for one that was disabled.
#[test]
fn a_uprobe_that_is_removed() -> Result<()> {
    // On a node where no process starts, the canary would be started again.
    let _busy = busy_node()?;
    let broken = Broken::by(|agent| remove_breakpoints(canary(agent)?))?;
    broken.await_blind("probe-silent", "the present probe (uprobe/write)")?;
    broken.expect_silent("present", "uprobe/write")?;
    // The next canary has the probe again, and its end is recorded.
    let canary = canary(&broken.agent)?;
    kill_process(
        Pid::from_raw(canary.try_into()?).context("a pid")?,
        Signal::KILL,
    )?;
    wait_for("the probe is heard again", LIMIT, || {
        Ok((broken.agent.get("/healthz")?.0 == 200).then_some(()))
    })
    .with_context(|| broken.agent.log_text())?;
    let attached = broken
        .agent
        .metric("keytrail_probe_attached", &["mechanism=\"uprobe/write\""])?;
    ensure!(attached == 1.0, "{attached}");
    wait_for("the gap has an end", LIMIT, || {
        let gaps = broken.gaps()?;
        let mut silent = gaps.iter().filter(|gap| gap["kind"] == "probe-silent");
        Ok(silent.all(|gap| gap["until"].is_string()).then_some(()))
    })?;
    Ok(())
}

/// Starts a process every second.
fn busy_node() -> Result<KilledChild> {
    let shell = Command::new("sh")
        .args(["-c", "while sleep 1; do :; done"])
        .spawn()?;
    Ok(KilledChild(shell))
}

/// The process that tests the probes.
fn canary(agent: &Agent) -> Result<u32> {
    let is_canary = |pid: &u32| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline"));
        command.is_ok_and(|command| command.ends_with("\0canary\0"))
    };
    let children = agent.children()?;
    children
        .into_iter()
        .find(is_canary)
        .context("no canary is running")
}

#[test]
fn an_agent_that_is_stopped_for_a_while() -> Result<()> {
    const STOPPED: Duration = Duration::from_secs(12);
    let broken = Broken::by(|agent| {
        let pid = Pid::from_raw(agent.pid().try_into()?).context("a pid")?;
        kill_process(pid, Signal::STOP)?;
        // The time itself is what is tested.
        std::thread::sleep(STOPPED);
        kill_process(pid, Signal::CONT)?;
        Ok(1)
    })?;
    let found = broken.await_blind("agent-stalled", "the agent did not run for a while")?;
    let gap = &found["gaps"][0];
    ensure!(
        gap["since"].is_string() && gap["until"].is_string(),
        "{gap}"
    );
    wait_for("the agent is well again", LIMIT, || {
        Ok((broken.agent.get("/healthz")?.0 == 200).then_some(()))
    })?;
    Ok(())
}

#[test]
fn a_canary_that_is_stopped_or_killed_is_replaced() -> Result<()> {
    for signal in [Signal::STOP, Signal::KILL] {
        let mut before = 0;
        let broken = Broken::by(|agent| {
            before = canary(agent)?;
            kill_process(Pid::from_raw(before.try_into()?).context("a pid")?, signal)?;
            Ok(1)
        })?;
        wait_for("another canary", LIMIT, || {
            Ok(canary(&broken.agent).ok().filter(|pid| *pid != before))
        })
        .with_context(|| broken.agent.log_text())?;
        ensure!(
            broken.agent.logged(&["is silent"]) == 0,
            "{}",
            broken.agent.log_text()
        );
    }
    Ok(())
}

#[test]
fn helpers_that_are_stopped_end_with_an_agent_that_is_killed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut agent = Agent::start(directory.path(), &[])?;
    await_tested(&agent)?;
    // One that is stopped at its very start could not tell the kernel yet that it ends with the agent.
    let helpers = wait_for("its readers are confined", LIMIT, || {
        let helpers = agent.children()?;
        // A canary may be replaced meanwhile.
        let is_set_up = |pid: &u32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            arguments.ends_with(b"canary\0") || status.contains("Seccomp:\t2")
        };
        Ok(helpers.iter().all(is_set_up).then_some(helpers))
    })?;
    ensure!(helpers.len() > 1, "readers and a canary: {helpers:?}");
    for helper in &helpers {
        let pid = Pid::from_raw((*helper).try_into()?).context("a pid")?;
        kill_process(pid, Signal::STOP)?;
    }
    agent.kill()?;
    wait_for("its helpers have ended", LIMIT, || {
        let stays = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/stat"));
            status.is_ok_and(|status| !status.contains(") Z "))
        };
        Ok((!helpers.iter().any(stays)).then_some(()))
    })
}

/// The ledger of an agent, after something was used.
fn ledger(agent: &Agent) -> Result<PathBuf> {
    sh("BAO_TOKEN=FAKE-watchdog-before /bin/true", &[])?;
    agent.await_used("env:BAO_TOKEN")?;
    Ok(agent.state_dir.join("ledger.sqlite"))
}

#[test]
fn a_ledger_that_is_deleted_emptied_or_replaced() -> Result<()> {
    type Harm = fn(&PathBuf) -> Result<()>;
    let cases: [(&str, Harm); 4] = [
        ("it was deleted", |ledger| {
            // With the whole state directory.
            Ok(fs::remove_dir_all(ledger.parent().context("a directory")?)?)
        }),
        ("it was deleted", |ledger| Ok(fs::remove_file(ledger)?)),
        ("it was emptied", |ledger| {
            Ok(fs::File::options().write(true).open(ledger)?.set_len(0)?)
        }),
        ("it was replaced by another file", |ledger| {
            let copy = ledger.with_extension("copy");
            fs::copy(ledger, &copy)?;
            Ok(fs::rename(copy, ledger)?)
        }),
    ];
    for (reason, harm) in cases {
        let broken = Broken::by(|agent| harm(&ledger(agent)?).map(|()| 1))?;
        broken.await_blind("ledger-damaged", reason)?;
        // What follows is kept, and the answer says what is missing.
        sh("BAO_TOKEN=FAKE-watchdog-after /bin/true", &[])?;
        broken.agent.await_used("env:BAO_TOKEN")?;
        let gaps = broken.gaps()?;
        ensure!(
            gaps.iter().any(|gap| gap["kind"] == "ledger-damaged"),
            "{reason}: {gaps:?}"
        );
    }
    Ok(())
}
