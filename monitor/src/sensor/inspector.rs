//! Finds TLS in mapped files: each file is inspected once, by threads that nothing waits for, and
//! passed to the [`Attacher`](super::attacher::Attacher).
//!
//! Candidates are files that a process has mapped executable, and libraries installed on the host's
//! root file system. A file that was only opened or written is not a candidate.

use super::{
    attacher::{AttachRequest, AttachTarget, NoticeSender, SensorNotice},
    exclude::ExclusionRules,
    file_reader::FileReader,
    hold::{self, HeldFile, HoldError},
    known_files::{FILES_CACHED, FileKey, FileState, FileVersion, KnownFiles, WAITING_MAX},
    mapped::{self, MappedFile, MappingReader, ProcessMapping},
};
use crate::{completion::Completion, host};
use hashlink::LruCache;
use monitor_parse::{
    elf::SymbolTable,
    tls_functions::{self, AttachPoint, ENTRY_BYTES, TlsInspection},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    collections::HashSet,
    fs::File,
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    time::{Duration, Instant},
};

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

/// Larger files are not parsed.
const FILE_MAX: u64 = 1 << 30;
/// Interval between scans of all running processes: they find what was mapped while its file was
/// believed to contain nothing.
const RESCAN_INTERVAL: Duration = Duration::from_secs(300);
/// Minimum interval between scans caused by lost records.
const RESCAN_AFTER_LOSS: Duration = Duration::from_secs(5);
/// Interval between reads of the records: it limits the wake-ups, and is shorter than a program's
/// time to its first write.
const GATHER_TIME: Duration = Duration::from_millis(1);
/// Maximum wait for records; new CPUs are picked up at this interval too.
const IDLE_TIMEOUT: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// A request to the inspector thread.
#[derive(Debug)]
pub enum InspectRequest {
    /// A process mapped a file.
    Mapped(ProcessMapping),
    /// Inspect the mappings of every process.
    Running,
    /// Inspect installed libraries; the completion is dropped when the attacher has attached to all
    /// of them.
    Installed(Completion),
}

/// The threads that find TLS.
#[derive(Debug)]
pub struct Inspector {
    requests: Sender<InspectRequest>,
    /// Why the kernel does not report mappings.
    pub unreported: Option<String>,
}

impl Inspector {
    /// Starts the threads. They end with the attacher, or with this value.
    pub fn start(
        known: &KnownFiles,
        attacher: &Sender<AttachRequest>,
        reporter: &NoticeSender,
    ) -> io::Result<Self> {
        let (requests, received) = channel();
        let (ask_slow, asked_slow) = sync_channel(WAITING_MAX);
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let worker = InspectorThread {
            known: known.clone(),
            inspected: LruCache::new(FILES_CACHED),
            attacher: attacher.clone(),
            reporter: reporter.clone(),
            slow: ask_slow,
        };
        thread("tls-inspector").spawn(move || worker.run(&received))?;
        // A program can have a hundred thousand symbols of its own; later files must not wait for
        // it.
        let (attacher_of_slow, reporter_of_slow) = (attacher.clone(), reporter.clone());
        let known_of_slow = known.clone();
        thread("tls-symbols").spawn(move || {
            for mapping in asked_slow {
                let mapping: ProcessMapping = mapping;
                let file = mapping.file;
                // Opened again: a waiting file must not keep anything busy.
                match InspectionCandidate::hold(mapping) {
                    Ok(candidate) => {
                        let inspection = candidate.inspect(SymbolTable::Static);
                        candidate.report(
                            &inspection,
                            &known_of_slow,
                            &attacher_of_slow,
                            &reporter_of_slow,
                        );
                    }
                    // It is inspected the next time it is mapped.
                    Err(_) => known_of_slow.forget_mapped(file),
                }
            }
        })?;
        let unreported = match MappingReader::open() {
            Ok(mappings) => {
                let follower = MappingFollower {
                    mappings,
                    known: known.clone(),
                    requests: requests.clone(),
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
                tracing::warn!(%error, "the kernel does not report mapped files: reading the maps of all processes every few seconds instead");
                let again = requests.clone();
                thread("mapped-files").spawn(move || {
                    while again.send(InspectRequest::Running).is_ok() {
                        std::thread::sleep(Duration::from_secs(5));
                    }
                })?;
                Some(error)
            }
        };
        Ok(Self {
            requests,
            unreported,
        })
    }

    /// Requests an inspection without waiting for it.
    pub fn request(&self, request: InspectRequest) {
        // The thread ends only with this value.
        let _ = self.requests.send(request);
    }
}

/// Reads the kernel's records of mapped files.
struct MappingFollower {
    mappings: MappingReader,
    known: KnownFiles,
    requests: Sender<InspectRequest>,
    attacher: Sender<AttachRequest>,
    reporter: NoticeSender,
    started: Instant,
    /// Time of the last scan of all running processes.
    rescanned: Instant,
    has_lost: bool,
}

impl MappingFollower {
    fn run(mut self) {
        loop {
            let mut descriptors: Vec<PollFd<'_>> = self
                .mappings
                .descriptors()
                .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
                .collect();
            let ready = poll(&mut descriptors, Some(&IDLE_TIMEOUT));
            drop(descriptors);
            if ready == Ok(0)
                && let Err(error) = self.mappings.follow_processors()
            {
                tracing::warn!(%error, "cannot read the mapping records of a CPU");
            }
            let (mut open, mut refused) = (true, 0);
            let (known, requests, attacher) = (&self.known, &self.requests, &self.attacher);
            let now = self.started.elapsed().as_secs();
            self.mappings.drain(
                |mapping| match report(known, requests, attacher, mapping, now) {
                    MappingReport::Done => {}
                    MappingReport::NoRoom => refused += 1,
                    MappingReport::Ended => open = false,
                },
            );
            if refused > 0 {
                self.reporter
                    .report(SensorNotice::MappingsLost { count: refused });
            }
            let lost = self.mappings.take_lost();
            if lost > 0 {
                self.reporter
                    .report(SensorNotice::MappingsLost { count: lost });
                self.has_lost = true;
            }
            let interval = if self.has_lost {
                RESCAN_AFTER_LOSS
            } else {
                RESCAN_INTERVAL
            };
            if self.rescanned.elapsed() >= interval {
                self.rescanned = Instant::now();
                self.has_lost = false;
                open &= self.requests.send(InspectRequest::Running).is_ok();
            }
            if !open {
                return;
            }
            std::thread::sleep(GATHER_TIME);
        }
    }
}

/// The result of reporting a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MappingReport {
    Done,
    /// Too many files are waiting to be inspected.
    NoRoom,
    /// The agent is stopping.
    Ended,
}

