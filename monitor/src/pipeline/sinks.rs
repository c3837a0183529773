//! The receivers of the pipeline's output.

use crate::{
    export::{
        findings::FindingStream,
        lines::{Delivery, LineWriter},
    },
    ledger::{LedgerEntry, LedgerWriter},
    metrics::Metrics,
};
use monitor_core::trail::{TrailEvent, recording::RECORDING_VERSION};
use std::{
    io::{self, Write},
    sync::Arc,
};

/// Records events for a replay, in a thread of its own.
#[derive(Debug)]
pub struct EventRecorder(LineWriter);

impl EventRecorder {
    /// Starts the thread. A recording begins with its version.
    pub fn start(target: Box<dyn Write + Send>) -> io::Result<Self> {
        let recorder = Self(LineWriter::start("recording", target, Delivery::Lossy)?);
        recorder.record(&TrailEvent::Recording {
            version: RECORDING_VERSION,
        });
        Ok(recorder)
    }

    /// Records an event without waiting for the file.
    pub fn record(&self, event: &TrailEvent) {
        // Every event can be written as JSON.
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            self.0.write_line(line);
        }
    }

    /// Number of events that could not be written.
    pub fn lost(&self) -> u64 {
        self.0.lost()
    }

    /// Waits until everything is written, up to a timeout.
    #[cfg(test)]
    pub fn flush(&self) {
        self.0.flush();
    }
}

/// The receivers of the pipeline's output.
#[derive(Debug)]
pub struct Sinks {
    pub ledger: Option<LedgerWriter>,
    pub metrics: Arc<Metrics>,
    pub stream: FindingStream,
    /// The recording for a replay.
    pub record: Option<EventRecorder>,
}

impl Sinks {
    pub(super) fn write(&self, entry: LedgerEntry) {
        if let Some(ledger) = &self.ledger {
            ledger.write(entry);
        }
    }
}
