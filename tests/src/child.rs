//! Processes of a scenario that end with it.

use anyhow::{Context as _, Result, ensure};
use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

/// A process that is killed when dropped.
#[derive(Debug)]
pub struct KilledChild(pub Child);

impl KilledChild {
    /// Starts a process with a pipe at its standard input, and waits for the first line that it
    /// writes.
    pub fn start(command: &mut Command, expected: &str) -> Result<Self> {
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut child = Self(child);
        let stdout = child.0.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.trim_end() == expected, "it says {line:?}");
        Ok(child)
    }
}

impl Drop for KilledChild {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
