//! What was running before the agent started.

use super::Enricher;
use crate::sensor::{
    observation::{ObservedOpen, OpenKind, StdoutPipe},
    running,
};
use jiff::Timestamp;
use monitor_core::trail::TrailEvent;

impl Enricher {
    /// Emits events for what is already running: processes, their environments, their open credential
    /// files, and their connections.
    pub fn scan_running(&mut self, now: Timestamp, events: &mut Vec<TrailEvent>) {
        let subjects = self.attribution.scan();
        for subject in &subjects {
            events.push(self.exec_event(now, *subject));
        }
        let mut connections = running::RunningConnections::default();
        for subject in subjects {
            if subject.pid == self.sensor.own_pid {
                continue;
            }
            self.read_environment(now, subject, events);
            // Only files at places of credentials; others are not accessed.
            let open = running::open_files(subject.pid, |path| self.credentials.is_place(path));
            for (path, file) in open.files {
                let open = ObservedOpen {
                    task: self.attribution.task_info(subject, now),
                    path,
                    source: None,
                    file,
                    known: false,
                    kind: OpenKind::Opened,
                    count: 1,
                    output: StdoutPipe::default(),
                };
                self.file_opened(&open, events);
            }
            for (inode, to) in connections.outgoing_of(subject.pid, &open.sockets) {
                events.push(TrailEvent::Connect {
                    time: now,
                    actor: self.actor(subject),
                    // No cookie is that large.
                    connection: inode | 1 << 63,
                    destination: self.destination(now, to.address, to.port, to.transport),
                    stdin: None,
                });
            }
        }
    }
}
