//! Identifies what was picked up: class, fingerprint, lifetime.
//!
//! A file is read once per version, through the root of the process that opened it; a variable's
//! fingerprint comes from the kernel. Only public data leaves this module.

mod open;
pub mod recover;
pub mod secret;

use crate::sensor::{
    observation::{FileId, ObservedSecret, ObservedVariable},
    running,
};
use hashlink::LruCache;
use jiff::Timestamp;
use monitor_common::{
    fingerprint::{FingerprintKey, fingerprint},
    login::{LOGIN, protocol},
    response::{RESPONSE_FIELD, WHOLE_BODY},
};
use monitor_core::catalog::{
    Catalog, EXPECTATION_CLASS,
    entry::{CredentialClass, FileFormat},
    glob::{normalise, volume_of},
};
use monitor_core::{
    catalog::kernel_filter::FilterRules,
    model::{Credential, CredentialId, Lifetime, Place, Role, Source},
};
use monitor_parse::credential::{FoundSecret, SecretFacts, find_secrets};
use secret::SecretBuffer;
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bytes of a credential file that are read.
const FILE_MAX: usize = 1 << 20;
/// Number of files whose contents are cached.
const FILES_CACHED: usize = 20_000;

/// Number of credentials cached.
const CREDENTIALS_CACHED: usize = 16_384;
/// Maximum places named by variables. Anyone who can start programs can invent any number of them,
/// so any more are ignored.
const POINTED_PLACES_MAX: usize = 1024;
/// As [`POINTED_PLACES_MAX`], per container, and for the host.
const POINTED_PER_CONTAINER_MAX: usize = 256;
/// Maximum places named by one environment.
const POINTED_PER_PROCESS_MAX: usize = 16;
/// Number of values of such variables cached.
const FOLLOWED_CACHED: usize = 4096;
/// Maximum places remembered per credential.
const PLACES_MAX: usize = 32;

/// Turns places and fingerprints into credentials.
#[derive(Debug)]
pub struct Credentials {
    catalog: Arc<Catalog>,
    key: FingerprintKey,
    buffer: SecretBuffer,
    files: HashMap<FileId, KnownCredential>,
    /// From the fingerprint of another form of a credential to its id.
    aliases: LruCache<u64, CredentialId>,
    /// Credentials by id, to recognise them later by fingerprint only.
    known: LruCache<CredentialId, Credential>,
    /// As `known`, for credentials seen only in use or in a response: anyone can invent those.
    shown: LruCache<CredentialId, Credential>,
    /// The path under which a file was first recognised as a credential's: it remains one under any
    /// other path.
    homes: HashMap<FileId, String>,
    /// Places of credentials according to variables, by container and path, and their class.
    pointed: BTreeMap<(String, String), String>,
    /// Fingerprints of values of such variables that were followed.
    followed: LruCache<u64, ()>,
    /// Number of places named by a variable that were ignored for lack of room.
    pub unfollowed: u64,
    /// Number of files that could no longer be read when their turn came.
    pub unreadable: u64,
}

