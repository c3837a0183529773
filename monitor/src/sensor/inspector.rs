//! Finding TLS in what processes map: each file is inspected once, by threads that nothing waits
//! for, and handed to the [`Attacher`](super::attacher::Attacher).
//!
//! Candidates are files that a process has mapped executable, and libraries that are installed on
//! the host's root file system. A file that was merely opened or written is none.

use super::{
    attacher::{Command, Found, Notice, Reporter},
    elf::SymbolTable,
    exclude::Exclusion,
    hold::{self, Held, HoldError},
    mapped::{self, MappedFile, Mapping, Mappings},
    tls::{self, ENTRY_BYTES, Inspection, Point},
};
use crate::{done::Done, host};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    time::{Duration, Instant},
};

/// Directories of the host with libraries, besides one level below for its architecture.
const LIBRARIES: [&str; 6] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
];
/// How the files of TLS libraries are named there.
const LIBRARY_NAMES: [&str; 2] = ["libssl", "libgnutls"];

/// Larger files are not parsed.
const FILE_MAX: u64 = 1 << 30;
/// Files that are remembered.
const FILES: usize = 65_536;
/// A file with nothing to attach to is inspected again after this: it may have been overwritten, and
/// file systems without a device of their own use inode numbers again without telling.
const NOTHING_TTL: Duration = Duration::from_secs(30);
/// Files that wait for the inspector, and for its slow part.
const WAITING_MAX: usize = 2048;
/// Between two looks at everything that runs: what was mapped while its file seemed to have nothing
/// is found then.
const RESCAN: Duration = Duration::from_secs(300);
/// Between two such looks for want of records that were lost.
const RESCAN_AFTER_LOSS: Duration = Duration::from_secs(5);
/// Between two looks at the records: it bounds the wake-ups, and is less than a program takes to
/// its first write.
const GATHER: Duration = Duration::from_millis(1);
/// The longest wait for records; processors that come online are followed as often.
const IDLE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// What tells one file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    pub device: u64,
    pub inode: u64,
}

/// What tells one content of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the content is the same: a change of the owner or of a link is none.
    pub fn same_content(&self, other: &Self) -> bool {
        (self.size, self.modified) == (other.size, other.modified)
    }
}

impl FileKey {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// A file that is attached to, as far as others have to know.
#[derive(Debug)]
pub struct Watch {
    pub key: FileKey,
    /// When it was mapped last, in seconds since the agent started.
    pub last_mapped: AtomicU64,
    /// Whether the attacher has to know which processes map it.
    pub by_process: AtomicBool,
}

/// What is known of a mapped file.
#[derive(Clone, Debug)]
enum Known {
    /// It waits for the inspector.
    Pending,
    /// It has nothing to attach to, or nothing that can be proven.
    Nothing {
        since: Instant,
    },
    Watched(Arc<Watch>),
}

/// What is known of mapped files, shared by the threads.
#[derive(Clone, Debug, Default)]
pub struct KnownFiles(Arc<Mutex<Files>>);

#[derive(Debug, Default)]
struct Files {
    known: HashMap<MappedFile, Known>,
    /// How many of them are pending.
    pending: usize,
}

impl Files {
    fn set(&mut self, file: MappedFile, known: Option<Known>) {
        let is_pending = |known: &Option<Known>| usize::from(matches!(known, Some(Known::Pending)));
        let after = is_pending(&known);
        let before = match known {
            Some(known) => self.known.insert(file, known),
            None => self.known.remove(&file),
        };
        self.pending = (self.pending + after).saturating_sub(is_pending(&before));
    }

    /// What is to be believed of a file; nothing where that was long ago.
    fn get(&self, file: &MappedFile) -> Option<&Known> {
        self.known.get(file).filter(
            |known| !matches!(known, Known::Nothing { since } if since.elapsed() > NOTHING_TTL),
        )
    }

    /// Makes a file pending, where there is room for one more.
    fn begin(&mut self, file: MappedFile) -> bool {
        if self.known.len() >= FILES {
            self.known
                .retain(|_, known| !matches!(known, Known::Nothing { .. }));
        }
        let room = self.known.len() < FILES && self.pending < WAITING_MAX;
        if room {
            self.set(file, Some(Known::Pending));
        }
        room
    }
}

impl KnownFiles {
    fn with<T>(&self, look: impl FnOnce(&mut Files) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, file: MappedFile, known: Option<Known>) {
        self.with(|files| files.set(file, known));
    }

    /// A file has nothing to attach to, for now.
    pub fn nothing(&self, file: MappedFile) {
        let since = Instant::now();
        self.set(file, Some(Known::Nothing { since }));
    }

