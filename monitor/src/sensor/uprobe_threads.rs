//! The threads that find TLS and attach probes to it.

use super::{
    attacher::{AttachRequest, Attacher, NoticeSender, SensorNotice},
    exclude::ExclusionRules,
    hits::HitCounters,
    inspector::{InspectRequest, Inspector},
    known_files::KnownFiles,
    observation::Observation,
    uprobe_program::UprobePrograms,
};
use crate::{
    completion,
    reader::{ReaderPool, ReaderRole},
};
use monitor_core::catalog::secret_marks::SecretMarks;
use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

/// The threads that find TLS and attach probes to it.
#[derive(Debug)]
pub struct UprobeThreads {
    pub inspector: Inspector,
    pub attacher: Attacher,
    pub notices: Receiver<SensorNotice>,
}

/// Timeout for attaching to installed libraries; in an emulated machine that takes long.
const INSTALLED_TIMEOUT: Duration = Duration::from_secs(20);

impl UprobeThreads {
    /// Starts the threads, and waits until installed libraries are attached to. Running programs
    /// follow later.
    pub fn start(
        programs: UprobePrograms,
        exclusion: ExclusionRules,
        readers: &ReaderPool,
        marks: Arc<SecretMarks>,
        hits: HitCounters,
    ) -> io::Result<Self> {
        let mut client = readers.client(ReaderRole::Programs);
        let exclusion = exclusion.resolve(&mut client);
        drop(client);
        let (report, notices) = channel();
        let reporter = NoticeSender(report);
        let known = KnownFiles::default();
        let attacher = Attacher::start(programs, known.clone(), reporter.clone(), exclusion, hits)?;
        let inspector = Inspector::start(
            readers,
            &known,
            attacher.commands(),
            &reporter,
            marks,
            attacher.process_follower(),
        )?;
        // The inspector passes it on to the attacher, after the files it found.
        let (done, waiter) = completion::completion();
        inspector.request(InspectRequest::Installed(done));
        if !waiter.wait_timeout(INSTALLED_TIMEOUT) {
            tracing::warn!(
                "attaching to installed TLS libraries is slow; continuing in the background"
            );
        }
        inspector.request(InspectRequest::Running);
        Ok(Self {
            inspector,
            attacher,
            notices,
        })
    }

    /// Applies new exclusion rules.
    pub fn exclude(&self, exclusion: ExclusionRules) {
        self.inspector.request(InspectRequest::Exclude(exclusion));
    }

    /// Tells the attacher about forks, execs, exits and connects, if it needs them.
    pub fn follow(&self, observation: &Observation) {
        if let Observation::Connected(connection) = observation
            && self.attacher.follows_connects()
        {
            let pid = connection.task.subject.pid;
            self.attacher.send(AttachRequest::Connected { pid });
        }
        if !self.attacher.follows_processes() {
            return;
        }
        let command = match observation {
            Observation::Fork(task) => AttachRequest::Forked {
                parent: task.parent.map_or(0, |parent| parent.pid),
                child: task.subject.pid,
            },
            Observation::Exec(exec) => AttachRequest::Executed {
                pid: exec.task.subject.pid,
            },
            Observation::Exit(task) => AttachRequest::Exited {
                pid: task.subject.pid,
            },
            _ => return,
        };
        self.attacher.send(command);
    }
}
