//! Credential files: opened, received from another process, inherited across exec.

use crate::{
    file::{
        names::{FileNames, NameMatch},
        procfs::report_process_file,
    },
    support::{
        agent::{may_be_agent, note_agent_open},
        kernel::{self, S_IFREG, field, file_system_magic, read},
        maps::{BloomFilter, INODES, SeenSlot, count},
        path::{PathWalk, parent_mount},
        repeats::repeat_count,
        ring::Ring,
        task::{self, HookContext, current_owner, current_pid, fill_header},
        view::{CopyAccess, DentryFields, DirectAccess, FileFields, KernelMemory},
    },
};
use aya_ebpf::{
    EbpfContext as _,
    macros::{fentry, kprobe, lsm, tracepoint},
    programs::{FEntryContext, LsmContext, ProbeContext, TracePointContext},
};
use monitor_common::{
    fields::{ABSENT, FieldId},
    filter,
    map::{INODE_CREDENTIAL, INODE_IGNORED, InodeKey, ReadKey, WRITE_ONLY_PID},
    record::{
        BY_INODE, FileRecord, Probe, RECEIVED, SHARED_WITH_PARENT, Stage, TRUNCATED, WRITE_ONLY,
        kind,
    },
};

const FMODE_READ: u32 = 1;
const FMODE_WRITE: u32 = 2;
/// Set on the lower file of an overlay; the open of the overlay file itself is observed too and is
/// the one that counts.
const FMODE_NOACCOUNT: u32 = 0x2000_0000;

/// Hook: `lsm/file_open(file)`. First kernel: 5.7, with `bpf` in the list of active LSMs; without
/// it the program attaches and never fires. Fallback: [`file_open_fentry`]. Missed: opens that
/// another LSM denies, which are not uses. Never denies an open.
#[lsm(hook = "file_open")]
pub fn file_open_lsm(ctx: LsmContext) -> i32 {
    handle_open::<DirectAccess>(ctx.arg(0), 0);
    0
}

/// Hook: `fentry/security_file_open(file)`, which every open passes, including io_uring's. First
/// kernel: 5.5 on x86_64, 6.0 on aarch64. Fallback: [`file_open_kprobe`]. Missed: nothing; an open
/// that is denied afterwards is reported.
#[fentry(function = "security_file_open")]
pub fn file_open_fentry(ctx: FEntryContext) -> i32 {
    handle_open::<DirectAccess>(ctx.arg(0), 0);
    0
}

/// Hook: `kprobe/security_file_open(file)`. First kernel: 5.10 and before.
/// Fallback: [`file_open_exit`] with [`file_open_uring`]. Missed: as [`file_open_fentry`].
#[kprobe]
pub fn file_open_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(file) = ctx.arg(0) {
        handle_open::<CopyAccess>(file, 0);
    }
    0
}

/// Hook: `syscalls:sys_exit_open`, `_openat`, `_openat2`, `_open_by_handle_at`. First kernel: any
/// with `CONFIG_FTRACE_SYSCALLS`; the last resort for this observation. It resolves the returned
/// descriptor to the kernel's file. Missed: descriptors received from another process, and a
/// descriptor that another thread closes before the call returns.
#[tracepoint]
pub fn file_open_exit(ctx: TracePointContext) -> u32 {
    // SAFETY: a syscall exit record has its return value at offset 16 on every kernel since 5.10;
    // the verifier checks the access against the record's size.
    let fd = unsafe { *ctx.as_ptr().byte_add(16).cast::<i64>() };
    if fd >= 0 {
        handle_open::<CopyAccess>(task::file_of(fd as u64, HookContext::Tracing), 0);
    }
    0
}

/// Offsets of the request and the result in the record of `io_uring:io_uring_complete`; 0 if this
/// kernel has none. Set by the agent before load from the tracepoint's format.
#[unsafe(no_mangle)]
static URING: [u32; 2] = [0; 2];

const IORING_OP_OPENAT: u8 = 18;
const IORING_OP_OPENAT2: u8 = 28;

