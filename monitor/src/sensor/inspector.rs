//! Finds TLS in mapped files: each file is inspected once, by threads that nothing waits for, and
//! passed to the [`Attacher`](super::attacher::Attacher).
//!
//! Candidates are files that a process has mapped executable, and libraries installed on the host's
//! root file system. A file that was only opened or written is not a candidate.

use super::{
    attacher::{AttachRequest, AttachTarget, LibraryFunctions, NoticeSender, SensorNotice},
    exclude::ExclusionRules,
    known_files::{FileState, KnownFiles, WAITING_MAX},
    mapped::MappingReader,
};
use crate::{
    completion::Completion,
    health::Pulse,
    observed::mapping::{MappedFile, ProcessMapping, mappings_of_process, processes},
    reader::{
        ReadFailure, ReaderClient, ReaderPool, ReaderRole,
        protocol::{NotHeld, ProgramAnswer, ReadAnswer, ReadRequest, Symbols},
    },
};
use monitor_core::catalog::secret_marks::SecretMarks;
use monitor_parse::tls_functions;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    collections::HashSet,
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    },
    time::{Duration, Instant},
};

/// Interval between scans of all running processes: they find what was mapped while its file was
/// believed to contain nothing.
const RESCAN_INTERVAL: Duration = Duration::from_secs(300);
/// Minimum interval between scans caused by lost records.
const RESCAN_AFTER_LOSS: Duration = Duration::from_secs(5);
/// Interval between reads of the records: it limits the wake-ups. A file that nobody has mapped before
/// takes longer to inspect.
const GATHER_TIME: Duration = Duration::from_millis(4);
/// The same while files are attached to process by process: it is shorter than a program's time to its
/// first write.
const HURRIED_GATHER_TIME: Duration = Duration::from_millis(1);
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
    /// Apply new exclusion rules.
    Exclude(ExclusionRules),
}

/// The reader for symbols is ended if it is not used for this long.
const IDLE_READER_TIMEOUT: Duration = Duration::from_secs(30);

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
        readers: &ReaderPool,
        known: &KnownFiles,
        attacher: &Sender<AttachRequest>,
        reporter: &NoticeSender,
        marks: Arc<SecretMarks>,
        hurry: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let (requests, received) = channel();
        let (ask_slow, asked_slow) = sync_channel(WAITING_MAX);
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let results = InspectionReporter {
            known: known.clone(),
            attacher: attacher.clone(),
            reporter: reporter.clone(),
            marks,
        };
        let symbols = SymbolThread {
            client: readers.client(ReaderRole::Programs),
            known: known.clone(),
            results: results.clone(),
        };
        let inspector = InspectorThread {
            client: readers.client(ReaderRole::Programs),
            known: known.clone(),
            results,
            slow: ask_slow,
            pulse: Pulse::of_environment("tls-inspector"),
        };
        thread("tls-inspector").spawn(move || inspector.run(&received))?;
        thread("tls-symbols").spawn(move || symbols.run(&asked_slow))?;
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
                    hurry,
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
    /// Whether files are attached to process by process.
    hurry: Arc<AtomicBool>,
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
            let hurried = self.hurry.load(Ordering::Relaxed);
            std::thread::sleep(if hurried {
                HURRIED_GATHER_TIME
            } else {
                GATHER_TIME
            });
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

/// Passes the results of inspections on.
#[derive(Clone)]
struct InspectionReporter {
    known: KnownFiles,
    attacher: Sender<AttachRequest>,
    reporter: NoticeSender,
    /// By what secrets are recognised in the names of files.
    marks: Arc<SecretMarks>,
}

/// The result of an inspection.
struct InspectedProgram {
    answer: ProgramAnswer,
    /// An O_PATH descriptor of the file, if there is anything to attach to.
    file: Option<File>,
    name: String,
    /// The process that mapped it, and how mapping records identify it.
    mapped: Option<(u32, MappedFile)>,
}

