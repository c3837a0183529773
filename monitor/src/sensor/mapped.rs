//! Files that processes map executable, as the kernel's perf events report them: every kernel has
//! these records, they come from the mapping itself, and they cost nothing while nothing is mapped.
//!
//! Hook: `PERF_RECORD_MMAP2` of a dummy software event on each CPU. First kernel: 3.16. Fallback:
//! the maps of running processes, read every few seconds, a declared gap. Missed: files mapped on a
//! CPU that came online after the last check.

use super::perf::{self, PerfAttributes, PerfTarget};
use crate::observed::mapping::{MappedFile, ProcessMapping};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};
use thiserror::Error;

/// Size of each CPU's ring in bytes; a record has a few hundred.
const RING_BYTES: usize = 64 << 10;

/// Why mappings are not reported.
#[derive(Debug, Error)]
pub enum MappedError {
    #[error("cannot read the list of CPUs: {0}")]
    Processors(io::Error),
    #[error("the kernel rejects the event: {0}")]
    Refused(io::Error),
    #[error("cannot map memory for the records: {0}")]
    Memory(io::Error),
}

/// Reads the records of all CPUs.
#[derive(Debug)]
pub struct MappingReader {
    rings: BTreeMap<u32, PerfRing>,
    /// Records lost because a ring was full.
    lost: u64,
}

impl MappingReader {
    pub fn open() -> Result<Self, MappedError> {
        let mut mappings = Self {
            rings: BTreeMap::new(),
            lost: 0,
        };
        mappings.follow_processors()?;
        Ok(mappings)
    }

