//! The state directory: its lock, and the fingerprint key.

use anyhow::{Context as _, anyhow};
use monitor_common::fingerprint::FingerprintKey;
use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Locks the state directory, which belongs to one agent; creates it if needed.
pub(super) fn lock(state_dir: &Path) -> anyhow::Result<File> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .with_context(|| format!("cannot create the state directory {}", state_dir.display()))?;
    let path = state_dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot use the state directory {}", state_dir.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| crate::ledger::LedgerError::InUse(state_dir.join(crate::ledger::FILE_NAME)))?;
    Ok(file)
}

/// The fleet's fingerprint key, or the host's own, which is created at the first start.
pub(super) fn fingerprint_key(
    state_dir: &Path,
    fleet: Option<&Path>,
) -> anyhow::Result<FingerprintKey> {
    let path = fleet.map_or_else(|| state_dir.join("fingerprint.key"), Path::to_owned);
    if fleet.is_none() && !path.exists() {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes).map_err(|error| anyhow!("cannot get random bytes: {error}"))?;
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{text}"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read the fingerprint key {}", path.display()))?;
    let text = text.trim();
    let number = u128::from_str_radix(text, 16)
        .ok()
        .filter(|_| text.len() == 32)
        .ok_or_else(|| anyhow!("{} does not contain 32 hex digits", path.display()))?;
    Ok(FingerprintKey::from_bytes(number.to_be_bytes()))
}
