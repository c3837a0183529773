//! Credentials in files and at sockets.

use super::Credentials;
use crate::{
    observed::{file::FileId, mapping::FileVersion, path::RawPath},
    reader::{
        ReadFailure,
        protocol::{FileContents, FileRequest, RecoveredFile},
    },
};
use jiff::Timestamp;
use monitor_common::fingerprint::fingerprint;
use monitor_core::{
    catalog::{
        Catalog,
        entry::{CredentialClass, FileFormat},
        glob::{normalise, volume_of},
        is_general,
    },
    fair_cache::Tenant,
    model::{Credential, CredentialId, Place, Source},
};
use monitor_parse::credential::FoundSecret;
use std::{path::Path, sync::Arc};

/// Number of files whose first path as a credential's is remembered.
pub(super) const HOMES_CACHED: usize = 80_000;
/// Number of files whose contents are cached.
pub(super) const FILES_CACHED: usize = 20_000;

/// What was found in a version of a file.
#[derive(Clone, Debug)]
pub(super) struct KnownContents {
    version: FileVersion,
    found: Arc<Vec<FoundSecret>>,
}

/// What was found in a file.
#[derive(Debug)]
pub struct FileCredentials {
    pub credentials: Vec<Arc<Credential>>,
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
    /// Magic number of its file system.
    pub magic: u32,
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

/// A file at a place of credentials.
#[derive(Clone, Debug)]
pub struct CredentialFile {
    file: FileId,
    /// The path to show, and the one by which the catalog knows it.
    shown: String,
    home: String,
    container: String,
    class: String,
    format: FileFormat,
    /// Only a variable made it a credential's place.
    by_pointer: bool,
    /// Its contents when they were last read.
    known: Option<KnownContents>,
}

impl CredentialFile {
    /// Path to show.
    pub fn shown(&self) -> &str {
        &self.shown
    }
}

impl Credentials {
    /// The place of an opened file; `None` if it is not a credential's.
    pub fn credential_file(
        &mut self,
        opened: OpenedFile<'_>,
        container: &str,
    ) -> Option<CredentialFile> {
        let OpenedFile {
            path, source, file, ..
        } = opened;
        let catalog = Arc::clone(&self.catalog);
        let (shown, home) = self.placed(&catalog, path, source, file, container)?;
        let class = self.class_at(&catalog, &home, container)?;
        let by_place = catalog.file(&home);
        Some(CredentialFile {
            file,
            container: container.to_owned(),
            class: class.class.clone(),
            format: class.format,
            by_pointer: by_place.map(|known| &known.class) != Some(&class.class),
            known: self.files.get(&file).cloned(),
            shown,
            home,
        })
    }

    /// The request to read such a file.
    pub fn file_request(
        &self,
        place: &CredentialFile,
        opened: OpenedFile<'_>,
        view: MountView<'_>,
        check_mount: bool,
    ) -> FileRequest {
        // Inherited descriptors are reported without a path.
        let path = if opened.path == Path::new("/") {
            Path::new(&place.home)
        } else {
            opened.path
        };
        FileRequest {
            path: path.into(),
            source: opened.source.map(RawPath::from),
            file: opened.file,
            magic: opened.magic,
            pid: view.pid,
            peer: view.peer,
            contained: !view.container.is_empty(),
            class: place.class.clone(),
            format: place.format,
            known: place.known.as_ref().map(|known| known.version),
            check_mount,
        }
    }

    /// The credentials in a file, from its contents; `None` if there are none. A file that could not
    /// be read is known by its place.
    pub fn in_file(
        &mut self,
        tenant: &Tenant,
        file: &CredentialFile,
        contents: Result<FileContents, ReadFailure>,
    ) -> Option<FileCredentials> {
        let place = self.file_place(&file.shown);
        let mut written = None;
        let (found, modified) = match contents {
            Ok(answer) => {
                written = answer.version.changed();
                (self.contents(file, &answer), answer.modified)
            }
            Err(failure) => {
                tracing::debug!(path = %file.shown, %failure, "a credential file could not be read");
                self.unreadable += 1;
                (Arc::new(Vec::new()), None)
            }
        };
        // A file to which a variable points is a credential only if its contents have the form of
        // one.
        let has_form = |found: &FoundSecret| {
            !file.by_pointer
                || (!found.whole && (file.format != FileFormat::Token || found.is_jwt()))
        };
        let mut credentials: Vec<Arc<Credential>> = found
            .iter()
            .filter(|found| has_form(found))
            .map(|found| {
                let known = &mut self.known;
                known.credential(tenant, &self.catalog, found, &place, written)
            })
            .collect();
        let by_place = file.format == FileFormat::Opaque || modified.is_none();
        if credentials.is_empty() && by_place && !file.by_pointer {
            let catalog = Arc::clone(&self.catalog);
            let class = entry_of(&catalog, file)?;
            credentials.push(self.by_place(class, &place, &file.container));
        }
        if file.home != file.shown {
            // It can still be queried by its original place.
            let home = self.file_place(&file.home);
            for credential in &mut credentials {
                self.known
                    .is_also_at(credential, std::slice::from_ref(&home));
            }
        }
        (!credentials.is_empty()).then(|| FileCredentials {
            credentials,
            place,
            modified,
            volume_of: volume_of(&file.shown).or_else(|| volume_of(&file.home)),
        })
    }

    /// What was found in a file, also if the reader found the version that was known.
    fn contents(&mut self, file: &CredentialFile, answer: &FileContents) -> Arc<Vec<FoundSecret>> {
        let found = match (&answer.found, &file.known) {
            (Some(found), _) => Arc::new(found.clone()),
            (None, Some(known)) => Arc::clone(&known.found),
            (None, None) => Arc::default(),
        };
        let contents = KnownContents {
            version: answer.version,
            found: Arc::clone(&found),
        };
        self.files.insert(file.file, contents);
        found
    }

    /// A credential issued at a socket; its secret becomes known when it is presented.
    pub fn at_socket(&self, path: &Path, container: &str) -> Option<(Arc<Credential>, Place)> {
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
    fn by_place(&self, class: &CredentialClass, place: &Place, container: &str) -> Arc<Credential> {
        let mut named = container.as_bytes().to_vec();
        named.extend_from_slice(place.place.as_bytes());
        Arc::new(Credential::new(
            CredentialId::from_place(fingerprint(self.key, &named)),
            &class.class,
            class.role,
            class.lifetime,
            vec![place.clone()],
        ))
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
    pub fn recovered(&mut self, found: &RecoveredFile) {
        let path = normalise(&found.path.as_path().to_string_lossy());
        self.homes.add(found.file, path);
    }

    /// Remembers a file that was written under a credential's name; returns `false` if it is not
    /// one.
    pub fn written(&mut self, opened: OpenedFile<'_>) -> bool {
        let OpenedFile {
            path, source, file, ..
        } = opened;
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
        self.homes.add(file, known.clone());
        Some((seen, known))
    }
}

/// The catalog's entry for the place of a file; `None` if the catalog was replaced meanwhile.
fn entry_of<'a>(catalog: &'a Catalog, file: &CredentialFile) -> Option<&'a CredentialClass> {
    catalog
        .class_entries()
        .iter()
        .find(|entry| entry.class == file.class && entry.format == file.format)
}
