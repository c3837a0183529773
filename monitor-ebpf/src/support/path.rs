//! Reads the path of a file, across mounts, from the last component up.

use crate::support::kernel::{field, offset, read};
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use monitor_common::{fields::FieldId, record::PATH_MAX};

/// Maximum components walked, mount points included.
const STEPS_MAX: u32 = 96;
/// Maximum components walked from the root of a mount up to the root of its file system.
const SOURCE_STEPS_MAX: u32 = 16;

/// Buffer size for a path. One component beyond [`PATH_MAX`] can be written before the limit is
/// noticed.
pub const PATH_BUFFER: usize = PATH_MAX + 256;

/// State and output of a walk.
///
/// Both are in memory that the verifier does not track (a record in the ring): the verifier then
/// considers all steps alike and verifies each once.
#[repr(C)]
pub struct PathWalk {
    /// First, so that the bytes directly follow the record header before them.
    pub bytes: [u8; PATH_BUFFER],
    mount: u64,
    address: u64,
    /// The root of `mount`.
    root: u64,
    /// Bytes written.
    pub at: u32,
    /// Bytes written when the walk left the first mount.
    pub inside: u32,
    /// 1 if the path was truncated.
    pub cut: u32,
    /// Bytes of the path across mounts; the bytes after it are the path of the first mount's root.
    pub path: u32,
    first_root: u64,
}

impl PathWalk {
    /// Writes the components of `dentry` in `mount` (a `struct vfsmount`), each terminated by a
    /// zero byte.
    ///
    /// A path goes up to the root of the mount namespace, so the path of a process in a container
    /// starts with the container's root, and that of a chrooted process with the host's.
    ///
    /// # Safety
    /// `walk` must point to room for a walk.
    #[inline(always)]
    pub unsafe fn write(walk: *mut Self, mount: u64, address: u64) {
        let root: u64 = field(mount, FieldId::VfsmountRoot);
        // SAFETY: guaranteed by the caller; volatile, so that the state stays in memory.
        unsafe {
            (&raw mut (*walk).mount).write_volatile(mount);
            (&raw mut (*walk).address).write_volatile(address);
            (&raw mut (*walk).root).write_volatile(root);
            (&raw mut (*walk).first_root).write_volatile(root);
            (&raw mut (*walk).at).write_volatile(0);
            (&raw mut (*walk).inside).write_volatile(0);
            (&raw mut (*walk).cut).write_volatile(1);
            for _ in 0..STEPS_MAX {
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
    /// [`PathWalk::write`] was called before.
    #[inline(always)]
    pub unsafe fn write_source(walk: *mut Self) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let root = (&raw const (*walk).first_root).read_volatile();
            (&raw mut (*walk).address).write_volatile(root);
            // No root is reached: the walk ends at a dentry that is its own parent.
            (&raw mut (*walk).root).write_volatile(0);
            for _ in 0..SOURCE_STEPS_MAX {
                if step(walk) {
                    break;
                }
            }
        }
    }
}

/// Writes one component; returns `true` at the end.
///
/// A separate function, so that the surrounding loop keeps the shape that verifiers before 6.2
/// recognise: one entry, one back edge.
///
/// # Safety
/// As [`PathWalk::write`].
#[inline(never)]
pub unsafe fn step(walk: *mut PathWalk) -> bool {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let address = (&raw const (*walk).address).read_volatile();
        if address == (&raw const (*walk).root).read_volatile() {
            return cross_mount(walk);
        }
        // Parent, hash and length, name.
        let head: [u64; 3] = read(address.wrapping_add(offset(FieldId::DentryParent)));
        if head[0] == 0 {
            return true;
        }
        let at = (&raw const (*walk).at).read_volatile();
        // A root that is not its mount's root: in a detached mount, or a file without a parent such
        // as a memfd.
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

/// Moves from the root of a mount to its mount point; returns `true` if there is none.
///
/// # Safety
/// As [`PathWalk::write`].
#[inline(always)]
unsafe fn cross_mount(walk: *mut PathWalk) -> bool {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mount = (&raw const (*walk).mount).read_volatile();
        let root = (&raw const (*walk).root).read_volatile();
        if root == (&raw const (*walk).first_root).read_volatile() {
            let at = (&raw const (*walk).at).read_volatile();
            (&raw mut (*walk).inside).write_volatile(at);
        }
        let Some((above, point)) = parent_mount(mount) else {
            (&raw mut (*walk).cut).write_volatile(0);
            return true;
        };
        (&raw mut (*walk).address).write_volatile(point);
        (&raw mut (*walk).mount).write_volatile(above);
        (&raw mut (*walk).root).write_volatile(field(above, FieldId::VfsmountRoot));
        false
    }
}

/// The parent mount of a `struct vfsmount`, and the dentry of the mount point in it; `None` at the
/// root of a mount namespace.
#[inline(always)]
pub fn parent_mount(mount: u64) -> Option<(u64, u64)> {
    let inner = mount.wrapping_sub(offset(FieldId::MountVfsmount));
    let above = field::<u64>(inner, FieldId::MountParent);
    if above == inner || above == 0 {
        return None;
    }
    Some((
        above.wrapping_add(offset(FieldId::MountVfsmount)),
        field(inner, FieldId::MountPoint),
    ))
}
