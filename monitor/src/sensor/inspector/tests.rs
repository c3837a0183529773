use super::*;
use crate::{observed::mapping::FileKey, sensor::known_files::FileWatch};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
};

fn mapping(inode: u64, pid: u32) -> ProcessMapping {
    ProcessMapping {
        pid,
        file: MappedFile {
            major: 8,
            minor: 1,
            inode,
            generation: 0,
        },
        address: 0,
        size: 0,
        offset: 0,
        path: PathBuf::from("/x"),
    }
}

#[test]
fn waiting_files_are_bounded_and_unique() {
    let known = KnownFiles::default();
    let (requests, received) = channel();
    let (attacher, _told) = channel();
    let report = |inode| report(&known, &requests, &attacher, mapping(inode, 7), 0);
    let waiting = WAITING_MAX as u64;
    for inode in 0..waiting {
        assert_eq!(report(inode), MappingReport::Done);
        assert_eq!(report(inode), MappingReport::Done);
    }
    assert_eq!(report(waiting), MappingReport::NoRoom);
    assert_eq!(received.try_iter().count(), WAITING_MAX);
    // An inspected file makes room.
    known.set_nothing_found(mapping(0, 7).file);
    assert_eq!(report(waiting), MappingReport::Done);
    assert_eq!(report(0), MappingReport::Done);
    assert_eq!(received.try_iter().count(), 1, "the other is known");
}

#[test]
fn an_attached_file_is_reported_per_process_if_needed() {
    let known = KnownFiles::default();
    let (requests, received) = channel();
    let (attacher, attach_requests) = channel();
    let watch = Arc::new(FileWatch {
        key: FileKey {
            device: 1,
            inode: 2,
        },
        last_mapped: AtomicU64::new(0),
        by_process: AtomicBool::new(false),
    });
    known.set_watched(mapping(2, 7).file, &watch);
    let report = |now| report(&known, &requests, &attacher, mapping(2, 7), now);
    assert_eq!(report(5), MappingReport::Done);
    assert_eq!(watch.last_mapped.load(Ordering::Relaxed), 5);
    assert!(attach_requests.try_recv().is_err());
    watch.by_process.store(true, Ordering::Relaxed);
    assert_eq!(report(6), MappingReport::Done);
    assert!(matches!(
        attach_requests.try_recv(),
        Ok(AttachRequest::Mapped { pid: 7, .. })
    ));
    assert!(received.try_recv().is_err(), "it is not inspected again");
}
