//! TLS libraries, and programs with one inside: found by what is run and mapped, told by their
//! symbols.
//!
//! Files are opened and parsed by a thread of their own, as a program may be large and its file
//! system slow. What it finds is attached by the owner of the probes, once for each file.

use object::{
    Object as _, ObjectSegment as _, ObjectSymbol as _,
    read::{File as Elf, ReadCache},
};
use std::{
    collections::HashSet,
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
};
use thiserror::Error;

/// A TLS library: how its file is named, and its functions that take plaintext, each with the
/// program that watches it.
#[derive(Debug)]
pub struct Stack {
    pub name: &'static str,
    pub file: &'static str,
    functions: &'static [(&'static str, &'static str)],
}

/// The program at functions of `(object, bytes, length)`.
const WRITE: &str = "present_write";
/// The program at the returns of the same, where they are in a program.
const WRITTEN: &str = "present_written";
/// The program at `SSL_ctrl`.
const SERVER: &str = "present_server";
/// All of them.
pub const PROGRAMS: [&str; 3] = [WRITE, WRITTEN, SERVER];

/// Every stack that is watched.
pub const STACKS: [Stack; 2] = [
    Stack {
        name: "openssl",
        file: "libssl",
        functions: &[
            ("SSL_write", WRITE),
            ("SSL_write_ex", WRITE),
            ("SSL_ctrl", SERVER),
        ],
    },
    Stack {
        name: "gnutls",
        file: "libgnutls",
        functions: &[("gnutls_record_send", WRITE)],
    },
];

/// Where libraries of the host are, besides one level below for its architecture.
const LIBRARIES: [&str; 6] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
];

/// Files larger than this are not parsed.
const LARGEST: u64 = 1 << 30;
/// Files that were looked at are remembered, so many of them.
const SEEN: usize = 65_536;

/// Whether the name of a file is one of a TLS library's.
pub fn is_library(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| {
            name.contains(".so") && STACKS.iter().any(|stack| name.starts_with(stack.file))
        })
}

/// What may have TLS inside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Candidate {
    /// The executable of a process.
    Executable { pid: u32 },
    /// A library, where a process sees it.
    Library { pid: u32, path: PathBuf },
    /// A library where the agent sees it.
    Own(PathBuf),
}

impl Candidate {
    fn path(&self) -> PathBuf {
        match self {
            Self::Executable { pid } => PathBuf::from(format!("/proc/{pid}/exe")),
            Self::Library { pid, path } => PathBuf::from(format!("/proc/{pid}/root"))
                .join(path.strip_prefix("/").unwrap_or(path)),
            Self::Own(path) => path.clone(),
        }
    }
}

/// What tells one file from another: device, inode, and the version of its contents.
pub type FileKey = (u64, u64, i64);

/// A file with functions to watch.
#[derive(Debug)]
pub struct Found {
    pub key: FileKey,
    /// Keeps the file until it is attached to, whatever becomes of the process.
    pub file: File,
    pub name: String,
    pub stack: &'static str,
    /// Programs, and offsets in the file.
    pub points: Vec<(&'static str, u64)>,
    /// The mount namespace that it was found in, where that is not the agent's own.
    pub namespace: Option<u64>,
}

/// Why a file was not looked at.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("cannot open {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} is no ELF file that can be read: {source}")]
    Elf {
        path: PathBuf,
        source: object::Error,
    },
}

/// Looks for TLS in a thread of its own.
#[derive(Debug)]
pub struct Finder {
    ask: Sender<Candidate>,
    found: Receiver<Found>,
}

impl Finder {
    pub fn start() -> io::Result<Self> {
        let (ask, asked) = channel();
        let (tell, found) = channel();
        std::thread::Builder::new()
            .name("tls-finder".to_owned())
            .spawn(move || {
                let mut seen = Seen::default();
                for candidate in asked {
                    match seen.look(&candidate) {
                        Ok(several) => {
                            for found in several {
                                if tell.send(found).is_err() {
                                    return;
                                }
                            }
                        }
                        // A process that is gone is no news.
                        Err(error) => tracing::debug!(%error, "not looked at for TLS"),
                    }
                }
            })?;
        Ok(Self { ask, found })
    }

    /// Has a file looked at; nothing is waited for.
    pub fn ask(&self, candidate: Candidate) {
        // The thread ends only with this value.
        let _ = self.ask.send(candidate);
    }

    /// What was found since the last call.
    pub fn found(&self) -> impl Iterator<Item = Found> + '_ {
        self.found.try_iter()
    }
}

/// Libraries of the host, in the directories where they are installed.
pub fn installed() -> Vec<Found> {
    let mut seen = Seen::default();
    let mut found = Vec::new();
    let mut directories: Vec<PathBuf> = LIBRARIES.iter().map(PathBuf::from).collect();
    for directory in LIBRARIES {
        let below = std::fs::read_dir(directory).into_iter().flatten().flatten();
        directories.extend(below.map(|entry| entry.path()).filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.ends_with("-gnu") || name.contains("-linux-"))
        }));
    }
    for directory in directories {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if is_library(&entry.path()) {
                match seen.look(&Candidate::Own(entry.path())) {
                    Ok(several) => found.extend(several),
                    Err(error) => tracing::debug!(%error, "not looked at for TLS"),
                }
            }
        }
    }
    found
}

