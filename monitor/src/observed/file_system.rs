//! File systems that may keep a caller waiting, by the magic number that the kernel reports.

/// Magic numbers of file systems that another machine or a local program serves.
const REMOTE: [u32; 14] = [
    0x6573_5546, // fuse, and with it virtiofs
    0x0000_6969, // nfs
    0xff53_4d42, // cifs
    0xfe53_4d42, // smb2, smb3
    0x0000_517b, // smbfs
    0x00c3_6400, // ceph
    0x0102_1997, // 9p
    0x5346_414f, // afs of OpenAFS
    0x6b41_4653, // afs of the kernel
    0x0bd0_0bd0, // lustre
    0x0116_1970, // gfs2
    0x7461_636f, // ocfs2
    0x7375_7245, // coda
    0x4750_4653, // gpfs
];

/// Magic numbers of file systems without a device that only the kernel serves.
const LOCAL: [u32; 9] = [
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x0000_9fa0, // proc
    0x6265_6572, // sysfs
    0x6367_7270, // cgroup2
    0x9584_58f6, // hugetlbfs
    0x9123_683e, // btrfs
    0x2fc1_2fc1, // zfs
    0xca45_1a4e, // bcachefs
];

/// Whether a file system is served by another machine or a local program, which may not respond.
pub fn is_remote(magic: u32) -> bool {
    REMOTE.contains(&magic)
}

/// Whether a read can wait for nothing but a local device: the file system has one of its own, or
/// is in memory. An overlay does not tell what is below it.
pub fn is_surely_local(magic: u32, device: u32) -> bool {
    !is_remote(magic) && (LOCAL.contains(&magic) || device >> 20 != 0)
}

/// Magic number of overlay file systems.
const OVERLAY: u32 = 0x794c_7630;

/// As [`is_surely_local`], where overlays are known to have local layers only.
pub fn is_local_or_overlay(magic: u32, device: u32) -> bool {
    magic == OVERLAY || is_surely_local(magic, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_wait() {
        const EXT4: u32 = 0xef53;
        let disk = 254 << 20 | 1;
        for (magic, device, remote, local) in [
            (EXT4, disk, false, true),
            (0x9123_683e, 40, false, true),
            (0x0102_1994, 35, false, true),
            (OVERLAY, 50, false, false),
            (0x6573_5546, 60, true, false),
            // fuseblk has a device, and a daemon all the same.
            (0x6573_5546, disk, true, false),
            (0x6969, 61, true, false),
        ] {
            assert_eq!(is_remote(magic), remote, "{magic:#x}");
            assert_eq!(is_surely_local(magic, device), local, "{magic:#x}");
            let with_overlays = local || magic == OVERLAY;
            assert_eq!(is_local_or_overlay(magic, device), with_overlays);
        }
    }
}