    /// Has everything inspected again that had nothing to attach to.
    pub fn forget_nothing(&self) {
        self.with(|files| {
            files
                .known
                .retain(|_, known| !matches!(known, Known::Nothing { .. }));
        });
    }

    /// From now on a file is known to be attached to.
    pub fn watched(&self, file: MappedFile, watch: &Arc<Watch>) {
        self.set(file, Some(Known::Watched(Arc::clone(watch))));
    }

    /// Has a file inspected when it is mapped again.
    pub fn forget_mapped(&self, file: MappedFile) {
        self.set(file, None);
    }

    /// Has what is not attached to any more inspected when it is mapped again.
    pub fn forget(&self, key: FileKey) {
        self.with(|files| {
            files
                .known
                .retain(|_, known| !matches!(known, Known::Watched(watch) if watch.key == key));
        });
    }
}

/// What the inspector is asked.
#[derive(Debug)]
pub enum Ask {
    /// A process has mapped a file.
    Mapped(Mapping),
    /// What every process has mapped.
    Running,
    /// What is installed; the attacher drops it when it has attached to all of that.
    Installed(Done),
}

/// The threads that find TLS.
#[derive(Debug)]
pub struct Inspector {
    ask: Sender<Ask>,
    /// Why mappings are not reported by the kernel.
    pub unreported: Option<String>,
}

impl Inspector {
    /// Starts the threads. They end with the attacher, or with this value.
    pub fn start(
        known: &KnownFiles,
        attacher: &Sender<Command>,
        reporter: &Reporter,
    ) -> io::Result<Self> {
        let (ask, asked) = channel();
        let (ask_slow, asked_slow) = sync_channel(WAITING_MAX);
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let worker = Worker {
            known: known.clone(),
            inspected: HashMap::new(),
            attacher: attacher.clone(),
            reporter: reporter.clone(),
            slow: ask_slow,
        };
        thread("tls-inspector").spawn(move || worker.run(&asked))?;
        // A program's own symbols can be a hundred thousand; what comes after must not wait.
        let (attacher_of_slow, reporter_of_slow) = (attacher.clone(), reporter.clone());
        let known_of_slow = known.clone();
        thread("tls-symbols").spawn(move || {
            for mapping in asked_slow {
                let mapping: Mapping = mapping;
                let file = mapping.file;
                // Opened anew: what waits here must hold nothing.
                match Candidate::hold(mapping) {
                    Ok(candidate) => {
                        let inspection = candidate.inspect(SymbolTable::Static);
                        candidate.conclude(
                            &inspection,
                            &known_of_slow,
                            &attacher_of_slow,
                            &reporter_of_slow,
                        );
                    }
                    // It is looked at again when it is mapped again.
                    Err(_) => known_of_slow.forget_mapped(file),
                }
            }
        })?;
        let unreported = match Mappings::open() {
            Ok(mappings) => {
                let follower = Follower {
                    mappings,
                    known: known.clone(),
                    ask: ask.clone(),
                    attacher: attacher.clone(),
                    reporter: reporter.clone(),
                    started: Instant::now(),
                    rescanned: Instant::now(),
                    has_lost: false,
                };
                thread("mapped-files").spawn(move || follower.run())?;
                None
            }
            Err(error) => {
                let error = error.to_string();
                tracing::warn!(%error, "mapped files are not reported by the kernel: the maps of all processes are read every few seconds instead");
                let again = ask.clone();
                thread("mapped-files").spawn(move || {
                    while again.send(Ask::Running).is_ok() {
                        std::thread::sleep(Duration::from_secs(5));
                    }
                })?;
                Some(error)
            }
        };
        Ok(Self { ask, unreported })
    }

