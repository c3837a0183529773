//! Processes: exec, fork, exit, and reads of another process.

use super::Enricher;
use crate::sensor::observation::{ObservedExec, ObservedForeignRead, TaskInfo};
use jiff::Timestamp;
use monitor_core::{
    model::{Gap, Look, Subject},
    trail::TrailEvent,
};
use std::sync::Arc;

const SHELLS: [&str; 9] = [
    "sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "mksh", "busybox",
];

impl Enricher {
    pub(super) fn exec(&mut self, exec: &ObservedExec, events: &mut Vec<TrailEvent>) {
        let task = &exec.task;
        self.attribution.exec(task, &exec.exe, exec.unlinked);
        self.declarations.forget(task.subject);
        events.push(self.exec_event(task.time, task.subject));
    }

    pub(super) fn fork(&mut self, task: &TaskInfo, events: &mut Vec<TrailEvent>) {
        self.attribution.fork(task);
        events.push(TrailEvent::Fork {
            time: task.time,
            subject: task.subject,
            parent: task.parent,
        });
    }

    pub(super) fn exit(&mut self, task: &TaskInfo, events: &mut Vec<TrailEvent>) {
        self.attribution.exit(task);
        events.push(TrailEvent::Exit {
            time: task.time,
            subject: task.subject,
        });
    }

    pub(super) fn foreign_read(
        &mut self,
        read: &ObservedForeignRead,
        events: &mut Vec<TrailEvent>,
    ) {
        let task = &read.task;
        self.attribution.ensure(task);
        let victim = self
            .attribution
            .resolve_target(task.subject, read.target)
            .filter(|victim| *victim != task.subject);
        let Some(victim) = victim else { return };
        if victim.pid != self.sensor.own_pid {
            events.push(TrailEvent::Foreign {
                time: task.time,
                actor: self.actor(task.subject),
                victim: Box::new(self.actor(victim)),
                look: read.look,
            });
        } else if read.look != Look::Environ {
            // Listing processes reads environments.
            events.push(self.tampering_gap(task, read.look));
        }
    }

    /// A gap for a read of the agent's own memory: its later reports cannot be relied on.
    fn tampering_gap(&mut self, task: &TaskInfo, look: Look) -> TrailEvent {
        let actor = self.actor(task.subject);
        let how = match look {
            Look::Trace => "traced the agent",
            Look::Environ | Look::Memory => "opened the memory of the agent",
        };
        TrailEvent::Gap {
            gap: Gap {
                kind: "agent-tampered".to_owned(),
                probe: None,
                detail: format!(
                    "{} ({}, uid {}) {how}",
                    actor.workload.key(),
                    actor.process.exe,
                    actor.process.uid
                ),
                since: task.time,
                until: Some(task.time),
                count: 0,
                blind: true,
            },
        }
    }

    pub(super) fn exec_event(&self, time: Timestamp, subject: Subject) -> TrailEvent {
        let entry = self.attribution.entry(subject);
        let exe = entry.map(|entry| Arc::clone(&entry.exe));
        let name = exe
            .as_deref()
            .and_then(|exe| exe.rsplit('/').next())
            .unwrap_or_default();
        TrailEvent::Exec {
            time,
            subject,
            parent: self.attribution.parent(subject),
            boundary: entry.map_or_else(String::new, |entry| {
                format!("{} {}", entry.uid, entry.group.path)
            }),
            shell: SHELLS.contains(&name),
        }
    }
}
