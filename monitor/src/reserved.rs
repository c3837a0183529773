//! Files that only SQLite may open in this process: POSIX drops all of a process's locks on a file
//! as soon as it closes any descriptor of it.

use std::{
    collections::BTreeSet,
    fs::Metadata,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

/// By path, because an inode number may be reused after a deletion.
static RESERVED: RwLock<BTreeSet<PathBuf>> = RwLock::new(BTreeSet::new());

/// Reserves the file at this path for SQLite.
pub fn reserve(path: &Path) {
    let mut reserved = RESERVED.write().unwrap_or_else(PoisonError::into_inner);
    reserved.insert(path.to_owned());
}

/// Whether a file is reserved.
pub fn is_reserved(metadata: &Metadata) -> bool {
    let reserved = RESERVED.read().unwrap_or_else(PoisonError::into_inner);
    reserved.iter().any(|path| {
        std::fs::metadata(path)
            .is_ok_and(|known| (known.dev(), known.ino()) == (metadata.dev(), metadata.ino()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_reserved_while_it_has_the_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, link) = (
            directory.path().join("ledger"),
            directory.path().join("link"),
        );
        std::fs::write(&path, "x").expect("written");
        std::fs::hard_link(&path, &link).expect("linked");
        reserve(&path);
        let metadata = std::fs::metadata(&link).expect("there");
        assert!(is_reserved(&metadata));
        std::fs::remove_file(&path).expect("removed");
        assert!(!is_reserved(&metadata));
    }
}
