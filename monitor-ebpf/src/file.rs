//! Credential files: opened, received from another process, inherited.

use crate::{
    kernel::{self, S_IFREG, field, now, read},
    maps::{
        Bloom, CREDENTIAL_RING, INODES, Looked, count, current_cgroup, is_agent, lost, rule, send,
    },
    memory,
    path::{Walk, mounted_at},
    task::{self, Hooked, current_pid, fill_header},
    view::{Copied, Dentry, Direct, Memory, OpenFile},
};
use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, kprobe, lsm, map, tracepoint},
    maps::HashMap,
    programs::{FEntryContext, LsmContext, ProbeContext, TracePointContext},
};
use core::mem::MaybeUninit;
use monitor_common::{
    fields::{ABSENT, F},
    filter::{self, Kind, NEEDS_PAIR, OF_PROCESS},
    record::{
        BY_INODE, File, INHERITED, INODE_CREDENTIAL, INODE_IGNORED, InodeKey, OF_WRITES,
        PARENTS_OUTPUT, Probe, RECEIVED, REPEAT_NS, ReadCount, ReadKey, Stage, TRUNCATED, WRITTEN,
        kind,
    },
};

/// Repeated reads, counted here instead of being sent; the agent sweeps it. Where it is full,
/// every read is sent.
#[map]
static READS: HashMap<ReadKey, ReadCount> = HashMap::with_max_entries(16384, 0);

const FMODE_READ: u32 = 1;
const FMODE_WRITE: u32 = 2;
/// The file below an overlay's: the overlay's own open is seen as well, and is the one that counts.
const FMODE_NOACCOUNT: u32 = 0x2000_0000;

/// Hook: `lsm/file_open(file)`. First kernel: 5.7, with `bpf` in the list of active LSMs; without
/// it the program attaches and never fires. Fallback: [`file_open_fentry`].
/// Missed: opens that another LSM refuses, which are no uses. Never refuses.
#[lsm(hook = "file_open")]
pub fn file_open_lsm(ctx: LsmContext) -> i32 {
    opened::<Direct>(ctx.arg(0), 0);
    0
}

/// Hook: `fentry/security_file_open(file)`, which every open passes, io_uring's too.
/// First kernel: 5.5 on x86_64, 6.0 on aarch64. Fallback: [`file_open_kprobe`].
/// Missed: nothing; an open that is refused a moment later is reported.
#[fentry(function = "security_file_open")]
pub fn file_open_fentry(ctx: FEntryContext) -> i32 {
    opened::<Direct>(ctx.arg(0), 0);
    0
}

/// Hook: `kprobe/security_file_open(file)`. First kernel: 5.10 and before.
/// Fallback: [`file_open_exit`] with [`file_open_uring`]. Missed: as [`file_open_fentry`].
#[kprobe]
pub fn file_open_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(file) = ctx.arg(0) {
        opened::<Copied>(file, 0);
    }
    0
}

/// Hook: `syscalls:sys_exit_open`, `_openat`, `_openat2`, `_open_by_handle_at`.
/// First kernel: any with `CONFIG_FTRACE_SYSCALLS`; it is the last resort of the ladder.
/// What it sees: the descriptor that the call returns, resolved to the kernel's own file.
/// Missed: descriptors received from another process, and a descriptor that another thread
/// closes before the call returns.
#[tracepoint]
pub fn file_open_exit(ctx: TracePointContext) -> u32 {
    // SAFETY: a syscall exit record has its return value at offset 16 on every kernel since
    // 5.10; the verifier checks the access against the record's size.
    let fd = unsafe { *ctx.as_ptr().byte_add(16).cast::<i64>() };
    if fd >= 0 {
        opened::<Copied>(task::file_of(fd as u64, Hooked::Tracing), 0);
    }
    0
}

/// Where the record of `io_uring:io_uring_complete` has its request and its result; 0 where this
/// kernel has none. Set by the agent before load, from the description of the tracepoint.
#[unsafe(no_mangle)]
static URING: [u32; 2] = [0; 2];

const IORING_OP_OPENAT: u8 = 18;
const IORING_OP_OPENAT2: u8 = 28;

