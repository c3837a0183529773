//! Work that the start does not wait for.

use crate::{
    credential::recover::{RecoveredFile, recover},
    sensor::remove_leftovers,
};
use monitor_core::catalog::Catalog;
use std::sync::{
    Arc,
    mpsc::{Receiver, channel},
};

/// Recovers credential files known from earlier runs, while the agent is already running.
pub(super) fn recover_in_background(
    catalog: Arc<Catalog>,
    places: Vec<String>,
) -> anyhow::Result<Receiver<RecoveredFile>> {
    let (send, recovered) = channel();
    std::thread::Builder::new()
        .name("recover-files".to_owned())
        .spawn(move || {
            let found = recover(&catalog, &places);
            tracing::debug!(files = found.len(), "credential files recovered");
            for file in found {
                // The receiver is dropped only when the agent stops.
                let _ = send.send(file);
            }
        })?;
    Ok(recovered)
}

/// Removes what a killed agent left behind. Leftovers cost nothing meanwhile.
pub(super) fn clean_up_in_background() -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name("clean-up".to_owned())
        .spawn(|| {
            let removed = remove_leftovers();
            if removed > 0 {
                tracing::info!(
                    events = removed,
                    "deleted leftovers of previous agents from tracefs"
                );
            }
        })?;
    Ok(())
}