#[derive(Debug)]
struct KnownCredential {
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
    pub fn new(catalog: Arc<Catalog>, key: FingerprintKey) -> io::Result<Self> {
        Ok(Self {
            catalog,
            key,
            buffer: SecretBuffer::new(FILE_MAX)?,
            files: HashMap::new(),
            aliases: LruCache::new(CREDENTIALS_CACHED),
            known: LruCache::new(CREDENTIALS_CACHED),
            shown: LruCache::new(CREDENTIALS_CACHED),
            homes: HashMap::new(),
            pointed: BTreeMap::new(),
            followed: LruCache::new(FOLLOWED_CACHED),
            unfollowed: 0,
            unreadable: 0,
        })
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Replaces the catalog; known credentials stay.
    pub fn set_catalog(&mut self, catalog: Arc<Catalog>) {
        self.catalog = catalog;
        self.files.clear();
    }

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
            .map(|found| self.credential(found, &place))
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
                self.is_also_at(credential, std::slice::from_ref(&home));
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
    fn class_at<'a>(
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

    /// The entries of the kernel filter.
    pub fn rules(&self) -> FilterRules {
        let paths = self.pointed.keys().map(|(_, path)| path.as_str());
        self.catalog.filter_rules(paths)
    }

    /// Whether a variable points to a credential and its value was not followed before.
    pub fn points(&mut self, variable: &ObservedVariable, container: &str) -> Option<u64> {
        self.catalog.pointers(&variable.name).next()?;
        let value = format!("{}\0{container}\0{}", variable.name, variable.fingerprint);
        let print = self.print_of(&value);
        self.followed.get(&print).is_none().then_some(print)
    }

    /// Follows the paths in a process's environment: files there become credentials of its
    /// container. Returns the files that exist, and whether any place is new; `None` if the process
    /// has no environment any more.
    ///
    /// Anyone can point anywhere: paths that do not exist, excluded paths, and paths beyond the
    /// limits are ignored, and a file counts only if its contents have the form of a credential.
    pub fn follow(
        &mut self,
        pid: u32,
        container: &str,
        values: &[u64],
    ) -> Option<(Vec<FileId>, bool)> {
        let catalog = Arc::clone(&self.catalog);
        let mut environ = File::open(format!("/proc/{pid}/environ")).ok()?;
        let targets = self.buffer.with_file(&mut environ, |bytes| {
            bytes
                .split(|byte| *byte == 0)
                .flat_map(|entry| targets(&catalog, entry))
                .take(POINTED_PER_PROCESS_MAX)
                .collect::<Vec<_>>()
        });
        let targets = targets.ok()?;
        for value in values {
            self.followed.insert(*value, ());
        }
        let (mut files, mut is_new) = (Vec::new(), false);
        for (path, class) in targets {
            let path = if path.is_absolute() {
                path
            } else {
                let Ok(directory) = std::fs::read_link(format!("/proc/{pid}/cwd")) else {
                    continue;
                };
                directory.join(path)
            };
            let normal = normalise(&path.to_string_lossy());
            let known = catalog.file(&normal);
            if catalog.is_excluded_path(&normal)
                || known.is_some_and(|known| !is_general(&known.class))
            {
                continue;
            }
            let Some(there) = running::path_target(pid, &path) else {
                continue;
            };
            if catalog.is_excluded_path(&normalise(&there.path.to_string_lossy())) {
                continue;
            }
            let place = (container.to_owned(), normal.clone());
            if !self.pointed.contains_key(&place) {
                let own = self.pointed.keys().filter(|known| known.0 == container);
                if self.pointed.len() >= POINTED_PLACES_MAX
                    || own.count() >= POINTED_PER_CONTAINER_MAX
                {
                    self.unfollowed += 1;
                    continue;
                }
                self.pointed.insert(place, class);
                is_new = true;
            }
            if let Some(file) = there.file {
                self.homes.entry(file).or_insert(normal);
                files.push(file);
            }
        }
        Some((files, is_new))
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
            let home = self.homes.get(&file).or_else(|| {
                // Recovered from a file system whose generation only the probes can read.
                self.homes.get(&FileId {
                    generation: 0,
                    ..file
                })
            })?;
            let seen = if seen == "/" { home.clone() } else { seen };
            return Some((seen, home.clone()));
        };
        if self.homes.len() >= FILES_CACHED * 4 {
            self.homes.clear();
        }
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
        if self.files.len() >= FILES_CACHED {
            self.files.clear();
        }
        self.files.insert(
            file,
            KnownCredential {
                version,
                modified,
                found: Arc::clone(&found),
            },
        );
        Ok((found, modified))
    }