/// Hook: `io_uring:io_uring_complete`, beside [`file_open_exit`]. First kernel: 5.19, where the
/// record first names the request. Missed: opens into a direct descriptor of the ring.
#[tracepoint]
pub fn file_open_uring(ctx: TracePointContext) -> u32 {
    // SAFETY: both reads are inside the array; volatile, because the agent overrides it.
    let (request, result) = unsafe {
        (
            core::ptr::read_volatile(&raw const URING[0]),
            core::ptr::read_volatile(&raw const URING[1]),
        )
    };
    if request == 0 || result == 0 || kernel::offset(F::IoRequestOpcode) == u64::from(ABSENT) {
        return 0;
    }
    // A place that is not known at build time can only be read through the helper.
    let record = ctx.as_ptr() as u64;
    let fd: i32 = read(record.wrapping_add(u64::from(result)));
    let request: u64 = read(record.wrapping_add(u64::from(request)));
    let opcode: u8 = field(request, F::IoRequestOpcode);
    if fd >= 0 && (opcode == IORING_OP_OPENAT || opcode == IORING_OP_OPENAT2) {
        opened::<Copied>(task::file_of(fd as u64, Hooked::Tracing), 0);
    }
    0
}

/// Hook: `lsm/file_receive(file)`: a descriptor from a socket, from `pidfd_getfd`, from binder.
/// First kernel: 5.7, as [`file_open_lsm`]. Fallback: [`file_receive_fentry`].
#[lsm(hook = "file_receive")]
pub fn file_receive_lsm(ctx: LsmContext) -> i32 {
    opened::<Direct>(ctx.arg(0), RECEIVED);
    0
}

/// Hook: `fentry/security_file_receive(file)`. Fallback: [`file_receive_kprobe`].
#[fentry(function = "security_file_receive")]
pub fn file_receive_fentry(ctx: FEntryContext) -> i32 {
    opened::<Direct>(ctx.arg(0), RECEIVED);
    0
}

/// Hook: `kprobe/security_file_receive(file)`. Fallback: none, a declared gap.
#[kprobe]
pub fn file_receive_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(file) = ctx.arg(0) {
        opened::<Copied>(file, RECEIVED);
    }
    0
}

/// Descriptors looked at when a process becomes another program. A table has room for more.
const DESCRIPTORS: usize = 8;

/// Reports the known credential files among the first descriptors of a process that has just
/// become another program. Most end at the filter.
#[inline(always)]
pub fn inherited() {
    let files: [u64; DESCRIPTORS] = read(task::descriptors(Hooked::Tracing));
    for file in files {
        if file != 0 {
            inherit(file);
        }
    }
}

/// A function of its own: the verifier forgets what went on in it, and does not walk on from each
/// of its ends.
#[inline(never)]
fn inherit(file: u64) {
    let Some(inodes) = Bloom::inodes() else {
        return;
    };
    let inode: u64 = field(file, F::FileInode);
    let number: u64 = field(inode, F::InodeIno);
    if inodes.has(filter::inode_key(number)) {
        known(inode, number);
    }
}