    /// Has something inspected; nothing is waited for.
    pub fn ask(&self, ask: Ask) {
        // The thread ends only with this value.
        let _ = self.ask.send(ask);
    }
}

/// Follows the kernel's records of mapped files.
struct Follower {
    mappings: Mappings,
    known: KnownFiles,
    ask: Sender<Ask>,
    attacher: Sender<Command>,
    reporter: Reporter,
    started: Instant,
    /// When everything that runs was asked for last.
    rescanned: Instant,
    has_lost: bool,
}

impl Follower {
    fn run(mut self) {
        loop {
            let mut descriptors: Vec<PollFd<'_>> = self
                .mappings
                .descriptors()
                .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
                .collect();
            let ready = poll(&mut descriptors, Some(&IDLE));
            drop(descriptors);
            if ready == Ok(0)
                && let Err(error) = self.mappings.follow_processors()
            {
                tracing::warn!(%error, "cannot follow the mappings of a processor");
            }
            let (mut open, mut refused) = (true, 0);
            let (known, ask, attacher) = (&self.known, &self.ask, &self.attacher);
            let now = self.started.elapsed().as_secs();
            self.mappings
                .drain(|mapping| match report(known, ask, attacher, mapping, now) {
                    Reported::Done => {}
                    Reported::NoRoom => refused += 1,
                    Reported::Ended => open = false,
                });
            if refused > 0 {
                self.reporter
                    .report(Notice::MappingsLost { count: refused });
            }
            let lost = self.mappings.take_lost();
            if lost > 0 {
                self.reporter.report(Notice::MappingsLost { count: lost });
                self.has_lost = true;
            }
            let interval = if self.has_lost {
                RESCAN_AFTER_LOSS
            } else {
                RESCAN
            };
            if self.rescanned.elapsed() >= interval {
                self.rescanned = Instant::now();
                self.has_lost = false;
                open &= self.ask.send(Ask::Running).is_ok();
            }
            if !open {
                return;
            }
            std::thread::sleep(GATHER);
        }
    }
}

/// What became of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reported {
    Done,
    /// Too many files wait to be inspected.
    NoRoom,
    /// The agent ends.
    Ended,
}

impl Reported {
    fn sent<T>(result: Result<(), std::sync::mpsc::SendError<T>>) -> Self {
        result.map_or(Self::Ended, |()| Self::Done)
    }
}

/// Passes a mapping on where it is news.
fn report(
    known: &KnownFiles,
    ask: &Sender<Ask>,
    attacher: &Sender<Command>,
    mapping: Mapping,
    now: u64,
) -> Reported {
    let file = mapping.file;
    let found = known.with(|files| {
        let found = files.get(&file).cloned();
        (found.is_some() || files.begin(file)).then_some(found)
    });
    match found {
        None => Reported::NoRoom,
        Some(None) => Reported::sent(ask.send(Ask::Mapped(mapping))),
        Some(Some(Known::Watched(watch))) => {
            watch.last_mapped.store(now, Ordering::Relaxed);
            if !watch.by_process.load(Ordering::Relaxed) {
                return Reported::Done;
            }
            Reported::sent(attacher.send(Command::Mapped {
                key: watch.key,
                pid: mapping.pid,
            }))
        }
        Some(Some(Known::Pending | Known::Nothing { .. })) => Reported::Done,
    }
}

/// Inspects what has dynamic symbols or Go's tables.
struct Worker {
    known: KnownFiles,
    /// What was found in files before: a file has several numbers where it is mounted twice.
    inspected: HashMap<FileKey, (Version, Arc<Inspection>)>,
    attacher: Sender<Command>,
    reporter: Reporter,
    slow: SyncSender<Mapping>,
}

impl Worker {
    fn run(mut self, asked: &Receiver<Ask>) {
        for ask in asked {
            match ask {
                Ask::Mapped(mapping) => self.mapped(mapping),
                Ask::Running => self.running(),
                Ask::Installed(done) => {
                    for library in installed() {
                        self.installed(&library);
                    }
                    // The attacher ends only with the agent.
                    let _ = self.attacher.send(Command::Reached(done));
                }
            }
        }
    }

    fn mapped(&mut self, mapping: Mapping) {
        let file = mapping.file;
        match Candidate::hold(mapping) {
            Ok(candidate) => self.look(candidate),
            // It may be mapped again, by a process that lives longer.
            Err((mapping, error)) => self.not_held(&mapping, file, &error),
        }
    }

    fn not_held(&self, mapping: &Mapping, file: MappedFile, error: &HoldError) {
        let path = mapping.path.display();
        if error.is_permanent() {
            self.known.nothing(file);
            self.reporter.report(Notice::NotAttached {
                file: path.to_string(),
                reason: error.to_string(),
            });
        } else {
            tracing::debug!(%path, pid = mapping.pid, %error, "a mapped file is not inspected");
            self.known.forget_mapped(file);
        }
    }

    fn running(&mut self) {
        for pid in mapped::processes() {
            for mapping in mapped::of_process(pid) {
                let file = mapping.file;
                let known = self.known.with(|files| {
                    let known = files.get(&file).cloned();
                    if known.is_none() {
                        files.set(file, Some(Known::Pending));
                    }
                    known
                });
                match known {
                    // Of a process that is gone, or that has changed its memory, nothing is kept: the
                    // next one that has the file mapped is asked.
                    None => self.mapped(mapping),
                    Some(Known::Watched(watch)) if watch.by_process.load(Ordering::Relaxed) => {
                        let key = watch.key;
                        // The attacher ends only with the agent.
                        let _ = self.attacher.send(Command::Mapped { key, pid });
                    }
                    Some(_) => {}
                }
            }
        }
    }

