//! Asks a reader, and replaces it if it fails.

use super::{
    process::{ReaderExit, ReaderProcess},
    protocol::{FileAnswer, ReadAnswer, ReadRequest, ReaderSetup, Views},
    registry::{KernelOpen, ProcessRegistry},
    role::ReaderRole,
    stuck::StuckReaders,
    wire::WireError,
};
use crate::observed::{
    file::FileId,
    file_system::{is_remote, is_surely_local},
};
use monitor_core::catalog::CatalogSources;
use monitor_parse::credential::LeftOut;
use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use thiserror::Error;

/// Time for a request about a file system that may keep the reader waiting.
const CAUTIOUS_LIMIT: Duration = Duration::from_secs(1);
/// Time for any other request about one file or process.
const LIMIT: Duration = Duration::from_secs(5);
/// Time for a request about many files.
const LONG_LIMIT: Duration = Duration::from_secs(60);
/// Attempts to start a reader.
const START_ATTEMPTS: usize = 3;
/// Minimum time between two starts of a reader after all attempts failed.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// Why a request was not answered, or not completely.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReadFailure {
    #[error("it took too long")]
    TimedOut,
    #[error("the file system does not respond")]
    Abandoned,
    #[error("its file system does not respond, so it was not opened")]
    Refused,
    #[error("it was replaced by another file")]
    Replaced,
    #[error("it needed too much memory")]
    Memory,
    #[error("the reader was killed")]
    Killed,
    #[error("it needed too much CPU time")]
    CpuTime,
    #[error("the reader crashed")]
    Crashed,
    #[error("no reader could be started")]
    NotStarted,
    #[error("too many others wait for the reader")]
    Overloaded,
    #[error("it could not be opened or read")]
    Unreadable,
    #[error("it has more secrets than are read of one file")]
    TooManySecrets,
    #[error("a secret in it is not text")]
    NotText,
    #[error("it has more bytes than are read of one file")]
    TooLarge,
    #[error("it has more variables than are read of one environment")]
    TooManyVariables,
}

impl ReadFailure {
    pub const ALL: [Self; 15] = [
        Self::TimedOut,
        Self::Abandoned,
        Self::Refused,
        Self::Replaced,
        Self::Memory,
        Self::Killed,
        Self::CpuTime,
        Self::Crashed,
        Self::NotStarted,
        Self::Overloaded,
        Self::Unreadable,
        Self::TooManySecrets,
        Self::NotText,
        Self::TooLarge,
        Self::TooManyVariables,
    ];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::TimedOut => "timeout",
            Self::Abandoned => "abandoned",
            Self::Refused => "refused",
            Self::Replaced => "replaced",
            Self::Memory => "memory",
            Self::Killed => "killed",
            Self::CpuTime => "cpu-time",
            Self::Crashed => "crash",
            Self::NotStarted => "not-started",
            Self::Overloaded => "overloaded",
            Self::Unreadable => "unreadable",
            Self::TooManySecrets => "too-many-secrets",
            Self::NotText => "not-text",
            Self::TooLarge => "too-large",
            Self::TooManyVariables => "too-many-variables",
        }
    }
}

impl From<LeftOut> for ReadFailure {
    fn from(left_out: LeftOut) -> Self {
        match left_out {
            LeftOut::Secrets => Self::TooManySecrets,
            LeftOut::NotText => Self::NotText,
            LeftOut::Bytes => Self::TooLarge,
            LeftOut::Variables => Self::TooManyVariables,
        }
    }
}

impl From<ReaderExit> for ReadFailure {
    fn from(exit: ReaderExit) -> Self {
        match exit {
            ReaderExit::Memory => Self::Memory,
            ReaderExit::Killed => Self::Killed,
            ReaderExit::CpuTime => Self::CpuTime,
            ReaderExit::Crashed => Self::Crashed,
        }
    }
}

/// What all clients share.
#[derive(Debug)]
struct SharedState {
    program: PathBuf,
    /// The setup, and its version.
    setup: Mutex<(u64, Arc<ReaderSetup>)>,
    registry: Arc<dyn ProcessRegistry>,
    stuck: StuckReaders,
    failures: [AtomicU64; ReadFailure::ALL.len()],
}

/// Makes clients with a common setup, and keeps their accounts.
#[derive(Clone, Debug)]
pub struct ReaderPool(Arc<SharedState>);

impl ReaderPool {
    pub fn new(setup: ReaderSetup, registry: Arc<dyn ProcessRegistry>) -> Self {
        // By this link, because the file may have been replaced since.
        Self::with_program(Path::new("/proc/self/exe"), setup, registry)
    }

    fn with_program(
        program: &Path,
        setup: ReaderSetup,
        registry: Arc<dyn ProcessRegistry>,
    ) -> Self {
        Self(Arc::new(SharedState {
            program: program.to_owned(),
            setup: Mutex::new((0, Arc::new(setup))),
            registry,
            stuck: StuckReaders::default(),
            failures: Default::default(),
        }))
    }