/// Reports a file that is known by its inode, and so to the agent by its path.
#[inline(always)]
fn known(inode: u64, number: u64) {
    let key = key_of(inode, number);
    if learned(key) != Some(INODE_CREDENTIAL) {
        return;
    }
    let mut record = MaybeUninit::<File>::uninit();
    // SAFETY: every field is written before it is read, and a File has no padding.
    let record = unsafe { &mut *record.as_mut_ptr() };
    fill_header(&mut record.header, kind::FILE, Hooked::Tracing);
    let seen = ReadKey {
        start: record.header.start,
        inode: key.inode,
        pid: record.header.pid,
        device: key.device,
    };
    if repeated(seen).is_none() {
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
    record.reserved = 0;
    // SAFETY: the record is initialised above.
    unsafe {
        send(
            &CREDENTIAL_RING,
            Probe::File,
            record.header.cgroup,
            core::ptr::from_ref(record).cast(),
            size_of::<File>() as u64,
        );
    }
}

#[inline(always)]
fn key_of(inode: u64, number: u64) -> InodeKey {
    let sb: u64 = field(inode, F::InodeSb);
    InodeKey {
        inode: number,
        device: field(sb, F::SbDev),
        generation: field(inode, F::InodeGeneration),
    }
}

/// What every hook of this family does with an open file.
#[inline(always)]
fn opened<M: Memory>(address: u64, flags: u32) {
    // Most files are opened again and again. As little is read of them as tells which they are.
    let looked = Looked::at(|base| {
        let [mount, dentry] = M::path(address);
        let [parent, name, inode] = M::identity(dentry);
        [
            M::number(mount, base),
            M::number(dentry, base),
            M::number(parent, base),
            name,
            M::number(inode, base),
        ]
    });
    let Some(looked) = looked else {
        return;
    };
    if looked.before() {
        return;
    }
    let file = M::file(address);
    if file.mode & (FMODE_READ | FMODE_WRITE) == 0 || file.mode & FMODE_NOACCOUNT != 0 {
        return;
    }
    let (format, number) = M::inode(file.inode);
    if format != S_IFREG || !look_at::<M>(&file, number, flags) {
        looked.remember();
    }
}

/// Reports a file where a rule is about it; `false` where none is.
#[inline(always)]
pub fn look_at<M: Memory>(file: &OpenFile, number: u64, flags: u32) -> bool {
    let (Some(rules), Some(inodes)) = (Bloom::rules(), Bloom::inodes()) else {
        return true;
    };
    let dentry = M::dentry(file.dentry);
    let parent = M::dentry(dentry.parent);
    let grandparent = M::dentry(parent.parent);
    let mut names = Names::of(&dentry, &parent, &grandparent);
    if !names.may_match(rules) && !inodes.has(filter::inode_key(number)) {
        let root = M::mount_root(file.mount);
        if root != file.dentry && root != dentry.parent {
            return false;
        }
        match mounted(file, root == file.dentry, &dentry) {
            Some(there) if there.may_match(rules) => names = there,
            _ => return false,
        }
    }
    suspect(file, number, &names, flags);
    true
}

/// A file that is mounted itself, or lies at the root of a mount, has another name there.
#[inline(always)]
fn mounted(file: &OpenFile, itself: bool, dentry: &Dentry) -> Option<Names> {
    let (_, point) = mounted_at(file.mount)?;
    let point = Copied::dentry(point);
    let above = Copied::dentry(point.parent);
    Some(if itself {
        Names::of(&point, &above, &Copied::dentry(above.parent))
    } else {
        Names::of(dentry, &point, &above)
    })
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
    #[inline(always)]
    fn of(dentry: &Dentry, parent: &Dentry, grandparent: &Dentry) -> Self {
        Self {
            name: filter::name_hash(&dentry.words, dentry.len),
            parent: filter::name_hash(&parent.words, parent.len),
            grandparent: filter::name_hash(&grandparent.words, grandparent.len),
            first: dentry.words[0] as u32,
            last: last_four(dentry),
            // A directory `..2024_11_24…` is the payload of a projected volume.
            projected: parent.words[0] & 0xffff == 0x2e2e,
        }
    }

    /// Whether a rule may hold; cheap. All are tested, as a branch at each would double the ways
    /// that the verifier walks.
    #[inline(always)]
    fn may_match(&self, rules: Bloom) -> bool {
        rules.has(filter::key(Kind::Name, self.name))
            | rules.has(filter::key(Kind::Suffix, u64::from(self.last)))
            | rules.has(filter::key(Kind::Prefix, u64::from(self.first)))
            | rules.has(filter::key(Kind::Parent, self.parent))
            | rules.has(filter::key(Kind::Parent, self.grandparent))
            | self.projected
    }

    /// Whether a rule really holds, after the filter said that one may.
    #[inline(always)]
    fn matched(&self) -> Matched {
        let by_name = match rule(filter::key(Kind::Name, self.name)) {
            Some(OF_PROCESS) => return Matched::OfProcess,
            Some(NEEDS_PAIR) => rule(filter::pair_key(self.parent, self.name)).is_some(),
            other => other.is_some(),
        };
        let credential = by_name
            || self.projected
            || rule(filter::key(Kind::Suffix, u64::from(self.last))).is_some()
            || rule(filter::key(Kind::Prefix, u64::from(self.first))).is_some()
            || rule(filter::key(Kind::Parent, self.parent)).is_some()
            || rule(filter::key(Kind::Parent, self.grandparent)).is_some();
        if credential {
            Matched::Credential
        } else {
            Matched::Nothing
        }
    }
}

/// What the exact rules say of a name.
#[derive(PartialEq, Eq)]
enum Matched {
    Nothing,
    Credential,
    OfProcess,
}

/// What the agent has noted of an inode. It cannot read the generation of every file system: what it
/// found again after a restart may be noted without one.
#[inline(always)]
fn learned(key: InodeKey) -> Option<u32> {
    // SAFETY: the value is copied at once.
    let exact = unsafe { INODES.get(key) }.copied();
    if exact.is_some() {
        return exact;
    }
    let any = InodeKey {
        generation: 0,
        ..key
    };
    // SAFETY: as above.
    let found = unsafe { INODES.get(any) }.copied();
    // To be ignored is said of one very file.
    found.filter(|value| *value == INODE_CREDENTIAL)
}

/// The exact look-ups, the count of repeats, and the record.
#[inline(always)]
fn suspect(file: &OpenFile, number: u64, names: &Names, mut flags: u32) {
    let key = key_of(file.inode, number);
    let learned = learned(key);
    if learned.is_some() {
        if learned == Some(INODE_IGNORED) {
            return;
        }
        flags |= BY_INODE;
    } else {
        match names.matched() {
            Matched::Credential => {}
            Matched::OfProcess => {
                memory::of_process(file.inode, names.first);
                return;
            }
            Matched::Nothing => return,
        }
    }
    tell(file, key, flags);
}

/// Reports a credential file, unless it was reported a moment ago.
#[inline(always)]
fn tell(file: &OpenFile, key: InodeKey, mut flags: u32) {
    let pid = current_pid();
    if is_agent(pid) {
        return;
    }
    // A file that is written and then read is no read that is repeated.
    let mut of = pid;
    if file.mode & FMODE_READ == 0 {
        flags |= WRITTEN;
        of |= OF_WRITES;
    }
    let seen = ReadKey {
        start: task::start(Hooked::Tracing),
        inode: key.inode,
        pid: of,
        device: key.device,
    };
    let Some(repeats) = repeated(seen) else {
        return;
    };
    report(file, key, repeats, flags);
}

/// How often a read was repeated since it was last sent, or `None` where it is not sent now.
#[inline(always)]
pub fn repeated(read: ReadKey) -> Option<u32> {
    let time = now();
    let Some(seen) = READS.get_ptr_mut(read) else {
        let first = ReadCount {
            sent: time,
            count: 0,
            reserved: 0,
        };
        // Where the map is full the read is sent, and so is the next.
        let _ = READS.insert(read, first, 0);
        return Some(1);
    };
    // SAFETY: the pointer is into the map; threads of one process may race for a count, and then
    // one of them is sent with the other's.
    unsafe {
        (*seen).count += 1;
        if time.wrapping_sub((*seen).sent) < REPEAT_NS {
            return None;
        }
        let repeats = (*seen).count;
        (*seen).count = 0;
        (*seen).sent = time;
        Some(repeats)
    }
}

/// A record with room for its path, in the ring.
#[repr(C)]
struct Slot {
    record: File,
    walk: Walk,
}

/// Writes the record straight into the ring: LSM and fentry programs can be preempted, so a
/// per-CPU buffer would not be their own.
#[inline(always)]
fn report(file: &OpenFile, key: InodeKey, repeats: u32, mut flags: u32) {
    let Some(mut slot) = CREDENTIAL_RING.reserve::<Slot>(0) else {
        lost(Probe::File, current_cgroup());
        return;
    };
    let place = slot.as_mut_ptr();
    // SAFETY: the ring gave room for a Slot; every field is written before it is sent, except
    // bytes of the path past its length, which user space does not look at.
    unsafe {
        let walk = &raw mut (*place).walk;
        Walk::write(walk, file.mount, file.dentry);
        if (&raw const (*walk).cut).read_volatile() != 0 {
            flags |= TRUNCATED;
        }
        Walk::write_source(walk);
        let record = &mut (*place).record;
        fill_header(&mut record.header, kind::FILE, Hooked::Tracing);
        record.inode = key.inode;
        record.stdout = task::stream(1, Hooked::Tracing);
        if record.stdout != 0 && record.stdout == task::stream_of_parent(1) {
            flags |= PARENTS_OUTPUT;
        }
        record.device = key.device;
        record.generation = key.generation;
        record.count = repeats;
        record.flags = flags;
        record.path_len = (&raw const (*walk).path).read_volatile();
        record.inside_len = (&raw const (*walk).inside).read_volatile();
        record.source_len = (&raw const (*walk).at).read_volatile();
        record.reserved = 0;
    }
    slot.submit(0);
    count(Probe::File, Stage::Sent);
}

/// The last four bytes of a name.
#[inline(always)]
fn last_four(dentry: &Dentry) -> u32 {
    let (words, len) = (&dentry.words, dentry.len);
    if len < 4 {
        return 0;
    }
    let at = len - 4;
    if len > 32 {
        return read(dentry.name.wrapping_add(at));
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