/// Hook: `io_uring:io_uring_complete`, together with [`file_open_exit`]. First kernel: 5.19, where
/// the record first contains the request. Missed: opens into a direct descriptor of the ring.
#[tracepoint]
pub fn file_open_uring(ctx: TracePointContext) -> u32 {
    // SAFETY: both reads are inside the array; volatile, because the agent overrides it.
    let (request, result) = unsafe {
        (
            core::ptr::read_volatile(&raw const URING[0]),
            core::ptr::read_volatile(&raw const URING[1]),
        )
    };
    if request == 0 || result == 0 || kernel::offset(FieldId::IoRequestOpcode) == u64::from(ABSENT)
    {
        return 0;
    }
    // An offset that is unknown at build time can only be read through the helper.
    let record = ctx.as_ptr() as u64;
    let fd: i32 = read(record.wrapping_add(u64::from(result)));
    let request: u64 = read(record.wrapping_add(u64::from(request)));
    let opcode: u8 = field(request, FieldId::IoRequestOpcode);
    if fd >= 0 && (opcode == IORING_OP_OPENAT || opcode == IORING_OP_OPENAT2) {
        handle_open::<CopyAccess>(task::file_of(fd as u64, HookContext::Tracing), 0);
    }
    0
}

/// Hook: `lsm/file_receive(file)`: a descriptor from a socket, from `pidfd_getfd`, from binder.
/// First kernel: 5.7, as [`file_open_lsm`]. Fallback: [`file_receive_fentry`].
#[lsm(hook = "file_receive")]
pub fn file_receive_lsm(ctx: LsmContext) -> i32 {
    handle_open::<DirectAccess>(ctx.arg(0), RECEIVED);
    0
}

/// Hook: `fentry/security_file_receive(file)`. Fallback: [`file_receive_kprobe`].
#[fentry(function = "security_file_receive")]
pub fn file_receive_fentry(ctx: FEntryContext) -> i32 {
    handle_open::<DirectAccess>(ctx.arg(0), RECEIVED);
    0
}

/// Hook: `kprobe/security_file_receive(file)`. Fallback: none, a declared gap.
#[kprobe]
pub fn file_receive_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(file) = ctx.arg(0) {
        handle_open::<CopyAccess>(file, RECEIVED);
    }
    0
}

#[inline(always)]
pub fn key_of(inode: u64, number: u64) -> InodeKey {
    let sb: u64 = field(inode, FieldId::InodeSb);
    InodeKey {
        inode: number,
        device: field(sb, FieldId::SbDev),
        generation: field(inode, FieldId::InodeGeneration),
    }
}

