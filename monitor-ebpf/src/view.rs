//! What is looked at of an open file, read in the way that a program may: directly, where the
//! kernel vouches for the pointer, or through a helper.

use crate::kernel::{self, Block, offset, pick, pick32, read, read_to};
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf};
use core::mem::MaybeUninit;
use monitor_common::fields::F;

/// Parts of a `struct file`.
#[derive(Clone, Copy)]
pub struct OpenFile {
    pub mode: u32,
    pub inode: u64,
    pub mount: u64,
    pub dentry: u64,
}

/// Parts of a `struct dentry`, with the first bytes of its name.
#[derive(Clone, Copy)]
pub struct Dentry {
    pub parent: u64,
    pub len: u64,
    pub name: u64,
    pub words: [u64; 4],
}

/// A way to read the kernel's structures.
pub trait Memory {
    /// The current task.
    fn task() -> u64;
    /// A field of the structure at `base`.
    fn field<T>(base: u64, field: F) -> T;
    fn file(address: u64) -> OpenFile;
    /// The type bits of the mode, and the number.
    fn inode(address: u64) -> (u32, u64);
    fn dentry(address: u64) -> Dentry;
    fn mount_root(mount: u64) -> u64;
    /// Mount and dentry of a file: the least that tells which one it is.
    fn path(file: u64) -> [u64; 2];
    /// Of a dentry its parent, hash and length of its name, and its inode. The name cannot change
    /// without them, but for one in four billion.
    fn identity(dentry: u64) -> [u64; 3];
    /// A pointer as a number that can be reckoned with, for what is only compared with its like.
    fn number(pointer: u64, base: u64) -> u64;
}

const S_IFMT: u32 = 0xf000;

/// Loads through pointers that the verifier knows by type: the arguments of LSM and fentry
/// programs, and what they point to. A fault reads zero.
pub struct Direct;

/// Loads a field.
#[inline(always)]
fn load<T>(base: u64, field: F) -> T {
    // SAFETY: the kernel checks the type and the offset at load time and catches faults;
    // volatile, so that each field is one load of its own width.
    unsafe { (base.wrapping_add(offset(field)) as *const T).read_volatile() }
}

impl Memory for Direct {
    #[inline(always)]
    fn task() -> u64 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_get_current_task_btf() as u64 }
    }

    #[inline(always)]
    fn field<T>(base: u64, field: F) -> T {
        load(base, field)
    }

    #[inline(always)]
    fn file(address: u64) -> OpenFile {
        OpenFile {
            mode: load(address, F::FileMode),
            inode: load(address, F::FileInode),
            mount: load(address, F::FileMnt),
            dentry: load(address, F::FileDentry),
        }
    }

    #[inline(always)]
    fn inode(address: u64) -> (u32, u64) {
        (
            u32::from(load::<u16>(address, F::InodeMode)) & S_IFMT,
            load(address, F::InodeIno),
        )
    }

    #[inline(always)]
    fn dentry(address: u64) -> Dentry {
        let name: u64 = load(address, F::DentryName);
        let short = address.wrapping_add(offset(F::DentryShort));
        // The verifier knows the type of `short` and not that of `name`; to a compiler that sees
        // them equal, the one is as good as the other.
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
        Dentry {
            parent: load(address, F::DentryParent),
            len: u64::from(load::<u32>(address, F::DentryNameLen)),
            name,
            words,
        }
    }

    #[inline(always)]
    fn mount_root(mount: u64) -> u64 {
        load(mount, F::VfsmountRoot)
    }

    #[inline(always)]
    fn path(file: u64) -> [u64; 2] {
        [load(file, F::FileMnt), load(file, F::FileDentry)]
    }

    #[inline(always)]
    fn identity(dentry: u64) -> [u64; 3] {
        let hash = u64::from(load::<u32>(dentry, F::DentryNameHash));
        let len = u64::from(load::<u32>(dentry, F::DentryNameLen));
        [
            load(dentry, F::DentryParent),
            len << 32 | hash,
            load(dentry, F::DentryInode),
        ]
    }

    /// The verifier takes no product of a pointer, and lets one pointer be taken from another.
    #[inline(always)]
    fn number(pointer: u64, base: u64) -> u64 {
        pointer.wrapping_sub(base)
    }
}

/// Copies through `bpf_probe_read_kernel`: a call for each structure and not for each field.
pub struct Copied;

#[inline(always)]
fn block(address: u64) -> Block {
    let mut block = MaybeUninit::<Block>::uninit();
    // SAFETY: the helper fills the block, with zeros where it cannot read.
    unsafe {
        read_to(&mut *block.as_mut_ptr(), address);
        block.assume_init()
    }
}

impl Memory for Copied {
    #[inline(always)]
    fn task() -> u64 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_get_current_task() }
    }

    #[inline(always)]
    fn field<T>(base: u64, field: F) -> T {
        kernel::field(base, field)
    }

    #[inline(always)]
    fn file(address: u64) -> OpenFile {
        let block = block(address);
        OpenFile {
            mode: pick32(&block, F::FileMode),
            inode: pick(&block, F::FileInode),
            mount: pick(&block, F::FileMnt),
            dentry: pick(&block, F::FileDentry),
        }
    }

    #[inline(always)]
    fn inode(address: u64) -> (u32, u64) {
        let block = block(address);
        let mode = pick32(&block, F::InodeMode) >> ((offset(F::InodeMode) & 2) * 8);
        (mode & S_IFMT, pick(&block, F::InodeIno))
    }

    #[inline(always)]
    fn dentry(address: u64) -> Dentry {
        // From `d_parent` on: parent, hash and length, name, inode, and a short name.
        let head: [u64; 8] = read(address.wrapping_add(offset(F::DentryParent)));
        let words = if head[2] == address.wrapping_add(offset(F::DentryShort)) {
            [head[4], head[5], head[6], head[7]]
        } else {
            read(head[2])
        };
        Dentry {
            parent: head[0],
            len: head[1] >> 32,
            name: head[2],
            words,
        }
    }

    #[inline(always)]
    fn mount_root(mount: u64) -> u64 {
        kernel::field(mount, F::VfsmountRoot)
    }

    #[inline(always)]
    fn path(file: u64) -> [u64; 2] {
        read(file.wrapping_add(offset(F::FileMnt)))
    }

    #[inline(always)]
    fn identity(dentry: u64) -> [u64; 3] {
        let [parent, name, _, inode]: [u64; 4] = read(dentry.wrapping_add(offset(F::DentryParent)));
        [parent, name, inode]
    }

    #[inline(always)]
    fn number(pointer: u64, _: u64) -> u64 {
        pointer
    }
}