    /// The secrets of an environment, each with its variable: an AWS key pair is one credential.
    pub fn in_environment(&mut self, variables: &[ObservedVariable]) -> Vec<(Credential, Place)> {
        let named = |name: &str| variables.iter().find(|variable| variable.name == name);
        let mut aliases = Vec::new();
        let mut alias_places = Vec::new();
        if let Some(id) = named("AWS_ACCESS_KEY_ID") {
            for other in [
                "AWS_SECRET_ACCESS_KEY",
                "AWS_SESSION_TOKEN",
                "AWS_SECURITY_TOKEN",
            ] {
                if let Some(other) = named(other) {
                    self.alias(
                        other.fingerprint,
                        &CredentialId::from_fingerprint(id.fingerprint),
                    );
                    aliases.push(other.fingerprint);
                    alias_places.push(variable_place(&other.name));
                }
            }
        }
        let catalog = Arc::clone(&self.catalog);
        let mut picked: Vec<(Credential, Place)> = Vec::new();
        for variable in variables {
            if aliases.contains(&variable.fingerprint) {
                continue;
            }
            let Some(class) = classify(&catalog, variable) else {
                continue;
            };
            let place = variable_place(&variable.name);
            let found = FoundSecret {
                class: class.class.clone(),
                marked: catalog.is_prefix_of(&class.class, variable.prefix),
                whole: false,
                fingerprint: variable.fingerprint,
                aliases: Vec::new(),
                label: None,
                facts: SecretFacts::default(),
            };
            let mut credential = self.credential(&found, &place);
            if variable.name == "AWS_ACCESS_KEY_ID" {
                self.is_also_at(&mut credential, &alias_places);
            }
            picked.push((credential, place));
        }
        picked
    }

    /// The fingerprint of a non-secret text, as a probe computes it.
    pub fn print_of(&self, text: &str) -> u64 {
        fingerprint(self.key, text.as_bytes())
    }

    /// A secret found in the bytes of a connection, and its position in them.
    pub fn presented(&mut self, shown: ObservedSecret) -> (Credential, Place) {
        let catalog = Arc::clone(&self.catalog);
        let (place, by_header) = match u64::from(shown.header) & !LOGIN {
            _ if u64::from(shown.header) & LOGIN == 0 => {
                let (header, class) = catalog.header(shown.header).unwrap_or(("", None));
                (format!("header:{header}"), class)
            }
            protocol => {
                let (protocol, class) = protocol_of(protocol);
                (format!("protocol:{protocol}"), catalog.class(class))
            }
        };
        let place = Place {
            source: Source::Presented,
            place,
        };
        let by_form = by_form(&catalog, shown.prefix, shown.secret_len, shown.dots);
        let class = by_form
            .or(by_header)
            .map_or(GENERIC_CLASS, |class| &class.class);
        let found = FoundSecret {
            class: class.to_owned(),
            marked: catalog.is_prefix_of(class, shown.prefix),
            whole: false,
            fingerprint: shown.fingerprint,
            aliases: Vec::new(),
            label: None,
            facts: SecretFacts::default(),
        };
        // A known password is the credential, whatever user is sent with it.
        if let Some(inner) = shown.inner {
            let id = self.id_of(inner);
            if self.is_known(&id) && !self.aliases.contains_key(&shown.fingerprint) {
                self.alias(shown.fingerprint, &id);
            }
        }
        let id = self.id_of(shown.fingerprint);
        // The place where it was picked up tells more than where it is presented.
        let credential = self.as_known(&id, &found, &place);
        (credential, place)
    }

    /// Applies what is already known about a credential, whatever the place suggests.
    fn as_known(&mut self, id: &CredentialId, found: &FoundSecret, place: &Place) -> Credential {
        match self.known(id) {
            Some(mut known) if !is_general(&known.class) => {
                let before = std::mem::replace(&mut known.sources, vec![place.clone()]);
                add_places(&mut known.sources, &before);
                known
            }
            _ => self.credential(found, place),
        }
    }

