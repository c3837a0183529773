//! The owner of every uprobe: a thread that attaches programs to files and detaches them, so that
//! nothing else waits for either.
//!
//! A link is made for a file's identity, the offsets of its functions, and a scope: either every
//! process that has mapped the file or will, or one process.

use super::{
    exclude::ExclusionRules,
    hold::{self, HeldFile, HoldLimit, MountId},
    known_files::{FileKey, FileVersion, FileWatch, KnownFiles},
    mapped::{self, MappedFile},
    uprobe::{self, UprobeError, UprobeLink},
    uprobe_program::UprobePrograms,
};
use crate::{
    completion::{self, Completion, CompletionWaiter},
    host::descriptor_path,
};
use monitor_parse::tls_functions::{self as tls, AttachPoint};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::inotify,
};
use std::{
    cell::LazyCell,
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io,
    mem::MaybeUninit,
    num::NonZeroU32,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Maximum number of files attached to at the same time. Each costs a descriptor and up to five
/// links.
const FILES_MAX: usize = 1024;
/// Descriptors reserved for everything else.
const DESCRIPTORS_RESERVED: usize = 512;
/// Descriptors per file: its own, and one per program, or one per function if the kernel has no
/// multi-uprobe links.
const DESCRIPTORS_EACH: usize = 12;
/// Maximum number of processes whose TLS reads are inspected at the same time.
const RESPONSE_PROCESSES_MAX: usize = 64;
/// Interval between checks of attached files and their processes.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Number of threads that detach at shutdown: each link waits tens of milliseconds for the CPUs.
const DETACH_THREADS: usize = 16;
/// Maximum time that shutdown waits for them; the kernel detaches the rest.
const DETACH_TIMEOUT: Duration = Duration::from_secs(10);

/// A file with functions to attach to.
#[derive(Debug)]
pub struct AttachTarget {
    pub key: FileKey,
    pub version: FileVersion,
    pub held: HeldFile,
    pub name: String,
    /// Whether it is a program rather than a library.
    pub executable: bool,
    /// The process that mapped it.
    pub pid: Option<u32>,
    /// How mapping records identify it.
    pub file: Option<MappedFile>,
    pub stacks: Vec<(&'static str, Vec<AttachPoint>)>,
}

/// A request to the attacher thread.
#[derive(Debug)]
pub enum AttachRequest {
    Found(Box<AttachTarget>),
    /// A process mapped a file that is attached per process, or held only while it is mapped.
    Mapped {
        key: FileKey,
        pid: u32,
    },
    /// A child process inherits its parent's mappings.
    Forked {
        parent: u32,
        child: u32,
    },
    /// A process executed another program.
    Executed {
        pid: u32,
    },
    Exited {
        pid: u32,
    },
    /// Inspect the TLS reads of a process that talks to an authenticator.
    InspectResponses {
        pid: u32,
    },
    Exclude(ExclusionRules),
    /// The names of images became known: what was excluded as a precaution may no longer be.
    Reconsider,
    /// Watches of files that may have changed or been deleted.
    Changed(HashSet<i32>),
    /// A file system was mounted or unmounted.
    MountsChanged,
    /// Dropped when every earlier request has been handled.
    Reached(Completion),
}

/// An event that the rest of the agent must know about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SensorNotice {
    NotAttached { file: String, reason: String },
    Evicted { file: String, in_use: bool },
    MappingsLost { count: u64 },
}

/// Sends notices to the pipeline.
#[derive(Clone, Debug)]
pub struct NoticeSender(pub Sender<SensorNotice>);

impl NoticeSender {
    pub fn report(&self, notice: SensorNotice) {
        if let SensorNotice::NotAttached { file, reason } = &notice {
            tracing::warn!(%file, %reason, "no TLS probes attached");
        }
        // The receiver is dropped only when the agent stops.
        let _ = self.0.send(notice);
    }
}

/// The handle of the attacher thread.
#[derive(Debug)]
pub struct Attacher {
    commands: Sender<AttachRequest>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// Waits for the thread to end.
    ended: CompletionWaiter,
    /// Whether forks, execs and exits must be sent.
    follows_processes: Arc<AtomicBool>,
}

impl Attacher {
    pub fn start(
        programs: UprobePrograms,
        known: KnownFiles,
        reporter: NoticeSender,
        exclusion: ExclusionRules,
    ) -> io::Result<Self> {
        let (commands, received) = channel();
        let (alive, ended) = completion::completion();
        let stop = Arc::new(AtomicBool::new(false));
        let follows_processes = Arc::new(AtomicBool::new(false));
        let state = AttacherState {
            programs,
            known,
            reporter,
            exclusion,
            started: Instant::now(),
            files: BTreeMap::new(),
            answers: BTreeMap::new(),
            without_answers: HashSet::new(),
            changes: FileChangeWatcher::start(&commands)?,
            capacity: capacity(),
            follows_processes: Arc::clone(&follows_processes),
        };
        let thread = std::thread::Builder::new()
            .name("attacher".to_owned())
            .spawn({
                let stop = Arc::clone(&stop);
                move || {
                    state.run(&received, &stop);
                    drop(alive);
                }
            })?;
        Ok(Self {
            commands,
            thread: Some(thread),
            stop,
            ended,
            follows_processes,
        })
    }

    pub fn commands(&self) -> &Sender<AttachRequest> {
        &self.commands
    }

    /// Sends a request without waiting for its result.
    pub fn send(&self, command: AttachRequest) {
        // The thread ends only with this value.
        let _ = self.commands.send(command);
    }

    /// Whether forks, execs and exits must be sent.
    pub fn follows_processes(&self) -> bool {
        self.follows_processes.load(Ordering::Relaxed)
    }
}

impl Drop for Attacher {
    /// Detaches everything, for at most [`DETACH_TIMEOUT`].
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread if it waits for a request.
        let _ = self.commands.send(AttachRequest::MountsChanged);
        if !self.ended.wait_timeout(DETACH_TIMEOUT) {
            tracing::warn!("the attacher did not stop in time; the kernel detaches the rest");
        } else if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the attacher thread panicked");
        }
    }
}

