//! Checks that the probes still work: a file with a credential's name that the agent opens
//! regularly. Probes that do not report it were detached, or are kept from reporting.

use super::{
    agent_processes::AgentProcessMaps,
    observation::{Observation, ObservedForeignRead, ObservedOpen},
    selftest::{SelfTestFile, TIMEOUT, TestDirectory},
};
use jiff::Timestamp;
use monitor_core::model::Subject;
use std::{
    fs::File,
    io,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, channel, sync_channel},
    },
    time::{Duration, Instant},
};

/// Interval between checks.
const INTERVAL: Duration = Duration::from_secs(30);

/// The checks, and what is expected of the probes. A thread opens the files, because the state
/// directory may not respond.
#[derive(Debug)]
pub struct Heartbeat {
    own: Subject,
    requests: SyncSender<()>,
    /// Files that are opened right after they arrive here; `None` if that failed.
    files: Receiver<Option<(SelfTestFile, Instant)>>,
    last: Instant,
    /// An open that was not observed yet, and when it took place.
    waiting: Option<(SelfTestFile, Instant)>,
    /// When the probes were last known to work.
    seen: Timestamp,
    silent: bool,
}

impl Heartbeat {
    /// Starts the thread. `own` is the agent as returned by the self-test.
    pub fn start(
        directory: &Path,
        own: Subject,
        agents: Arc<AgentProcessMaps>,
    ) -> io::Result<Self> {
        let (requests, requested) = sync_channel(1);
        let (send, files) = channel();
        let directory = directory.to_owned();
        std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || {
                for () in requested {
                    // If the disk is full, there is no heartbeat, and nothing to expect.
                    let Some((file, folder)) = prepare(&directory) else {
                        continue;
                    };
                    if send.send(Some((file, Instant::now()))).is_err() {
                        return;
                    }
                    agents.set_main(None);
                    let opened = File::open(folder.netrc());
                    agents.set_main(Some(own));
                    if let Err(error) = opened {
                        tracing::warn!(folder = %folder.0.display(), %error, "cannot open the file that tests the probes");
                        // The receiver is gone if the agent stops.
                        let _ = send.send(None);
                    }
                }
            })?;
        Ok(Self {
            own,
            requests,
            files,
            last: Instant::now(),
            waiting: None,
            seen: Timestamp::now(),
            silent: false,
        })
    }

    /// Has the file opened if it is due; called every second. Returns since when the file probe may
    /// be silent, if that was detected since the last call.
    pub fn beat(&mut self) -> Option<Timestamp> {
        let overdue = self
            .waiting
            .as_ref()
            .is_some_and(|(_, opened)| opened.elapsed() > TIMEOUT);
        let fell_silent = overdue && !self.silent;
        self.silent |= fell_silent;
        if self.last.elapsed() > INTERVAL {
            self.last = Instant::now();
            self.waiting = None;
            // If the directory does not respond, the previous request is still there.
            let _ = self.requests.try_send(());
        }
        fell_silent.then_some(self.seen)
    }

    /// Removes the heartbeat, and other activity of the agent itself, from the observations.
    pub fn remove_own(&mut self, observations: &mut Vec<Observation>) {
        // They arrive before they are opened.
        if let Some(file) = self.files.try_iter().last() {
            self.waiting = file;
        }
        let Some((file, _)) = &self.waiting else {
            return;
        };
        let own = self.own;
        let mut seen = false;
        observations.retain(|observation| match observation {
            Observation::FileOpened(ObservedOpen { task, .. }) if task.subject == own => {
                seen |= file.matches(observation);
                false
            }
            Observation::ForeignRead(ObservedForeignRead { task, .. }) => task.subject != own,
            _ => true,
        });
        if seen {
            self.waiting = None;
            self.silent = false;
            self.seen = Timestamp::now();
        }
    }
}

/// Creates the file to open.
fn prepare(directory: &Path) -> Option<(SelfTestFile, TestDirectory)> {
    let file = SelfTestFile::new("heartbeat");
    let folder = TestDirectory(directory.join(&file.name));
    let metadata = folder.make().ok()?;
    Some((file.create(&metadata), folder))
}