    fn installed(&mut self, path: &Path) {
        let Some(held) = hold::hold_on_host(path) else {
            return;
        };
        self.look(Candidate {
            held,
            name: path.display().to_string(),
            mapping: None,
            executable: false,
        });
    }

    fn look(&mut self, candidate: Candidate) {
        let metadata = &candidate.held.metadata;
        let (key, version) = (FileKey::of(metadata), Version::of(metadata));
        let known = self.inspected.get(&key);
        let inspection = match known.filter(|(known, _)| *known == version) {
            Some((_, inspection)) => Arc::clone(inspection),
            None => {
                let inspection = Arc::new(candidate.inspect(SymbolTable::Dynamic));
                if self.inspected.len() >= FILES {
                    self.inspected.clear();
                }
                self.inspected
                    .insert(key, (version, Arc::clone(&inspection)));
                inspection
            }
        };
        if !inspection.is_empty() {
            candidate.conclude(&inspection, &self.known, &self.attacher, &self.reporter);
        } else if let Some(mapping) = candidate.mapping {
            let file = mapping.file;
            // Where too many wait, it is looked at when it is mapped again.
            if self.slow.try_send(mapping).is_err() {
                self.known.forget_mapped(file);
            }
        }
    }
}

/// A file to be inspected.
struct Candidate {
    held: Held,
    name: String,
    mapping: Option<Mapping>,
    /// Whether it is the program that the process runs.
    executable: bool,
}

impl Candidate {
    fn hold(mapping: Mapping) -> Result<Self, (Mapping, HoldError)> {
        let held = match hold::hold(&mapping) {
            Ok(held) => held,
            Err(error) => return Err((mapping, error)),
        };
        let program = std::fs::metadata(format!("/proc/{}/exe", mapping.pid));
        Ok(Self {
            name: mapping.path.display().to_string(),
            executable: program.is_ok_and(|program| program.ino() == mapping.file.inode),
            mapping: Some(mapping),
            held,
        })
    }

    fn inspect(&self, symbols: SymbolTable) -> Inspection {
        if self.held.metadata.len() > FILE_MAX {
            tracing::debug!(file = self.name, "too large to be inspected");
            return Inspection::default();
        }
        match tls::inspect(&self.held.file, symbols) {
            Ok(inspection) => inspection,
            Err(error) => {
                tracing::debug!(file = self.name, %error, "not inspected");
                Inspection::default()
            }
        }
    }

    /// Hands what was found to the attacher, and reports what could not be proven.
    fn conclude(
        self,
        inspection: &Inspection,
        known: &KnownFiles,
        attacher: &Sender<Command>,
        reporter: &Reporter,
    ) {
        let mut stacks = inspection.stacks.clone();
        let mut unproven = inspection.unproven.clone();
        let mut changed_by_process = false;
        if let Some(mapping) = &self.mapping {
            stacks.retain(|(stack, points)| {
                let differs = points.iter().any(|point| !is_in_memory(mapping, point));
                if differs {
                    unproven.push(format!(
                        "{stack}: a process has other bytes there than the file"
                    ));
                }
                changed_by_process |= differs;
                !differs
            });
        }
        for reason in unproven {
            reporter.report(Notice::NotAttached {
                file: self.name.clone(),
                reason,
            });
        }
        let file = self.mapping.as_ref().map(|mapping| mapping.file);
        if stacks.is_empty() {
            if let Some(file) = file {
                // The memory of one process says nothing about the file: it is looked at again when
                // another process maps it.
                if changed_by_process {
                    known.forget_mapped(file);
                } else {
                    known.nothing(file);
                }
            }
            return;
        }
        let metadata = &self.held.metadata;
        let found = Found {
            key: FileKey::of(metadata),
            version: Version::of(metadata),
            held: self.held,
            name: self.name,
            executable: self.executable,
            pid: self.mapping.map(|mapping| mapping.pid),
            file,
            stacks,
        };
        // The attacher ends only with the agent.
        let _ = attacher.send(Command::Found(Box::new(found)));
    }
}

