//! TLS libraries, and programs with one inside: found by what is run and mapped, told by their
//! symbols.
//!
//! Files are opened and parsed by a thread of their own, as a program may be large and its file
//! system slow. What it finds is attached by the owner of the probes, once for each file.

use super::{observation::FileId, pclntab};
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSegment as _,
    elf::{SHN_UNDEF, STT_FUNC},
    read::{
        ReadCache,
        elf::{ElfFile64, Sym as _},
    },
};
use std::{
    collections::HashSet,
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Sender, channel},
};
use thiserror::Error;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A TLS library: how its file is named, and its functions that take plaintext, each with the
/// program that watches it.
#[derive(Debug)]
pub struct Stack {
    pub name: &'static str,
    pub file: &'static str,
    functions: &'static [(&'static str, &'static str)],
}

/// The program at functions of `(object, bytes, length)`.
pub const WRITE: &str = "present_write";
/// The program at the returns of the same, where they are in a program.
pub const WRITTEN: &str = "present_written";
/// The program where an object is freed.
pub const FREED: &str = "present_freed";
/// The program at `SSL_ctrl`.
pub const SERVER: &str = "present_server";
/// The programs at functions of `(object, bytes, length)` that give back what came, and of the same
/// with where the length goes. Attached to one process at a time.
pub const READ: &str = "returned_begin";
pub const READ_EX: &str = "returned_begin_ex";
/// The program at their returns.
pub const RETURNED: &str = "returned";
/// The program at a function of Go that takes `(object, bytes, length)`.
pub const GO: &str = "present_go";

/// The stack of Go, and its function.
const GO_STACK: &str = "go";
const GO_WRITE: &str = "crypto/tls.(*Conn).Write";
/// Sections that may have the table of a Go program's functions.
const GO_TABLES: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];

/// Every stack that is watched.
pub const STACKS: [Stack; 2] = [
    Stack {
        name: "openssl",
        file: "libssl",
        functions: &[
            ("SSL_write", WRITE),
            ("SSL_write_ex", WRITE),
            ("SSL_ctrl", SERVER),
            ("SSL_free", FREED),
            ("SSL_read", READ),
            ("SSL_read_ex", READ_EX),
        ],
    },
    Stack {
        name: "gnutls",
        file: "libgnutls",
        functions: &[
            ("gnutls_record_send", WRITE),
            ("gnutls_record_recv", READ),
            ("gnutls_deinit", FREED),
        ],
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
    /// The same of a process that has just begun to run it.
    Started { pid: u32, file: FileId },
    /// A library, where a process sees it.
    Library { pid: u32, path: PathBuf },
    /// A library where the agent sees it.
    Own(PathBuf),
}

impl Candidate {
    fn path(&self) -> PathBuf {
        match self {
            Self::Executable { pid } | Self::Started { pid, .. } => {
                PathBuf::from(format!("/proc/{pid}/exe"))
            }
            Self::Library { pid, path } => PathBuf::from(format!("/proc/{pid}/root"))
                .join(path.strip_prefix("/").unwrap_or(path)),
            Self::Own(path) => path.clone(),
        }
    }
}

/// What tells one file from another: device, inode, and when it was written, in nanoseconds.
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
}

/// What the thread is told.
#[derive(Debug)]
enum Ask {
    Look(Candidate),
    Forget(FileKey),
}

/// Looks for TLS in a thread of its own.
#[derive(Debug)]
pub struct Finder {
    ask: Sender<Ask>,
    found: UnboundedReceiver<Found>,
}

impl Finder {
    pub fn start() -> io::Result<Self> {
        let (ask, asked) = channel();
        let (tell, found) = unbounded_channel();
        let (ask_slow, asked_slow) = channel::<Opened>();
        let tell_slow = tell.clone();
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        thread("tls-finder").spawn(move || {
            let mut seen = Seen::default();
            for ask in asked {
                let candidate = match ask {
                    Ask::Look(candidate) => candidate,
                    Ask::Forget(key) => {
                        seen.forget(key);
                        continue;
                    }
                };
                let opened = match seen.open(&candidate) {
                    Ok(Some(opened)) => opened,
                    Ok(None) => continue,
                    // A process that is gone is no news.
                    Err(error) => {
                        tracing::debug!(%error, "not looked at for TLS");
                        continue;
                    }
                };
                if !opened.look(Symbols::Dynamic, |found| tell.send(found).is_ok())
                    && opened.executable
                {
                    // The other thread ends only with this one.
                    let _ = ask_slow.send(opened);
                }
            }
        })?;
        // A program's own symbols can be a hundred thousand: nobody is to wait for them.
        thread("tls-symbols").spawn(move || {
            for opened in asked_slow {
                opened.look(Symbols::Own, |found| tell_slow.send(found).is_ok());
            }
        })?;
        Ok(Self { ask, found })
    }