    /// The credentials in one response of an authenticator.
    pub fn minted(&mut self, answer: &[ObservedSecret]) -> Vec<(Credential, Place)> {
        let catalog = Arc::clone(&self.catalog);
        let field = |shown: &ObservedSecret| u64::from(shown.header) & !RESPONSE_FIELD;
        let name =
            |shown: &ObservedSecret| catalog.issued_field(field(shown)).map(|known| &known.field);
        let mut minted = Vec::new();
        for shown in answer {
            let known = catalog.issued_field(field(shown));
            let whole = known.and_then(|known| known.of.as_ref()).and_then(|of| {
                answer
                    .iter()
                    .find(|other| name(other).is_some_and(|name| name.eq_ignore_ascii_case(of)))
            });
            if let Some(whole) = whole {
                // A server may send anything: a credential known before keeps its identity.
                let own = CredentialId::from_fingerprint(shown.fingerprint);
                if !self.is_known(&own) {
                    let id = self.id_of(whole.fingerprint);
                    self.alias(shown.fingerprint, &id);
                }
                continue;
            }
            let by_form = by_form(&catalog, shown.prefix, shown.secret_len, shown.dots);
            let (field, class) = match known {
                _ if field(shown) == WHOLE_BODY => ("body", Some(IMDS_TOKEN_CLASS)),
                Some(known) => (known.field.as_str(), known.class.as_deref()),
                None => continue,
            };
            // A field with a common name is recognised by its value's form.
            let Some(class) = by_form.map(|class| class.class.as_str()).or(class) else {
                continue;
            };
            let place = Place {
                source: Source::Metadata,
                place: format!("answer:{field}"),
            };
            let found = FoundSecret {
                class: class.to_owned(),
                marked: catalog.is_prefix_of(class, shown.prefix),
                whole: false,
                fingerprint: shown.fingerprint,
                aliases: Vec::new(),
                label: None,
                facts: SecretFacts::default(),
            };
            let id = self.id_of(shown.fingerprint);
            minted.push((self.as_known(&id, &found, &place), place));
        }
        minted
    }

    /// The secrets in the environment of a process that started before the agent.
    pub fn in_running(&mut self, pid: u32) -> Vec<(Credential, Place)> {
        let Ok(mut file) = File::open(format!("/proc/{pid}/environ")) else {
            return Vec::new();
        };
        let catalog = Arc::clone(&self.catalog);
        let key = self.key;
        let variables = self.buffer.with_file(&mut file, |bytes| {
            bytes
                .split(|byte| *byte == 0)
                .filter_map(|entry| parse_variable(&catalog, key, entry))
                .collect::<Vec<_>>()
        });
        match variables {
            Ok(variables) => self.in_environment(&variables),
            Err(_) => Vec::new(),
        }
    }

    fn alias(&mut self, fingerprint: u64, id: &CredentialId) {
        self.aliases.insert(fingerprint, id.clone());
    }

    /// The id of a secret, in whatever form it appears.
    fn id_of(&mut self, fingerprint: u64) -> CredentialId {
        self.aliases
            .get(&fingerprint)
            .cloned()
            .unwrap_or_else(|| CredentialId::from_fingerprint(fingerprint))
    }

    fn credential(&mut self, found: &FoundSecret, place: &Place) -> Credential {
        let id = self.id_of(found.fingerprint);
        for alias in &found.aliases {
            self.alias(*alias, &id);
        }
        let mut class = found.class.clone();
        let mut facts = found.facts.clone();
        let mut label = found.label.clone();
        let mut sources = vec![place.clone()];
        let mut marked = found.marked;
        // A file tells more than a variable, and an expectation may name any of its places.
        if let Some(known) = self.known(&id) {
            add_places(&mut sources, &known.sources);
            if is_general(&class) && !is_general(&known.class) {
                class.clone_from(&known.class);
            }
            // The mark is in the secret that gives the id, not in its other half.
            let is_other_half = id != CredentialId::from_fingerprint(found.fingerprint);
            marked |= is_other_half && class == known.class && !known.unmarked;
            facts.issued_at = facts.issued_at.or(known.issued_at);
            facts.expires_at = facts.expires_at.or(known.expires_at);
            facts.issued_to = facts.issued_to.or(known.issued_to);
            if facts.audience.is_empty() {
                facts.audience.clone_from(&known.audience);
            }
            label = label.or_else(|| known.label.clone());
        }
        let known = self.catalog.class(&class);
        let (role, lifetime) = known.map_or((Role::Access, Lifetime::Static), |class| {
            (class.role, class.lifetime)
        });
        let unmarked = !marked && known.is_some_and(|class| class.marked);
        let lifetime = if facts.expires_at.is_some() && class != "private-key" {
            Lifetime::ShortLived
        } else {
            lifetime
        };
        let credential = Credential {
            id: id.clone(),
            name: None,
            class,
            role,
            lifetime,
            issued_at: facts.issued_at,
            expires_at: facts.expires_at,
            owner: None,
            label,
            audience: facts.audience,
            issued_to: facts.issued_to,
            unmarked,
            sources,
        };
        let made_up = matches!(place.source, Source::Presented | Source::Metadata);
        if made_up && !self.known.contains_key(&id) {
            self.shown.insert(id, credential.clone());
        } else {
            self.known.insert(id, credential.clone());
        }
        credential
    }

