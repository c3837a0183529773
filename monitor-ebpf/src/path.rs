//! The path of a file as the kernel knows it, across mounts, from the last component up.

use crate::kernel::{field, offset, read};
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use monitor_common::{fields::F, record::PATH_MAX};

/// Components walked at most, mount points included.
const STEPS: u32 = 96;
/// Components walked at most from the root of a mount up to that of its file system.
const SOURCE_STEPS: u32 = 16;

/// Room for a path. One component more than [`PATH_MAX`] can be written before the end shows.
pub const PATH_ROOM: usize = PATH_MAX + 256;

/// Where a walk has come to, and its bytes.
///
/// It is in memory that the verifier knows nothing about (a record in the ring), and so is the
/// state of the walk: the verifier then sees that one step is like the next, and walks each once.
#[repr(C)]
pub struct Walk {
    /// First, so that they follow the record before.
    pub bytes: [u8; PATH_ROOM],
    mount: u64,
    address: u64,
    /// The root of `mount`.
    root: u64,
    /// Bytes written.
    pub at: u32,
    /// Bytes written when the walk left the first mount.
    pub inside: u32,
    /// 1 where something is missing.
    pub cut: u32,
    /// Bytes of the path across mounts; what is behind is the path of the first mount's root.
    pub path: u32,
    first_root: u64,
}

impl Walk {
    /// Writes the components of `dentry` in `mount` (a `struct vfsmount`), each ended by a zero
    /// byte.
    ///
    /// A path goes up to the root of the mount namespace, so a process in a container has its own
    /// root as the first component, and one in a chroot has not.
    ///
    /// # Safety
    /// `walk` must point to room for a walk.
    #[inline(always)]
    pub unsafe fn write(walk: *mut Self, mount: u64, address: u64) {
        let root: u64 = field(mount, F::VfsmountRoot);
        // SAFETY: as the caller vouches; volatile, so that the state stays in memory.
        unsafe {
            (&raw mut (*walk).mount).write_volatile(mount);
            (&raw mut (*walk).address).write_volatile(address);
            (&raw mut (*walk).root).write_volatile(root);
            (&raw mut (*walk).first_root).write_volatile(root);
            (&raw mut (*walk).at).write_volatile(0);
            (&raw mut (*walk).inside).write_volatile(0);
            (&raw mut (*walk).cut).write_volatile(1);
            for _ in 0..STEPS {
                if step(walk) {
                    break;
                }
            }
            let path = (&raw const (*walk).at).read_volatile();
            (&raw mut (*walk).path).write_volatile(path);
        }
    }

    /// Appends the path of the first mount's root inside its file system.
    ///
    /// # Safety
    /// [`Walk::write`] was called.
    #[inline(always)]
    pub unsafe fn write_source(walk: *mut Self) {
        // SAFETY: as the caller vouches.
        unsafe {
            let root = (&raw const (*walk).first_root).read_volatile();
            (&raw mut (*walk).address).write_volatile(root);
            // No root is met: the walk ends where a dentry is its own parent.
            (&raw mut (*walk).root).write_volatile(0);
            for _ in 0..SOURCE_STEPS {
                if step(walk) {
                    break;
                }
            }
        }
    }
}

/// One component; `true` ends the walk.
///
/// A function of its own, so that the loop around it keeps the shape that verifiers before 6.2
/// take for a loop: one way in, one way back.
///
/// # Safety
/// As [`Walk::write`].
#[inline(never)]
unsafe fn step(walk: *mut Walk) -> bool {
    // SAFETY: as the caller vouches.
    unsafe {
        let address = (&raw const (*walk).address).read_volatile();
        if address == (&raw const (*walk).root).read_volatile() {
            return cross(walk);
        }
        // Parent, hash and length, name.
        let head: [u64; 3] = read(address.wrapping_add(offset(F::DentryParent)));
        if head[0] == 0 {
            return true;
        }
        let at = (&raw const (*walk).at).read_volatile();
        // A root that is not its mount's: of a detached mount, or alone in the world with its
        // name, as a memfd is.
        let alone = head[0] == address;
        if alone {
            (&raw mut (*walk).cut).write_volatile(0);
            if at != 0 {
                return true;
            }
        }
        let len = (head[1] >> 32) as u32 & 0xff;
        if at >= PATH_MAX as u32 || at + len >= PATH_MAX as u32 {
            return true;
        }
        let place = (&raw mut (*walk).bytes).cast::<u8>();
        bpf_probe_read_kernel(
            place.add((at & (PATH_MAX as u32 - 1)) as usize).cast(),
            len,
            head[2] as *const _,
        );
        place
            .add(((at + len) & (PATH_MAX as u32 - 1)) as usize)
            .write_volatile(0);
        (&raw mut (*walk).at).write_volatile(at + len + 1);
        (&raw mut (*walk).address).write_volatile(head[0]);
        alone
    }
}

/// From the root of a mount to where it is mounted; `true` where it is not.
///
/// # Safety
/// As [`Walk::write`].
#[inline(always)]
unsafe fn cross(walk: *mut Walk) -> bool {
    // SAFETY: as the caller vouches.
    unsafe {
        let mount = (&raw const (*walk).mount).read_volatile();
        let root = (&raw const (*walk).root).read_volatile();
        if root == (&raw const (*walk).first_root).read_volatile() {
            let at = (&raw const (*walk).at).read_volatile();
            (&raw mut (*walk).inside).write_volatile(at);
        }
        let Some((above, point)) = mounted_at(mount) else {
            (&raw mut (*walk).cut).write_volatile(0);
            return true;
        };
        (&raw mut (*walk).address).write_volatile(point);
        (&raw mut (*walk).mount).write_volatile(above);
        (&raw mut (*walk).root).write_volatile(field(above, F::VfsmountRoot));
        false
    }
}

/// The mount above a `struct vfsmount`, and the dentry in it where this one is mounted; `None`
/// at the root of a mount namespace.
#[inline(always)]
pub fn mounted_at(mount: u64) -> Option<(u64, u64)> {
    let inner = mount.wrapping_sub(offset(F::MountVfsmount));
    let above = field::<u64>(inner, F::MountParent);
    if above == inner || above == 0 {
        return None;
    }
    Some((
        above.wrapping_add(offset(F::MountVfsmount)),
        field(inner, F::MountPoint),
    ))
}
