//! Work that the start does not wait for.

use crate::sensor::remove_leftovers;

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
