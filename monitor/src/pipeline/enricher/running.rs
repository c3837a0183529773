//! What was running before the agent started.

use super::Enricher;
use crate::{
    reader::protocol::{ProcessAnswer, RecoveredFile},
    sensor::observation::{Observation, ObservedOpen, OpenKind, RunningConnection, StdoutPipe},
};
use jiff::Timestamp;
use monitor_core::{model::Subject, trail::TrailEvent};

impl Enricher {
    /// Emits events for running processes, and has their environments, open credential files and
    /// connections read.
    pub fn scan_running(&mut self, now: Timestamp, events: &mut Vec<TrailEvent>) {
        let subjects = self.attribution.scan();
        for subject in &subjects {
            events.push(self.exec_event(now, *subject));
        }
        for subject in subjects {
            if subject.pid != self.sensor.own_pid {
                // Answered before what it holds, so that this is known with it.
                self.request_trust(now, subject);
                self.reads.request_process(now, subject);
            }
        }
    }

    /// Takes what a process had before it was observed. Its files are read like those that it opens
    /// now, and its connections follow after them.
    pub(super) fn take_process(
        &mut self,
        time: Timestamp,
        subject: Subject,
        answer: ProcessAnswer,
        events: &mut Vec<TrailEvent>,
    ) {
        if self.attribution.may_be_in_job(subject) {
            self.take_job(subject, answer.environment.ci_job, false);
        }
        let tenant = self.attribution.tenant(subject);
        let found = self
            .credentials
            .in_environment(&tenant, &answer.environment.variables);
        if !found.is_empty() {
            self.request_declarations(time, subject);
        }
        self.pick_up_variables(time, subject, found, events);
        self.learn_places(subject, &[], answer.environment.places);
        let task = self.attribution.task_info(subject, time);
        let files = answer.files.into_iter().map(|(path, file)| {
            Observation::FileOpened(ObservedOpen {
                task: task.clone(),
                path: path.into_path(),
                source: None,
                file,
                // The reader has left out file systems that may not respond.
                magic: 0,
                known: false,
                kind: OpenKind::Opened,
                count: 1,
                output: StdoutPipe::default(),
            })
        });
        self.reads.queue.extend(files);
        let connections = answer.connections.into_iter().map(|(inode, to)| {
            Observation::Running(RunningConnection {
                task: task.clone(),
                inode,
                address: to.address,
                port: to.port,
                transport: to.transport,
            })
        });
        self.reads.queue.extend(connections);
    }

    /// A connection that existed before the agent.
    pub(super) fn running_connection(
        &mut self,
        connection: &RunningConnection,
        events: &mut Vec<TrailEvent>,
    ) {
        let RunningConnection {
            task,
            inode,
            address,
            port,
            transport,
        } = connection;
        events.push(TrailEvent::Connect {
            time: task.time,
            actor: self.actor(task.subject),
            // No cookie is that large.
            connection: inode | 1 << 63,
            destination: self.destination(task.time, *address, *port, *transport),
            stdin: None,
        });
    }

    /// Files that an earlier run knew: their opens are reported, whatever their name.
    pub(super) fn take_recovered(&mut self, files: Vec<RecoveredFile>) {
        tracing::debug!(files = files.len(), "credential files recovered");
        for found in files {
            self.credentials.recovered(&found);
            self.wanted.learn.push(found.file);
        }
    }
}
