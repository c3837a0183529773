//! Credential files that a process opens, receives or inherits.

use super::Enricher;
use crate::{
    credential::{CredentialFile, OpenedFile},
    reader::{ReadFailure, protocol::FileAnswer},
    sensor::observation::{ObservedOpen, OpenFileKey, OpenKind, RepeatedOpens, StdoutPipe},
};
use jiff::Timestamp;
use monitor_core::{
    model::{Credential, Place, Source, Subject},
    trail::TrailEvent,
};
use std::sync::Arc;

/// The credentials in a file, and its place; shared by all its readers.
pub(super) type FileReads = Arc<(Vec<Arc<Credential>>, Place)>;

/// Number of reads remembered for their repeats.
pub(super) const READS_CACHED: usize = 16_384;

impl Enricher {
    /// An opened file or socket whose contents are not needed.
    pub(super) fn file_opened(&mut self, open: &ObservedOpen, events: &mut Vec<TrailEvent>) {
        self.attribution.ensure(&open.task);
        match open.kind {
            OpenKind::Written => {
                let opened = OpenedFile {
                    path: &open.path,
                    source: open.source.as_deref(),
                    file: open.file,
                    magic: open.magic,
                };
                if self.credentials.written(opened) {
                    self.wanted.learn.push(open.file);
                }
            }
            OpenKind::Connected => self.socket_connected(open, events),
            OpenKind::Opened | OpenKind::Received | OpenKind::Inherited => {}
        }
    }

    /// A connection to a unix socket that serves credentials.
    fn socket_connected(&mut self, open: &ObservedOpen, events: &mut Vec<TrailEvent>) {
        let subject = open.task.subject;
        let container = self.container_of(subject);
        if let Some((credential, place)) = self.credentials.at_socket(&open.path, &container) {
            let picked_up = self.pick_up(
                open.task.time,
                subject,
                credential,
                place,
                u64::from(open.count),
                open.output,
            );
            events.push(TrailEvent::PickUp(Box::new(picked_up)));
        }
    }

    /// A file whose name or inode is a credential's is none.
    pub(super) fn not_a_credential(&mut self, open: &ObservedOpen) {
        // What the probe recognised as a credential's file remains one, whatever it contains now.
        if !open.known {
            self.wanted.ignore.push(open.file);
        }
    }

    /// A file at a place of credentials, with its contents.
    pub(super) fn file_read(
        &mut self,
        open: &ObservedOpen,
        source: Source,
        place: &CredentialFile,
        answer: Result<FileAnswer, ReadFailure>,
        events: &mut Vec<TrailEvent>,
    ) {
        let subject = open.task.subject;
        let alone = answer.as_ref().ok().and_then(|answer| answer.mounted_alone);
        let contents =
            answer.and_then(|answer| answer.contents.map_err(|_| ReadFailure::Unreadable));
        let was_read = contents.is_ok();
        if let Some(alone) = alone {
            self.attribution.set_mounted(subject, place.shown(), alone);
        }
        let tenant = self.attribution.tenant(subject);
        let Some(mut found) = self.credentials.in_file(&tenant, place, contents) else {
            // A file that could not be read this time may be a credential's.
            if was_read {
                self.not_a_credential(open);
            }
            return;
        };
        found.place.source = source;
        self.wanted.learn.push(open.file);
        let key = OpenFileKey {
            subject,
            device: open.file.device,
            inode: open.file.inode,
        };
        // A job in a container that wrote the file, such as a login before a build, has it on purpose.
        // What is mounted into it may be another's.
        let is_own = found.volume_of.is_none()
            && open.source.is_none()
            && found
                .modified
                .is_some_and(|modified| self.was_running_at(open.task.time, subject, modified));
        let known = Arc::new((found.credentials.clone(), found.place.clone()));
        self.repeated.insert(key, known);
        for credential in found.credentials {
            let mut picked_up = self.pick_up(
                open.task.time,
                subject,
                credential,
                found.place.clone(),
                u64::from(open.count),
                open.output,
            );
            if let Some(uid) = &found.volume_of {
                picked_up.home = self.attribution.pod_workload(uid).map(Box::new);
                picked_up.volume_of = Some(uid.clone());
            }
            picked_up.modified = found.modified;
            picked_up.given |= is_own;
            events.push(TrailEvent::PickUp(Box::new(picked_up)));
        }
    }

    /// Whether the container of a process was running at a time; `false` on the host.
    fn was_running_at(&mut self, now: Timestamp, subject: Subject, time: Timestamp) -> bool {
        !self.container_of(subject).is_empty()
            && self
                .first_process(now, subject)
                .is_some_and(|first| self.attribution.started(first) <= time)
    }

    pub(super) fn file_repeated(&mut self, opens: RepeatedOpens, events: &mut Vec<TrailEvent>) {
        let Some(known) = self.repeated.peek(&opens.key).cloned() else {
            return;
        };
        let (credentials, place) = &*known;
        for credential in credentials {
            let picked_up = self.pick_up(
                opens.time,
                opens.key.subject,
                credential.clone(),
                place.clone(),
                u64::from(opens.count),
                StdoutPipe::default(),
            );
            events.push(TrailEvent::PickUp(Box::new(picked_up)));
        }
    }
}