    /// Restores what was known before the agent started: a program that holds a credential does not
    /// read it again.
    pub fn remember(&mut self, credentials: Vec<Credential>) {
        for mut credential in credentials {
            // Names come from the expectations in force now.
            (credential.name, credential.owner) = (None, None);
            let made_up =
                |place: &Place| matches!(place.source, Source::Presented | Source::Metadata);
            let only_made_up = credential.sources.iter().all(made_up);
            let remembered = if only_made_up {
                &mut self.shown
            } else {
                &mut self.known
            };
            remembered.insert(credential.id.clone(), credential);
        }
    }

    /// Adds places to a credential that was picked up, also for later observations of it.
    fn is_also_at(&mut self, credential: &mut Credential, places: &[Place]) {
        add_places(&mut credential.sources, places);
        if self.known.contains_key(&credential.id) {
            self.known.insert(credential.id.clone(), credential.clone());
        }
    }

    fn is_known(&self, id: &CredentialId) -> bool {
        self.known.contains_key(id) || self.shown.contains_key(id)
    }

    fn known(&mut self, id: &CredentialId) -> Option<Credential> {
        let known = self.known.get(id);
        known.or_else(|| self.shown.get(id)).cloned()
    }
}

/// Adds missing places, as far as there is room.
fn add_places(sources: &mut Vec<Place>, places: &[Place]) {
    for place in places {
        if sources.len() < PLACES_MAX && !sources.contains(place) {
            sources.push(place.clone());
        }
    }
}

/// The paths that a variable's value names, with their classes.
fn targets(catalog: &Catalog, entry: &[u8]) -> Vec<(PathBuf, String)> {
    let Some((name, value)) = std::str::from_utf8(entry)
        .ok()
        .and_then(|entry| entry.split_once('='))
    else {
        return Vec::new();
    };
    let mut targets = Vec::new();
    for pointer in catalog.pointers(name) {
        let value = value
            .strip_prefix("unix:")
            .map_or(value, |path| path.strip_prefix("//").unwrap_or(path));
        // Some contain the secret itself instead of a path: no part of that may be kept.
        let is_path = |path: &&str| {
            !path.is_empty()
                && path.len() < 1024
                && !path.contains(|c: char| c.is_control() || "\"'{}<>=,;".contains(c))
        };
        for path in value.split(':').filter(is_path) {
            let path = Path::new(path);
            let path = pointer
                .below
                .as_ref()
                .map_or_else(|| path.to_owned(), |below| path.join(below));
            targets.push((path, pointer.class.clone()));
        }
    }
    targets
}

fn variable_place(name: &str) -> Place {
    Place {
        source: Source::Environment,
        place: format!("env:{name}"),
    }
}

/// The class of a credential about which nothing else is known.
const GENERIC_CLASS: &str = "generic-secret";

/// Classes that tell only that something is secret.
pub fn is_general(class: &str) -> bool {
    matches!(
        class,
        "generic-secret" | "mounted-secret" | "volume-secret" | "dotenv-secret" | "jwt"
    ) || class == EXPECTATION_CLASS
}

/// A shorter value is a setting, not a secret.
const SECRET_MIN: u32 = 8;
/// Short prefixes match by chance; a real token is at least this long.
const FORM_SECRET_MIN: u32 = 20;

