//! Credential files opened for reading.

use crate::{
    kernel::{
        self, Block, S_IFREG, current_pid, field, fill_header, now, pick, pick32, read, read_to,
    },
    maps::{Bloom, CREDENTIAL_RING, INODES, RULES, count, is_agent, send},
    path,
};
use aya_ebpf::{
    EbpfContext as _,
    macros::{map, tracepoint},
    maps::{HashMap, PerCpuArray},
    programs::TracePointContext,
};
use monitor_common::{
    fields::F,
    filter::{self, Kind, NEEDS_PAIR},
    record::{
        BY_INODE, File, INODE_IGNORED, InodeKey, Probe, REPEAT_NS, ReadCount, ReadKey, Stage,
        TRUNCATED, kind,
    },
};

/// Repeated reads, counted here instead of being sent; the agent sweeps it. Where it is full,
/// every read is sent.
#[map]
static READS: HashMap<ReadKey, ReadCount> = HashMap::with_max_entries(16384, 1);

const FMODE_READ: u32 = 1;

/// Hook: `syscalls:sys_exit_open`, `_openat`, `_openat2`, `_open_by_handle_at`.
/// First kernel: any with `CONFIG_FTRACE_SYSCALLS`; it is the last resort of the ladder.
/// What it sees: the descriptor that the call returns, resolved to the kernel's own file.
/// Missed: opens by io_uring, descriptors received from another process, and a descriptor that
/// another thread closes before the call returns.
#[tracepoint]
pub fn file_open_exit(ctx: TracePointContext) -> u32 {
    // SAFETY: a syscall exit record has its return value at offset 16 on every kernel since
    // 5.10; the verifier checks the access against the record's size.
    let fd = unsafe { *ctx.as_ptr().byte_add(16).cast::<i64>() };
    if fd >= 0 {
        let task = kernel::current_task();
        opened(task, kernel::file_of(task, fd as u64));
    }
    0
}

/// The parts of an open file that are looked at.
#[repr(C)]
struct View {
    file: Block,
    inode: Block,
    dentry: path::Dentry,
    parent: path::Dentry,
    grandparent: path::Dentry,
    /// The first bytes of a name that is not inside its dentry.
    name: [u64; 4],
    parent_name: [u64; 4],
    grandparent_name: [u64; 4],
}

#[map]
static FILE_VIEW: PerCpuArray<View> = PerCpuArray::with_max_entries(1, 0);

/// What every hook of this family does with an open file.
#[inline(always)]
fn opened(task: u64, file: u64) {
    let Some(view) = FILE_VIEW.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the view is this CPU's own and not used by another program meanwhile.
    let view = unsafe { &mut *view };
    if !read_to(&mut view.file, file) || pick32(&view.file, F::FileMode) & FMODE_READ == 0 {
        return;
    }
    if !read_to(&mut view.inode, pick(&view.file, F::FileInode))
        || kernel::file_type(&view.inode) != S_IFREG
    {
        return;
    }
    let address = pick(&view.file, F::FileDentry);
    if !read_to(&mut view.dentry, path::dentry_at(address)) {
        return;
    }
    let parent = view.dentry[0];
    if !read_to(&mut view.parent, path::dentry_at(parent)) {
        return;
    }
    let grandparent = view.parent[0];
    if !read_to(&mut view.grandparent, path::dentry_at(grandparent)) {
        return;
    }
    let (Some(rules), Some(inodes)) = (Bloom::rules(), Bloom::inodes()) else {
        return;
    };
    let (Some(words), Some(parent_words), Some(grandparent_words)) = (
        name_words(address, &view.dentry, &mut view.name),
        name_words(parent, &view.parent, &mut view.parent_name),
        name_words(grandparent, &view.grandparent, &mut view.grandparent_name),
    ) else {
        count(Probe::File, Stage::Read);
        return;
    };
    let len = view.dentry[1] >> 32;
    let names = Names {
        name: filter::name_hash(words, len),
        parent: filter::name_hash(parent_words, view.parent[1] >> 32),
        grandparent: filter::name_hash(grandparent_words, view.grandparent[1] >> 32),
        first: words[0] as u32,
        last: last_four(words, len, view.dentry[2]),
        // A directory `..2024_11_24…` is the payload of a projected volume.
        projected: parent_words[0] & 0xffff == 0x2e2e,
    };
    let by_name = rules.has(filter::key(Kind::Name, names.name))
        || rules.has(filter::key(Kind::Suffix, u64::from(names.last)))
        || rules.has(filter::key(Kind::Prefix, u64::from(names.first)))
        || rules.has(filter::key(Kind::Parent, names.parent))
        || rules.has(filter::key(Kind::Parent, names.grandparent))
        || names.projected;
    let by_inode = inodes.has(filter::inode_key(pick(&view.inode, F::InodeIno)));
    if by_name || by_inode {
        suspect(task, &view.file, &view.inode, &names);
    }
}

