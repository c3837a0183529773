//! The file of `keytrail record`.

use anyhow::Context as _;
use monitor_core::trail::{TrailEvent, recording::RECORDING_VERSION};
use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Creates a recording, which only its owner can read.
pub(super) fn create(path: &Path) -> anyhow::Result<BufWriter<File>> {
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(start_recording)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A recording begins with its version.
fn start_recording(file: File) -> std::io::Result<BufWriter<File>> {
    let mut out = BufWriter::new(file);
    serde_json::to_writer(
        &mut out,
        &TrailEvent::Recording {
            version: RECORDING_VERSION,
        },
    )?;
    out.write_all(b"\n")?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_recording_begins_with_its_version_and_is_private() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("recording");
        let mut out = create(&path).expect("created");
        out.flush().expect("written");
        let text = std::fs::read_to_string(&path).expect("read");
        assert_eq!(text, "{\"event\":\"recording\",\"version\":2}\n");
        let mode = path.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