/// The mount namespace of a process.
pub fn namespace(pid: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/mnt"))
        .ok()
        .map(|metadata| metadata.ino())
}

#[derive(Debug, Default)]
struct Seen(HashSet<FileKey>);

impl Seen {
    /// What a file has, unless it was looked at before.
    fn look(&mut self, candidate: &Candidate) -> Result<Vec<Found>, TlsError> {
        let path = candidate.path();
        let opened = |source| TlsError::Open {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(opened)?;
        let metadata = file.metadata().map_err(opened)?;
        let key = (metadata.dev(), metadata.ino(), metadata.mtime());
        if !metadata.is_file() || metadata.len() > LARGEST || self.0.contains(&key) {
            return Ok(Vec::new());
        }
        if self.0.len() >= SEEN {
            self.0.clear();
        }
        self.0.insert(key);
        let mut points = points(&file).map_err(|source| TlsError::Elf {
            path: path.clone(),
            source,
        })?;
        // Functions by the same names that do something else are no library.
        points.retain(|(_, points)| points.iter().any(|(program, _)| *program == WRITE));
        if matches!(candidate, Candidate::Executable { .. }) {
            for (_, points) in &mut points {
                let writes: Vec<u64> = points
                    .iter()
                    .filter(|(program, _)| *program == WRITE)
                    .map(|(_, offset)| *offset)
                    .collect();
                points.extend(writes.into_iter().map(|offset| (WRITTEN, offset)));
            }
        }
        let namespace = match candidate {
            Candidate::Executable { pid } | Candidate::Library { pid, .. } => {
                namespace(&pid.to_string()).filter(|found| Some(*found) != namespace("self"))
            }
            Candidate::Own(_) => None,
        };
        let name = match candidate {
            Candidate::Executable { .. } => std::fs::read_link(&path).unwrap_or(path.clone()),
            Candidate::Library { path, .. } | Candidate::Own(path) => path.clone(),
        };
        points
            .into_iter()
            .map(|(stack, points)| {
                Ok(Found {
                    key,
                    file: file.try_clone().map_err(opened)?,
                    name: name.display().to_string(),
                    stack,
                    points,
                    namespace,
                })
            })
            .collect()
    }
}

/// Programs and offsets, by stack.
type Points = Vec<(&'static str, Vec<(&'static str, u64)>)>;

/// The functions of every stack that an ELF file defines.
fn points(file: &File) -> Result<Points, object::Error> {
    let cache = ReadCache::new(file);
    let elf = Elf::parse(&cache)?;
    let mut found: Points = Vec::new();
    let symbols = elf.dynamic_symbols().chain(elf.symbols());
    for symbol in symbols.filter(|symbol| symbol.is_definition()) {
        let Ok(name) = symbol.name() else { continue };
        for stack in &STACKS {
            let Some((_, program)) = stack.functions.iter().find(|(known, _)| *known == name)
            else {
                continue;
            };
            let Some(offset) = file_offset(&elf, symbol.address()) else {
                continue;
            };
            let point = (*program, offset);
            match found.iter_mut().find(|(known, _)| *known == stack.name) {
                Some((_, points)) if points.contains(&point) => {}
                Some((_, points)) => points.push(point),
                None => found.push((stack.name, vec![point])),
            }
        }
    }
    Ok(found)
}

/// Where in the file what is at an address comes from.
fn file_offset<'a>(elf: &Elf<'a, &'a ReadCache<&File>>, address: u64) -> Option<u64> {
    elf.segments().find_map(|segment| {
        let (offset, size) = segment.file_range();
        let inside = address.checked_sub(segment.address())?;
        (inside < size).then_some(offset + inside)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    #[test]
    fn libraries_by_name() {
        for (path, expected) in [
            ("/usr/lib/x86_64-linux-gnu/libssl.so.3", true),
            ("/app/libs/libssl-1a2b3c4d.so.1.1", true),
            ("/usr/lib/libgnutls.so.30", true),
            ("/usr/lib/libsqlite3.so.0", false),
            ("/etc/ssl/libssl.cnf", false),
        ] {
            assert_eq!(is_library(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_program_without_tls_has_nothing() {
        let file = File::open("/proc/self/exe").expect("this program");
        assert_eq!(points(&file).expect("an ELF file"), vec![]);
    }

    proptest! {
        #[test]
        fn any_file(bytes in proptest::collection::vec(any::<u8>(), 0..2000), elf: bool) {
            let mut file = tempfile::tempfile().expect("a file");
            if elf {
                file.write_all(b"\x7fELF\x02\x01\x01\0").expect("written");
            }
            file.write_all(&bytes).expect("written");
            let _ = points(&file);
        }

        #[test]
        fn a_program_with_any_byte_changed(place in 0usize..4096, byte: u8) {
            let mut bytes = std::fs::read("/bin/true").expect("a program");
            let place = place % bytes.len();
            bytes[place] = byte;
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(&bytes).expect("written");
            let _ = points(&file);
        }
    }
}