/// What the rules look at.
struct Names {
    name: u64,
    parent: u64,
    grandparent: u64,
    first: u32,
    last: u32,
    projected: bool,
}

impl Names {
    /// Whether a rule really holds, after the filter said that one may.
    #[inline(always)]
    fn match_rules(&self) -> bool {
        let rule = |key: u64| {
            // SAFETY: the value is copied at once; rules are written before the probes attach
            // and replaced whole values at a time.
            unsafe { RULES.get(key) }.copied()
        };
        let by_name = match rule(filter::key(Kind::Name, self.name)) {
            Some(NEEDS_PAIR) => rule(filter::pair_key(self.parent, self.name)).is_some(),
            other => other.is_some(),
        };
        by_name
            || self.projected
            || rule(filter::key(Kind::Suffix, u64::from(self.last))).is_some()
            || rule(filter::key(Kind::Prefix, u64::from(self.first))).is_some()
            || rule(filter::key(Kind::Parent, self.parent)).is_some()
            || rule(filter::key(Kind::Parent, self.grandparent)).is_some()
    }
}

/// The exact look-ups, the count of repeats, and the record.
#[inline(always)]
fn suspect(task: u64, file: &Block, inode: &Block, names: &Names) {
    let pid = current_pid();
    if is_agent(pid) {
        return;
    }
    let address = pick(file, F::FileInode);
    let device: u32 = field(pick(inode, F::InodeSb), F::SbDev);
    let generation: u32 = field(address, F::InodeGeneration);
    let number = pick(inode, F::InodeIno);
    let key = InodeKey {
        inode: number,
        device,
        generation,
    };
    // SAFETY: the value is copied at once.
    let learned = unsafe { INODES.get(key) }.copied();
    let mut flags = 0;
    if learned.is_some() {
        if learned == Some(INODE_IGNORED) {
            return;
        }
        flags |= BY_INODE;
    } else if !names.match_rules() {
        return;
    }
    let (_, start) = kernel::subject(task);
    let mut repeats = 1;
    let read = ReadKey {
        start,
        inode: number,
        pid,
        device,
    };
    let time = now();
    if let Some(seen) = READS.get_ptr_mut(read) {
        // SAFETY: the pointer is into the map; threads of one process may race for a count,
        // and then one of them is sent with the other's.
        unsafe {
            (*seen).count += 1;
            if time.wrapping_sub((*seen).sent) < REPEAT_NS {
                return;
            }
            repeats = (*seen).count;
            (*seen).count = 0;
            (*seen).sent = time;
        }
    } else {
        let first = ReadCount {
            sent: time,
            count: 0,
            reserved: 0,
        };
        // Where the map is full the read is sent, and so is the next.
        let _ = READS.insert(read, first, 0);
    }
    let (path_len, cut) = path::write(pick(file, F::FileMnt), pick(file, F::FileDentry));
    if cut {
        flags |= TRUNCATED;
    }
    let Some(scratch) = path::scratch() else {
        return;
    };
    let record: &mut File = scratch.record();
    fill_header(&mut record.header, kind::FILE, task);
    record.inode = number;
    record.stdout = kernel::stream(task, 1);
    record.device = device;
    record.generation = generation;
    record.file_uid = field(address, F::InodeUid);
    record.count = repeats;
    record.flags = flags;
    record.path_len = path_len;
    let size = size_of::<File>() as u32 + path_len;
    // SAFETY: the record and the path after it are inside the scratch.
    unsafe {
        send(
            &CREDENTIAL_RING,
            Probe::File,
            core::ptr::from_ref(record).cast(),
            u64::from(kernel::bounded(size, RECORD_LIMIT)),
        );
    }
}

/// A record with the longest path that [`path::write`] gives.
const RECORD_LIMIT: u32 = 2048;

/// The first 32 bytes of a dentry's name: inside it where it is short.
#[inline(always)]
fn name_words<'a>(
    address: u64,
    dentry: &'a path::Dentry,
    outside: &'a mut [u64; 4],
) -> Option<&'a [u64; 4]> {
    if dentry[2] == address.wrapping_add(kernel::offset(F::DentryShort)) {
        return dentry.last_chunk();
    }
    read_to(outside, dentry[2]).then_some(outside)
}

/// The last four bytes of a name.
#[inline(always)]
fn last_four(words: &[u64; 4], len: u64, name: u64) -> u32 {
    if len < 4 {
        return 0;
    }
    let at = len - 4;
    if len > 32 {
        return read(name.wrapping_add(at));
    }
    let (low, high) = match at >> 3 {
        0 => (words[0], words[1]),
        1 => (words[1], words[2]),
        2 => (words[2], words[3]),
        _ => (words[3], 0),
    };
    let shift = (at & 7) * 8;
    ((low >> shift) | ((high << 1) << (63 - shift))) as u32
}
