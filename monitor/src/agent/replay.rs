//! `keytrail replay`: a recording through the same trail and policy.

use super::state_dir::lock;
use crate::{
    config::{Config, settings::RetentionLimits},
    export::findings::FindingStream,
    health::Health,
    ledger::LedgerWriter,
    metrics::Metrics,
    pipeline::{Evaluator, Sinks},
};
use anyhow::Context as _;
use monitor_core::{catalog::Catalog, policy::Policy, trail::recording::RecordingReader};
use std::{fs::File, path::Path, sync::Arc};

/// Replays a recording through the same trail and policy. Findings go to `stream`, and to a ledger
/// in the given state directory, if any.
pub fn replay(
    file: &Path,
    config: Config,
    catalog: Arc<Catalog>,
    stream: FindingStream,
    state_dir: Option<&Path>,
) -> anyhow::Result<u64> {
    let text = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    // Fails if an agent uses the ledger.
    let _lock = state_dir.map(lock).transpose()?;
    let ledger = match state_dir {
        Some(directory) => {
            // A recording may be old: nothing is dropped by age.
            let retention = RetentionLimits {
                max_age: jiff::SignedDuration::from_hours(24 * 36_500),
                ..config.settings.retention.clone()
            };
            let writer = LedgerWriter::open(directory, retention, Health::default())?.0;
            writer.started(jiff::Timestamp::now());
            Some(writer)
        }
        None => None,
    };
    let mut evaluator = Evaluator::new(
        Policy::new(config.expectations, catalog),
        Sinks {
            ledger,
            metrics: Arc::new(Metrics::new()?),
            stream,
            record: None,
        },
        false,
    );
    let mut count = 0;
    let mut events = Vec::new();
    let mut recording = RecordingReader::default();
    for (number, line) in std::io::BufRead::lines(std::io::BufReader::new(text)).enumerate() {
        let place = || format!("{}:{}", file.display(), number + 1);
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        events.extend(
            recording
                .read(&line)
                .with_context(place)?
                .into_iter()
                .flatten(),
        );
        count += 1;
        evaluator.process(&mut events);
    }
    evaluator.finish();
    Ok(count)
}