/// How many files may be attached to, given this process's limit of descriptors.
fn capacity() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let descriptors = limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    (descriptors.saturating_sub(DESCRIPTORS_RESERVED) / DESCRIPTORS_EACH).clamp(16, FILES_MAX)
}

/// A file with attached probes.
struct AttachedFile {
    watch: Arc<FileWatch>,
    version: FileVersion,
    name: String,
    stack: &'static str,
    /// Keeps the file that its probes refer to.
    file: File,
    until: HoldLimit,
    /// Attach points by program; those limited to single processes are separate.
    points: Vec<(&'static str, Vec<u64>)>,
    answers: Vec<(&'static str, Vec<u64>)>,
    scope: ProcessScope,
    /// Processes that have mapped it, if that must be known.
    mappers: HashSet<u32>,
    /// The inotify watch for changes of the file.
    change: Option<i32>,
}

/// Which processes a file's probes apply to.
enum ProcessScope {
    All(Vec<UprobeLink>),
    Processes(HashMap<u32, Vec<UprobeLink>>),
}

impl ProcessScope {
    fn into_links(self) -> Vec<UprobeLink> {
        match self {
            Self::All(links) => links,
            Self::Processes(links) => links.into_values().flatten().collect(),
        }
    }
}

struct AttacherState {
    programs: UprobePrograms,
    known: KnownFiles,
    reporter: NoticeSender,
    exclusion: ExclusionRules,
    started: Instant,
    /// By device and inode, and by stack.
    files: BTreeMap<(u64, u64, &'static str), AttachedFile>,
    /// Processes whose TLS reads are inspected.
    answers: BTreeMap<u32, Vec<UprobeLink>>,
    /// Processes found to have nothing to attach to; forgotten after a few seconds.
    without_answers: HashSet<u32>,
    changes: FileChangeWatcher,
    capacity: usize,
    follows_processes: Arc<AtomicBool>,
}

impl AttacherState {
    fn run(mut self, commands: &Receiver<AttachRequest>, stop: &AtomicBool) {
        let mut swept = Instant::now();
        loop {
            let command = commands.recv_timeout(SWEEP_INTERVAL);
            if stop.load(Ordering::Relaxed) {
                break;
            }
            match command {
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if swept.elapsed() >= SWEEP_INTERVAL {
                swept = Instant::now();
                self.sweep();
            }
        }
        self.detach_everything();
    }

    fn handle(&mut self, command: AttachRequest) {
        match command {
            AttachRequest::Found(found) => self.add_file(*found),
            AttachRequest::Mapped { key, pid } => self.add_mapper(key, pid),
            AttachRequest::Forked { parent, child } => self.forked(parent, child),
            AttachRequest::Executed { pid } | AttachRequest::Exited { pid } => self.unmapped(pid),
            AttachRequest::InspectResponses { pid } => self.inspect_answers(pid),
            AttachRequest::Exclude(exclusion) => self.exclude(exclusion),
            AttachRequest::Reconsider => self.reconsider(),
            AttachRequest::Changed(changed) => self.changed(&changed),
            AttachRequest::MountsChanged => self.release_unmounted(),
            AttachRequest::Reached(done) => drop(done),
        }
    }

    fn add_file(&mut self, found: AttachTarget) {
        let watch = self
            .files
            .values()
            .find(|watched| watched.watch.key == found.key && watched.version == found.version)
            .map(|watched| Arc::clone(&watched.watch));
        if let Some(watch) = watch {
            if let Some(file) = found.file {
                self.known.set_watched(file, &watch);
            }
            if let Some(pid) = found.pid {
                self.add_mapper(found.key, pid);
            }
            return;
        }
        // The file has new contents: its old offsets are no longer valid.
        self.release_file(found.key);
        let metadata = found.held.file.metadata();
        if metadata.is_ok_and(|metadata| FileVersion::of(&metadata) != found.version) {
            tracing::debug!(file = found.name, "it changed during its inspection");
            self.forget(found.file, found.key);
            return;
        }
        let watch = Arc::new(FileWatch {
            key: found.key,
            last_mapped: AtomicU64::new(self.started.elapsed().as_secs()),
            by_process: AtomicBool::new(false),
        });
        let change = self.changes.follow(&found.held.file);
        let mut attached = false;
        for (stack, points) in &found.stacks {
            self.make_room();
            attached |= self.attach_stack(&found, &watch, stack, points, change);
        }
        if !attached {
            if let Some(change) = change {
                self.changes.forget(change);
            }
            if let Some(file) = found.file {
                self.known.set_nothing_found(file);
            }
            return;
        }
        if let Some(file) = found.file {
            self.known.set_watched(file, &watch);
        }
        self.update_follows();
        if watch.by_process.load(Ordering::Relaxed) {
            self.find_mappers(found.key, &users());
        }
    }

    /// Finds the processes that have mapped a file, if that must be known: others may have mapped
    /// it during its inspection, and the first one may have exited before its exit was tracked.
    fn find_mappers(&mut self, key: FileKey, users: &FileUsers) {
        let mappers = users.mappers.get(&key.inode).cloned().unwrap_or_default();
        let mut unused = mappers.is_empty();
        for mut watched in self.evict_files(key) {
            unused &= watched.until == HoldLimit::Unmapped;
            watched.mappers.clone_from(&mappers);
            for pid in &mappers {
                self.attach_process(&mut watched, *pid);
            }
            self.restore_mappers(vec![watched]);
        }
        if unused {
            self.release_file(key);
        }
    }

    fn attach_stack(
        &mut self,
        found: &AttachTarget,
        watch: &Arc<FileWatch>,
        stack: &'static str,
        points: &[AttachPoint],
        change: Option<i32>,
    ) -> bool {
        let Ok(file) = found.held.file.try_clone() else {
            self.reporter.report(SensorNotice::NotAttached {
                file: found.name.clone(),
                reason: "out of descriptors".to_owned(),
            });
            return false;
        };
        let (answers, points) = by_program(points, found.executable);
        let mut watched = AttachedFile {
            watch: Arc::clone(watch),
            version: found.version,
            name: found.name.clone(),
            stack,
            file,
            until: found.held.until,
            points,
            answers,
            scope: ProcessScope::All(Vec::new()),
            mappers: found.pid.into_iter().collect(),
            change,
        };
        if !self.attach_scope(&mut watched, found.executable) {
            return false;
        }
        let key = (found.key.device, found.key.inode, stack);
        self.files.insert(key, watched);
        true
    }

    /// Attaches to a file in the scope that the exclusion rules leave. Returns `false` if that is
    /// empty.
    fn attach_scope(&mut self, watched: &mut AttachedFile, executable: bool) -> bool {
        let by_path = executable && self.exclusion.is_by_path();
        let affected = if executable {
            !by_path
        } else {
            self.exclusion.affects_libraries()
        };
        let FileKey { device, inode } = watched.watch.key;
        let excluded = self
            .exclusion
            .pattern_for_file(device, inode)
            .or_else(|| self.exclusion.pattern_for_path(&watched.name));
        if let Some(pattern) = excluded {
            tracing::info!(file = %watched.name, pattern, "excluded: no TLS probes attached");
            return false;
        }
        if self.exclusion.is_empty() || !affected {
            match self.attach(&watched.points, &watched.file, None) {
                Ok(links) => watched.scope = ProcessScope::All(links),
                Err(error) => {
                    self.reporter.report(SensorNotice::NotAttached {
                        file: watched.name.clone(),
                        reason: error.to_string(),
                    });
                    return false;
                }
            }
        } else {
            watched.scope = ProcessScope::Processes(HashMap::new());
            for pid in watched.mappers.clone() {
                self.attach_process(watched, pid);
            }
        }
        let by_process = matches!(watched.scope, ProcessScope::Processes(_))
            || watched.until == HoldLimit::Unmapped;
        watched
            .watch
            .by_process
            .fetch_or(by_process, Ordering::Relaxed);
        tracing::info!(
            file = %watched.name,
            stack = %watched.stack,
            functions = watched.points.iter().map(|(_, offsets)| offsets.len()).sum::<usize>(),
            "TLS probes attached"
        );
        true
    }

    fn attach(
        &self,
        points: &[(&'static str, Vec<u64>)],
        file: &File,
        process: Option<NonZeroU32>,
    ) -> Result<Vec<UprobeLink>, UprobeError> {
        let mut links = Vec::new();
        for (program, offsets) in points {
            // The kernel may lack it: a declared gap.
            let Some(program) = self.programs.get(program) else {
                continue;
            };
            links.push(uprobe::attach(program, file, offsets, process)?);
        }
        Ok(links)
    }

    fn attach_process(&self, watched: &mut AttachedFile, pid: u32) {
        let ProcessScope::Processes(processes) = &mut watched.scope else {
            return;
        };
        if processes.contains_key(&pid) || self.exclusion.pattern_for(pid).is_some() {
            return;
        }
        match self.attach(&watched.points, &watched.file, NonZeroU32::new(pid)) {
            Ok(links) => drop(processes.insert(pid, links)),
            // The process may have exited.
            Err(error) => tracing::debug!(pid, file = %watched.name, %error, "not attached"),
        }
    }

    fn add_mapper(&mut self, key: FileKey, pid: u32) {
        let mut watched_files: Vec<AttachedFile> = self.evict_files(key);
        for watched in &mut watched_files {
            if watched.watch.by_process.load(Ordering::Relaxed) {
                watched.mappers.insert(pid);
                self.attach_process(watched, pid);
            }
        }
        self.restore_mappers(watched_files);
    }

    fn forked(&mut self, parent: u32, child: u32) {
        let of_parent: Vec<FileKey> = self
            .files
            .values()
            .filter(|watched| watched.mappers.contains(&parent))
            .map(|watched| watched.watch.key)
            .collect();
        for key in of_parent {
            self.add_mapper(key, child);
        }
    }

    /// A process exited or executed another program: all its mappings are gone.
    fn unmapped(&mut self, pid: u32) {
        let mut unused = Vec::new();
        let mut links = Vec::new();
        let still_mapped = LazyCell::new(|| mapped::mapped_inodes(pid));
        for ((_, inode, _), watched) in &mut self.files {
            // It may have executed the same program again before this request was handled.
            if !watched.mappers.contains(&pid) || still_mapped.contains(inode) {
                continue;
            }
            watched.mappers.remove(&pid);
            if let ProcessScope::Processes(processes) = &mut watched.scope {
                links.extend(processes.remove(&pid).into_iter().flatten());
            }
            if watched.mappers.is_empty() && watched.until == HoldLimit::Unmapped {
                unused.push(watched.watch.key);
            }
        }
        detach(links);
        if !unused.is_empty() {
            // A process that was not tracked may have mapped them.
            let users = users();
            for key in unused {
                self.find_mappers(key, &users);
            }
        }
        self.update_follows();
    }

    /// Inspects the TLS reads of a process that talks to an authenticator.
    fn inspect_answers(&mut self, pid: u32) {
        let able = self.programs.contains_key(tls::READ_RETURN);
        let Some(process) = NonZeroU32::new(pid) else {
            return;
        };
        if !able || self.answers.contains_key(&pid) || self.without_answers.contains(&pid) {
            return;
        }
        if self.exclusion.pattern_for(pid).is_some() {
            return;
        }
        if self.answers.len() >= RESPONSE_PROCESSES_MAX {
            tracing::warn!(
                pid,
                limit = RESPONSE_PROCESSES_MAX,
                "TLS reads not inspected: too many processes talk to authenticators"
            );
            return;
        }
        let inodes = mapped::mapped_inodes(pid);
        let mut links = Vec::new();
        for watched in self.files.values() {
            if watched.answers.is_empty() || !inodes.contains(&watched.watch.key.inode) {
                continue;
            }
            match self.attach(&watched.answers, &watched.file, Some(process)) {
                Ok(attached) => links.extend(attached),
                // The process may have exited.
                Err(error) => tracing::debug!(pid, %error, "TLS reads not inspected"),
            }
        }
        if links.is_empty() {
            self.without_answers.insert(pid);
            return;
        }
        tracing::info!(
            pid,
            "inspecting TLS reads of a process that talks to an authenticator"
        );
        self.answers.insert(pid, links);
    }

    fn exclude(&mut self, exclusion: ExclusionRules) {
        self.exclusion = exclusion;
        let files = std::mem::take(&mut self.files);
        let mut gone = Vec::new();
        let users = users();
        for (key, mut watched) in files {
            let executable = users.programs.contains(&key.1);
            let scope = std::mem::replace(&mut watched.scope, ProcessScope::All(Vec::new()));
            gone.extend(scope.into_links());
            watched.mappers = users.mappers.get(&key.1).cloned().unwrap_or_default();
            if self.attach_scope(&mut watched, executable) {
                self.files.insert(key, watched);
            } else {
                self.known.forget(watched.watch.key);
            }
        }
        detach(gone);
        self.update_follows();
    }

    fn reconsider(&mut self) {
        let files = std::mem::take(&mut self.files);
        for (key, mut watched) in files {
            for pid in watched.mappers.clone() {
                self.attach_process(&mut watched, pid);
            }
            self.files.insert(key, watched);
        }
    }

    fn evict_files(&mut self, key: FileKey) -> Vec<AttachedFile> {
        let keys: Vec<_> = self
            .files
            .range((key.device, key.inode, "")..)
            .take_while(|((device, inode, _), _)| (*device, *inode) == (key.device, key.inode))
            .map(|(key, _)| *key)
            .collect();
        keys.iter()
            .filter_map(|key| self.files.remove(key))
            .collect()
    }

    fn restore_mappers(&mut self, files: Vec<AttachedFile>) {
        for watched in files {
            let FileKey { device, inode } = watched.watch.key;
            self.files.insert((device, inode, watched.stack), watched);
        }
    }

    /// Detaches from the least recently used file if there is no room for another, preferring files
    /// that no process has mapped.
    fn make_room(&mut self) {
        if self.files.len() < self.capacity {
            return;
        }
        let used = users().mappers;
        let oldest = self.files.iter().min_by_key(|((_, inode, _), watched)| {
            let last = watched.watch.last_mapped.load(Ordering::Relaxed);
            (used.contains_key(inode), last)
        });
        if let Some(((_, inode, _), watched)) = oldest {
            let (key, file) = (watched.watch.key, watched.name.clone());
            let in_use = used.contains_key(inode);
            let limit = self.capacity;
            tracing::warn!(%file, limit, in_use, "TLS probes detached: limit of files reached");
            self.reporter.report(SensorNotice::Evicted { file, in_use });
            self.release_file(key);
        }
    }

    /// Detaches from a file, and has it inspected again the next time it is mapped.
    fn release_file(&mut self, key: FileKey) {
        let mut links = Vec::new();
        for watched in self.evict_files(key) {
            tracing::info!(file = %watched.name, stack = %watched.stack, "TLS probes detached");
            if let Some(change) = watched.change {
                self.changes.forget(change);
            }
            links.extend(watched.scope.into_links());
        }
        self.known.forget(key);
        detach(links);
    }

    fn forget(&self, file: Option<MappedFile>, key: FileKey) {
        if let Some(file) = file {
            self.known.forget_mapped(file);
        }
        self.known.forget(key);
    }

    /// Detaches from files that changed or were deleted.
    fn changed(&mut self, changed: &HashSet<i32>) {
        let keys: HashSet<FileKey> = self
            .files
            .values()
            .filter(|watched| {
                watched
                    .change
                    .is_some_and(|change| changed.contains(&change))
            })
            .filter(|watched| !is_same(watched))
            .map(|watched| watched.watch.key)
            .collect();
        for key in keys {
            self.release_file(key);
        }
    }

    fn release_unmounted(&mut self) {
        let mounted: HashSet<MountId> = hold::own_mounts().collect();
        let gone: Vec<FileKey> = self
            .files
            .values()
            .filter(|watched| {
                matches!(watched.until, HoldLimit::Unmounted(mount) if !mounted.contains(&mount))
            })
            .map(|watched| watched.watch.key)
            .collect();
        for key in gone {
            self.release_file(key);
        }
    }

    fn sweep(&mut self) {
        self.without_answers.clear();
        let lives = |pid: &u32| std::path::Path::new(&format!("/proc/{pid}")).exists();
        let ended: Vec<u32> = self
            .answers
            .keys()
            .copied()
            .filter(|pid| !lives(pid))
            .collect();
        let links = ended
            .iter()
            .filter_map(|pid| self.answers.remove(pid))
            .flatten()
            .collect();
        detach(links);
        // An exit event may have been lost, and a library may have been closed.
        let in_doubt: HashSet<u32> = self
            .files
            .values()
            .flat_map(|watched| {
                let held = watched.until == HoldLimit::Unmapped;
                let mappers = watched.mappers.iter().copied();
                mappers.filter(move |pid| held || !lives(pid))
            })
            .collect();
        for pid in in_doubt {
            self.unmapped(pid);
        }
        // A change event may have been lost as well.
        let changed: Vec<FileKey> = self
            .files
            .values()
            .filter(|watched| !is_same(watched))
            .map(|watched| watched.watch.key)
            .collect();
        for key in changed {
            self.release_file(key);
        }
        self.release_unmounted();
    }

    fn update_follows(&self) {
        let follows = self
            .files
            .values()
            .any(|watched| watched.watch.by_process.load(Ordering::Relaxed));
        self.follows_processes.store(follows, Ordering::Relaxed);
    }

    fn detach_everything(&mut self) {
        let began = Instant::now();
        let mut links: Vec<UprobeLink> = std::mem::take(&mut self.answers)
            .into_values()
            .flatten()
            .collect();
        links.extend(
            std::mem::take(&mut self.files)
                .into_values()
                .flat_map(|watched| watched.scope.into_links()),
        );
        let count = links.len();
        let each = count.div_ceil(DETACH_THREADS).max(1);
        let (done, waiter) = completion::completion();
        while !links.is_empty() {
            let some = links.split_off(links.len().saturating_sub(each));
            // The fields of a tuple are dropped in this order: the links first.
            drop_in_thread((some, done.clone()));
        }
        drop(done);
        let in_time = waiter.wait_timeout(DETACH_TIMEOUT);
        let milliseconds = began.elapsed().as_millis() as u64;
        if in_time {
            tracing::debug!(links = count, milliseconds, "all TLS probes detached");
        } else {
            tracing::warn!(
                links = count,
                milliseconds,
                "detaching timed out; the kernel completes it"
            );
        }
    }
}

fn detach(links: Vec<UprobeLink>) {
    if !links.is_empty() {
        drop_in_thread(links);
    }
}

/// Drops links in a separate thread, because detaching waits for the CPUs.
fn drop_in_thread(links: impl Send + 'static) {
    let thread = std::thread::Builder::new().name("detacher".to_owned());
    // If no thread can be started, they were dropped along with the closure.
    if let Err(error) = thread.spawn(move || drop(links)) {
        tracing::debug!(%error, "detached in the attacher's own thread");
    }
}

/// Attach points by program: those limited to single processes, and the rest.
type PointsByProgram = Vec<(&'static str, Vec<u64>)>;

fn by_program(points: &[AttachPoint], executable: bool) -> (PointsByProgram, PointsByProgram) {
    let mut answers = PointsByProgram::new();
    let mut others = PointsByProgram::new();
    let add = |list: &mut PointsByProgram, program: &'static str, offset: u64| match list
        .iter_mut()
        .find(|(known, _)| *known == program)
    {
        Some((_, offsets)) if offsets.contains(&offset) => {}
        Some((_, offsets)) => offsets.push(offset),
        None => list.push((program, vec![offset])),
    };
    for point in points {
        if [tls::READ, tls::READ_EX].contains(&point.program) {
            // The return probe first, so that a read that begins is observed to its end.
            add(&mut answers, tls::READ_RETURN, point.offset);
            add(&mut answers, point.program, point.offset);
        } else {
            add(&mut others, point.program, point.offset);
        }
        // A statically linked library may be passed the same bytes repeatedly until the handshake
        // has ended; what it did not accept is withdrawn.
        if executable && point.program == tls::WRITE {
            add(&mut others, tls::WRITTEN, point.offset);
        }
    }
    answers.sort_by_key(|(program, _)| *program != tls::READ_RETURN);
    (answers, others)
}

/// Whether a file is still linked in a directory and has the contents that were inspected.
fn is_same(watched: &AttachedFile) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    watched.file.metadata().is_ok_and(|metadata| {
        // Adding or removing a link changes ctime but not the contents.
        let same = FileVersion::of(&metadata).same_content(&watched.version);
        let in_memory_only = watched.until == HoldLimit::Unmapped;
        same && (metadata.nlink() > 0 || in_memory_only)
    })
}

/// The current mappings of all processes.
#[derive(Default)]
struct FileUsers {
    /// Processes, by the inode of each file they have mapped.
    mappers: HashMap<u64, HashSet<u32>>,
    /// Inodes of running programs.
    programs: HashSet<u64>,
}

fn users() -> FileUsers {
    use std::os::unix::fs::MetadataExt as _;
    let mut users = FileUsers::default();
    for pid in mapped::processes() {
        for mapping in mapped::mappings_of_process(pid) {
            let mappers = users.mappers.entry(mapping.file.inode).or_default();
            mappers.insert(pid);
        }
        let program = std::fs::metadata(format!("/proc/{pid}/exe"));
        users.programs.extend(program.map(|program| program.ino()));
    }
    users
}

/// Watches files and mounts for changes, in a thread that sends requests to the attacher.
struct FileChangeWatcher {
    /// Absent if the kernel provides none; then only the periodic sweep detects changes.
    inotify: Option<Arc<OwnedFd>>,
}

impl FileChangeWatcher {
    fn start(commands: &Sender<AttachRequest>) -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC;
        let inotify = match inotify::init(flags) {
            Ok(inotify) => Some(Arc::new(inotify)),
            Err(error) => {
                tracing::warn!(%error, "changes of files with TLS probes are detected late: no inotify instance available");
                None
            }
        };
        let (events, commands) = (inotify.clone(), commands.clone());
        let mounts = File::open("/proc/self/mountinfo")?;
        std::thread::Builder::new()
            .name("file-changes".to_owned())
            .spawn(move || follow_changes(events.as_deref(), &mounts, &commands))?;
        Ok(Self { inotify })
    }

    /// Watches a file; returns the number by which its changes are reported.
    fn follow(&self, file: &File) -> Option<i32> {
        use inotify::WatchFlags;
        let flags = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::DELETE_SELF;
        inotify::add_watch(self.inotify.as_ref()?, descriptor_path(file), flags).ok()
    }

    fn forget(&self, change: i32) {
        if let Some(inotify) = &self.inotify {
            // The watch may have been removed along with its file.
            let _ = inotify::remove_watch(inotify, change);
        }
    }
}

/// Waits for changes until the attacher ends.
fn follow_changes(inotify: Option<&OwnedFd>, mounts: &File, commands: &Sender<AttachRequest>) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    loop {
        let mut descriptors = vec![PollFd::from_borrowed_fd(mounts.as_fd(), PollFlags::PRI)];
        descriptors.extend(inotify.map(|inotify| PollFd::new(inotify, PollFlags::IN)));
        if let Err(error) = poll(&mut descriptors, None)
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "stopped watching files and mounts for changes");
            return;
        }
        let ready = |index: usize| {
            descriptors
                .get(index)
                .is_some_and(|descriptor| !descriptor.revents().is_empty())
        };
        let mut sent = Ok(());
        if ready(0) {
            sent = commands.send(AttachRequest::MountsChanged);
        }
        if ready(1)
            && let Some(inotify) = inotify
        {
            let mut changed = HashSet::new();
            let mut events = inotify::Reader::new(inotify, &mut buffer);
            // A single read: the reader would block for the next event.
            while let Ok(event) = events.next() {
                changed.insert(event.wd());
                if events.is_buffer_empty() {
                    break;
                }
            }
            sent = sent.and(commands.send(AttachRequest::Changed(changed)));
        }
        if sent.is_err() {
            return;
        }
    }
}
