//! Credential files that a process inherits at exec.

use crate::{
    file::open::{is_learned, key_of},
    support::{
        kernel::{field, file_system_magic, read},
        maps::BloomFilter,
        repeats::repeat_count,
        ring::Ring,
        task::{self, HookContext, fill_header},
    },
};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use core::mem::MaybeUninit;
use monitor_common::{
    fields::FieldId,
    filter,
    map::{INODE_CREDENTIAL, ReadKey},
    record::{BY_INODE, FileRecord, INHERITED, Probe, kind},
};

/// Descriptors examined at exec. Every descriptor table has room for more.
const DESCRIPTORS_MAX: usize = 8;

/// Hook: raw tracepoint `sched_process_exec`, after the record of the exec: credential files that the new program has open already.
/// Missed: descriptors above 7, and files not known as credentials.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn file_inherited(_: RawTracePointContext) -> i32 {
    report_descriptors();
    0
}

/// Reports known credential files among the first descriptors of a process that has just called
/// exec. Most stop at the filter.
#[inline(always)]
fn report_descriptors() {
    let files: [u64; DESCRIPTORS_MAX] = read(task::descriptors(HookContext::Tracing));
    for file in files {
        if file != 0 {
            report_inherited(file);
        }
    }
}

/// A separate function, so that the verifier forgets its state and does not continue from each of
/// its exits.
#[inline(never)]
fn report_inherited(file: u64) {
    let Some(inodes) = BloomFilter::inodes() else {
        return;
    };
    let inode: u64 = field(file, FieldId::FileInode);
    let number: u64 = field(inode, FieldId::InodeIno);
    if inodes.contains(filter::inode_key(number)) {
        report_known_inode(inode, number);
    }
}

/// Reports a file recognised by its inode only.
#[inline(always)]
fn report_known_inode(inode: u64, number: u64) {
    let key = key_of(inode, number);
    if is_learned(key) != Some(INODE_CREDENTIAL) {
        return;
    }
    let mut record = MaybeUninit::<FileRecord>::uninit();
    // SAFETY: every field is written before it is read, and a FileRecord has no padding.
    let record = unsafe { &mut *record.as_mut_ptr() };
    fill_header(&mut record.header, kind::FILE, HookContext::Tracing);
    let seen = ReadKey {
        start: record.header.start,
        inode: key.inode,
        pid: record.header.pid,
        device: key.device,
    };
    if repeat_count(seen).is_none() {
        return;
    }
    record.inode = key.inode;
    record.stdout = 0;
    record.device = key.device;
    record.generation = key.generation;
    record.count = 1;
    record.flags = BY_INODE | INHERITED;
    record.path_len = 0;
    record.inside_len = 0;
    record.source_len = 0;
    record.magic = file_system_magic(inode) as u32;
    Ring::Credentials.send(Probe::File, record.header.owner(), record);
}