/// Parses `name=value`; `None` if it is neither.
fn parse_variable(
    catalog: &Catalog,
    key: FingerprintKey,
    entry: &[u8],
) -> Option<ObservedVariable> {
    let at = entry.iter().position(|byte| *byte == b'=')?;
    let name = std::str::from_utf8(&entry[..at]).ok()?;
    let value = &entry[at + 1..];
    let class = catalog.variable(name);
    let is_url = class.is_some_and(|class| !class.url_environment.is_empty());
    let password = monitor_common::environ::value_marks(value).password();
    let url = is_url && password.is_some();
    let secret = match password {
        Some((start, len)) if url => &value[start as usize..(start + len) as usize],
        _ => monitor_common::fingerprint::trimmed(value),
    };
    Some(ObservedVariable {
        name: name.to_owned(),
        fingerprint: fingerprint(key, secret),
        secret_len: secret.len() as u32,
        prefix: catalog.prefix_index(secret),
        dots: value.iter().filter(|byte| **byte == b'.').count() as u32,
        url,
    })
}

fn classify<'a>(catalog: &'a Catalog, variable: &ObservedVariable) -> Option<&'a CredentialClass> {
    let by_name = catalog.variable(&variable.name).filter(|class| {
        // A variable that may hold a URL is a secret only if the URL contains a password.
        let needs_url = !catalog.is_plain(&variable.name) && !class.url_environment.is_empty();
        (!needs_url || variable.url)
            && variable.secret_len >= if variable.url { 1 } else { SECRET_MIN }
    });
    let by_form = by_form(catalog, variable.prefix, variable.secret_len, variable.dots)
        .filter(|_| !variable.url);
    match (by_form, by_name) {
        (Some(form), Some(name)) if form.class == "jwt" => Some(name),
        (Some(form), _) => Some(form),
        (None, name) => name,
    }
}

/// The class of the AWS metadata service's session token.
const IMDS_TOKEN_CLASS: &str = "imds-token";

/// The name of a login protocol, and the class of the secret sent in it.
fn protocol_of(speaks: u64) -> (&'static str, &'static str) {
    const PASSWORD: &str = "database-password";
    match speaks {
        protocol::REDIS => ("redis", PASSWORD),
        protocol::POSTGRES => ("postgresql", PASSWORD),
        protocol::MYSQL => ("mysql", PASSWORD),
        protocol::MQTT => ("mqtt", GENERIC_CLASS),
        protocol::LDAP => ("ldap", GENERIC_CLASS),
        _ => ("mail", GENERIC_CLASS),
    }
}