    /// Opens the records of CPUs that came online since the last call.
    pub fn follow_processors(&mut self) -> Result<(), MappedError> {
        let online = std::fs::read_to_string("/sys/devices/system/cpu/online")
            .map_err(MappedError::Processors)?;
        for processor in parse_number_list(&online) {
            if self.rings.contains_key(&processor) {
                continue;
            }
            match PerfRing::open(processor) {
                Ok(ring) => {
                    self.rings.insert(processor, ring);
                }
                // The CPU may have gone offline.
                Err(MappedError::Refused(error)) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The descriptors to poll.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.values().map(|ring| ring.event.as_fd())
    }

    /// Calls `visit` with each mapping reported since the last call.
    pub fn drain(&mut self, mut visit: impl FnMut(ProcessMapping)) {
        let lost = &mut self.lost;
        for ring in self.rings.values_mut() {
            ring.drain(|record| match record {
                MappingRecord::Mapped(mapping) => visit(mapping),
                MappingRecord::Lost(count) => *lost += count,
            });
        }
    }

    /// Number of records lost since the last call.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}

#[derive(Debug)]
struct PerfRing {
    event: OwnedFd,
    /// The kernel's control page for the ring, then the ring.
    pages: NonNull<u8>,
    page: usize,
    record: Vec<u8>,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for PerfRing {}

impl PerfRing {
    fn open(processor: u32) -> Result<Self, MappedError> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        const SOFTWARE: u32 = 1;
        const DUMMY: u64 = 9;
        const MMAP: u64 = 1 << 8;
        const WATERMARK: u64 = 1 << 14;
        const MMAP2: u64 = 1 << 23;
        let attributes = PerfAttributes {
            config: DUMMY,
            flags: MMAP | MMAP2 | WATERMARK,
            // Any byte wakes the reader.
            wakeup: 1,
            ..PerfAttributes::new(SOFTWARE)
        };
        let event = perf::open(&attributes, PerfTarget::Processor(processor))
            .map_err(MappedError::Refused)?;
        let page = rustix::param::page_size();
        // SAFETY: a new mapping at an address chosen by the kernel aliases nothing.
        let pages = unsafe {
            mmap(
                std::ptr::null_mut(),
                page + RING_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &event,
                0,
            )
        };
        let pages = pages.map_err(|error| MappedError::Memory(error.into()))?;
        let pages = NonNull::new(pages.cast())
            .ok_or_else(|| MappedError::Memory(io::ErrorKind::OutOfMemory.into()))?;
        Ok(Self {
            event,
            pages,
            page,
            record: Vec::new(),
        })
    }

    /// A position in the ring, written by the kernel (`data_head`) or the reader (`data_tail`).
    fn position(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the first page is a `struct perf_event_mmap_page`, which has these two 64-bit
        // numbers at 1024 and 1032, and is mapped as long as this value lives.
        unsafe { AtomicU64::from_ptr(self.pages.as_ptr().add(offset).cast()) }
    }

    fn drain(&mut self, mut visit: impl FnMut(MappingRecord)) {
        const HEAD: usize = 1024;
        const TAIL: usize = 1032;
        const HEADER: usize = 8;
        let head = self.position(HEAD).load(Ordering::Acquire);
        let mut tail = self.position(TAIL).load(Ordering::Relaxed);
        while head.wrapping_sub(tail) >= HEADER as u64 {
            let mut header = [0; HEADER];
            self.copy(tail, &mut header);
            let [a, b, c, d, _, _, low, high] = header;
            let size = usize::from(u16::from_le_bytes([low, high]));
            if size < HEADER {
                // The kernel writes no such record; continuing would interpret arbitrary bytes.
                tail = head;
                break;
            }
            let mut record = std::mem::take(&mut self.record);
            record.resize(size, 0);
            self.copy(tail, &mut record);
            if let Some(found) = parse(u32::from_le_bytes([a, b, c, d]), &record[HEADER..]) {
                visit(found);
            }
            self.record = record;
            tail = tail.wrapping_add(size as u64);
        }
        self.position(TAIL).store(tail, Ordering::Release);
    }

    /// Copies bytes out of the ring, across its end if needed.
    fn copy(&self, from: u64, into: &mut [u8]) {
        let start = (from % RING_BYTES as u64) as usize;
        let first = into.len().min(RING_BYTES - start);
        let (before, after) = into.split_at_mut(first);
        // SAFETY: both ranges are in the ring, which begins after the first page; the kernel does
        // not write there before the tail has passed.
        unsafe {
            let ring = self.pages.as_ptr().add(self.page);
            std::ptr::copy_nonoverlapping(ring.add(start), before.as_mut_ptr(), before.len());
            std::ptr::copy_nonoverlapping(ring, after.as_mut_ptr(), after.len());
        }
    }
}

impl Drop for PerfRing {
    fn drop(&mut self) {
        let pages = self.pages.as_ptr().cast();
        // SAFETY: this value owns the mapping, and nothing refers to it any more.
        let unmapped = unsafe { rustix::mm::munmap(pages, self.page + RING_BYTES) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "cannot unmap the records of mapped files");
        }
    }
}

/// The contents of a record.
#[derive(Debug, PartialEq, Eq)]
enum MappingRecord {
    Mapped(ProcessMapping),
    Lost(u64),
}

/// Parses the body of a record. Returns `None` for anonymous mappings and other record types.
fn parse(kind: u32, body: &[u8]) -> Option<MappingRecord> {
    const LOST: u32 = 2;
    const MMAP2: u32 = 10;
    /// Offset of the path.
    const PATH_OFFSET: usize = 64;
    let number = |at: usize| -> Option<u64> {
        Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?))
    };
    let half = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?))
    };
    match kind {
        LOST => Some(MappingRecord::Lost(number(8)?)),
        MMAP2 => {
            let inode = number(40)?;
            let path = body.get(PATH_OFFSET..)?;
            let end = path.iter().position(|byte| *byte == 0)?;
            (inode != 0 && path.first() == Some(&b'/')).then(|| {
                Some(MappingRecord::Mapped(ProcessMapping {
                    pid: half(0)?,
                    address: number(8)?,
                    size: number(16)?,
                    offset: number(24)?,
                    file: MappedFile {
                        major: half(32)?,
                        minor: half(36)?,
                        inode,
                        generation: number(48)?,
                    },
                    path: PathBuf::from(OsStr::from_bytes(&path[..end])),
                }))
            })?
        }
        _ => None,
    }
}

/// Parses a list of numbers such as `0-3,6`.
fn parse_number_list(list: &str) -> Vec<u32> {
    /// More CPUs than any kernel supports.
    const PROCESSORS_MAX: u32 = 8192;
    let mut all = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            all.extend(first..=last.min(PROCESSORS_MAX));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(parse_number_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(parse_number_list("0"), [0]);
        assert!(parse_number_list("").is_empty());
        assert!(parse_number_list("4-1").is_empty());
    }

    proptest! {
        #[test]
        fn any_record(kind in prop_oneof![Just(2u32), Just(10), any::<u32>()], body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(kind, &body);
        }

        #[test]
        fn any_list(list in "[0-9,-]{0,20}") {
            let _ = parse_number_list(&list);
        }
    }
}
