//! Credentials in files and at sockets.

use super::{Credentials, class::is_general, open, recover};
use crate::sensor::observation::FileId;
use jiff::Timestamp;
use monitor_common::fingerprint::fingerprint;
use monitor_core::{
    catalog::{
        Catalog,
        entry::{CredentialClass, FileFormat},
        glob::{normalise, volume_of},
    },
    model::{Credential, CredentialId, Place, Source},
};
use monitor_parse::credential::{FoundSecret, find_secrets};
use std::{fs::File, io, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

/// Number of files whose first path as a credential's is remembered.
pub(super) const HOMES_CACHED: usize = 80_000;
/// Number of files whose contents are cached.
pub(super) const FILES_CACHED: usize = 20_000;

/// What was found in a version of a file.
#[derive(Debug)]
pub(super) struct FileContents {
    /// Modification and change time, and size: another version is read again.
    version: (i64, i64, i64, i64, u64),
    modified: Option<Timestamp>,
    found: Arc<Vec<FoundSecret>>,
}

/// What was found in a file.
#[derive(Debug)]
pub struct FileCredentials {
    pub credentials: Vec<Credential>,
    pub place: Place,
    pub modified: Option<Timestamp>,
    /// The pod whose volume it is in.
    pub volume_of: Option<String>,
}

/// A file that was opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenedFile<'a> {
    /// Path as the process sees it.
    pub path: &'a Path,
    /// Path inside its own file system, if a mount shows it under another path.
    pub source: Option<&'a Path>,
    pub file: FileId,
}

/// The process whose view of the file system a path refers to.
#[derive(Clone, Copy, Debug)]
pub struct MountView<'a> {
    pub pid: u32,
    /// Another process with the same view.
    pub peer: Option<u32>,
    /// Distinguishes the same path in two containers; empty on the host.
    pub container: &'a str,
}

