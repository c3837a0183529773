//! Threads that ask readers, so that nothing else waits for them.

use super::{
    client::{ReadFailure, ReaderPool},
    protocol::{ReadAnswer, ReadRequest},
    role::ReaderRole,
};
use crate::{
    health::Pulse,
    observed::{
        file_system::{is_local_or_overlay, is_remote, is_surely_local},
        process::in_own_user_namespace,
    },
};
use hashlink::LruCache;
use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Identifies a request of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadId(pub u64);

/// The answer to a request.
pub type ReadResult = Result<ReadAnswer, ReadFailure>;

/// A reader that is not used for this long is ended, if another can wait for its start.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum requests that wait for one reader: more than a node has processes.
const WAITING_MAX: usize = 16_384;

/// File systems that responded slowly a moment ago.
#[derive(Clone, Debug)]
struct SlowDevices(Arc<Mutex<LruCache<u32, Instant>>>);

impl SlowDevices {
    /// A request that takes this long shows that its file system is slow.
    const SLOW: Duration = Duration::from_millis(250);
    /// How long that is remembered.
    const TTL: Duration = Duration::from_secs(60);
    /// Number of file systems remembered.
    const CACHED: usize = 1024;

    fn new() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(Self::CACHED))))
    }

    fn note(&self, request: &ReadRequest, took: Duration) {
        // Other causes delay the answer about a local file, and everybody has files there.
        if took >= Self::SLOW
            && let Some((device, magic)) = request.file_system()
            && !is_surely_local(magic, device)
        {
            let mut slow = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            slow.insert(device, Instant::now());
        }
    }

    fn contains(&self, device: u32) -> bool {
        let mut slow = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slow.get(&device)
            .is_some_and(|since| since.elapsed() < Self::TTL)
    }
}

/// Requests to one reader, answered in order.
#[derive(Debug)]
struct ReaderLane {
    /// Boxed, because the queue occupies its memory from the beginning.
    requests: SyncSender<Box<(ReadId, ReadRequest)>>,
    readers: ReaderPool,
    answers: UnboundedSender<(ReadId, ReadResult)>,
}

impl ReaderLane {
    /// Starts the thread; it ends with this value, or with the receiver of the answers. Its reader
    /// is ended when it is idle, except that of local files.
    fn start(
        name: &'static str,
        readers: &ReaderPool,
        role: ReaderRole,
        answers: UnboundedSender<(ReadId, ReadResult)>,
        slow: &SlowDevices,
    ) -> io::Result<Self> {
        let (requests, received) = sync_channel::<Box<(ReadId, ReadRequest)>>(WAITING_MAX);
        let mut client = readers.client(role);
        let answered = answers.clone();
        let slow = slow.clone();
        let always_ready = role == ReaderRole::LocalFiles;
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if always_ready {
                    client.prepare();
                }
                let pulse = Pulse::of_environment(name);
                loop {
                    pulse.idle();
                    match received.recv_timeout(IDLE_TIMEOUT) {
                        Ok(asked) => {
                            let (id, request) = *asked;
                            pulse.busy();
                            let began = Instant::now();
                            let result = client.call(&request).map(|(answer, _)| answer);
                            slow.note(&request, began.elapsed());
                            if answered.send((id, result)).is_err() {
                                return;
                            }
                        }
                        Err(RecvTimeoutError::Timeout) if always_ready => {}
                        Err(RecvTimeoutError::Timeout) => client.retire(),
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            })?;
        Ok(Self {
            requests,
            readers: readers.clone(),
            answers,
        })
    }

    /// Submits a request without waiting for it; if too many wait, it fails at once.
    fn submit(&self, id: ReadId, request: ReadRequest) {
        if self.requests.try_send(Box::new((id, request))).is_err() {
            let failure = ReadFailure::Overloaded;
            self.readers.count_failure(failure);
            // The receiver ends only when the agent stops.
            let _ = self.answers.send((id, Err(failure)));
        }
    }
}

/// The lanes of the pipeline. Each has a reader of its own, so that none waits for another.
#[derive(Debug)]
pub struct ReaderLanes {
    /// Files that nobody without privileges can keep from responding.
    files: ReaderLane,
    /// What a process has, and files that its owner may have arranged.
    processes: ReaderLane,
    /// What may take long.
    background: ReaderLane,
    slow: SlowDevices,
}

impl ReaderLanes {
    /// Starts the threads; the receiver gets the answers of all lanes.
    pub fn start(
        readers: &ReaderPool,
    ) -> io::Result<(Self, UnboundedReceiver<(ReadId, ReadResult)>)> {
        let (answers, received) = unbounded_channel();
        let slow = SlowDevices::new();
        let start = |name, role| ReaderLane::start(name, readers, role, answers.clone(), &slow);
        let lanes = Self {
            files: start("read-files", ReaderRole::LocalFiles)?,
            processes: start("read-processes", ReaderRole::Credentials)?,
            background: start("read-slowly", ReaderRole::Credentials)?,
            slow: slow.clone(),
        };
        Ok((lanes, received))
    }

    /// Submits requests without waiting for them.
    pub fn submit(&self, requests: Vec<(ReadId, ReadRequest)>) {
        for (id, request) in requests {
            self.lane(&request).submit(id, request);
        }
    }

    fn lane(&self, request: &ReadRequest) -> &ReaderLane {
        match request {
            ReadRequest::File(file)
                if is_remote(file.magic) || self.slow.contains(file.file.device) =>
            {
                &self.background
            }
            ReadRequest::File(file)
                if is_local_or_overlay(file.magic, file.file.device)
                    && has_privileged_mounts(file.pid) =>
            {
                &self.files
            }
            ReadRequest::File(_) => &self.processes,
            ReadRequest::Exists { pid, .. }
            | ReadRequest::Added { pid, .. }
            | ReadRequest::Written { pid, .. }
                if has_privileged_mounts(*pid) =>
            {
                &self.files
            }
            request if request.is_about_process() => &self.processes,
            _ => &self.background,
        }
    }
}

/// Whether only a process with privileges can have made the mounts that a process sees. If that
/// process exited, paths are opened through the host's mounts.
fn has_privileged_mounts(pid: u32) -> bool {
    in_own_user_namespace(pid) != Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{observed::file::FileId, reader::protocol::FileRequest};
    use std::path::Path;

    #[test]
    fn a_file_system_is_slow_for_a_while_after_a_slow_answer() {
        let slow = SlowDevices::new();
        let file = FileId {
            device: 40,
            inode: 1,
            generation: 0,
        };
        let file = FileRequest::for_tests(Path::new("/x"), file);
        let request = ReadRequest::File(file.clone());
        slow.note(&request, SlowDevices::SLOW / 2);
        assert!(!slow.contains(40));
        slow.note(&request, SlowDevices::SLOW);
        assert!(slow.contains(40));
        assert!(!slow.contains(41));
        slow.note(&ReadRequest::Homes, SlowDevices::SLOW);
        // A disk of everybody.
        let disk = FileId {
            device: 8 << 20 | 1,
            ..file.file
        };
        let request = FileRequest { file: disk, ..file };
        slow.note(&ReadRequest::File(request), SlowDevices::SLOW);
        assert!(!slow.contains(disk.device));
    }

    #[test]
    fn mounts_in_the_agents_user_namespace_are_privileged() {
        assert!(has_privileged_mounts(std::process::id()));
        assert!(has_privileged_mounts(0x7000_0001), "it exited");
    }
}
