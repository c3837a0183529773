//! The path of a file as the kernel knows it, across mounts, from the last component up.

use crate::kernel::{field, offset, read, repeat};
use aya_ebpf::{helpers::generated::bpf_probe_read_kernel, macros::map, maps::PerCpuArray};
use core::ffi::c_void;
use monitor_common::{
    fields::F,
    record::{File, PATH_MAX, Process},
};

/// Components walked at most, mount points included.
const STEPS: u32 = 96;

/// A record and the path that follows it: the record ends where the path begins.
#[repr(C)]
pub struct Scratch {
    head: [u64; HEAD / 8],
    /// One component more than [`PATH_MAX`] can be written before the end shows.
    path: [u8; PATH_MAX + 256],
}

/// Room for the largest record with a path.
const HEAD: usize = size_of::<File>();
const _: () = assert!(size_of::<Process>() <= HEAD && size_of::<Process>().is_multiple_of(8));

/// The file and process probes run with preemption off and do not nest in each other, so they
/// share one buffer.
#[map]
static PATH_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Parent, hash and length, name, inode, and the bytes of a short name: `struct dentry` from
/// `d_parent` on.
pub type Dentry = [u64; 8];

/// Where in a dentry that part begins.
#[inline(always)]
pub fn dentry_at(address: u64) -> u64 {
    address.wrapping_add(offset(F::DentryParent))
}

/// This CPU's buffer.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: see [`PATH_SCRATCH`]: nothing else on this CPU uses it meanwhile.
    PATH_SCRATCH
        .get_ptr_mut(0)
        .map(|pointer| unsafe { &mut *pointer })
}

impl Scratch {
    /// The place of a record that ends where the path begins.
    #[inline(always)]
    pub fn record<T>(&mut self) -> &mut T {
        const { assert!(size_of::<T>() <= HEAD && size_of::<T>().is_multiple_of(8)) }
        let place = self.head.as_mut_ptr().cast::<u8>();
        // SAFETY: the place is inside `head`, aligned to eight bytes, and records are integers,
        // for which any bytes are valid.
        unsafe { &mut *place.add(HEAD - size_of::<T>()).cast::<T>() }
    }
}

#[repr(C)]
struct Walk {
    mount: u64,
    address: u64,
    /// The root of `mount`.
    root: u64,
    at: u64,
    cut: u64,
}

/// Writes the components of `dentry` in `mount` (a `struct vfsmount`) to the scratch, each ended
/// by a zero byte; gives the bytes written and whether something is missing.
///
/// A path goes up to the root of the mount namespace, so a process in a container has its own
/// root as the first component, and one in a chroot has not.
#[inline(always)]
pub fn write(mount: u64, address: u64) -> (u32, bool) {
    let mut walk = Walk {
        mount,
        address,
        root: field(mount, F::VfsmountRoot),
        at: 0,
        cut: 1,
    };
    repeat(STEPS, step, &mut walk);
    (walk.at as u32, walk.cut != 0)
}

extern "C" fn step(_: u64, context: *mut c_void) -> i64 {
    // SAFETY: the context is the Walk of `write`.
    let walk = unsafe { &mut *context.cast::<Walk>() };
    if walk.address == walk.root {
        let inner = walk.mount.wrapping_sub(offset(F::MountVfsmount));
        let parent = field::<u64>(inner, F::MountParent);
        if parent == inner {
            walk.cut = 0;
            return 1;
        }
        walk.address = field(inner, F::MountPoint);
        walk.mount = parent.wrapping_add(offset(F::MountVfsmount));
        walk.root = field(walk.mount, F::VfsmountRoot);
        return 0;
    }
    // Parent, hash and length, name.
    let head: [u64; 3] = read(dentry_at(walk.address));
    if head[0] == 0 {
        return 1;
    }
    if head[0] == walk.address {
        // A root that is not its mount's: a detached mount, a pipe, a memfd.
        walk.cut = 0;
        return 1;
    }
    let Some(scratch) = scratch() else { return 1 };
    let len = (head[1] >> 32) & 0xff;
    let at = walk.at;
    if at + len >= PATH_MAX as u64 {
        return 1;
    }
    // SAFETY: at < PATH_MAX and len < 256, so the write ends inside the buffer; the helper
    // checks the source.
    unsafe {
        bpf_probe_read_kernel(
            scratch
                .path
                .as_mut_ptr()
                .add((at & (PATH_MAX as u64 - 1)) as usize)
                .cast(),
            len as u32,
            head[2] as *const _,
        );
    }
    scratch.path[((at + len) & (PATH_MAX as u64 - 1)) as usize] = 0;
    walk.at = at + len + 1;
    walk.address = head[0];
    0
}
