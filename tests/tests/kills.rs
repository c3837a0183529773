//! An agent that is killed again and again under load: what is missing is exactly what the gaps report.

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use lab::{agent::Agent, child::KilledChild, wait_for};
use serde_json::Value;
use std::{
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How often it is killed: thirty times in `cargo xtask test --all`,
/// and less often in an ordinary run.
fn kills() -> usize {
    let all = std::env::var_os("KEYTRAIL_TEST_ALL").is_some();
    if all { 30 } else { 5 }
}

/// Somebody who opens and reads a credential file as fast as possible.
const READER: &str = "
import os, tempfile
with tempfile.NamedTemporaryFile(suffix='.netrc') as file:
    file.write(b'machine busy.example login b password FAKE-busy')
    file.flush()
    print('begun', flush=True)
    while True:
        os.close(os.open(file.name, os.O_RDONLY))
";

/// A program that was started with a credential of its own, and when.
#[derive(Clone, Copy, Debug)]
struct Start {
    before: Timestamp,
    after: Timestamp,
}

/// Starts programs, each with another credential, until it is dropped.
struct Load {
    starts: Arc<Mutex<Vec<Start>>>,
    ends: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<std::io::Result<()>>>,
}

impl Load {
    fn begin() -> Self {
        let (starts, ends) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (starts, ends) = (Arc::clone(&starts), Arc::clone(&ends));
            std::thread::spawn(move || run(&starts, &ends))
        };
        Self {
            starts,
            ends,
            thread: Some(thread),
        }
    }

    fn starts(&self) -> Vec<Start> {
        self.starts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for so many more starts.
    fn await_more(&self, count: usize) -> Result<()> {
        let wanted = self.starts().len() + count;
        wait_for("programs are started", Duration::from_secs(120), || {
            Ok((self.starts().len() >= wanted).then_some(()))
        })
    }

    fn end(mut self) -> Result<Vec<Start>> {
        self.ends.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it runs")?;
        thread.join().expect("it does not panic")?;
        Ok(self.starts())
    }
}

fn run(starts: &Mutex<Vec<Start>>, ends: &AtomicBool) -> std::io::Result<()> {
    while !ends.load(Ordering::Relaxed) {
        let number = starts.lock().unwrap_or_else(PoisonError::into_inner).len();
        let before = Timestamp::now();
        // It takes some 20 ms.
        Command::new("timeout")
            .args(["5", "python3", "-S", "-c", ""])
            .env(
                format!("KILLS_{number}_TOKEN"),
                format!("FAKE-kills-{number}"),
            )
            .status()?;
        let after = Timestamp::now();
        starts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Start { before, after });
    }
    Ok(())
}

/// From when until when each gap is.
fn times_of<'a>(gaps: impl IntoIterator<Item = &'a Value>) -> Result<Vec<(Timestamp, Timestamp)>> {
    let times = gaps
        .into_iter()
        .map(|gap| Ok((time_of(gap, "since")?, time_of(gap, "until")?)));
    times.collect()
}

/// When a gap begins or ends.
fn time_of(gap: &Value, end: &str) -> Result<Timestamp> {
    let text = gap[end]
        .as_str()
        .with_context(|| format!("{end} of {gap}"))?;
    Ok(text.parse()?)
}

#[test]
fn what_is_missing_after_kills_is_in_the_gaps() -> Result<()> {
    let kills = kills();
    let directory = tempfile::tempdir()?;
    let mut agent = Agent::start(directory.path(), &[])?;
    let load = Load::begin();
    let _reader = KilledChild::start(Command::new("python3").args(["-c", READER]), "begun")?;
    let mut killed = Vec::new();
    for kill in 0..kills {
        // At once, in the middle of a batch, and after some batches. The first one has no time without an
        // agent to report; the second has.
        load.await_more(1 + kill.saturating_sub(1) * 7 % 40)?;
        killed.push(Timestamp::now());
        agent.kill()?;
        agent = Agent::start(directory.path(), &[])?;
    }
    load.await_more(10)?;
    let starts = load.end()?;
    let last = format!("env:KILLS_{}_TOKEN", starts.len() - 1);
    let answer = agent.await_json(&["inventory"], |answer| answer.to_string().contains(&last))?;
    let text = answer.to_string();
    let gaps = answer["gaps"].as_array().context("gaps")?;
    let down: Vec<&Value> = gaps
        .iter()
        .filter(|gap| gap["kind"] == "agent-down")
        .collect();
    // Two are one if nothing was stored between them.
    let times = times_of(down)?;
    let contains =
        |(since, until): &(Timestamp, Timestamp), kill: &Timestamp| since <= kill && kill <= until;
    for kill in &killed {
        ensure!(
            times.iter().any(|time| contains(time, kill)),
            "the kill at {kill} is in no gap: {gaps:?}"
        );
    }
    ensure!(
        times
            .iter()
            .all(|time| killed.iter().any(|kill| contains(time, kill))),
        "not each time without an agent has a kill, {killed:?}: {gaps:?}"
    );
    // A slow machine may lose some although an agent runs; only what starts a program counts.
    let of_starts = |gap: &&Value| {
        gap["kind"] == "lost-events" && (gap["probe"] == "environ" || gap["probe"] == "process")
    };
    let lost = times_of(gaps.iter().filter(of_starts))?;
    let (mut missing, mut seen_again) = (0, None);
    for (number, start) in starts.iter().enumerate() {
        let seen = text.contains(&format!("\"env:KILLS_{number}_TOKEN\""));
        let touches = |(since, until): &(Timestamp, Timestamp)| {
            *since <= start.after && start.before <= *until
        };
        let gap = times.iter().position(touches);
        ensure!(
            seen || gap.is_some() || lost.iter().any(touches),
            "program {number} is missing, and in no gap: {start:?}, {times:?}, lost {lost:?}"
        );
        missing += usize::from(!seen);
        // A gap begins with what was not stored yet when the agent was killed, and ends when all probes
        // are attached; what one of them has seen again is seen from then on.
        let inside = gap.filter(|gap| {
            let time = &times[*gap];
            let last = killed.iter().rfind(|kill| contains(time, kill));
            last.is_some_and(|last| *last < start.before) && start.after < time.1
        });
        if let Some(gap) = inside {
            ensure!(
                seen || seen_again != Some(gap),
                "program {number} is missing after others were seen: {start:?}, {:?}",
                times[gap]
            );
            seen_again = if seen { Some(gap) } else { seen_again };
        }
    }
    println!(
        "{} programs, {missing} missing; {} other gaps",
        starts.len(),
        gaps.len() - times.len()
    );
    ensure!(missing > kills, "only {missing} are missing");
    Ok(())
}
