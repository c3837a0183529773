//! The owner of every uprobe: a thread that attaches programs to files and detaches them, so that
//! nothing else waits for either.
//!
//! A link is made for a file's identity, the offsets of its functions, and a scope: either every
//! process that has mapped the file or will, or one process.

mod busy;
mod changes;
mod detach;
mod files;
mod notice;
mod points;
mod processes;
mod request;
mod spare;
mod spared;
mod state;
mod sweep;
mod users;

pub use busy::WINDOW_INTERVAL;
pub use notice::{NoticeSender, SensorNotice};
pub use request::{AttachRequest, AttachTarget, LibraryFunctions};

use super::{
    exclude::ExclusionRules,
    hits::{HitCounters, trap_time},
    known_files::KnownFiles,
    uprobe_program::UprobePrograms,
};
use crate::completion::{self, CompletionWaiter};
use busy::BusyProcesses;
use changes::FileChangeWatcher;
use detach::DETACH_TIMEOUT;
use state::AttacherState;
use std::{
    collections::{BTreeMap, HashSet},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
    time::Instant,
};

/// Maximum number of files attached to at the same time. Each costs a descriptor and up to five
/// links.
const FILES_MAX: usize = 1024;
/// Descriptors reserved for everything else.
const DESCRIPTORS_RESERVED: usize = 512;
/// Descriptors per file: its own, and one per program, or one per function if the kernel has no
/// multi-uprobe links.
const DESCRIPTORS_EACH: usize = 12;

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
    /// Whether connects must be sent.
    spares: Arc<AtomicBool>,
}

impl Attacher {
    pub fn start(
        programs: UprobePrograms,
        known: KnownFiles,
        reporter: NoticeSender,
        exclusion: ExclusionRules,
        hits: HitCounters,
    ) -> io::Result<Self> {
        let (commands, received) = channel();
        let (alive, ended) = completion::completion();
        let stop = Arc::new(AtomicBool::new(false));
        let follows_processes = Arc::new(AtomicBool::new(false));
        let spares = Arc::new(AtomicBool::new(false));
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
            canary: Vec::new(),
            on: true,
            capacity: capacity(),
            hits,
            busy: BusyProcesses::new(trap_time(), Instant::now()),
            spared: BTreeMap::new(),
            follows_processes: Arc::clone(&follows_processes),
            spares: Arc::clone(&spares),
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
            spares,
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

    /// As [`follows_processes`](Self::follows_processes), for other threads.
    pub fn process_follower(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.follows_processes)
    }

    /// Whether connects must be sent.
    pub fn follows_connects(&self) -> bool {
        self.spares.load(Ordering::Relaxed)
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