impl MappingReport {
    fn sent<T>(result: Result<(), std::sync::mpsc::SendError<T>>) -> Self {
        result.map_or(Self::Ended, |()| Self::Done)
    }
}

/// Passes a mapping on if it is new.
fn report(
    known: &KnownFiles,
    requests: &Sender<InspectRequest>,
    attacher: &Sender<AttachRequest>,
    mapping: ProcessMapping,
    now: u64,
) -> MappingReport {
    let file = mapping.file;
    let found = known.lock(|files| {
        let found = files.get(&file).cloned();
        (found.is_some() || files.begin(file)).then_some(found)
    });
    match found {
        None => MappingReport::NoRoom,
        Some(None) => MappingReport::sent(requests.send(InspectRequest::Mapped(mapping))),
        Some(Some(FileState::Watched(watch))) => {
            watch.last_mapped.store(now, Ordering::Relaxed);
            if !watch.by_process.load(Ordering::Relaxed) {
                return MappingReport::Done;
            }
            MappingReport::sent(attacher.send(AttachRequest::Mapped {
                key: watch.key,
                pid: mapping.pid,
            }))
        }
        Some(Some(FileState::Pending | FileState::NothingFound { .. })) => MappingReport::Done,
    }
}

/// Inspects files for dynamic symbols and Go tables.
struct InspectorThread {
    known: KnownFiles,
    /// Results of earlier inspections: a file has several identities if it is mounted twice.
    inspected: LruCache<FileKey, (FileVersion, Arc<TlsInspection>)>,
    attacher: Sender<AttachRequest>,
    reporter: NoticeSender,
    slow: SyncSender<ProcessMapping>,
}

impl InspectorThread {
    fn run(mut self, received: &Receiver<InspectRequest>) {
        for request in received {
            match request {
                InspectRequest::Mapped(mapping) => self.inspect_mapped(mapping),
                InspectRequest::Running => self.inspect_running(),
                InspectRequest::Installed(done) => {
                    for library in installed_libraries() {
                        self.installed_libraries(&library);
                    }
                    // The attacher ends only with the agent.
                    let _ = self.attacher.send(AttachRequest::Reached(done));
                }
            }
        }
    }

    fn inspect_mapped(&mut self, mapping: ProcessMapping) {
        let file = mapping.file;
        match InspectionCandidate::hold(mapping) {
            Ok(candidate) => self.inspect(candidate),
            // A longer-lived process may map it again.
            Err((mapping, error)) => self.handle_not_held(&mapping, file, &error),
        }
    }

    fn handle_not_held(&self, mapping: &ProcessMapping, file: MappedFile, error: &HoldError) {
        let path = mapping.path.display();
        if error.is_permanent() {
            self.known.set_nothing_found(file);
            self.reporter.report(SensorNotice::NotAttached {
                file: path.to_string(),
                reason: error.to_string(),
            });
        } else {
            tracing::debug!(%path, pid = mapping.pid, %error, "mapped file not inspected");
            self.known.forget_mapped(file);
        }
    }

    fn inspect_running(&mut self) {
        for pid in mapped::processes() {
            for mapping in mapped::mappings_of_process(pid) {
                let file = mapping.file;
                let known = self.known.lock(|files| {
                    let known = files.get(&file).cloned();
                    if known.is_none() {
                        files.set(file, Some(FileState::Pending));
                    }
                    known
                });
                match known {
                    // Nothing is recorded for a process that exited or changed its own memory: the
                    // next process that maps the file is examined.
                    None => self.inspect_mapped(mapping),
                    Some(FileState::Watched(watch)) if watch.by_process.load(Ordering::Relaxed) => {
                        let key = watch.key;
                        // The attacher ends only with the agent.
                        let _ = self.attacher.send(AttachRequest::Mapped { key, pid });
                    }
                    Some(_) => {}
                }
            }
        }
    }