    /// Has a file looked at; nothing is waited for.
    pub fn ask(&self, candidate: Candidate) {
        // The thread ends only with this value.
        let _ = self.ask.send(Ask::Look(candidate));
    }

    /// Has a file looked at again where it shows up again.
    pub fn forget(&self, key: FileKey) {
        // As above.
        let _ = self.ask.send(Ask::Forget(key));
    }

    /// Waits for the next file with functions to watch.
    pub async fn found(&mut self) -> Found {
        match self.found.recv().await {
            Some(found) => found,
            // The thread ends only with this value.
            None => std::future::pending().await,
        }
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
            if !is_library(&entry.path()) {
                continue;
            }
            match seen.open(&Candidate::Own(entry.path())) {
                Ok(None) => {}
                Ok(Some(opened)) => {
                    opened.look(Symbols::Dynamic, |library| {
                        found.push(library);
                        true
                    });
                }
                Err(error) => tracing::debug!(%error, "not looked at for TLS"),
            }
        }
    }
    found
}

/// Whether a file is still the one that was found under its name.
pub fn is_still(name: &Path, (device, inode, _): FileKey) -> bool {
    std::fs::metadata(name)
        .is_ok_and(|metadata| metadata.dev() == device && metadata.ino() == inode)
}

/// What the processes of this moment use.
#[derive(Debug, Default)]
pub struct Used {
    /// Their mount namespaces.
    pub namespaces: HashSet<u64>,
    /// Numbers of the files that they have mapped: programs and libraries among them.
    pub inodes: HashSet<u64>,
}

impl Used {
    pub fn now() -> Self {
        let mut used = Self::default();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in processes.filter_map(|entry| entry.file_name().into_string().ok()) {
            if !pid.starts_with(|first: char| first.is_ascii_digit()) {
                continue;
            }
            used.namespaces.extend(namespace(&pid));
            let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
            // Address, permissions, offset, device, inode, path.
            let inodes = maps
                .lines()
                .filter_map(|line| line.split_ascii_whitespace().nth(4)?.parse::<u64>().ok());
            used.inodes.extend(inodes);
        }
        used
    }
}

/// Numbers and paths of the files that a process has mapped, each once.
pub fn mapped(pid: u32) -> Vec<(u64, PathBuf)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mut mapped: Vec<(u64, PathBuf)> = maps
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(4);
            let inode = words.next()?.parse().ok()?;
            Some((inode, words.next()?.into()))
        })
        .collect();
    mapped.dedup();
    mapped
}

/// The mount namespace of a process.
fn namespace(pid: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/mnt"))
        .ok()
        .map(|metadata| metadata.ino())
}

#[derive(Debug, Default)]
struct Seen {
    files: HashSet<FileKey>,
    /// The same as the probes name them, so that a program that is started again is not opened.
    programs: HashSet<FileId>,
}

impl Seen {
    fn forget(&mut self, key: FileKey) {
        self.files.remove(&key);
        // Which of them it was is not known; the others are opened once more.
        self.programs.clear();
    }

    /// Opens a file, unless it was looked at before.
    fn open(&mut self, candidate: &Candidate) -> Result<Option<Opened>, TlsError> {
        if let Candidate::Started { file, .. } = candidate
            && self.programs.contains(file)
        {
            return Ok(None);
        }
        let path = candidate.path();
        let failed = |source| TlsError::Open {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let written = metadata.mtime().wrapping_mul(1_000_000_000) + metadata.mtime_nsec();
        let key = (metadata.dev(), metadata.ino(), written);
        if self.files.len() + self.programs.len() >= SEEN {
            self.files.clear();
            self.programs.clear();
        }
        // It may be another program by now: then the number is another.
        if let Candidate::Started { file, .. } = candidate
            && metadata.ino() == file.inode
        {
            self.programs.insert(*file);
        }
        if !metadata.is_file() || metadata.len() > LARGEST || !self.files.insert(key) {
            return Ok(None);
        }
        let namespace = match candidate {
            Candidate::Executable { pid }
            | Candidate::Started { pid, .. }
            | Candidate::Library { pid, .. } => {
                namespace(&pid.to_string()).filter(|found| Some(*found) != namespace("self"))
            }
            Candidate::Own(_) => None,
        };
        let name = match candidate {
            Candidate::Executable { .. } | Candidate::Started { .. } => {
                std::fs::read_link(&path).unwrap_or(path)
            }
            Candidate::Library { path, .. } | Candidate::Own(path) => path.clone(),
        };
        Ok(Some(Opened {
            file,
            key,
            name: name.display().to_string(),
            namespace,
            executable: matches!(
                candidate,
                Candidate::Executable { .. } | Candidate::Started { .. }
            ),
        }))
    }
}

/// A file that may have TLS inside.
#[derive(Debug)]
struct Opened {
    file: File,
    key: FileKey,
    name: String,
    namespace: Option<u64>,
    executable: bool,
}

/// Which symbols of a file are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Symbols {
    /// Those that it shows to others, and Go's table.
    Dynamic,
    /// Those that it has for a debugger.
    Own,
}

