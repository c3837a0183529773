//! What the threads of the uprobes report to the pipeline.

use jiff::Timestamp;
use std::sync::mpsc::Sender;

/// An event that the rest of the agent must know about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SensorNotice {
    NotAttached {
        file: String,
        reason: String,
    },
    Evicted {
        file: String,
        in_use: bool,
    },
    MappingsLost {
        count: u64,
    },
    /// Requests outside TLS on busy connections that were not searched.
    Unsearched {
        count: u64,
    },
    /// A busy process is sampled, or no longer, with the number of its connections that were not
    /// observed.
    Sampled {
        program: String,
        since: Timestamp,
        unread: Option<u64>,
    },
}

/// Sends notices to the pipeline.
#[derive(Clone, Debug)]
pub struct NoticeSender(pub Sender<SensorNotice>);

impl NoticeSender {
    pub fn report(&self, notice: SensorNotice) {
        if let SensorNotice::NotAttached { file, reason } = &notice {
            tracing::warn!(%file, %reason, "no TLS probes attached");
        }
        // The receiver is dropped only when the agent stops.
        let _ = self.0.send(notice);
    }
}