/// Whether a process has at a function what its file has there, but for a breakpoint. Also where it
/// is gone, or has that part of the file elsewhere.
fn is_in_memory(mapping: &Mapping, point: &Point) -> bool {
    const BREAKPOINT: usize = if cfg!(target_arch = "aarch64") { 4 } else { 1 };
    let inside = point.offset.checked_sub(mapping.offset);
    let Some(inside) = inside.filter(|inside| *inside < mapping.size) else {
        return true;
    };
    let mut bytes = [0; ENTRY_BYTES];
    let read = File::open(format!("/proc/{}/mem", mapping.pid))
        .and_then(|memory| memory.read_exact_at(&mut bytes, mapping.address + inside));
    read.is_err()
        || bytes == point.entry
        || (is_breakpoint(&bytes) && bytes[BREAKPOINT..] == point.entry[BREAKPOINT..])
}

fn is_breakpoint(bytes: &[u8; ENTRY_BYTES]) -> bool {
    if cfg!(target_arch = "aarch64") {
        // brk #5, which the kernel uses for uprobes.
        bytes.starts_with(&[0xa0, 0x00, 0x20, 0xd4])
    } else {
        bytes[0] == 0xcc
    }
}

/// Libraries of the host, where they are installed.
fn installed() -> Vec<PathBuf> {
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
        .collect()
}

/// A program that runs, and why it is not attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Unattached {
    pub file: String,
    pub reason: String,
}

/// Looks through everything that runs, for `doctor`.
pub fn examine_running(exclusion: &Exclusion) -> Vec<Unattached> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for pid in mapped::processes() {
        let excluded = exclusion.pattern_for(pid);
        for mapping in mapped::of_process(pid) {
            if !seen.insert((mapping.file, excluded.is_some())) {
                continue;
            }
            let file = mapping.path.display().to_string();
            let mut add = |reason: String| {
                let file = file.clone();
                found.push(Unattached { file, reason });
            };
            let candidate = match Candidate::hold(mapping) {
                Ok(candidate) => candidate,
                Err((_, error)) => {
                    if error.is_permanent() {
                        add(error.to_string());
                    }
                    continue;
                }
            };
            let mut inspection = candidate.inspect(SymbolTable::Dynamic);
            if inspection.is_empty() {
                inspection = candidate.inspect(SymbolTable::Static);
            }
            if let Some(pattern) = &excluded
                && !inspection.stacks.is_empty()
            {
                add(format!(
                    "excluded by `inspect.exclude: {pattern}` (process {pid})"
                ));
            }
            inspection.unproven.into_iter().for_each(add);
        }
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(inode: u64, pid: u32) -> Mapping {
        Mapping {
            pid,
            file: MappedFile {
                major: 8,
                minor: 1,
                inode,
                generation: 0,
            },
            address: 0,
            size: 0,
            offset: 0,
            path: PathBuf::from("/x"),
        }
    }

    #[test]
    fn files_that_wait_are_bounded_and_each_waits_once() {
        let known = KnownFiles::default();
        let (ask, asked) = channel();
        let (attacher, _told) = channel();
        let report = |inode| report(&known, &ask, &attacher, mapping(inode, 7), 0);
        let waiting = WAITING_MAX as u64;
        for inode in 0..waiting {
            assert_eq!(report(inode), Reported::Done);
            assert_eq!(report(inode), Reported::Done);
        }
        assert_eq!(report(waiting), Reported::NoRoom);
        assert_eq!(asked.try_iter().count(), WAITING_MAX);
        // What was inspected makes room.
        known.nothing(mapping(0, 7).file);
        assert_eq!(report(waiting), Reported::Done);
        assert_eq!(report(0), Reported::Done);
        assert_eq!(asked.try_iter().count(), 1, "the other is known");
    }

    #[test]
    fn a_file_that_is_attached_to_is_reported_by_process_where_that_matters() {
        let known = KnownFiles::default();
        let (ask, asked) = channel();
        let (attacher, told) = channel();
        let watch = Arc::new(Watch {
            key: FileKey {
                device: 1,
                inode: 2,
            },
            last_mapped: AtomicU64::new(0),
            by_process: AtomicBool::new(false),
        });
        known.watched(mapping(2, 7).file, &watch);
        let report = |now| report(&known, &ask, &attacher, mapping(2, 7), now);
        assert_eq!(report(5), Reported::Done);
        assert_eq!(watch.last_mapped.load(Ordering::Relaxed), 5);
        assert!(told.try_recv().is_err());
        watch.by_process.store(true, Ordering::Relaxed);
        assert_eq!(report(6), Reported::Done);
        assert!(matches!(
            told.try_recv(),
            Ok(Command::Mapped { pid: 7, .. })
        ));
        assert!(asked.try_recv().is_err(), "it is not inspected again");
    }
}