    /// A client with a reader of its own, which starts with the first request.
    pub fn client(&self, role: ReaderRole) -> ReaderClient {
        ReaderClient {
            shared: Arc::clone(&self.0),
            role,
            process: None,
            version: 0,
            failed_to_start: None,
            hangs: false,
        }
    }

    /// Replaces the catalog; readers are replaced before their next request.
    pub fn set_catalog(&self, catalog: CatalogSources) {
        let mut current = self.0.setup.lock().unwrap_or_else(PoisonError::into_inner);
        let setup = ReaderSetup {
            catalog: Some(catalog),
            ..ReaderSetup::clone(&current.1)
        };
        *current = (current.0 + 1, Arc::new(setup));
    }

    /// Counts a request that was not made.
    pub fn count_failure(&self, failure: ReadFailure) {
        self.0.count_failure(failure);
    }

    /// Number of requests without an answer, by reason.
    pub fn failures(&self) -> impl Iterator<Item = (ReadFailure, u64)> {
        ReadFailure::ALL.into_iter().map(|failure| {
            (
                failure,
                self.0.failures[failure as usize].load(Ordering::Relaxed),
            )
        })
    }
}

impl SharedState {
    fn count_failure(&self, failure: ReadFailure) {
        self.failures[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The current setup, and its version.
    fn setup(&self) -> (u64, Arc<ReaderSetup>) {
        let setup = self.setup.lock().unwrap_or_else(PoisonError::into_inner);
        (setup.0, Arc::clone(&setup.1))
    }
}

/// One reader, and requests to it: one at a time.
#[derive(Debug)]
pub struct ReaderClient {
    shared: Arc<SharedState>,
    role: ReaderRole,
    process: Option<ReaderProcess>,
    /// The version of the setup that the process has.
    version: u64,
    failed_to_start: Option<Instant>,
    /// The process waits in the kernel, and no more can be abandoned.
    hangs: bool,
}

impl ReaderClient {
    /// Asks the reader and waits for its answer, for at most a minute, usually much less. Failures
    /// are counted.
    pub fn call(
        &mut self,
        request: &ReadRequest,
    ) -> Result<(ReadAnswer, Option<OwnedFd>), ReadFailure> {
        let mut answer = self.try_call(request);
        if matches!(answer, Err(ReadFailure::Killed | ReadFailure::Crashed)) {
            // The request may not be the reason.
            answer = self.try_call(request);
        }
        let failure = match &answer {
            Err(failure) => Some(*failure),
            Ok((
                ReadAnswer::File(FileAnswer {
                    contents: Err(_), ..
                }),
                _,
            )) => Some(ReadFailure::Unreadable),
            Ok((answer, _)) => answer.left_out().map(ReadFailure::from),
        };
        if let Some(failure) = failure {
            self.shared.count_failure(failure);
        }
        answer
    }

    /// Starts the reader before the first request needs it.
    pub fn prepare(&mut self) {
        if let Ok(process) = self.ready_process() {
            self.process = Some(process);
        }
    }

    /// Ends the reader; the next request starts another.
    pub fn retire(&mut self) {
        if let Some(process) = self.process.take() {
            self.end(process, None);
        }
    }

    fn try_call(
        &mut self,
        request: &ReadRequest,
    ) -> Result<(ReadAnswer, Option<OwnedFd>), ReadFailure> {
        let place = request.file_system();
        if self.refuses(request) {
            return Err(ReadFailure::Refused);
        }
        let mut process = self.ready_process()?;
        // What it opened for an earlier request.
        process.take_opens();
        match process.call(request, limit(request)) {
            Ok((answer, descriptor)) => {
                let opens = process.take_opens();
                self.process = Some(process);
                check(request, &answer, opens.as_deref())?;
                match answer {
                    ReadAnswer::Unreadable(error) => {
                        tracing::debug!(?request, error, "not read");
                        Err(ReadFailure::Unreadable)
                    }
                    answer => Ok((answer, descriptor)),
                }
            }
            Err(WireError::TimedOut) => {
                let opens = process.take_opens().unwrap_or_default();
                let opened = opens
                    .iter()
                    .rev()
                    .map(|open| (open.file.device, open.magic));
                // What it waits for is not a local disk, whatever it opened before; and rather what
                // it opened than what it was to open.
                let mut candidates = opened
                    .chain(place)
                    .filter(|(device, magic)| !is_surely_local(*magic, *device));
                let failure = self.end(process, candidates.next().map(|(device, _)| device));
                tracing::debug!(?request, %failure, "the reader was replaced");
                Err(failure)
            }
            // It may wait in the kernel with its socket closed.
            Err(_) if !process.ends_soon() => Err(self.end(process, None)),
            Err(error) => {
                let failure = ReadFailure::from(process.exit());
                tracing::debug!(?request, %failure, %error, "the reader was replaced");
                Err(failure)
            }
        }
    }

    /// Whether a request may have the reader wait, and too many wait already.
    fn refuses(&self, request: &ReadRequest) -> bool {
        let stuck = &self.shared.stuck;
        match (self.role, request.file_system()) {
            (ReaderRole::LocalFiles, _) => false,
            (_, Some((device, magic))) => stuck.refuses(device, magic),
            (ReaderRole::Credentials, None) => request.is_about_process() && stuck.is_full(),
            (ReaderRole::Programs, None) => false,
        }
    }

    /// The reader, started if there is none, or if it has an older setup.
    fn ready_process(&mut self) -> Result<ReaderProcess, ReadFailure> {
        let (version, setup) = self.shared.setup();
        if let Some(mut process) = self.process.take() {
            let ended = process.has_ended();
            self.hangs &= !ended;
            if self.hangs {
                self.process = Some(process);
                return Err(ReadFailure::Abandoned);
            }
            if !ended && (self.version == version || self.role == ReaderRole::Programs) {
                return Ok(process);
            }
            self.end(process, None);
        }
        if self
            .failed_to_start
            .is_some_and(|failed| failed.elapsed() < RESTART_INTERVAL)
        {
            return Err(ReadFailure::NotStarted);
        }
        let setup = setup_for(self.role, &setup);
        let shared = &self.shared;
        let began = Instant::now();
        // One may be killed while it starts.
        for attempt in 1..=START_ATTEMPTS {
            match ReaderProcess::start(&shared.program, &setup, &shared.registry) {
                Ok(process) => {
                    (self.version, self.failed_to_start) = (version, None);
                    return Ok(process);
                }
                Err(error) if attempt < START_ATTEMPTS && began.elapsed() < RESTART_INTERVAL => {
                    tracing::debug!(%error, "a reader did not start");
                }
                Err(error) => {
                    tracing::error!(%error, "cannot start a reader: credential files are not read");
                }
            }
        }
        self.failed_to_start = Some(Instant::now());
        Err(ReadFailure::NotStarted)
    }

    /// Ends a reader, or abandons it.
    fn end(&mut self, mut process: ReaderProcess, device: Option<u32>) -> ReadFailure {
        if process.kill() {
            return ReadFailure::TimedOut;
        }
        // If too many are abandoned, it is kept, and no request is made until it ends.
        self.process = self.shared.stuck.add(process, self.role, device);
        self.hangs = self.process.is_some();
        ReadFailure::Abandoned
    }
}

/// The setup of a reader with this role. Of what one for programs gets, nothing changes.
fn setup_for(role: ReaderRole, setup: &ReaderSetup) -> ReaderSetup {
    let setup = setup.clone();
    match role {
        ReaderRole::Credentials => setup,
        ReaderRole::LocalFiles => ReaderSetup {
            views: Views::OwnUserNamespace,
            ..setup
        },
        ReaderRole::Programs => ReaderSetup {
            catalog: None,
            ..setup
        },
    }
}

fn limit(request: &ReadRequest) -> Duration {
    match request {
        ReadRequest::File(file) if is_surely_local(file.magic, file.file.device) => LIMIT,
        ReadRequest::File(_)
        | ReadRequest::Exists { .. }
        | ReadRequest::Added { .. }
        | ReadRequest::Written { .. }
        | ReadRequest::Environment { .. } => CAUTIOUS_LIMIT,
        ReadRequest::Recover { .. } => LONG_LIMIT,
        _ => LIMIT,
    }
}

/// Whether the kernel opened the wanted file. Files found in `/proc` at the start have no generation
/// where only the kernel can tell it.
fn is_same(opened: FileId, wanted: FileId) -> bool {
    opened == wanted
        || (wanted.generation == 0
            && (opened.device, opened.inode) == (wanted.device, wanted.inode))
}

/// Compares what the reader opened, according to the kernel, with what it was to open.
fn check(
    request: &ReadRequest,
    answer: &ReadAnswer,
    opens: Option<&[KernelOpen]>,
) -> Result<(), ReadFailure> {
    match (request, answer) {
        (
            ReadRequest::File(wanted),
            ReadAnswer::File(FileAnswer {
                contents: Ok(contents),
                ..
            }),
        ) => {
            let is_wanted = match opens {
                Some(opens) => opens.iter().any(|open| is_same(open.file, wanted.file)),
                // System calls show another device on some file systems, and another inode number
                // in containers.
                None => wanted.contained || contents.opened.inode == wanted.file.inode,
            };
            is_wanted.then_some(()).ok_or(ReadFailure::Replaced)
        }
        // A probe on a file that is served by another process would wait for that process.
        (ReadRequest::Mapped { .. }, ReadAnswer::Program(_))
            if opens.is_some_and(|opens| opens.iter().any(|open| is_remote(open.magic))) =>
        {
            Err(ReadFailure::Refused)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
