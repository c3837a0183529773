//! Installed TLS libraries of the host.

use crate::{host, observed::path::RawPath};
use std::path::{Path, PathBuf};

/// Library directories of the host; one level of architecture directories below them is searched
/// too.
const LIBRARIES: [&str; 6] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
];
/// File name prefixes of TLS libraries.
const LIBRARY_NAMES: [&str; 2] = ["libssl", "libgnutls"];

/// Their paths.
pub(super) fn installed() -> Vec<RawPath> {
    let entries = |directory: &Path| {
        let directory = directory.to_owned();
        std::fs::read_dir(host::path(&directory))
            .into_iter()
            .flatten()
            .flatten()
            .map(move |entry| directory.join(entry.file_name()))
    };
    let mut directories: Vec<PathBuf> = LIBRARIES.iter().map(PathBuf::from).collect();
    for directory in LIBRARIES {
        directories.extend(entries(Path::new(directory)).filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.ends_with("-gnu") || name.contains("-linux-"))
        }));
    }
    directories
        .iter()
        .flat_map(|directory| entries(directory))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| {
                name.contains(".so") && LIBRARY_NAMES.iter().any(|front| name.starts_with(front))
            })
        })
        .map(RawPath::from)
        .collect()
}
