//! What a reader may do. In a pod it has no cgroup of its own, so the limits are its own: memory, CPU
//! time per request, descriptors, capabilities, system calls.

use rustix::ioctl::{Opcode, opcode};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, getrlimit, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::{collections::BTreeMap, io};
use thiserror::Error;

/// Maximum address space: the program and its libraries have some 50 MiB, most of it not in memory.
const ADDRESS_SPACE: u64 = 160 << 20;
/// Maximum number of descriptors.
const DESCRIPTORS: u64 = 64;

/// Why a limit could not be set. A reader without limits answers nothing.
#[derive(Debug, Error)]
pub enum SandboxError {
    #[error("cannot set the limit of {name}: {source}")]
    Limit {
        name: &'static str,
        source: io::Error,
    },
    #[error("cannot drop capabilities: {0}")]
    Capabilities(io::Error),
    #[error("cannot make it end with the agent: {0}")]
    ParentDeath(io::Error),
    #[error("cannot filter system calls: {0}")]
    SystemCalls(#[from] seccompiler::Error),
    #[error("cannot filter system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

/// What a reader needs: files whatever their mode, the memory and root of other processes, the
/// kernel's links to mapped files, and private copies of mounts.
const NEEDED: CapabilitySet = CapabilitySet::DAC_READ_SEARCH
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::CHECKPOINT_RESTORE)
    .union(CapabilitySet::SYS_ADMIN);

/// Restricts this process for the rest of its life.
pub fn enter() -> Result<(), SandboxError> {
    for (resource, name, value) in [
        (Resource::As, "address space", ADDRESS_SPACE),
        (Resource::Nofile, "descriptors", DESCRIPTORS),
        (Resource::Fsize, "file size", 0),
        (Resource::Core, "core size", 0),
    ] {
        limit(resource, name, value)?;
    }
    // No core dump, and no access for others of the same user.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| SandboxError::Limit {
        name: "core dumps",
        source: error.into(),
    })?;
    drop_capabilities().map_err(|error| SandboxError::Capabilities(error.into()))?;
    // A closed socket does not end one that is stopped. The kernel forgets the signal when privileges
    // grow, which they no longer can.
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| SandboxError::ParentDeath(error.into()))?;
    seccompiler::apply_filter(&filter()?)?;
    Ok(())
}

fn limit(resource: Resource, name: &'static str, value: u64) -> Result<(), SandboxError> {
    let both = Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    setrlimit(resource, both).map_err(|error| SandboxError::Limit {
        name,
        source: error.into(),
    })
}

/// Allows this process some more seconds of CPU time; then the kernel ends it.
pub fn begin_request(seconds: u64) {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime).tv_sec;
    let limit = Rlimit {
        current: Some(used.unsigned_abs() + seconds),
        maximum: getrlimit(Resource::Cpu).maximum,
    };
    // It is within the maximum, which is not changed.
    let _ = setrlimit(Resource::Cpu, limit);
}

fn drop_capabilities() -> rustix::io::Result<()> {
    set_no_new_privs(true)?;
    let held = capabilities(None)?.permitted;
    let kept = held & NEEDED;
    if held.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(NEEDED).iter() {
            // The kernel may not know it.
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// System calls for reading files, for memory, and for the answers, with any arguments. Any other
/// one fails, except those in [`restricted`].
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munlock,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_open_tree,
    libc::SYS_openat2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sigaltstack,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_uname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
];

/// System calls that are allowed with some arguments only.
fn restricted() -> Result<Vec<(libc::c_long, Vec<SeccompRule>)>, seccompiler::BackendError> {
    use SeccompCmpArgLen::Dword;
    let equal = |argument, mask: i32, value: u32| {
        let operator = SeccompCmpOp::MaskedEq(u64::from(mask.cast_unsigned()));
        SeccompCondition::new(argument, Dword, operator, u64::from(value))
    };
    let own_pid = rustix::process::getpid().as_raw_nonzero().get();
    let private = libc::MAP_PRIVATE.cast_unsigned();
    // Also not for creating or truncating.
    let not_read_only = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
    // Not for locks, leases and signals.
    let descriptors = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
    ];
    let on_descriptors = descriptors
        .into_iter()
        .map(|command| SeccompRule::new(vec![equal(1, -1, command.cast_unsigned())?]))
        .collect::<Result<_, _>>()?;
    let mut rules = vec![
        (libc::SYS_fcntl, on_descriptors),
        // The generation of a file.
        (
            libc::SYS_ioctl,
            vec![SeccompRule::new(vec![equal(1, -1, FS_IOC_GETVERSION)?])?],
        ),
        // Memory of its own, in which nothing new is executed.
        (
            libc::SYS_mmap,
            vec![SeccompRule::new(vec![
                equal(2, libc::PROT_EXEC, 0)?,
                equal(3, libc::MAP_TYPE, private)?,
            ])?],
        ),
        (
            libc::SYS_mprotect,
            vec![SeccompRule::new(vec![equal(2, libc::PROT_EXEC, 0)?])?],
        ),
        (
            libc::SYS_openat,
            vec![SeccompRule::new(vec![equal(2, not_read_only, 0)?])?],
        ),
        // Its own limits, and its own end.
        (
            libc::SYS_prlimit64,
            vec![SeccompRule::new(vec![equal(0, -1, 0)?])?],
        ),
        (
            libc::SYS_tgkill,
            vec![SeccompRule::new(vec![equal(
                0,
                -1,
                own_pid.cast_unsigned(),
            )?])?],
        ),
    ];
    #[cfg(target_arch = "x86_64")]
    rules.push((
        libc::SYS_open,
        vec![SeccompRule::new(vec![equal(1, not_read_only, 0)?])?],
    ));
    Ok(rules)
}

/// The request for a file's generation.
pub const FS_IOC_GETVERSION: Opcode = opcode::read::<std::ffi::c_long>(b'v', 1);

fn filter() -> Result<BpfProgram, SandboxError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    rules.extend(restricted()?);
    let filter = SeccompFilter::new(
        rules,
        // As an older kernel would: the C library then tries another call.
        SeccompAction::Errno(libc::ENOSYS as u32),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(filter.try_into()?)
}