/// The class of a secret by its first bytes. A JWT also has two dots.
fn by_form(
    catalog: &Catalog,
    prefix: Option<u32>,
    secret_len: u32,
    dots: u32,
) -> Option<&CredentialClass> {
    let (_, class) = catalog.prefix(prefix?)?;
    (secret_len >= FORM_SECRET_MIN && (class.class != "jwt" || dots >= 2)).then_some(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: FingerprintKey = FingerprintKey { k0: 3, k1: 4 };

    fn credentials() -> Credentials {
        let catalog = Arc::new(Catalog::new("", &[], &[]).expect("embedded"));
        Credentials::new(catalog, KEY).expect("a buffer")
    }

    fn variable(name: &str, secret: &str) -> ObservedVariable {
        let catalog = Catalog::new("", &[], &[]).expect("embedded");
        parse_variable(&catalog, KEY, format!("{name}={secret}").as_bytes()).expect("an entry")
    }

    #[test]
    fn what_is_presented_is_where_it_was_picked_up_too() {
        let mut credentials = credentials();
        let token = variable("GITHUB_TOKEN", "ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0001");
        let shown = ObservedSecret {
            fingerprint: token.fingerprint,
            inner: None,
            secret_len: 40,
            header: 0,
            prefix: None,
            dots: 0,
        };
        credentials.in_environment(&[token]);
        let (presented, place) = credentials.presented(shown);
        assert_eq!(presented.sources, [place, variable_place("GITHUB_TOKEN")]);
        // Another agent that restores what this one knew.
        let mut later = super::tests::credentials();
        let named = Credential {
            name: Some("before".to_owned()),
            ..presented.clone()
        };
        later.remember(vec![named]);
        let (again, _) = later.presented(shown);
        assert_eq!(
            again, presented,
            "names come from the expectations of today"
        );
    }

    fn own_view() -> MountView<'static> {
        MountView {
            pid: std::process::id(),
            peer: None,
            container: "",
        }
    }

    fn file_id(path: &Path) -> FileId {
        FileId {
            device: 1,
            inode: std::fs::metadata(path).expect("there").ino(),
            generation: 0,
        }
    }

    fn opened(path: &Path) -> OpenedFile<'_> {
        OpenedFile {
            path,
            source: None,
            file: file_id(path),
        }
    }

    #[test]
    fn volumes_of_pods_wherever_they_are_seen() {
        for (path, uid) in [
            (
                "/var/lib/kubelet/pods/a-1/volumes/kubernetes.io~secret/db/password",
                Some("a-1"),
            ),
            (
                "/host/kubelet/pods/a-1/volumes/kubernetes.io~projected/t/..data/token",
                Some("a-1"),
            ),
            (
                "/var/snap/microk8s/common/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/x/mount/y",
                Some("u"),
            ),
            ("/srv/volumes/kubernetes.io~secret/x", None),
            ("/var/lib/kubelet/pods/a-1/etc-hosts", None),
            ("/volumes/kubernetes.io~x", None),
        ] {
            assert_eq!(volume_of(path).as_deref(), uid, "{path}");
        }
    }

    #[test]
    fn one_key_pair_has_one_id_in_file_and_environment() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(".aws/credentials");
        std::fs::create_dir(directory.path().join(".aws")).expect("made");
        std::fs::write(
            &path,
            "[default]\naws_access_key_id=AKIAFAKEFAKEFAKEFAKE\naws_secret_access_key=fakesecretfakesecret\n",
        )
        .expect("written");
        let mut credentials = credentials();
        let in_file = credentials
            .in_file(opened(&path), own_view())
            .expect("a credential");
        let id = in_file.credentials[0].id.clone();
        let picked = credentials.in_environment(&[
            variable("AWS_ACCESS_KEY_ID", "AKIAFAKEFAKEFAKEFAKE"),
            variable("AWS_SECRET_ACCESS_KEY", "fakesecretfakesecret"),
        ]);
        assert_eq!(picked.len(), 1);
        assert_eq!(picked[0].0.id, id);
        // The secret half alone is the same credential.
        let alone = credentials
            .in_environment(&[variable("AWS_SECRET_ACCESS_KEY", "fakesecretfakesecret")]);
        assert_eq!(alone[0].0.id, id);
    }

    #[test]
    fn a_new_version_of_a_file_is_read_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(".netrc");
        let mut credentials = credentials();
        let mut ids = Vec::new();
        for password in ["fake-one", "fake-other"] {
            std::fs::write(&path, format!("machine a login b password {password}\n"))
                .expect("written");
            let found = credentials
                .in_file(opened(&path), own_view())
                .expect("found");
            ids.push(found.credentials[0].id.clone());
        }
        assert_ne!(ids[0], ids[1]);
    }

    #[test]
    fn what_cannot_be_read_is_known_by_place() {
        let mut credentials = credentials();
        let path = Path::new("/nonexistent/.netrc");
        let file = FileId {
            device: 1,
            inode: 1,
            generation: 0,
        };
        let found = credentials
            .in_file(
                OpenedFile {
                    path,
                    source: None,
                    file,
                },
                own_view(),
            )
            .expect("by place");
        assert!(found.credentials[0].id.0.starts_with("loc-"));
        assert_eq!(credentials.unreadable, 1);
    }

    #[test]
    fn what_variables_point_to() {
        let catalog = Catalog::new("", &[], &[]).expect("embedded");
        let told = |entry: &str| -> Vec<(String, String)> {
            targets(&catalog, entry.as_bytes())
                .into_iter()
                .map(|(path, class)| (path.display().to_string(), class))
                .collect()
        };
        let one = |path: &str, class: &str| (path.to_owned(), class.to_owned());
        assert_eq!(
            told("KUBECONFIG=/a/one:/b/other"),
            [one("/a/one", "kubeconfig"), one("/b/other", "kubeconfig")]
        );
        assert_eq!(
            told("DOCKER_CONFIG=/a"),
            [one("/a/config.json", "registry-credential")]
        );
        assert_eq!(
            told("SPIFFE_ENDPOINT_SOCKET=unix:///run/x.sock"),
            [one("/run/x.sock", "spiffe-svid")]
        );
        for nothing in [
            "KUBECONFIG=",
            "KUBECONFIG",
            "PATH=/bin",
            "",
            "=x",
            "GOOGLE_APPLICATION_CREDENTIALS={\"private_key\"}",
            "KUBECONFIG=users\n- token",
        ] {
            assert_eq!(told(nothing), [], "{nothing}");
        }
    }

    #[test]
    fn what_is_never_a_credential_is_none_because_a_variable_says_so() {
        let mut credentials = credentials();
        let mut child = std::process::Command::new("cat")
            .env(
                "KUBECONFIG",
                "/etc/passwd:/nonexistent/kt:/proc/self/root/etc/passwd",
            )
            .env("GOOGLE_APPLICATION_CREDENTIALS", "keytrail-test-sa.json")
            .current_dir("/tmp")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("started");
        // Once it responds, it has executed the program.
        use std::io::{Read as _, Write as _};
        child
            .stdin
            .as_mut()
            .expect("a pipe")
            .write_all(b"x")
            .expect("written");
        let mut answer = [0];
        child
            .stdout
            .as_mut()
            .expect("a pipe")
            .read_exact(&mut answer)
            .expect("read");
        std::fs::write("/tmp/keytrail-test-sa.json", "{}").expect("written");
        let (files, is_new) = credentials.follow(child.id(), "", &[]).expect("it runs");
        std::fs::remove_file("/tmp/keytrail-test-sa.json").expect("removed");
        drop(child.stdin.take());
        child.wait().expect("it ended");
        assert!(is_new && files.len() == 1, "{files:?}");
        assert!(credentials.is_place(Path::new("/tmp/keytrail-test-sa.json")));
        for none in ["/nonexistent/kt", "/etc/passwd"] {
            assert!(!credentials.is_place(Path::new(none)), "{none}");
        }
        assert_eq!(credentials.pointed.len(), 1, "{:?}", credentials.pointed);
    }

    #[test]
    fn a_pointer_makes_a_credential_of_what_has_its_form_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut credentials = credentials();
        let mut read = |name: &str, class: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            let place = (String::new(), path.display().to_string());
            credentials.pointed.insert(place, class.to_owned());
            let found = credentials.in_file(opened(&path), own_view());
            found.map_or(0, |found| found.credentials.len())
        };
        let jwt = b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4IiwiZXhwIjoxNzAwMDAzNjAwfQ.fakesignature";
        let config = b"users: [ { name: a, user: { token: FAKE-pointed-1 } } ]";
        assert_eq!(read("a", "eks-web-identity-token", jwt), 1);
        assert_eq!(read("b", "kubeconfig", config), 1);
        let hosts = b"127.0.0.1 localhost\n::1 localhost\n";
        assert_eq!(read("c", "eks-web-identity-token", hosts), 0);
        assert_eq!(read("d", "kubeconfig", hosts), 0);
        assert_eq!(read("e", "kubeconfig", b"\x7fELF\x02\xff\xfe\x00"), 0);
    }

    #[test]
    fn settings_are_no_secrets() {
        let mut credentials = credentials();
        for (name, value) in [
            ("PWD", "/root/some/where"),
            ("NEXT_TOKEN", "short"),
            ("HOMEPAGE_URL", "https://example.com/path"),
            ("SOME_JSON", "eyJmYWtlIjoieCJ9fakefakefake"),
            ("SSH_AUTH_SOCK", "/tmp/ssh-fake/agent.1"),
        ] {
            assert_eq!(
                credentials.in_environment(&[variable(name, value)]),
                vec![],
                "{name}"
            );
        }
        let url = credentials
            .in_environment(&[variable("DATABASE_URL", "postgres://u:fakepassword@db/x")]);
        let plain = credentials.in_environment(&[variable("PGPASSWORD", "fakepassword")]);
        assert_eq!(url[0].0.id, plain[0].0.id);
    }
}
