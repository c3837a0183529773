//! The owner of every uprobe: a thread that attaches programs to files and detaches them, so that
//! nothing else waits for either.
//!
//! A link is made for a file's identity, the offsets of its functions, and a scope: every process
//! that has the file mapped or will, or one process.

use super::{
    exclude::Exclusion,
    hold::{self, Held, MountId, Until},
    inspector::{FileKey, KnownFiles, Version, Watch},
    mapped::{self, MappedFile},
    tls::{self, Point},
    uprobe::{self, Link, Program, UprobeError},
};
use crate::{
    done::{self, Done, Waiter},
    host::descriptor_path,
};
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

/// Files that are attached to at one time. Each costs a descriptor and up to five links.
const FILES_MAX: usize = 1024;
/// Descriptors that are left for everything else.
const DESCRIPTORS_RESERVED: usize = 512;
/// Descriptors of one file: its own, and one for each program, or for each function where the kernel
/// has no multi-uprobe links.
const DESCRIPTORS_EACH: usize = 12;
/// Processes whose answers are inspected at one time.
const ANSWERS_MAX: usize = 64;
/// Between two looks at what has become of files and processes.
const SWEEP: Duration = Duration::from_secs(5);
/// Threads that detach at the end: each link waits tens of milliseconds for the processors.
const DETACHERS: usize = 16;
/// The longest that the end waits for them; the kernel detaches the rest.
const DETACH_WITHIN: Duration = Duration::from_secs(10);

/// A file with functions to attach to.
#[derive(Debug)]
pub struct Found {
    pub key: FileKey,
    pub version: Version,
    pub held: Held,
    pub name: String,
    /// Whether it is a program, and not a library.
    pub executable: bool,
    /// The process that has it mapped.
    pub pid: Option<u32>,
    /// How the kernel identifies it in records of mappings.
    pub file: Option<MappedFile>,
    pub stacks: Vec<(&'static str, Vec<Point>)>,
}

/// What the attacher is to do, or to know.
#[derive(Debug)]
pub enum Command {
    Found(Box<Found>),
    /// A process has mapped a file that is attached to by process, or held while it is mapped.
    Mapped {
        key: FileKey,
        pid: u32,
    },
    /// A process has what its parent has mapped.
    Forked {
        parent: u32,
        child: u32,
    },
    /// A process runs another program.
    Executed {
        pid: u32,
    },
    Exited {
        pid: u32,
    },
    /// Inspect what comes back to a process that talks to an authenticator.
    InspectAnswers {
        pid: u32,
    },
    Exclude(Exclusion),
    /// More is known of images: what was excluded for want of that may not be.
    Reconsider,
    /// Files that may have changed, or gone.
    Changed(HashSet<i32>),
    /// Something was mounted or unmounted.
    MountsChanged,
    /// Dropped when everything before has been done.
    Reached(Done),
}

/// What the rest of the agent has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    NotAttached { file: String, reason: String },
    Evicted { file: String, in_use: bool },
    MappingsLost { count: u64 },
}

/// Passes notices on.
#[derive(Clone, Debug)]
pub struct Reporter(pub Sender<Notice>);

impl Reporter {
    pub fn report(&self, notice: Notice) {
        if let Notice::NotAttached { file, reason } = &notice {
            tracing::warn!(%file, %reason, "no TLS probes attached");
        }
        // The other end is dropped only when the agent ends.
        let _ = self.0.send(notice);
    }
}

/// The loaded programs, by the names that [`tls`] gives them.
pub type Programs = HashMap<&'static str, Program>;

/// The handle of the thread.
#[derive(Debug)]
pub struct Attacher {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// For the thread.
    ended: Waiter,
    /// Whether forks, executions and exits are to be sent.
    follows_processes: Arc<AtomicBool>,
}

impl Attacher {
    pub fn start(
        programs: Programs,
        known: KnownFiles,
        reporter: Reporter,
        exclusion: Exclusion,
    ) -> io::Result<Self> {
        let (commands, received) = channel();
        let (alive, ended) = done::pair();
        let stop = Arc::new(AtomicBool::new(false));
        let follows_processes = Arc::new(AtomicBool::new(false));
        let state = State {
            programs,
            known,
            reporter,
            exclusion,
            started: Instant::now(),
            files: BTreeMap::new(),
            answers: BTreeMap::new(),
            without_answers: HashSet::new(),
            changes: Changes::start(&commands)?,
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

    pub fn commands(&self) -> &Sender<Command> {
        &self.commands
    }

    /// Sends a command, without waiting for what comes of it.
    pub fn send(&self, command: Command) {
        // The thread ends only with this value.
        let _ = self.commands.send(command);
    }

    /// Whether forks, executions and exits are to be sent.
    pub fn follows_processes(&self) -> bool {
        self.follows_processes.load(Ordering::Relaxed)
    }
}

impl Drop for Attacher {
    /// Detaches everything, as far as [`DETACH_WITHIN`] allows.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it where it waits for a command.
        let _ = self.commands.send(Command::MountsChanged);
        if !self.ended.wait_for(DETACH_WITHIN) {
            tracing::warn!("the attacher did not end in time; the kernel detaches what is left");
        } else if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the attacher ended in a panic");
        }
    }
}

