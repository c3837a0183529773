//! The state directory: its lock, and the fingerprint key.

use crate::private_file;
use anyhow::{Context as _, anyhow};
use monitor_common::fingerprint::FingerprintKey;
use std::{
    fs::{File, OpenOptions},
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
        let key = private_file::random_hex::<16>().context("cannot get random bytes")?;
        private_file::write(&path, &format!("{}\n", *key), None)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read the fingerprint key {}", path.display()))?;
    let text = text.trim();
    // The standard parser would also accept a sign.
    let is_key = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(text, 16)
        .ok()
        .filter(|_| is_key)
        .ok_or_else(|| anyhow!("{} does not contain 32 hex digits", path.display()))?;
    Ok(FingerprintKey::from_bytes(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn one_state_directory_serves_one_agent() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = lock(directory.path()).expect("free");
        let error = lock(directory.path()).expect_err("in use");
        assert!(error.to_string().contains("one agent"), "{error}");
        drop(first);
        lock(directory.path()).expect("free again");
    }

    #[test]
    fn a_host_has_one_key_that_only_root_reads() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = fingerprint_key(directory.path(), None).expect("created");
        let again = fingerprint_key(directory.path(), None).expect("read");
        assert_eq!((first.k0, first.k1), (again.k0, again.k1));
        let file = directory.path().join("fingerprint.key");
        let mode = file.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_invalid_key_is_refused_without_being_quoted() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("fleet.key");
        for text in [
            "",
            "FAKE-not-hex",
            "00112233445566778899aabbccddee",
            "+0112233445566778899aabbccddeeff",
        ] {
            std::fs::write(&file, text).expect("written");
            let error = fingerprint_key(directory.path(), Some(&file)).map(|_| ());
            let error = error.expect_err("no key").to_string();
            assert!(error.contains("32 hex digits"), "{error}");
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
        // A key of the fleet is never created here.
        let missing = directory.path().join("absent.key");
        assert!(fingerprint_key(directory.path(), Some(&missing)).is_err());
        assert!(!missing.exists());
    }
}