impl Credentials {
    /// The credentials in an opened file; `None` if its place is not a credential's.
    pub fn in_file(
        &mut self,
        opened: OpenedFile<'_>,
        view: MountView<'_>,
    ) -> Option<FileCredentials> {
        let OpenedFile {
            path, source, file, ..
        } = opened;
        let catalog = Arc::clone(&self.catalog);
        let (normal, home) = self.placed(&catalog, path, source, file, view.container)?;
        let class = self.class_at(&catalog, &home, view.container)?;
        let by_pointer = catalog.file(&home).map(|class| &class.class) != Some(&class.class);
        let place = Place {
            source: Source::File,
            place: normal.clone(),
        };
        let volume_of = volume_of(&normal).or_else(|| volume_of(&home));
        let path = if path == Path::new("/") {
            Path::new(&home)
        } else {
            path
        };
        let read = match open::as_seen_by_process(path, source, file, view) {
            Ok(mut opened) => self.read(&mut opened, file, class),
            Err(error) => Err(error),
        };
        let (found, modified) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(path = %normal, %error, "a credential file could not be read");
                self.unreadable += 1;
                (Arc::new(Vec::new()), None)
            }
        };
        // A file to which a variable points is a credential only if its contents have the form of
        // one.
        let has_form = |found: &FoundSecret| {
            !by_pointer || (!found.whole && (class.format != FileFormat::Token || found.is_jwt()))
        };
        let mut credentials: Vec<Credential> = found
            .iter()
            .filter(|found| has_form(found))
            .map(|found| self.known.credential(&self.catalog, found, &place))
            .collect();
        let by_place = class.format == FileFormat::Opaque || modified.is_none();
        if credentials.is_empty() && by_place && !by_pointer {
            credentials.push(self.by_place(class, &place, view.container));
        }
        if home != normal {
            // It can still be queried by its original place.
            let home = Place {
                source: Source::File,
                place: home.clone(),
            };
            for credential in &mut credentials {
                self.known
                    .is_also_at(credential, std::slice::from_ref(&home));
            }
        }
        (!credentials.is_empty()).then_some(FileCredentials {
            credentials,
            place,
            modified,
            volume_of,
        })
    }

    /// A credential issued at a socket; its secret becomes known when it is presented.
    pub fn at_socket(&self, path: &Path, container: &str) -> Option<(Credential, Place)> {
        let normal = normalise(&path.to_string_lossy());
        let pointed = || {
            let place = (container.to_owned(), normal.clone());
            let class = self.pointed.get(&place)?;
            let class = self.catalog.class(class)?;
            (!class.sockets.is_empty()).then_some(class)
        };
        let class = self.catalog.socket(&normal).or_else(pointed)?;
        let place = Place {
            source: Source::Socket,
            place: normal,
        };
        Some((self.by_place(class, &place, container), place))
    }

    /// A credential known by its place only.
    fn by_place(&self, class: &CredentialClass, place: &Place, container: &str) -> Credential {
        let mut named = container.as_bytes().to_vec();
        named.extend_from_slice(place.place.as_bytes());
        Credential {
            id: CredentialId::from_place(fingerprint(self.key, &named)),
            name: None,
            class: class.class.clone(),
            role: class.role,
            lifetime: class.lifetime,
            issued_at: None,
            expires_at: None,
            owner: None,
            label: None,
            audience: Vec::new(),
            issued_to: None,
            unmarked: false,
            sources: vec![place.clone()],
        }
    }

    /// Whether a path on the host is a credential's.
    pub fn is_place(&self, path: &Path) -> bool {
        let path = normalise(&path.to_string_lossy());
        self.class_at(&self.catalog, &path, "").is_some()
    }

    /// The class of a file by its path: from the catalog, or because a variable pointed there,
    /// which is more specific than a general class.
    pub(super) fn class_at<'a>(
        &self,
        catalog: &'a Catalog,
        path: &str,
        container: &str,
    ) -> Option<&'a CredentialClass> {
        let by_place = catalog.file(path);
        if by_place.is_some_and(|class| !is_general(&class.class)) {
            return by_place;
        }
        let pointed = || {
            let place = (container.to_owned(), path.to_owned());
            catalog.class(self.pointed.get(&place)?)
        };
        pointed().or(by_place)
    }

    /// Remembers recovered files.
    pub fn recovered(&mut self, found: &recover::RecoveredFile) {
        let path = normalise(&found.path.to_string_lossy());
        self.homes.entry(found.file).or_insert(path);
    }

    /// Remembers a file that was written under a credential's name; returns `false` if it is not
    /// one.
    pub fn written(&mut self, path: &Path, source: Option<&Path>, file: FileId) -> bool {
        let catalog = Arc::clone(&self.catalog);
        self.placed(&catalog, path, source, file, "").is_some()
    }

    /// The path to show for a file, and the one by which the catalog knows it. They differ if a
    /// credential is accessed under another name: through a mount, or a link.
    fn placed(
        &mut self,
        catalog: &Catalog,
        path: &Path,
        source: Option<&Path>,
        file: FileId,
        container: &str,
    ) -> Option<(String, String)> {
        let seen = normalise(&path.to_string_lossy());
        let known = if self.class_at(catalog, &seen, container).is_some() {
            seen.clone()
        } else if let Some(source) = source
            .map(|source| normalise(&source.to_string_lossy()))
            .filter(|source| self.class_at(catalog, source, container).is_some())
        {
            return Some((source.clone(), source));
        } else {
            // Inherited descriptors are reported without a path.
            let home = match self.homes.get(&file) {
                Some(home) => home.clone(),
                // Recovered from a file system whose generation only the probes can read.
                None => {
                    let recovered = FileId {
                        generation: 0,
                        ..file
                    };
                    self.homes.get(&recovered)?.clone()
                }
            };
            let seen = if seen == "/" { home.clone() } else { seen };
            return Some((seen, home));
        };
        self.homes.entry(file).or_insert_with(|| known.clone());
        Some((seen, known))
    }

    fn read(
        &mut self,
        opened: &mut File,
        file: FileId,
        class: &CredentialClass,
    ) -> io::Result<(Arc<Vec<FoundSecret>>, Option<Timestamp>)> {
        let metadata = opened.metadata()?;
        let version = (
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
            metadata.len(),
        );
        if let Some(known) = self.files.get(&file)
            && known.version == version
        {
            return Ok((Arc::clone(&known.found), known.modified));
        }
        let catalog = Arc::clone(&self.catalog);
        let key = self.key;
        let found = if class.format == FileFormat::Opaque {
            Vec::new()
        } else {
            self.buffer
                .with_file(opened, |bytes| find_secrets(&catalog, class, key, bytes))?
        };
        let found = Arc::new(found);
        let modified = Timestamp::from_second(metadata.mtime()).ok();
        self.files.insert(
            file,
            FileContents {
                version,
                modified,
                found: Arc::clone(&found),
            },
        );
        Ok((found, modified))
    }
}
