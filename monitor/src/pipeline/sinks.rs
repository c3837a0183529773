//! The receivers of the pipeline's output.

use crate::{
    export::findings::FindingStream,
    ledger::{LedgerEntry, LedgerWriter},
    metrics::Metrics,
};
use std::{fs::File, io::BufWriter, sync::Arc};

/// The receivers of the pipeline's output.
#[derive(Debug)]
pub struct Sinks {
    pub ledger: Option<LedgerWriter>,
    pub metrics: Arc<Metrics>,
    pub stream: FindingStream,
    /// The recording for a replay.
    pub record: Option<BufWriter<File>>,
}

impl Sinks {
    pub(super) fn write(&self, entry: LedgerEntry) {
        if let Some(ledger) = &self.ledger {
            ledger.write(entry);
        }
    }
}