impl Opened {
    /// Tells each stack that it finds; whether there was any.
    fn look(&self, symbols: Symbols, mut tell: impl FnMut(Found) -> bool) -> bool {
        let mut points = match points(&self.file, symbols) {
            Ok(points) => points,
            Err(error) => {
                tracing::debug!(file = self.name, %error, "no ELF file that can be read");
                return false;
            }
        };
        // Functions by the same names that do something else are no library.
        points.retain(|(_, points)| {
            points
                .iter()
                .any(|(program, _)| [WRITE, GO].contains(program))
        });
        let any = !points.is_empty();
        for (stack, mut points) in points {
            if self.executable {
                let writes: Vec<u64> = points
                    .iter()
                    .filter(|(program, _)| *program == WRITE)
                    .map(|(_, offset)| *offset)
                    .collect();
                points.extend(writes.into_iter().map(|offset| (WRITTEN, offset)));
            }
            let Ok(file) = self.file.try_clone() else {
                tracing::warn!(file = self.name, "out of descriptors: TLS is not watched");
                continue;
            };
            let told = tell(Found {
                key: self.key,
                file,
                name: self.name.clone(),
                stack,
                points,
                namespace: self.namespace,
            });
            if !told {
                break;
            }
        }
        any
    }
}

/// Programs and offsets, by stack.
type Points = Vec<(&'static str, Vec<(&'static str, u64)>)>;

/// The functions of every stack that an ELF file defines.
fn points(file: &File, symbols: Symbols) -> Result<Points, object::Error> {
    let cache = ReadCache::new(file);
    // Of 64 bits: the others pass arguments another way.
    let elf = Elf::parse(&cache)?;
    let endian = elf.endian();
    let mut found: Points = Vec::new();
    let (table, strings) = match symbols {
        Symbols::Dynamic => (elf.elf_dynamic_symbol_table(), ".dynstr"),
        Symbols::Own => (elf.elf_symbol_table(), ".strtab"),
    };
    // All names at once: asked for one by one, each would be read from the file.
    let strings = match elf.section_by_name(strings) {
        Some(section) => section.data()?,
        None => &[],
    };
    let defined = table
        .iter()
        .filter(|symbol| symbol.st_type() == STT_FUNC && symbol.st_shndx(endian) != SHN_UNDEF);
    for symbol in defined {
        let name = strings
            .get(symbol.st_name(endian) as usize..)
            .unwrap_or_default();
        let known = STACKS.iter().find_map(|stack| {
            let is = |known: &str| {
                name.strip_prefix(known.as_bytes())
                    .is_some_and(|rest| rest.first() == Some(&0))
            };
            let (_, program) = stack.functions.iter().find(|(known, _)| is(known))?;
            Some((stack, *program))
        });
        let Some((stack, program)) = known else {
            continue;
        };
        let Some(offset) = file_offset(&elf, symbol.st_value(endian)) else {
            continue;
        };
        let point = (program, offset);
        match found.iter_mut().find(|(known, _)| *known == stack.name) {
            Some((_, points)) if points.contains(&point) => {}
            Some((_, points)) => points.push(point),
            None => found.push((stack.name, vec![point])),
        }
    }
    if symbols == Symbols::Dynamic {
        let go = GO_TABLES
            .iter()
            .find_map(|name| elf.section_by_name(name))
            .and_then(|table| {
                let text = elf.section_by_name(".text")?.address();
                pclntab::function(table.data().ok()?, text, GO_WRITE)
            })
            .and_then(|address| file_offset(&elf, address));
        found.extend(go.map(|offset| (GO_STACK, vec![(GO, offset)])));
    }
    Ok(found)
}

type Elf<'a> = ElfFile64<'a, Endianness, &'a ReadCache<&'a File>>;

/// Where in the file what is at an address comes from.
fn file_offset(elf: &Elf<'_>, address: u64) -> Option<u64> {
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
        assert_eq!(points(&file, Symbols::Own).expect("an ELF file"), vec![]);
    }

    proptest! {
        #[test]
        fn any_file(bytes in proptest::collection::vec(any::<u8>(), 0..2000), elf: bool) {
            let mut file = tempfile::tempfile().expect("a file");
            if elf {
                file.write_all(b"\x7fELF\x02\x01\x01\0").expect("written");
            }
            file.write_all(&bytes).expect("written");
            for symbols in [Symbols::Dynamic, Symbols::Own] {
                let _ = points(&file, symbols);
            }
        }

        #[test]
        fn a_program_with_any_byte_changed(place in 0usize..4096, byte: u8) {
            let mut bytes = std::fs::read("/bin/true").expect("a program");
            let place = place % bytes.len();
            bytes[place] = byte;
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(&bytes).expect("written");
            for symbols in [Symbols::Dynamic, Symbols::Own] {
                let _ = points(&file, symbols);
            }
        }
    }
}
