//! The file of `keytrail record`.

use crate::pipeline::EventRecorder;
use anyhow::Context as _;
use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt as _, path::Path};

/// Creates a recording, which only its owner can read. A thread writes it.
pub(super) fn create(path: &Path) -> anyhow::Result<EventRecorder> {
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|file| EventRecorder::start(Box::new(file)))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_recording_begins_with_its_version_and_is_private() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("recording");
        drop(create(&path).expect("created"));
        let text = std::fs::read_to_string(&path).expect("read");
        assert_eq!(text, "{\"event\":\"recording\",\"version\":2}\n");
        let mode = path.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