/// How many files may be attached to with the descriptors that this process may have.
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

/// A file that is attached to.
struct Watched {
    watch: Arc<Watch>,
    version: Version,
    name: String,
    stack: &'static str,
    /// What its probes hold.
    file: File,
    until: Until,
    /// For each program where it belongs; what belongs to single processes apart.
    points: Vec<(&'static str, Vec<u64>)>,
    answers: Vec<(&'static str, Vec<u64>)>,
    scope: Scope,
    /// Processes that have it mapped, where that has to be known.
    mappers: HashSet<u32>,
    /// Its watch for changes.
    change: Option<i32>,
}

/// Which processes a file's probes are in.
enum Scope {
    All(Vec<Link>),
    Processes(HashMap<u32, Vec<Link>>),
}

impl Scope {
    fn into_links(self) -> Vec<Link> {
        match self {
            Self::All(links) => links,
            Self::Processes(links) => links.into_values().flatten().collect(),
        }
    }
}

struct State {
    programs: Programs,
    known: KnownFiles,
    reporter: Reporter,
    exclusion: Exclusion,
    started: Instant,
    /// By device and inode, and by stack.
    files: BTreeMap<(u64, u64, &'static str), Watched>,
    /// Processes whose answers are inspected.
    answers: BTreeMap<u32, Vec<Link>>,
    /// Processes that had nothing to attach to, for a few seconds.
    without_answers: HashSet<u32>,
    changes: Changes,
    capacity: usize,
    follows_processes: Arc<AtomicBool>,
}

impl State {
    fn run(mut self, commands: &Receiver<Command>, stop: &AtomicBool) {
        let mut swept = Instant::now();
        loop {
            let command = commands.recv_timeout(SWEEP);
            if stop.load(Ordering::Relaxed) {
                break;
            }
            match command {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if swept.elapsed() >= SWEEP {
                swept = Instant::now();
                self.sweep();
            }
        }
        self.detach_everything();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Found(found) => self.found(*found),
            Command::Mapped { key, pid } => self.mapped(key, pid),
            Command::Forked { parent, child } => self.forked(parent, child),
            Command::Executed { pid } | Command::Exited { pid } => self.unmapped(pid),
            Command::InspectAnswers { pid } => self.inspect_answers(pid),
            Command::Exclude(exclusion) => self.exclude(exclusion),
            Command::Reconsider => self.reconsider(),
            Command::Changed(changed) => self.changed(&changed),
            Command::MountsChanged => self.release_unmounted(),
            Command::Reached(done) => drop(done),
        }
    }

    fn found(&mut self, found: Found) {
        let watch = self
            .files
            .values()
            .find(|watched| watched.watch.key == found.key && watched.version == found.version)
            .map(|watched| Arc::clone(&watched.watch));
        if let Some(watch) = watch {
            if let Some(file) = found.file {
                self.known.watched(file, &watch);
            }
            if let Some(pid) = found.pid {
                self.mapped(found.key, pid);
            }
            return;
        }
        // Another content of the same file: its old offsets mean nothing any more.
        self.release_file(found.key);
        let metadata = found.held.file.metadata();
        if metadata.is_ok_and(|metadata| Version::of(&metadata) != found.version) {
            tracing::debug!(file = found.name, "changed while it was inspected");
            self.forget(found.file, found.key);
            return;
        }
        let watch = Arc::new(Watch {
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
                self.known.nothing(file);
            }
            return;
        }
        if let Some(file) = found.file {
            self.known.watched(file, &watch);
        }
        self.update_follows();
        if watch.by_process.load(Ordering::Relaxed) {
            self.find_mappers(found.key, &users());
        }
    }

    /// Finds who has a file mapped, where that has to be known: others may have mapped it while it was
    /// inspected, and its first user may have ended before its end was followed.
    fn find_mappers(&mut self, key: FileKey, users: &Users) {
        let mappers = users.mappers.get(&key.inode).cloned().unwrap_or_default();
        let mut unused = mappers.is_empty();
        for mut watched in self.take_files(key) {
            unused &= watched.until == Until::Unmapped;
            watched.mappers.clone_from(&mappers);
            for pid in &mappers {
                self.attach_process(&mut watched, *pid);
            }
            self.put_back(vec![watched]);
        }
        if unused {
            self.release_file(key);
        }
    }

    fn attach_stack(
        &mut self,
        found: &Found,
        watch: &Arc<Watch>,
        stack: &'static str,
        points: &[Point],
        change: Option<i32>,
    ) -> bool {
        let Ok(file) = found.held.file.try_clone() else {
            self.reporter.report(Notice::NotAttached {
                file: found.name.clone(),
                reason: "out of descriptors".to_owned(),
            });
            return false;
        };
        let (answers, points) = by_program(points, found.executable);
        let mut watched = Watched {
            watch: Arc::clone(watch),
            version: found.version,
            name: found.name.clone(),
            stack,
            file,
            until: found.held.until,
            points,
            answers,
            scope: Scope::All(Vec::new()),
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

    /// Attaches to a file in the scope that the exclusion leaves. `false` where that is none.
    fn attach_scope(&mut self, watched: &mut Watched, executable: bool) -> bool {
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
                Ok(links) => watched.scope = Scope::All(links),
                Err(error) => {
                    self.reporter.report(Notice::NotAttached {
                        file: watched.name.clone(),
                        reason: error.to_string(),
                    });
                    return false;
                }
            }
        } else {
            watched.scope = Scope::Processes(HashMap::new());
            for pid in watched.mappers.clone() {
                self.attach_process(watched, pid);
            }
        }
        let by_process =
            matches!(watched.scope, Scope::Processes(_)) || watched.until == Until::Unmapped;
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
    ) -> Result<Vec<Link>, UprobeError> {
        let mut links = Vec::new();
        for (program, offsets) in points {
            // A kernel may lack one: a declared gap.
            let Some(program) = self.programs.get(program) else {
                continue;
            };
            links.push(uprobe::attach(program, file, offsets, process)?);
        }
        Ok(links)
    }

    fn attach_process(&self, watched: &mut Watched, pid: u32) {
        let Scope::Processes(processes) = &mut watched.scope else {
            return;
        };
        if processes.contains_key(&pid) || self.exclusion.pattern_for(pid).is_some() {
            return;
        }
        match self.attach(&watched.points, &watched.file, NonZeroU32::new(pid)) {
            Ok(links) => drop(processes.insert(pid, links)),
            // It may be gone.
            Err(error) => tracing::debug!(pid, file = %watched.name, %error, "not attached"),
        }
    }

    fn mapped(&mut self, key: FileKey, pid: u32) {
        let mut watched_files: Vec<Watched> = self.take_files(key);
        for watched in &mut watched_files {
            if watched.watch.by_process.load(Ordering::Relaxed) {
                watched.mappers.insert(pid);
                self.attach_process(watched, pid);
            }
        }
        self.put_back(watched_files);
    }

    fn forked(&mut self, parent: u32, child: u32) {
        let of_parent: Vec<FileKey> = self
            .files
            .values()
            .filter(|watched| watched.mappers.contains(&parent))
            .map(|watched| watched.watch.key)
            .collect();
        for key in of_parent {
            self.mapped(key, child);
        }
    }

    /// A process has ended, or runs another program: what it had mapped it has no more.
    fn unmapped(&mut self, pid: u32) {
        let mut unused = Vec::new();
        let mut links = Vec::new();
        let still_mapped = LazyCell::new(|| mapped::inodes_of(pid));
        for ((_, inode, _), watched) in &mut self.files {
            // It may have run the same program again before this was known.
            if !watched.mappers.contains(&pid) || still_mapped.contains(inode) {
                continue;
            }
            watched.mappers.remove(&pid);
            if let Scope::Processes(processes) = &mut watched.scope {
                links.extend(processes.remove(&pid).into_iter().flatten());
            }
            if watched.mappers.is_empty() && watched.until == Until::Unmapped {
                unused.push(watched.watch.key);
            }
        }
        detach(links);
        if !unused.is_empty() {
            // A process that nothing was known of may have them mapped.
            let users = users();
            for key in unused {
                self.find_mappers(key, &users);
            }
        }
        self.update_follows();
    }

    /// Inspects what comes back inside TLS to a process that talks to an authenticator.
    fn inspect_answers(&mut self, pid: u32) {
        let able = self.programs.contains_key(tls::RETURNED);
        let Some(process) = NonZeroU32::new(pid) else {
            return;
        };
        if !able || self.answers.contains_key(&pid) || self.without_answers.contains(&pid) {
            return;
        }
        if self.exclusion.pattern_for(pid).is_some() {
            return;
        }
        if self.answers.len() >= ANSWERS_MAX {
            tracing::warn!(
                pid,
                limit = ANSWERS_MAX,
                "answers of authenticators are not inspected: too many processes talk to them"
            );
            return;
        }
        let inodes = mapped::inodes_of(pid);
        let mut links = Vec::new();
        for watched in self.files.values() {
            if watched.answers.is_empty() || !inodes.contains(&watched.watch.key.inode) {
                continue;
            }
            match self.attach(&watched.answers, &watched.file, Some(process)) {
                Ok(attached) => links.extend(attached),
                // It may be gone.
                Err(error) => tracing::debug!(pid, %error, "answers are not inspected"),
            }
        }
        if links.is_empty() {
            self.without_answers.insert(pid);
            return;
        }
        tracing::info!(pid, "answers of authenticators are inspected");
        self.answers.insert(pid, links);
    }

    fn exclude(&mut self, exclusion: Exclusion) {
        self.exclusion = exclusion;
        let files = std::mem::take(&mut self.files);
        let mut gone = Vec::new();
        let users = users();
        for (key, mut watched) in files {
            let executable = users.programs.contains(&key.1);
            let scope = std::mem::replace(&mut watched.scope, Scope::All(Vec::new()));
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

    fn take_files(&mut self, key: FileKey) -> Vec<Watched> {
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

    fn put_back(&mut self, files: Vec<Watched>) {
        for watched in files {
            let FileKey { device, inode } = watched.watch.key;
            self.files.insert((device, inode, watched.stack), watched);
        }
    }

    /// Detaches from the file that was used least recently, where there is no room for another:
    /// first from one that no process has mapped.
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
            tracing::warn!(%file, limit, in_use, "TLS probes detached: the limit of files is reached");
            self.reporter.report(Notice::Evicted { file, in_use });
            self.release_file(key);
        }
    }

    /// Detaches from a file, and has it inspected when it is mapped again.
    fn release_file(&mut self, key: FileKey) {
        let mut links = Vec::new();
        for watched in self.take_files(key) {
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

    /// Detaches from files that have changed or are gone.
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
                matches!(watched.until, Until::Unmounted(mount) if !mounted.contains(&mount))
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
        // An exit may have been lost, and a library may have been closed.
        let in_doubt: HashSet<u32> = self
            .files
            .values()
            .flat_map(|watched| {
                let held = watched.until == Until::Unmapped;
                let mappers = watched.mappers.iter().copied();
                mappers.filter(move |pid| held || !lives(pid))
            })
            .collect();
        for pid in in_doubt {
            self.unmapped(pid);
        }
        // So may a change.
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
        let mut links: Vec<Link> = std::mem::take(&mut self.answers)
            .into_values()
            .flatten()
            .collect();
        links.extend(
            std::mem::take(&mut self.files)
                .into_values()
                .flat_map(|watched| watched.scope.into_links()),
        );
        let count = links.len();
        let each = count.div_ceil(DETACHERS).max(1);
        let (done, waiter) = done::pair();
        while !links.is_empty() {
            let some = links.split_off(links.len().saturating_sub(each));
            // A tuple is dropped in this order: the links first.
            drop_in_thread((some, done.clone()));
        }
        drop(done);
        let in_time = waiter.wait_for(DETACH_WITHIN);
        let milliseconds = began.elapsed().as_millis() as u64;
        if in_time {
            tracing::debug!(links = count, milliseconds, "all TLS probes detached");
        } else {
            tracing::warn!(
                links = count,
                milliseconds,
                "detaching exceeded its time; the kernel completes it"
            );
        }
    }
}

fn detach(links: Vec<Link>) {
    if !links.is_empty() {
        drop_in_thread(links);
    }
}

/// Detaches in a thread of its own, as that waits for the processors.
fn drop_in_thread(links: impl Send + 'static) {
    let thread = std::thread::Builder::new().name("detacher".to_owned());
    // Where there is no thread to be had, they were dropped with it.
    if let Err(error) = thread.spawn(move || drop(links)) {
        tracing::debug!(%error, "detached in the attacher's own thread");
    }
}

/// Where each program belongs: what is for single processes, and the rest.
type ByProgram = Vec<(&'static str, Vec<u64>)>;

fn by_program(points: &[Point], executable: bool) -> (ByProgram, ByProgram) {
    let mut answers = ByProgram::new();
    let mut others = ByProgram::new();
    let add = |list: &mut ByProgram, program: &'static str, offset: u64| match list
        .iter_mut()
        .find(|(known, _)| *known == program)
    {
        Some((_, offsets)) if offsets.contains(&offset) => {}
        Some((_, offsets)) => offsets.push(offset),
        None => list.push((program, vec![offset])),
    };
    for point in points {
        if [tls::READ, tls::READ_EX].contains(&point.program) {
            // The return first: a read that begins is to be seen to its end.
            add(&mut answers, tls::RETURNED, point.offset);
            add(&mut answers, point.program, point.offset);
        } else {
            add(&mut others, point.program, point.offset);
        }
        // A program with the library inside may hand over the same bytes until the handshake has
        // ended: what was not taken is withdrawn.
        if executable && point.program == tls::WRITE {
            add(&mut others, tls::WRITTEN, point.offset);
        }
    }
    answers.sort_by_key(|(program, _)| *program != tls::RETURNED);
    (answers, others)
}

/// Whether a file is still linked somewhere, and has the content that was inspected.
fn is_same(watched: &Watched) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    watched.file.metadata().is_ok_and(|metadata| {
        // A link more or less changes the time of change, and not the content.
        let same = Version::of(&metadata).same_content(&watched.version);
        let in_memory_only = watched.until == Until::Unmapped;
        same && (metadata.nlink() > 0 || in_memory_only)
    })
}

/// What the processes of this moment have mapped.
#[derive(Default)]
struct Users {
    /// Processes by the inode of what they have mapped.
    mappers: HashMap<u64, HashSet<u32>>,
    /// Inodes of programs.
    programs: HashSet<u64>,
}

fn users() -> Users {
    use std::os::unix::fs::MetadataExt as _;
    let mut users = Users::default();
    for pid in mapped::processes() {
        for mapping in mapped::of_process(pid) {
            let mappers = users.mappers.entry(mapping.file.inode).or_default();
            mappers.insert(pid);
        }
        let program = std::fs::metadata(format!("/proc/{pid}/exe"));
        users.programs.extend(program.map(|program| program.ino()));
    }
    users
}

/// Follows what becomes of files and of mounts, in a thread that passes it on as commands.
struct Changes {
    /// Absent where the kernel gives none; then the sweep looks.
    inotify: Option<Arc<OwnedFd>>,
}

impl Changes {
    fn start(commands: &Sender<Command>) -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC;
        let inotify = match inotify::init(flags) {
            Ok(inotify) => Some(Arc::new(inotify)),
            Err(error) => {
                tracing::warn!(%error, "changes of files with TLS probes are seen late: no inotify instance");
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

    /// The number by which changes of a file are reported.
    fn follow(&self, file: &File) -> Option<i32> {
        use inotify::WatchFlags;
        let flags = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::DELETE_SELF;
        inotify::add_watch(self.inotify.as_ref()?, descriptor_path(file), flags).ok()
    }

    fn forget(&self, change: i32) {
        if let Some(inotify) = &self.inotify {
            // It may have gone with its file.
            let _ = inotify::remove_watch(inotify, change);
        }
    }
}

/// Waits for changes until the attacher ends.
fn follow_changes(inotify: Option<&OwnedFd>, mounts: &File, commands: &Sender<Command>) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    loop {
        let mut descriptors = vec![PollFd::from_borrowed_fd(mounts.as_fd(), PollFlags::PRI)];
        descriptors.extend(inotify.map(|inotify| PollFd::new(inotify, PollFlags::IN)));
        if let Err(error) = poll(&mut descriptors, None)
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "changes of files and mounts are not followed any more");
            return;
        }
        let ready = |index: usize| {
            descriptors
                .get(index)
                .is_some_and(|descriptor| !descriptor.revents().is_empty())
        };
        let mut sent = Ok(());
        if ready(0) {
            sent = commands.send(Command::MountsChanged);
        }
        if ready(1)
            && let Some(inotify) = inotify
        {
            let mut changed = HashSet::new();
            let mut events = inotify::Reader::new(inotify, &mut buffer);
            // One read: the reader would wait for the next.
            while let Ok(event) = events.next() {
                changed.insert(event.wd());
                if events.is_buffer_empty() {
                    break;
                }
            }
            sent = sent.and(commands.send(Command::Changed(changed)));
        }
        if sent.is_err() {
            return;
        }
    }
}