    fn installed_libraries(&mut self, path: &Path) {
        let Some(held) = hold::hold_on_host(path) else {
            return;
        };
        self.inspect(InspectionCandidate {
            held,
            name: path.display().to_string(),
            mapping: None,
            executable: false,
        });
    }

    fn inspect(&mut self, candidate: InspectionCandidate) {
        let metadata = &candidate.held.metadata;
        let (key, version) = (FileKey::of(metadata), FileVersion::of(metadata));
        let known = self.inspected.get(&key);
        let inspection = match known.filter(|(known, _)| *known == version) {
            Some((_, inspection)) => Arc::clone(inspection),
            None => {
                let inspection = Arc::new(candidate.inspect(SymbolTable::Dynamic));
                self.inspected
                    .insert(key, (version, Arc::clone(&inspection)));
                inspection
            }
        };
        if !inspection.is_empty() {
            candidate.report(&inspection, &self.known, &self.attacher, &self.reporter);
        } else if let Some(mapping) = candidate.mapping {
            let file = mapping.file;
            // If too many are waiting, it is inspected the next time it is mapped.
            if self.slow.try_send(mapping).is_err() {
                self.known.forget_mapped(file);
            }
        }
    }
}

/// A file to be inspected.
struct InspectionCandidate {
    held: HeldFile,
    name: String,
    mapping: Option<ProcessMapping>,
    /// Whether it is the program that the process runs.
    executable: bool,
}

impl InspectionCandidate {
    fn hold(mapping: ProcessMapping) -> Result<Self, (ProcessMapping, HoldError)> {
        let held = match hold::hold_mapped(&mapping) {
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

    fn inspect(&self, symbols: SymbolTable) -> TlsInspection {
        if self.held.metadata.len() > FILE_MAX {
            tracing::debug!(file = self.name, "too large to be inspected");
            return TlsInspection::default();
        }
        match tls_functions::inspect(&FileReader(&self.held.file), symbols) {
            Ok(inspection) => inspection,
            Err(error) => {
                tracing::debug!(file = self.name, %error, "not inspected");
                TlsInspection::default()
            }
        }
    }

    /// Passes the result to the attacher, and reports what could not be proven.
    fn report(
        self,
        inspection: &TlsInspection,
        known: &KnownFiles,
        attacher: &Sender<AttachRequest>,
        reporter: &NoticeSender,
    ) {
        let mut stacks = inspection.stacks.clone();
        let mut unproven = inspection.unproven.clone();
        let mut changed_by_process = false;
        if let Some(mapping) = &self.mapping {
            stacks.retain(|(stack, points)| {
                let differs = points.iter().any(|point| !is_in_memory(mapping, point));
                if differs {
                    unproven.push(format!(
                        "{stack}: the bytes in the process's memory differ from the file"
                    ));
                }
                changed_by_process |= differs;
                !differs
            });
        }
        for reason in unproven {
            reporter.report(SensorNotice::NotAttached {
                file: self.name.clone(),
                reason,
            });
        }
        let file = self.mapping.as_ref().map(|mapping| mapping.file);
        if stacks.is_empty() {
            if let Some(file) = file {
                // The memory of one process says nothing about the file: it is inspected again when
                // another process maps it.
                if changed_by_process {
                    known.forget_mapped(file);
                } else {
                    known.set_nothing_found(file);
                }
            }
            return;
        }
        let metadata = &self.held.metadata;
        let found = AttachTarget {
            key: FileKey::of(metadata),
            version: FileVersion::of(metadata),
            held: self.held,
            name: self.name,
            executable: self.executable,
            pid: self.mapping.map(|mapping| mapping.pid),
            file,
            stacks,
        };
        // The attacher ends only with the agent.
        let _ = attacher.send(AttachRequest::Found(Box::new(found)));
    }
}

/// Whether the process's memory at a function equals its file, apart from a breakpoint. Also true
/// if the process exited, or has mapped that part of the file elsewhere.
fn is_in_memory(mapping: &ProcessMapping, point: &AttachPoint) -> bool {
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

/// Installed TLS libraries of the host.
fn installed_libraries() -> Vec<PathBuf> {
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

/// A running program, and why it is not attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct UnattachedProgram {
    pub file: String,
    pub reason: String,
}

/// Examines all running programs, for `doctor`.
pub fn examine_running(exclusion: &ExclusionRules) -> Vec<UnattachedProgram> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for pid in mapped::processes() {
        let excluded = exclusion.pattern_for(pid);
        for mapping in mapped::mappings_of_process(pid) {
            if !seen.insert((mapping.file, excluded.is_some())) {
                continue;
            }
            let file = mapping.path.display().to_string();
            let mut add = |reason: String| {
                let file = file.clone();
                found.push(UnattachedProgram { file, reason });
            };
            let candidate = match InspectionCandidate::hold(mapping) {
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
mod tests;
