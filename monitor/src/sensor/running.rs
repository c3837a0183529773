//! What a process that already runs has open: files and connections, from `/proc`.

use super::observation::{FileId, kernel_device};
use crate::{host, model::Transport, reserved};
use procfs::{
    ProcResult,
    net::{TcpNetEntry, TcpState, UdpNetEntry},
    process::{FDPermissions, FDTarget, Process},
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use std::{
    collections::HashMap,
    fs::File,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// What a process has open.
#[derive(Debug, Default)]
pub struct Open {
    /// Regular files that can be read, and their paths as the process sees them.
    pub files: Vec<(PathBuf, FileId)>,
    /// Inode numbers of sockets.
    pub sockets: Vec<u64>,
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    pub address: IpAddr,
    pub port: u16,
    pub transport: Transport,
}

/// What a process has open now, of files those whose path is `wanted`; nothing of one that has ended,
/// or that may not be looked into.
pub fn open(pid: u32, wanted: impl Fn(&Path) -> bool) -> Open {
    let mut open = Open::default();
    let descriptors = i32::try_from(pid)
        .ok()
        .and_then(|pid| Process::new(pid).ok())
        .and_then(|process| process.fd().ok());
    for descriptor in descriptors.into_iter().flatten().flatten() {
        match descriptor.target {
            FDTarget::Path(path)
                if descriptor.mode().contains(FDPermissions::READ) && wanted(&path) =>
            {
                let link = format!("/proc/{pid}/fd/{}", descriptor.fd);
                let file = identify(Path::new(&link));
                open.files.extend(file.map(|file| (path, file)));
            }
            FDTarget::Socket(inode) => open.sockets.push(inode),
            _ => {}
        }
    }
    open
}

/// What a path leads to, as the probes tell it; nothing where that is no regular file, or one that
/// may not be opened.
pub fn identify(path: &Path) -> Option<FileId> {
    let may_be_opened = std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && !reserved::is_reserved(&metadata));
    if !may_be_opened {
        return None;
    }
    // What is no file any more by now is not waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some(FileId {
        device: kernel_device(metadata.dev()),
        inode: metadata.ino(),
        generation: generation(&file),
    })
}

/// What a path leads to.
#[derive(Debug)]
pub struct There {
    /// Where that is, without links.
    pub path: PathBuf,
    /// Absent for a socket.
    pub file: Option<FileId>,
}

/// What a path leads to for a process, in its own root, links included; nothing where that is neither a regular file nor
/// a socket. It waits for no other machine: where there is a file system of one, what the kernel does not know yet is not
/// there.
pub fn at(pid: u32, path: &Path) -> Option<There> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{pid}/root"), directory, Mode::empty()).ok()?;
    let inside = path.strip_prefix("/").unwrap_or(path);
    let place = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = |more| rustix::fs::openat2(&root, inside, place, Mode::empty(), resolve | more);
    let opened = match open(ResolveFlags::CACHED) {
        // Not without a look at a disk, or on a kernel before 5.12.
        Err(Errno::AGAIN | Errno::INVAL) if all_mounts_are_local(pid) => {
            open(ResolveFlags::empty())
        }
        opened => opened,
    };
    let opened = opened.ok()?;
    let wanted = StatxFlags::INO | StatxFlags::TYPE;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(&opened, "", flags, wanted).ok()?;
    let kind = FileType::from_raw_mode(found.stx_mode.into());
    let link = host::descriptor_path(&opened);
    let path = std::fs::read_link(&link).ok()?;
    let path = path
        .strip_prefix(format!("/proc/{pid}/root"))
        .map_or(path.clone(), |rest| Path::new("/").join(rest));
    let file = match kind {
        FileType::Socket => None,
        FileType::RegularFile => {
            // Only what is on a device of this machine is opened for more.
            let generation = if found.stx_dev_major == 0 {
                0
            } else {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                rustix::fs::open(&link, flags, Mode::empty())
                    .map_or(0, |opened| generation(&File::from(opened)))
            };
            Some(FileId {
                device: found.stx_dev_major << 20 | found.stx_dev_minor,
                inode: found.stx_ino,
                generation,
            })
        }
        _ => return None,
    };
    Some(There { path, file })
}

/// File systems for which another machine answers.
pub const REMOTE_FILE_SYSTEMS: [&str; 12] = [
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "9p", "afs", "lustre", "gfs2", "ocfs2",
    "virtiofs",
];

