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

/// What was read in a file by a process, which may read it again.
#[derive(Debug)]
pub(super) struct FileReads {
    credentials: Vec<Arc<Credential>>,
    place: Place,
    volume_of: Option<String>,
    modified: Option<Timestamp>,
    /// It belongs to the reader.
    is_own: bool,
    in_mounted_home: bool,
}

/// The magic number of overlay file systems, which the roots of containers are.
const OVERLAY: u32 = 0x794c_7630;

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
        let reads = Arc::new(FileReads {
            credentials: found.credentials,
            place: found.place,
            volume_of: found.volume_of,
            modified: found.modified,
            is_own,
            in_mounted_home: self.is_in_mounted_home(open),
        });
        self.repeated.insert(key, Arc::clone(&reads));
        let count = u64::from(open.count);
        self.pick_up_file(
            open.task.time,
            subject,
            &reads,
            (count, open.output),
            events,
        );
    }

    /// What a process picks up with a read of a file.
    fn pick_up_file(
        &mut self,
        time: Timestamp,
        subject: Subject,
        reads: &FileReads,
        (count, output): (u64, StdoutPipe),
        events: &mut Vec<TrailEvent>,
    ) {
        for credential in &reads.credentials {
            let (credential, place) = (Arc::clone(credential), reads.place.clone());
            let mut picked_up = self.pick_up(time, subject, credential, place, count, output);
            if let Some(uid) = &reads.volume_of {
                picked_up.home = self.attribution.pod_workload(uid).map(Box::new);
                picked_up.volume_of = Some(uid.clone());
            }
            picked_up.modified = reads.modified;
            picked_up.given |= reads.is_own;
            picked_up.in_mounted_home = reads.in_mounted_home;
            events.push(TrailEvent::PickUp(Box::new(picked_up)));
        }
    }

    /// Whether a container has a file from a home directory of the host.
    fn is_in_mounted_home(&self, open: &ObservedOpen) -> bool {
        let path = open.source.as_ref().unwrap_or(&open.path);
        let is_mounted = open.source.is_some() || open.magic != OVERLAY;
        is_mounted
            && !self.container_of(open.task.subject).is_empty()
            && self.attribution.is_in_home(path)
    }

    /// Whether the container of a process was running at a time; `false` on the host.
    fn was_running_at(&mut self, now: Timestamp, subject: Subject, time: Timestamp) -> bool {
        !self.container_of(subject).is_empty()
            && self
                .attribution
                .first_process(now, subject)
                .is_some_and(|first| self.attribution.started(first) <= time)
    }

    pub(super) fn file_repeated(&mut self, opens: RepeatedOpens, events: &mut Vec<TrailEvent>) {
        let Some(known) = self.repeated.peek(&opens.key).cloned() else {
            return;
        };
        let read = (u64::from(opens.count), StdoutPipe::default());
        self.pick_up_file(opens.time, opens.key.subject, &known, read, events);
    }
}
