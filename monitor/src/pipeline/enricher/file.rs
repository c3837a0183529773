//! Credential files that a process opens, receives or inherits.

use super::Enricher;
use crate::{
    credential::{MountView, OpenedFile},
    sensor::observation::{ObservedOpen, OpenFileKey, OpenKind, RepeatedOpens, StdoutPipe},
};
use monitor_core::{
    model::{Credential, Place, Source},
    trail::TrailEvent,
};
use std::sync::Arc;

/// The credentials in a file, and its place; shared by all its readers.
pub(super) type FileReads = Arc<(Vec<Credential>, Place)>;

/// Number of reads remembered for their repeats.
pub(super) const READS_CACHED: usize = 16_384;

impl Enricher {
    pub(super) fn file_opened(&mut self, open: &ObservedOpen, events: &mut Vec<TrailEvent>) {
        self.attribution.ensure(&open.task);
        let opened = OpenedFile {
            path: &open.path,
            source: open.source.as_deref(),
            file: open.file,
        };
        match open.kind {
            OpenKind::Written => {
                if self
                    .credentials
                    .written(opened.path, opened.source, open.file)
                {
                    self.wanted.learn.push(open.file);
                }
            }
            OpenKind::Connected => self.socket_connected(open, events),
            // Below its own parent it is still the parent's file: the trail knows that.
            OpenKind::Inherited if self.attribution.matches_parent(open.task.subject) => {}
            OpenKind::Inherited => self.file_read(open, opened, Source::Inherited, events),
            OpenKind::Received => self.file_read(open, opened, Source::Socket, events),
            OpenKind::Opened => self.file_read(open, opened, Source::File, events),
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

    fn file_read(
        &mut self,
        open: &ObservedOpen,
        opened: OpenedFile<'_>,
        source: Source,
        events: &mut Vec<TrailEvent>,
    ) {
        let subject = open.task.subject;
        let container = self.container_of(subject);
        let view = MountView {
            pid: subject.pid,
            // On the host, the path can be opened without another process's help.
            peer: (!container.is_empty())
                .then(|| self.attribution.live_peer(subject))
                .flatten(),
            container: &container,
        };
        let Some(mut found) = self.credentials.in_file(opened, view) else {
            // What the probe recognised as a credential's file remains one, whatever it contains
            // now.
            if !open.known {
                self.wanted.ignore.push(open.file);
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
        let known = Arc::new((found.credentials.clone(), found.place.clone()));
        self.reads.insert(key, known);
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
            events.push(TrailEvent::PickUp(Box::new(picked_up)));
        }
    }

    pub(super) fn file_repeated(&mut self, opens: RepeatedOpens, events: &mut Vec<TrailEvent>) {
        let Some(known) = self.reads.peek(&opens.key).cloned() else {
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
