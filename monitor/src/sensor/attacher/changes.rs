//! Watches files and mounts for changes.

use super::AttachRequest;
use crate::host::descriptor_path;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::inotify,
};
use std::{
    collections::HashSet,
    fs::File,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, mpsc::Sender},
};

/// Watches files and mounts for changes, in a thread that sends requests to the attacher.
pub(super) struct FileChangeWatcher {
    /// Absent if the kernel provides none; then only the periodic sweep detects changes.
    inotify: Option<Arc<OwnedFd>>,
}

impl FileChangeWatcher {
    pub fn start(commands: &Sender<AttachRequest>) -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC;
        let inotify = match inotify::init(flags) {
            Ok(inotify) => Some(Arc::new(inotify)),
            Err(error) => {
                tracing::warn!(%error, "changes of files with TLS probes are detected late: no inotify instance available");
                None
            }
        };
        let (events, commands) = (inotify.clone(), commands.clone());
        let mounts = File::open("/proc/self/mountinfo")?;
        std::thread::Builder::new()
            .name("file-changes".to_owned())
            .spawn(move || follow_changes(events.as_deref(), &mounts, &commands))?;
        Ok(Self { inotify })
    }

    /// Watches a file; returns the number by which its changes are reported.
    pub fn follow(&self, file: &File) -> Option<i32> {
        use inotify::WatchFlags;
        let flags = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::DELETE_SELF;
        inotify::add_watch(self.inotify.as_ref()?, descriptor_path(file), flags).ok()
    }

    pub fn forget(&self, change: i32) {
        if let Some(inotify) = &self.inotify {
            // The watch may have been removed along with its file.
            let _ = inotify::remove_watch(inotify, change);
        }
    }
}

/// Waits for changes until the attacher ends.
fn follow_changes(inotify: Option<&OwnedFd>, mounts: &File, commands: &Sender<AttachRequest>) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    loop {
        let mut descriptors = vec![PollFd::from_borrowed_fd(mounts.as_fd(), PollFlags::PRI)];
        descriptors.extend(inotify.map(|inotify| PollFd::new(inotify, PollFlags::IN)));
        if let Err(error) = poll(&mut descriptors, None)
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "stopped watching files and mounts for changes");
            return;
        }
        let ready = |index: usize| {
            descriptors
                .get(index)
                .is_some_and(|descriptor| !descriptor.revents().is_empty())
        };
        let mut sent = Ok(());
        if ready(0) {
            sent = commands.send(AttachRequest::MountsChanged);
        }
        if ready(1)
            && let Some(inotify) = inotify
        {
            let mut changed = HashSet::new();
            let mut events = inotify::Reader::new(inotify, &mut buffer);
            // A single read: the reader would block for the next event.
            while let Ok(event) = events.next() {
                changed.insert(event.wd());
                if events.is_buffer_empty() {
                    break;
                }
            }
            sent = sent.and(commands.send(AttachRequest::Changed(changed)));
        }
        if sent.is_err() {
            return;
        }
    }
}
