//! The table of kernel fields that the probes read.
//!
//! Rust cannot emit CO-RE relocations, so the agent resolves this table from the kernel's BTF and
//! sets the offsets as frozen read-only data before it loads the probes: the verifier then treats
//! each offset as a constant. An optional field that a kernel lacks is [`ABSENT`], and the code
//! that would read it is pruned.

/// The offset of a field that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// One kernel field: its location, its width, and whether Keytrail works without it.
#[derive(Clone, Copy, Debug)]
pub struct KernelField {
    /// The structure, by its C name.
    pub structure: &'static str,
    /// Member paths to the field, such as `a.b`; the first one that the kernel has is used.
    pub paths: &'static [&'static str],
    /// Size of the field in bytes, or 0 where only its position matters.
    pub width: u32,
    /// Whether a probe cannot work without this field.
    pub needed: bool,
}

macro_rules! kernel_fields {
    ($($(#[$doc:meta])* $name:ident: $structure:literal [$($path:literal)|+] $width:literal $need:ident;)*) => {
        /// Indexes into [`TABLE`] and into the offsets in the probes' read-only data.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum FieldId { $($(#[$doc])* $name,)* }
        /// Every field, in the order of [`FieldId`].
        pub const TABLE: &[KernelField] = &[
            $(KernelField { structure: $structure, paths: &[$($path),+], width: $width, needed: needed!($need) },)*
        ];
    };
}
macro_rules! needed {
    (needed) => {
        true
    };
    (optional) => {
        false
    };
}

kernel_fields! {
    TaskTgid: "task_struct" ["tgid"] 4 needed;
    TaskPid: "task_struct" ["pid"] 4 needed;
    /// Nanoseconds since boot; `real_start_time` before 5.5.
    TaskStart: "task_struct" ["start_boottime" | "real_start_time"] 8 needed;
    TaskLeader: "task_struct" ["group_leader"] 8 needed;
    TaskParent: "task_struct" ["real_parent"] 8 needed;
    TaskFiles: "task_struct" ["files"] 8 needed;
    TaskMm: "task_struct" ["mm"] 8 needed;
    TaskSignal: "task_struct" ["signal"] 8 needed;
    /// Absent without CONFIG_AUDIT.
    TaskLoginuid: "task_struct" ["loginuid.val"] 4 optional;
    SignalTty: "signal_struct" ["tty"] 8 needed;
    SignalLive: "signal_struct" ["live.counter"] 4 needed;
    FilesFdt: "files_struct" ["fdt"] 8 needed;
    FdtFd: "fdtable" ["fd"] 8 needed;
    FileMode: "file" ["f_mode"] 4 needed;
    FileInode: "file" ["f_inode"] 8 needed;
    FileMnt: "file" ["f_path.mnt" | "__f_path.mnt"] 8 needed;
    FileDentry: "file" ["f_path.dentry" | "__f_path.dentry"] 8 needed;
    /// The probes read a dentry from this offset as one block: parent, length and name, inode, and
    /// the bytes of a short name.
    DentryParent: "dentry" ["d_parent"] 8 needed;
    DentryNameHash: "dentry" ["d_name.hash" | "__d_name.hash"] 4 needed;
    DentryNameLen: "dentry" ["d_name.len" | "__d_name.len"] 4 needed;
    DentryName: "dentry" ["d_name.name" | "__d_name.name"] 8 needed;
    DentryInode: "dentry" ["d_inode"] 8 needed;
    DentryShort: "dentry" ["d_iname" | "d_shortname"] 0 needed;
    InodeMode: "inode" ["i_mode"] 2 needed;
    InodeSb: "inode" ["i_sb"] 8 needed;
    InodeIno: "inode" ["i_ino"] 8 needed;
    InodeGeneration: "inode" ["i_generation"] 4 needed;
    InodeNlink: "inode" ["i_nlink"] 4 needed;
    SbDev: "super_block" ["s_dev"] 4 needed;
    SbMagic: "super_block" ["s_magic"] 8 needed;
    VfsmountRoot: "vfsmount" ["mnt_root"] 8 needed;
    MountVfsmount: "mount" ["mnt"] 0 needed;
    MountParent: "mount" ["mnt_parent"] 8 needed;
    MountPoint: "mount" ["mnt_mountpoint"] 8 needed;
    MmEnvStart: "mm_struct" ["env_start"] 8 needed;
    MmEnvEnd: "mm_struct" ["env_end"] 8 needed;
    BprmFile: "linux_binprm" ["file"] 8 needed;
    /// Leads from a procfs file to the process that it describes.
    ProcInodePid: "proc_inode" ["pid"] 8 needed;
    ProcInodeVfs: "proc_inode" ["vfs_inode"] 0 needed;
    PidTasks: "pid" ["tasks"] 0 needed;
    TaskPidLinks: "task_struct" ["pid_links"] 0 needed;
    SockCookie: "sock" ["__sk_common.skc_cookie"] 8 needed;
    SockFamily: "sock" ["__sk_common.skc_family"] 2 needed;
    FilePrivate: "file" ["private_data"] 8 needed;
    SocketSk: "socket" ["sk"] 8 needed;
    /// Absent if unix sockets are a module.
    UnixPeer: "unix_sock" ["peer"] 8 optional;
    UnixMnt: "unix_sock" ["path.mnt"] 8 optional;
    UnixDentry: "unix_sock" ["path.dentry"] 8 optional;
    /// Absent without CONFIG_IO_URING.
    IoRequestOpcode: "io_kiocb" ["opcode"] 1 optional;
}

/// Number of fields.
pub const COUNT: usize = TABLE.len();

/// Field offsets, indexed by [`FieldId`]; [`ABSENT`] if the kernel has no such field.
pub type FieldOffsets = [u32; COUNT];

/// Bytes of a `struct file` and of a `struct inode` that the probes read in one block.
pub const BLOCK_BYTES: usize = 96;

/// Checks that the offsets are consistent with each other.
///
/// A dentry is read as one block of 64 bytes, a `struct file` and an inode as blocks of
/// [`BLOCK_BYTES`]: this is cheaper than one read per field.
pub fn layout_error(offsets: &FieldOffsets) -> Option<&'static str> {
    let at = |field: FieldId| offsets[field as usize];
    let parent = at(FieldId::DentryParent);
    let block = [
        (FieldId::DentryNameHash, 8),
        (FieldId::DentryNameLen, 12),
        (FieldId::DentryName, 16),
        (FieldId::DentryInode, 24),
        (FieldId::DentryShort, 32),
    ];
    if block
        .iter()
        .any(|(field, distance)| at(*field) != parent.wrapping_add(*distance))
    {
        return Some("struct dentry is not laid out as the probes read it");
    }
    if at(FieldId::FileDentry) != at(FieldId::FileMnt).wrapping_add(8) {
        return Some("struct path is not laid out as the probes read it");
    }
    let in_block = [
        FieldId::FileMode,
        FieldId::FileInode,
        FieldId::FileMnt,
        FieldId::FileDentry,
        FieldId::InodeMode,
        FieldId::InodeSb,
        FieldId::InodeIno,
    ];
    if in_block
        .iter()
        .any(|field| at(*field) > BLOCK_BYTES as u32 - 8)
    {
        return Some("struct file or struct inode is larger than the probes read");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plausible() -> FieldOffsets {
        let mut offsets = [16; COUNT];
        for (field, offset) in [
            (FieldId::FileDentry, 24),
            (FieldId::DentryParent, 24),
            (FieldId::DentryNameHash, 32),
            (FieldId::DentryNameLen, 36),
            (FieldId::DentryName, 40),
            (FieldId::DentryInode, 48),
            (FieldId::DentryShort, 56),
        ] {
            offsets[field as usize] = offset;
        }
        offsets
    }

    #[test]
    fn layouts_are_checked() {
        assert_eq!(layout_error(&plausible()), None);
        let mut moved = plausible();
        moved[FieldId::DentryName as usize] = 64;
        assert!(layout_error(&moved).is_some_and(|text| text.contains("dentry")));
        let mut far = plausible();
        far[FieldId::FileInode as usize] = 200;
        assert!(layout_error(&far).is_some_and(|text| text.contains("struct file")));
        let mut apart = plausible();
        apart[FieldId::FileDentry as usize] = 40;
        assert!(layout_error(&apart).is_some_and(|text| text.contains("struct path")));
    }
}
