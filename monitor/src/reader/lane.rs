//! A thread that asks a reader, so that nothing else waits for it.

use super::{
    client::{ReadFailure, ReaderPool},
    protocol::{ReadAnswer, ReadRequest},
};
use crate::observed::file_system::is_remote;
use std::{
    io,
    sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    time::Duration,
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

/// Requests to one reader, answered in order.
#[derive(Debug)]
struct ReaderLane {
    requests: SyncSender<(ReadId, ReadRequest)>,
    readers: ReaderPool,
    answers: UnboundedSender<(ReadId, ReadResult)>,
}

impl ReaderLane {
    /// Starts the thread; it ends with this value, or with the receiver of the answers. Its reader
    /// is ended when it is idle, unless it is `always_ready`.
    fn start(
        name: &str,
        readers: &ReaderPool,
        answers: UnboundedSender<(ReadId, ReadResult)>,
        always_ready: bool,
    ) -> io::Result<Self> {
        let (requests, received) = sync_channel::<(ReadId, ReadRequest)>(WAITING_MAX);
        let mut client = readers.client();
        let answered = answers.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if always_ready {
                    client.prepare();
                }
                loop {
                    match received.recv_timeout(IDLE_TIMEOUT) {
                        Ok((id, request)) => {
                            let result = client.call(&request).map(|(answer, _)| answer);
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
        if self.requests.try_send((id, request)).is_err() {
            let failure = ReadFailure::Overloaded;
            self.readers.count_failure(failure);
            // The receiver ends only when the agent stops.
            let _ = self.answers.send((id, Err(failure)));
        }
    }
}

/// The lanes of the pipeline: one for what it waits for, one for what may take long.
#[derive(Debug)]
pub struct ReaderLanes {
    files: ReaderLane,
    background: ReaderLane,
}

impl ReaderLanes {
    /// Starts the threads; the receiver gets the answers of both.
    pub fn start(
        readers: &ReaderPool,
    ) -> io::Result<(Self, UnboundedReceiver<(ReadId, ReadResult)>)> {
        let (answers, received) = unbounded_channel();
        let lanes = Self {
            files: ReaderLane::start("read-files", readers, answers.clone(), true)?,
            background: ReaderLane::start("read-slowly", readers, answers, false)?,
        };
        Ok((lanes, received))
    }

    /// Submits requests without waiting for them.
    pub fn submit(&self, requests: Vec<(ReadId, ReadRequest)>) {
        for (id, request) in requests {
            let lane = if may_take_long(&request) {
                &self.background
            } else {
                &self.files
            };
            lane.submit(id, request);
        }
    }
}

/// Whether a request may wait for another machine or process, or examines many files.
fn may_take_long(request: &ReadRequest) -> bool {
    match request {
        ReadRequest::File(file) => is_remote(file.magic),
        ReadRequest::Exists { .. } | ReadRequest::Added { .. } => false,
        _ => true,
    }
}
