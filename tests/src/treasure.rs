//! A credential to be stolen beside an attack on the agent.

use crate::{
    agent::{Agent, Surroundings},
    wait_for,
    workload::{TestUnit, aws_credentials},
};
use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// A credential with written readers, whose use by anyone else is a finding.
#[derive(Debug)]
pub struct Treasure {
    pub directory: tempfile::TempDir,
    pub path: PathBuf,
    pub config: PathBuf,
}

impl Treasure {
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = aws_credentials(directory.path(), "AKIAFAKEHOSTILE00001", "FAKE/hostile/1")?;
        let config = directory.path().join("config.yaml");
        fs::write(
            &config,
            format!(
                "credentials:\n  - name: treasure\n    match: {{ file: {} }}\n    readers: [ {{ unit: owner.service }} ]\n",
                path.display()
            ),
        )?;
        Ok(Self {
            directory,
            path,
            config,
        })
    }

    /// An agent that knows of it, in a cgroup.
    pub fn agent(&self, group: Option<&Path>) -> Result<Agent> {
        let config = self.config.display().to_string();
        let surroundings = Surroundings {
            group,
            ..Surroundings::default()
        };
        Agent::start_in(self.directory.path(), &["--config", &config], &surroundings)
    }

    /// Has it read by another workload each time: the same theft is reported once.
    pub fn thief(&self) -> Result<()> {
        static THIEVES: AtomicU32 = AtomicU32::new(0);
        let number = THIEVES.fetch_add(1, Ordering::Relaxed);
        let thief = TestUnit::new(&format!("thief-{number}.service"))?;
        thief.sh(&format!("cat {}", self.path.display()), &[])?;
        Ok(())
    }

    /// Steals it, and returns the time until the finding is in the stream.
    pub fn steal(&self, agent: &Agent) -> Result<Duration> {
        let before = agent.findings()?.len();
        let began = Instant::now();
        self.thief()?;
        wait_for("the theft is found", Duration::from_secs(10), || {
            let findings = agent.findings()?;
            let new = findings.iter().skip(before);
            let found = new
                .filter(|finding| finding["rule"] == "unexpected-reader")
                .any(|finding| finding["credential"]["name"] == "treasure");
            Ok(found.then(|| began.elapsed()))
        })
        .with_context(|| format!("{}\n{}", agent.log_text(), agent.what_is_missing()))
    }
}

/// Stops the agent, which must not take long, whatever it waits for.
pub fn stop_in_time(agent: &mut Agent) -> Result<()> {
    let began = Instant::now();
    let status = agent.stop()?;
    ensure!(status.success(), "{status}");
    let stopping = began.elapsed();
    ensure!(
        stopping < Duration::from_secs(5),
        "stopped after {stopping:?}"
    );
    Ok(())
}