impl InspectionReporter {
    /// Passes the result to the attacher, and reports what could not be proven.
    fn report(&self, program: InspectedProgram) {
        let InspectedProgram {
            answer,
            file,
            name,
            mapped,
        } = program;
        let name = self.marks.masked(name);
        for reason in answer.unproven {
            self.reporter.report(SensorNotice::NotAttached {
                file: name.clone(),
                reason,
            });
        }
        let stacks: Vec<(&'static str, LibraryFunctions)> = answer
            .stacks
            .iter()
            .filter_map(|(stack, functions)| {
                let functions = functions.iter().filter_map(|function| {
                    Some((
                        tls_functions::known_program(&function.program)?,
                        function.offset,
                    ))
                });
                Some((tls_functions::known_stack(stack)?, functions.collect()))
            })
            .collect();
        let (Some(file), false) = (file, stacks.is_empty()) else {
            if let Some((_, mapped)) = mapped {
                // The memory of one process says nothing about the file: it is inspected again when
                // another process maps it.
                if answer.changed_by_process {
                    self.known.forget_mapped(mapped);
                } else {
                    self.known.set_nothing_found(mapped);
                }
            }
            return;
        };
        let found = AttachTarget {
            key: answer.key,
            version: answer.version,
            file,
            until: answer.until,
            name,
            executable: answer.executable,
            pid: mapped.map(|(pid, _)| pid),
            mapped: mapped.map(|(_, mapped)| mapped),
            stacks,
        };
        // The attacher ends only with the agent.
        let _ = self.attacher.send(AttachRequest::Found(Box::new(found)));
    }

    fn not_inspected(&self, mapping: &ProcessMapping, reason: &NotHeld) {
        let path = mapping.path.display();
        if reason.permanent {
            self.known.set_nothing_found(mapping.file);
            self.reporter.report(SensorNotice::NotAttached {
                file: path.to_string(),
                reason: reason.reason.clone(),
            });
        } else {
            let reason = &reason.reason;
            tracing::debug!(%path, pid = mapping.pid, reason, "mapped file not inspected");
            // A longer-lived process may map it again.
            self.known.forget_mapped(mapping.file);
        }
    }
}

/// Has the reader inspect a file that a process has mapped.
fn inspect(
    client: &mut ReaderClient,
    mapping: &ProcessMapping,
    symbols: Symbols,
) -> Result<InspectedProgram, NotHeld> {
    let request = ReadRequest::Mapped {
        mapping: mapping.clone(),
        symbols,
    };
    match client.call(&request) {
        Ok((ReadAnswer::Program(answer), place)) => Ok(InspectedProgram {
            answer,
            file: place.map(File::from),
            name: mapping.path.display().to_string(),
            mapped: Some((mapping.pid, mapping.file)),
        }),
        Ok((ReadAnswer::NotHeld(reason), _)) => Err(reason),
        Ok(_) => Err(NotHeld {
            reason: "the reader answered another question".to_owned(),
            permanent: false,
        }),
        // The file would do the same again.
        Err(failure) => Err(NotHeld {
            reason: format!("it could not be inspected: {failure}"),
            permanent: failure != ReadFailure::NotStarted,
        }),
    }
}

/// Inspects files for symbols of their own. A program can have a hundred thousand of them; other
/// files must not wait for it.
struct SymbolThread {
    client: ReaderClient,
    known: KnownFiles,
    results: InspectionReporter,
}

impl SymbolThread {
    fn run(mut self, mappings: &Receiver<ProcessMapping>) {
        loop {
            match mappings.recv_timeout(IDLE_READER_TIMEOUT) {
                Ok(mapping) => match inspect(&mut self.client, &mapping, Symbols::Static) {
                    Ok(program) => self.results.report(program),
                    // It is inspected again when it is mapped after a while.
                    Err(_) => self.known.set_nothing_found(mapping.file),
                },
                Err(RecvTimeoutError::Timeout) => self.client.retire(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// Inspects files for dynamic symbols and Go tables.
struct InspectorThread {
    client: ReaderClient,
    known: KnownFiles,
    results: InspectionReporter,
    slow: SyncSender<ProcessMapping>,
    pulse: Pulse,
}

impl InspectorThread {
    fn run(mut self, received: &Receiver<InspectRequest>) {
        for request in received {
            self.pulse.busy();
            match request {
                InspectRequest::Mapped(mapping) => self.inspect_mapped(mapping),
                InspectRequest::Running => self.inspect_running(),
                InspectRequest::Installed(done) => {
                    self.inspect_installed();
                    self.send(AttachRequest::Reached(done));
                }
                InspectRequest::Exclude(exclusion) => {
                    let exclusion = exclusion.resolve(&mut self.client);
                    self.send(AttachRequest::Exclude(exclusion));
                    // Files excluded before may not be excluded any more.
                    self.known.reset_nothing_found();
                    self.inspect_running();
                }
            }
            self.pulse.idle();
        }
    }

    fn send(&self, request: AttachRequest) {
        // The attacher ends only with the agent.
        let _ = self.results.attacher.send(request);
    }

    fn inspect_mapped(&mut self, mapping: ProcessMapping) {
        self.pulse.busy();
        match inspect(&mut self.client, &mapping, Symbols::Dynamic) {
            Ok(program) if program.answer.is_empty => {
                let file = mapping.file;
                // If too many are waiting, it is inspected the next time it is mapped.
                if self.slow.try_send(mapping).is_err() {
                    self.known.forget_mapped(file);
                }
            }
            Ok(program) => self.results.report(program),
            Err(reason) => self.results.not_inspected(&mapping, &reason),
        }
    }

    fn inspect_running(&mut self) {
        for pid in processes() {
            for mapping in mappings_of_process(pid) {
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
                        self.send(AttachRequest::Mapped { key, pid });
                    }
                    Some(_) => {}
                }
            }
        }
    }

    fn inspect_installed(&mut self) {
        let Ok((ReadAnswer::Libraries(libraries), _)) = self.client.call(&ReadRequest::Libraries)
        else {
            return;
        };
        for path in libraries {
            let name = path.as_path().display().to_string();
            let request = ReadRequest::Installed { path };
            if let Ok((ReadAnswer::Program(answer), place)) = self.client.call(&request) {
                self.results.report(InspectedProgram {
                    answer,
                    file: place.map(File::from),
                    name,
                    mapped: None,
                });
            }
        }
    }
}

/// A running program, and why it is not attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct UnattachedProgram {
    pub file: String,
    pub reason: String,
}

/// Examines all running programs, for `doctor`.
pub fn examine_running(
    client: &mut ReaderClient,
    exclusion: &ExclusionRules,
) -> Vec<UnattachedProgram> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for pid in processes() {
        let excluded = exclusion.pattern_for(pid);
        for mapping in mappings_of_process(pid) {
            if !seen.insert((mapping.file, excluded.is_some())) {
                continue;
            }
            let file = mapping.path.display().to_string();
            let mut add = |reason: String| {
                let file = file.clone();
                found.push(UnattachedProgram { file, reason });
            };
            let mut inspected = inspect(client, &mapping, Symbols::Dynamic);
            if inspected
                .as_ref()
                .is_ok_and(|program| program.answer.is_empty)
            {
                inspected = inspect(client, &mapping, Symbols::Static);
            }
            let answer = match inspected {
                Ok(program) => program.answer,
                Err(reason) => {
                    if reason.permanent {
                        add(reason.reason);
                    }
                    continue;
                }
            };
            if let Some(pattern) = &excluded
                && !answer.stacks.is_empty()
            {
                add(format!(
                    "excluded by `inspect.exclude: {pattern}` (process {pid})"
                ));
            }
            answer.unproven.into_iter().for_each(add);
        }
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests;
