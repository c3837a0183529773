//! Files of the agent that only root may read, and the secrets that it makes up for them.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Writes a file that only root may read, and a group if there is one. It is there as a whole or not
/// at all.
pub fn write(path: &Path, text: &str, group: Option<u32>) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    // What a failed start left behind.
    if let Err(error) = fs::remove_file(&unfinished)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let written = write_new(&unfinished, text, group).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // The error that matters is the first.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

fn write_new(path: &Path, text: &str, group: Option<u32>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    if let Some(group) = group {
        // In a directory with the set-group-ID bit it has that group already, which needs no
        // capability.
        if file.metadata()?.gid() != group {
            fchown(&file, None, Some(group))?;
        }
        file.set_permissions(Permissions::from_mode(0o640))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Random bytes as hex digits.
pub fn random_hex<const LEN: usize>() -> Result<Zeroizing<String>, getrandom::Error> {
    let mut bytes = Zeroizing::new([0u8; LEN]);
    getrandom::fill(&mut *bytes)?;
    Ok(Zeroizing::new(hex(&*bytes)))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
