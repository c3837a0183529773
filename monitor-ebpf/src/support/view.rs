//! Access to an open file's kernel structures: direct where the verifier knows the pointer's type,
//! otherwise through a helper.

use crate::support::kernel::{
    self, StructPrefix, offset, prefix_field, prefix_field32, read, read_to,
};
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf};
use core::mem::MaybeUninit;
use monitor_common::fields::FieldId;

/// The fields of a `struct file` that the probes use.
#[derive(Clone, Copy)]
pub struct FileFields {
    pub mode: u32,
    pub inode: u64,
    pub mount: u64,
    pub dentry: u64,
}

/// The fields of a `struct dentry` that the probes use, with the first bytes of its name.
#[derive(Clone, Copy)]
pub struct DentryFields {
    pub parent: u64,
    pub len: u64,
    pub name: u64,
    pub words: [u64; 4],
}

/// A way to read kernel structures.
pub trait KernelMemory {
    /// The current task.
    fn task() -> u64;
    /// A field of the structure at `base`.
    fn field<T>(base: u64, field: FieldId) -> T;
    fn file(address: u64) -> FileFields;
    /// The type bits of the mode, and the inode number.
    fn inode(address: u64) -> (u32, u64);
    fn dentry(address: u64) -> DentryFields;
    fn mount_root(mount: u64) -> u64;
    /// Mount and dentry of a file: the minimum that identifies it.
    fn path(file: u64) -> [u64; 2];
    /// A dentry's parent, hash and length of its name, and its inode. A name cannot change without
    /// changing one of them, except by a 1 in 4 billion collision.
    fn identity(dentry: u64) -> [u64; 3];
    /// A pointer as a plain number, for comparison with others only.
    fn number(pointer: u64, base: u64) -> u64;
}

const S_IFMT: u32 = 0xf000;

/// Loads through pointers whose type the verifier knows: the arguments of LSM and fentry programs,
/// and what they point to. A fault reads as zero.
pub struct DirectAccess;

/// Loads a field.
#[inline(always)]
fn load<T>(base: u64, field: FieldId) -> T {
    // SAFETY: the kernel checks type and offset at load time and handles faults; volatile, so that
    // each field is a single load of its own width.
    unsafe { (base.wrapping_add(offset(field)) as *const T).read_volatile() }
}

impl KernelMemory for DirectAccess {
    #[inline(always)]
    fn task() -> u64 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_get_current_task_btf() as u64 }
    }

    #[inline(always)]
    fn field<T>(base: u64, field: FieldId) -> T {
        load(base, field)
    }

    #[inline(always)]
    fn file(address: u64) -> FileFields {
        FileFields {
            mode: load(address, FieldId::FileMode),
            inode: load(address, FieldId::FileInode),
            mount: load(address, FieldId::FileMnt),
            dentry: load(address, FieldId::FileDentry),
        }
    }

    #[inline(always)]
    fn inode(address: u64) -> (u32, u64) {
        (
            u32::from(load::<u16>(address, FieldId::InodeMode)) & S_IFMT,
            load(address, FieldId::InodeIno),
        )
    }

    #[inline(always)]
    fn dentry(address: u64) -> DentryFields {
        let name: u64 = load(address, FieldId::DentryName);
        let short = address.wrapping_add(offset(FieldId::DentryShort));
        // The verifier knows the type of `short` but not of `name`; the compiler would merge the
        // two because they are equal.
        let words = if core::hint::black_box(name == short) {
            // SAFETY: as in `load`.
            unsafe {
                [
                    (short as *const u64).read_volatile(),
                    (short.wrapping_add(8) as *const u64).read_volatile(),
                    (short.wrapping_add(16) as *const u64).read_volatile(),
                    (short.wrapping_add(24) as *const u64).read_volatile(),
                ]
            }
        } else {
            read(name)
        };
        DentryFields {
            parent: load(address, FieldId::DentryParent),
            len: u64::from(load::<u32>(address, FieldId::DentryNameLen)),
            name,
            words,
        }
    }

    #[inline(always)]
    fn mount_root(mount: u64) -> u64 {
        load(mount, FieldId::VfsmountRoot)
    }

    #[inline(always)]
    fn path(file: u64) -> [u64; 2] {
        [
            load(file, FieldId::FileMnt),
            load(file, FieldId::FileDentry),
        ]
    }

    #[inline(always)]
    fn identity(dentry: u64) -> [u64; 3] {
        let hash = u64::from(load::<u32>(dentry, FieldId::DentryNameHash));
        let len = u64::from(load::<u32>(dentry, FieldId::DentryNameLen));
        [
            load(dentry, FieldId::DentryParent),
            len << 32 | hash,
            load(dentry, FieldId::DentryInode),
        ]
    }

    /// The verifier rejects multiplication of a pointer, but allows subtracting one pointer from
    /// another.
    #[inline(always)]
    fn number(pointer: u64, base: u64) -> u64 {
        pointer.wrapping_sub(base)
    }
}

/// Copies with `bpf_probe_read_kernel`: one call per structure instead of one per field.
pub struct CopyAccess;

#[inline(always)]
pub fn block(address: u64) -> StructPrefix {
    let mut block = MaybeUninit::<StructPrefix>::uninit();
    // SAFETY: the helper fills the block, with zeros if it cannot read.
    unsafe {
        read_to(&mut *block.as_mut_ptr(), address);
        block.assume_init()
    }
}

impl KernelMemory for CopyAccess {
    #[inline(always)]
    fn task() -> u64 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_get_current_task() }
    }

    #[inline(always)]
    fn field<T>(base: u64, field: FieldId) -> T {
        kernel::field(base, field)
    }

    #[inline(always)]
    fn file(address: u64) -> FileFields {
        let block = block(address);
        FileFields {
            mode: prefix_field32(&block, FieldId::FileMode),
            inode: prefix_field(&block, FieldId::FileInode),
            mount: prefix_field(&block, FieldId::FileMnt),
            dentry: prefix_field(&block, FieldId::FileDentry),
        }
    }

    #[inline(always)]
    fn inode(address: u64) -> (u32, u64) {
        let block = block(address);
        let mode =
            prefix_field32(&block, FieldId::InodeMode) >> ((offset(FieldId::InodeMode) & 2) * 8);
        (mode & S_IFMT, prefix_field(&block, FieldId::InodeIno))
    }

    #[inline(always)]
    fn dentry(address: u64) -> DentryFields {
        // From `d_parent` on: parent, hash and length, name, inode, and a short name.
        let head: [u64; 8] = read(address.wrapping_add(offset(FieldId::DentryParent)));
        let words = if head[2] == address.wrapping_add(offset(FieldId::DentryShort)) {
            [head[4], head[5], head[6], head[7]]
        } else {
            read(head[2])
        };
        DentryFields {
            parent: head[0],
            len: head[1] >> 32,
            name: head[2],
            words,
        }
    }

    #[inline(always)]
    fn mount_root(mount: u64) -> u64 {
        kernel::field(mount, FieldId::VfsmountRoot)
    }

    #[inline(always)]
    fn path(file: u64) -> [u64; 2] {
        read(file.wrapping_add(offset(FieldId::FileMnt)))
    }

    #[inline(always)]
    fn identity(dentry: u64) -> [u64; 3] {
        let [parent, name, _, inode]: [u64; 4] =
            read(dentry.wrapping_add(offset(FieldId::DentryParent)));
        [parent, name, inode]
    }

    #[inline(always)]
    fn number(pointer: u64, _: u64) -> u64 {
        pointer
    }
}