/// Common to all hooks of this family: handles an opened file.
#[inline(always)]
fn handle_open<M: KernelMemory>(address: u64, flags: u32) {
    // Most files are opened again and again: read only as much as identifies the file.
    let slot = SeenSlot::find(|base| {
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
    let Some(slot) = slot else {
        return;
    };
    // What the agent's readers open is compared with what was reported, whether it was seen or not.
    if slot.is_seen() && !may_be_agent() {
        return;
    }
    let file = M::file(address);
    if file.mode & (FMODE_READ | FMODE_WRITE) == 0 {
        return;
    }
    let (format, number) = M::inode(file.inode);
    // The agent compares both files of an overlay, and reads none of those seen already.
    if note_agent_open(file.inode, || key_of(file.inode, number))
        || file.mode & FMODE_NOACCOUNT != 0
    {
        return;
    }
    if format != S_IFREG || !match_file::<M>(&file, number, flags) {
        slot.remember();
    }
}

/// Reports a file if a rule matches it; returns `false` if none does.
#[inline(always)]
pub fn match_file<M: KernelMemory>(file: &FileFields, number: u64, flags: u32) -> bool {
    let (Some(rules), Some(inodes)) = (BloomFilter::rules(), BloomFilter::inodes()) else {
        return true;
    };
    let dentry = M::dentry(file.dentry);
    let parent = M::dentry(dentry.parent);
    let grandparent = M::dentry(parent.parent);
    let mut names = FileNames::read(&dentry, &parent, &grandparent);
    if !names.may_match(rules) && !inodes.contains(filter::inode_key(number)) {
        let root = M::mount_root(file.mount);
        if root != file.dentry && root != dentry.parent {
            return false;
        }
        match match_mount_point(file, root == file.dentry, &dentry) {
            Some(lower) if lower.may_match(rules) => names = lower,
            _ => return false,
        }
    }
    check_exact(file, number, &names, flags);
    true
}

/// A file that is itself mounted, or is at the root of a mount, has another name there.
#[inline(always)]
fn match_mount_point(file: &FileFields, itself: bool, dentry: &DentryFields) -> Option<FileNames> {
    let (_, point) = parent_mount(file.mount)?;
    let point = CopyAccess::dentry(point);
    let above = CopyAccess::dentry(point.parent);
    Some(if itself {
        FileNames::read(&point, &above, &CopyAccess::dentry(above.parent))
    } else {
        FileNames::read(dentry, &point, &above)
    })
}

/// The agent's entry for an inode. The agent cannot read the generation on every file system: files
/// recovered after a restart may be stored without one.
#[inline(always)]
pub fn is_learned(key: InodeKey) -> Option<u32> {
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
    // Files are ignored only by their exact key.
    found.filter(|value| *value == INODE_CREDENTIAL)
}

/// Exact lookups, repeat counting, and the record.
#[inline(always)]
fn check_exact(file: &FileFields, number: u64, names: &FileNames, mut flags: u32) {
    let key = key_of(file.inode, number);
    let learned = is_learned(key);
    if learned.is_some() {
        if learned == Some(INODE_IGNORED) {
            return;
        }
        flags |= BY_INODE;
    } else {
        match names.exact_match() {
            NameMatch::Credential => {}
            NameMatch::OfProcess => {
                report_process_file(file.inode, names.first);
                return;
            }
            NameMatch::Nothing => return,
        }
    }
    report_once(file, key, flags);
}

/// Reports a credential file, unless it was reported a moment ago.
#[inline(always)]
fn report_once(file: &FileFields, key: InodeKey, mut flags: u32) {
    let pid = current_pid();
    // Writing a file and then reading it does not count as a repeated read.
    let mut of = pid;
    if file.mode & FMODE_READ == 0 {
        flags |= WRITE_ONLY;
        of |= WRITE_ONLY_PID;
    }
    let seen = ReadKey {
        start: task::current_start(HookContext::Tracing),
        inode: key.inode,
        pid: of,
        device: key.device,
    };
    let Some(repeats) = repeat_count(seen) else {
        return;
    };
    send_record(file, key, repeats, flags);
}

/// A record with room for its path, in the ring.
#[repr(C)]
struct FileRecordSlot {
    record: FileRecord,
    walk: PathWalk,
}

/// Writes the record directly into the ring: LSM and fentry programs can be preempted, so they
/// cannot use a per-CPU buffer.
#[inline(always)]
fn send_record(file: &FileFields, key: InodeKey, repeats: u32, mut flags: u32) {
    let Some(mut slot) = Ring::Credentials.reserve::<FileRecordSlot>(Probe::File, current_owner())
    else {
        return;
    };
    let place = slot.as_mut_ptr();
    // SAFETY: the ring reserved space for a FileRecordSlot; every field is written before it is
    // sent, except bytes of the path past its length, which user space ignores.
    unsafe {
        let walk = &raw mut (*place).walk;
        PathWalk::write(walk, file.mount, file.dentry);
        if (&raw const (*walk).cut).read_volatile() != 0 {
            flags |= TRUNCATED;
        }
        PathWalk::write_source(walk);
        let record = &mut (*place).record;
        fill_header(&mut record.header, kind::FILE, HookContext::Tracing);
        record.inode = key.inode;
        record.stdout = task::standard_stream(1, HookContext::Tracing);
        if record.stdout != 0 && record.stdout == task::parent_stream(1) {
            flags |= SHARED_WITH_PARENT;
        }
        record.device = key.device;
        record.generation = key.generation;
        record.count = repeats;
        record.flags = flags;
        record.path_len = (&raw const (*walk).path).read_volatile();
        record.inside_len = (&raw const (*walk).inside).read_volatile();
        record.source_len = (&raw const (*walk).at).read_volatile();
        record.magic = file_system_magic(file.inode) as u32;
    }
    slot.submit(0);
    count(Probe::File, Stage::Sent);
}