/// Whether no file system is mounted for a process that another machine may keep one waiting for.
fn all_mounts_are_local(pid: u32) -> bool {
    let mounts = i32::try_from(pid)
        .ok()
        .and_then(|pid| Process::new(pid).ok())
        .and_then(|process| process.mountinfo().ok());
    mounts.is_some_and(|mounts| {
        mounts.into_iter().all(|mount| {
            let kind = mount.fs_type.as_str();
            // A program of this machine answers for a FUSE, and nobody but its owner waits for that by default.
            !REMOTE_FILE_SYSTEMS.contains(&kind)
                && !["fuse.sshfs", "fuse.glusterfs", "fuse.s3fs"].contains(&kind)
        })
    })
}

/// The generation of a file's inode; 0 where its file system tells none.
fn generation(file: &File) -> u32 {
    use rustix::ioctl::{Getter, ioctl, opcode};
    const FS_IOC_GETVERSION: rustix::ioctl::Opcode = opcode::read::<std::ffi::c_long>(b'v', 1);
    // SAFETY: the call writes an int, for all that its number says, and there is room for a long.
    let version = unsafe { ioctl(file, Getter::<FS_IOC_GETVERSION, u64>::new()) };
    version.map_or(0, |version| version as u32)
}

/// Connections by the inode number of their socket, read once for each network namespace.
#[derive(Debug, Default)]
pub struct Connections {
    known: HashMap<u64, HashMap<u64, Remote>>,
}

impl Connections {
    /// The outgoing connections among the sockets of a process.
    pub fn of(&mut self, pid: u32, sockets: &[u64]) -> Vec<(u64, Remote)> {
        if sockets.is_empty() {
            return Vec::new();
        }
        let Some(namespace) = std::fs::metadata(format!("/proc/{pid}/ns/net"))
            .ok()
            .map(|metadata| metadata.ino())
        else {
            return Vec::new();
        };
        let known = self
            .known
            .entry(namespace)
            .or_insert_with(|| outgoing(pid).unwrap_or_default());
        sockets
            .iter()
            .filter_map(|inode| Some((*inode, *known.get(inode)?)))
            .collect()
    }
}

fn outgoing(pid: u32) -> ProcResult<HashMap<u64, Remote>> {
    let process = Process::new(i32::try_from(pid).unwrap_or(0))?;
    let mut tcp = process.tcp()?;
    // Without IPv6 there is no such file.
    tcp.extend(process.tcp6().unwrap_or_default());
    let mut udp = process.udp()?;
    udp.extend(process.udp6().unwrap_or_default());
    Ok(select(&tcp, &udp))
}

/// What was connected from here: a socket on a port at which something listens was accepted.
fn select(tcp: &[TcpNetEntry], udp: &[UdpNetEntry]) -> HashMap<u64, Remote> {
    let listening: Vec<u16> = tcp
        .iter()
        .filter(|entry| entry.state == TcpState::Listen)
        .map(|entry| entry.local_address.port())
        .collect();
    let remote = |address: SocketAddr, transport| Remote {
        address: match address.ip() {
            IpAddr::V6(six) => six.to_ipv4_mapped().map_or(IpAddr::V6(six), IpAddr::V4),
            four => four,
        },
        port: address.port(),
        transport,
    };
    let streams = tcp
        .iter()
        .filter(|entry| {
            entry.state == TcpState::Established && !listening.contains(&entry.local_address.port())
        })
        .map(|entry| (entry.inode, remote(entry.remote_address, Transport::Tcp)));
    let datagrams = udp
        .iter()
        .filter(|entry| entry.remote_address.port() != 0)
        .map(|entry| (entry.inode, remote(entry.remote_address, Transport::Udp)));
    streams.chain(datagrams).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write as _, net::TcpListener, net::TcpStream};

    #[test]
    fn what_this_process_has_open() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("open");
        std::fs::write(&path, "x").expect("written");
        let reading = std::fs::File::open(&path).expect("opened");
        let mut writing = std::fs::File::create(directory.path().join("written")).expect("created");
        writing.write_all(b"x").expect("written");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let to = listener.local_addr().expect("an address");
        let none = open(std::process::id(), |_| false);
        assert!(none.files.is_empty(), "nothing else is touched");
        let connected = TcpStream::connect(to).expect("connected");
        let accepted = listener.accept().expect("accepted");
        let found = open(std::process::id(), |_| true);
        let inode = reading.metadata().expect("there").ino();
        assert!(
            found
                .files
                .iter()
                .any(|(seen, file)| *seen == path && file.inode == inode)
        );
        assert!(
            !found
                .files
                .iter()
                .any(|(seen, _)| seen.ends_with("written"))
        );
        let remotes = Connections::default().of(std::process::id(), &found.sockets);
        let ours: Vec<_> = remotes
            .iter()
            .filter(|(_, remote)| remote.port == to.port())
            .collect();
        assert_eq!(
            ours.len(),
            1,
            "what was accepted was not connected from here: {remotes:?}"
        );
        drop((connected, accepted));
    }
}
