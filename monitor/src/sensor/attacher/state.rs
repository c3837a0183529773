//! The state of the attacher thread: attaches to files as they are found.

use super::{
    AttachRequest, AttachTarget, NoticeSender, SensorNotice,
    busy::BusyProcesses,
    changes::FileChangeWatcher,
    detach::{detach, detach_all},
    files::{AttachedFile, ProcessScope},
    points::by_program,
    request::LibraryFunctions,
    spared::SparedProcesses,
    users::users,
};
use crate::{
    health::Pulse,
    observed::{
        mapping::{FileKey, FileVersion, MappedFile},
        mount::HoldLimit,
    },
    sensor::{
        exclude::ExclusionRules,
        hits::{self, HitCounters},
        known_files::{FileWatch, KnownFiles},
        uprobe::{self, UprobeError, UprobeLink},
        uprobe_program::UprobePrograms,
    },
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

/// Interval between checks of attached files and their processes.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct AttacherState {
    pub programs: UprobePrograms,
    pub known: KnownFiles,
    pub reporter: NoticeSender,
    pub exclusion: ExclusionRules,
    pub started: Instant,
    /// By device and inode, and by stack.
    pub files: BTreeMap<(u64, u64, &'static str), AttachedFile>,
    /// Processes whose TLS reads are inspected.
    pub answers: BTreeMap<u32, Vec<UprobeLink>>,
    /// Processes found to have nothing to attach to; forgotten after a few seconds.
    pub without_answers: HashSet<u32>,
    pub changes: FileChangeWatcher,
    /// The links of the function that the canary calls.
    pub canary: Vec<UprobeLink>,
    /// Whether files are attached to: not while that costs the node too much.
    pub on: bool,
    pub capacity: usize,
    pub hits: HitCounters,
    pub busy: BusyProcesses,
    pub spared: SparedProcesses,
    pub spares: Arc<AtomicBool>,
    pub follows_processes: Arc<AtomicBool>,
}

impl AttacherState {
    pub(super) fn run(mut self, commands: &Receiver<AttachRequest>, stop: &AtomicBool) {
        let mut swept = Instant::now();
        let pulse = Pulse::of_environment("attacher");
        loop {
            pulse.idle();
            let until_look = self
                .busy
                .next_look()
                .saturating_duration_since(Instant::now());
            let command = commands.recv_timeout(SWEEP_INTERVAL.min(until_look));
            pulse.busy();
            if stop.load(Ordering::Relaxed) {
                break;
            }
            match command {
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.look_at_hits();
            if swept.elapsed() >= SWEEP_INTERVAL {
                swept = Instant::now();
                self.sweep();
            }
        }
        let answers = std::mem::take(&mut self.answers).into_values().flatten();
        let files = std::mem::take(&mut self.files).into_values();
        detach_all(
            answers
                .chain(files.flat_map(|watched| watched.scope.into_links()))
                .chain(std::mem::take(&mut self.canary))
                .collect(),
        );
    }

    fn handle(&mut self, command: AttachRequest) {
        match command {
            AttachRequest::Found(found) => self.add_file(*found),
            AttachRequest::Canary {
                file,
                functions,
                trap_time,
            } => self.attach_canary(&file, &functions, trap_time),
            AttachRequest::Mapped { key, pid } => self.add_mapper(key, pid),
            AttachRequest::Forked { parent, child } => self.forked(parent, child),
            AttachRequest::Executed { pid } | AttachRequest::Exited { pid } => self.unmapped(pid),
            AttachRequest::Connected { pid } => self.connected(pid),
            AttachRequest::InspectResponses { pid } => self.inspect_answers(pid),
            AttachRequest::Exclude(exclusion) => self.exclude(exclusion),
            AttachRequest::Switch(on) => self.switch(on),
            AttachRequest::Reconsider => self.reconsider(),
            AttachRequest::Changed(changed) => self.changed(&changed),
            AttachRequest::MountsChanged => self.release_unmounted(),
            AttachRequest::Reached(done) => drop(done),
        }
    }

    fn attach_canary(
        &mut self,
        file: &File,
        functions: &LibraryFunctions,
        trap_time: fn() -> Duration,
    ) {
        let (_, points) = by_program(functions, false);
        match self.attach(&points, file, None) {
            Ok(links) => {
                self.canary = links;
                hits::set_trap_time(trap_time());
                self.busy.set_trap(hits::trap_time());
            }
            Err(error) => {
                tracing::warn!(%error, "the probes of TLS libraries cannot be tested");
            }
        }
    }

    /// Files that are found meanwhile are known, and attached to when it is on again.
    fn switch(&mut self, on: bool) {
        self.on = on;
        detach(
            std::mem::take(&mut self.answers)
                .into_values()
                .flatten()
                .collect(),
        );
        self.without_answers.clear();
        self.exclude(self.exclusion.clone());
    }

    fn add_file(&mut self, found: AttachTarget) {
        let watch = self
            .files
            .values()
            .find(|watched| watched.watch.key == found.key && watched.version == found.version)
            .map(|watched| Arc::clone(&watched.watch));
        if let Some(watch) = watch {
            if let Some(mapped) = found.mapped {
                self.known.set_watched(mapped, &watch);
            }
            if let Some(pid) = found.pid {
                self.add_mapper(found.key, pid);
            }
            return;
        }
        // The file has new contents: its old offsets are no longer valid.
        self.release_file(found.key);
        let metadata = found.file.metadata();
        if metadata.is_ok_and(|metadata| FileVersion::of(&metadata) != found.version) {
            tracing::debug!(file = found.name, "it changed during its inspection");
            self.forget(found.mapped, found.key);
            return;
        }
        let watch = Arc::new(FileWatch {
            key: found.key,
            last_mapped: AtomicU64::new(self.started.elapsed().as_secs()),
            by_process: AtomicBool::new(false),
        });
        let change = self.changes.follow(&found.file);
        let mut attached = false;
        for (stack, functions) in &found.stacks {
            self.make_room();
            attached |= self.attach_stack(&found, &watch, stack, functions, change);
        }
        if !attached {
            if let Some(change) = change {
                self.changes.forget(change);
            }
            if let Some(mapped) = found.mapped {
                self.known.set_nothing_found(mapped);
            }
            return;
        }
        if let Some(mapped) = found.mapped {
            self.known.set_watched(mapped, &watch);
        }
        self.update_follows();
        if watch.by_process.load(Ordering::Relaxed) {
            self.find_mappers(found.key, &users());
        }
    }

    fn attach_stack(
        &mut self,
        found: &AttachTarget,
        watch: &Arc<FileWatch>,
        stack: &'static str,
        functions: &LibraryFunctions,
        change: Option<i32>,
    ) -> bool {
        let Ok(file) = found.file.try_clone() else {
            self.reporter.report(SensorNotice::NotAttached {
                file: found.name.clone(),
                reason: "out of descriptors".to_owned(),
            });
            return false;
        };
        let (answers, points) = by_program(functions, found.executable);
        let mut watched = AttachedFile {
            watch: Arc::clone(watch),
            version: found.version,
            name: found.name.clone(),
            stack,
            file,
            until: found.until,
            points,
            answers,
            scope: ProcessScope::All(Vec::new()),
            mappers: found.pid.into_iter().collect(),
            change,
            spared: None,
            crowded: None,
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
    pub(super) fn attach_scope(&mut self, watched: &mut AttachedFile, executable: bool) -> bool {
        let by_path = executable && self.exclusion.is_by_path();
        let affected = if executable {
            !by_path
        } else {
            self.exclusion.affects_libraries()
        };
        let excluded = self
            .exclusion
            .pattern_for_file(watched.watch.key)
            .or_else(|| self.exclusion.pattern_for_path(&watched.name));
        if let Some(pattern) = excluded {
            tracing::info!(file = %watched.name, pattern, "excluded: no TLS probes attached");
            return false;
        }
        if watched.spared.is_none() && (self.exclusion.is_empty() || !affected) {
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
        if !self.on {
            return true;
        }
        tracing::info!(
            file = %watched.name,
            stack = %watched.stack,
            functions = watched.points.iter().map(|(_, offsets)| offsets.len()).sum::<usize>(),
            "TLS probes attached"
        );
        true
    }

    pub(super) fn attach(
        &self,
        points: &[(&'static str, Vec<u64>)],
        file: &File,
        process: Option<NonZeroU32>,
    ) -> Result<Vec<UprobeLink>, UprobeError> {
        let mut links = Vec::new();
        if !self.on {
            return Ok(links);
        }
        for (program, offsets) in points {
            // The kernel may lack it: a declared gap.
            let Some(program) = self.programs.get(program) else {
                continue;
            };
            links.push(uprobe::attach(program, file, offsets, process)?);
        }
        Ok(links)
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
    pub(super) fn release_file(&mut self, key: FileKey) {
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

    pub(super) fn evict_files(&mut self, key: FileKey) -> Vec<AttachedFile> {
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

    pub(super) fn restore_mappers(&mut self, files: Vec<AttachedFile>) {
        for watched in files {
            let FileKey { device, inode } = watched.watch.key;
            self.files.insert((device, inode, watched.stack), watched);
        }
    }

    pub(super) fn update_follows(&self) {
        let follows = self
            .files
            .values()
            .any(|watched| watched.watch.by_process.load(Ordering::Relaxed));
        self.follows_processes.store(follows, Ordering::Relaxed);
    }
}
