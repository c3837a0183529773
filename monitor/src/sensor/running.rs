//! Open files and connections of processes that already run, from `/proc`.

use super::observation::{FileId, kernel_device};
use crate::{host, reserved};
use monitor_core::model::Transport;
use procfs::{
    ProcResult,
    net::{TcpNetEntry, TcpState, UdpNetEntry},
    process::{FDPermissions, FDTarget, Process},
};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags},
    io::Errno,
};
use std::{
    collections::HashMap,
    fs::File,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// What a process has open.
#[derive(Debug, Default)]
pub struct OpenFiles {
    /// Readable regular files, with their paths as the process sees them.
    pub files: Vec<(PathBuf, FileId)>,
    /// Inode numbers of sockets.
    pub sockets: Vec<u64>,
}

/// The remote end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAddress {
    pub address: IpAddr,
    pub port: u16,
    pub transport: Transport,
}

/// What a process has open now, limited to files whose path is `wanted`; empty if it exited or may
/// not be read.
pub fn open_files(pid: u32, wanted: impl Fn(&Path) -> bool) -> OpenFiles {
    let mut open = OpenFiles::default();
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

/// Identifies the file at a path, as the probes do; `None` if it is not a regular file, or may not
/// be opened.
pub fn identify(path: &Path) -> Option<FileId> {
    let may_be_opened = std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && !reserved::is_reserved(&metadata));
    if !may_be_opened {
        return None;
    }
    // O_NONBLOCK, in case it is no longer a regular file.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some(FileId {
        device: kernel_device(metadata.dev()),
        inode: metadata.ino(),
        generation: inode_generation(&file),
    })
}

/// The target of a path.
#[derive(Debug)]
pub struct PathTarget {
    /// Its path, with links resolved.
    pub path: PathBuf,
    /// Absent for a socket.
    pub file: Option<FileId>,
}

/// Resolves a path as a process sees it, links included; `None` if it is neither a regular file nor
/// a socket. It does not wait for other machines: if a network file system is mounted, a path that
/// the kernel has not cached is treated as absent.
pub fn path_target(pid: u32, path: &Path) -> Option<PathTarget> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{pid}/root"), directory, Mode::empty()).ok()?;
    let inside = path.strip_prefix("/").unwrap_or(path);
    let place = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = |more| rustix::fs::openat2(&root, inside, place, Mode::empty(), resolve | more);
    let opened = match open(ResolveFlags::CACHED) {
        // The path is not cached, or the kernel is older than 5.12.
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
            // Only files on a local device are opened to read more.
            let generation = if found.stx_dev_major == 0 {
                0
            } else {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                rustix::fs::open(&link, flags, Mode::empty())
                    .map_or(0, |opened| inode_generation(&File::from(opened)))
            };
            Some(FileId {
                device: found.stx_dev_major << 20 | found.stx_dev_minor,
                inode: found.stx_ino,
                generation,
            })
        }
        _ => return None,
    };
    Some(PathTarget { path, file })
}

/// File systems that are served by another machine.
pub const REMOTE_FILE_SYSTEMS: [&str; 12] = [
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "9p", "afs", "lustre", "gfs2", "ocfs2",
    "virtiofs",
];

/// Whether no file system of a process is served by another machine, which could make a lookup
/// wait.
fn all_mounts_are_local(pid: u32) -> bool {
    let mounts = i32::try_from(pid)
        .ok()
        .and_then(|pid| Process::new(pid).ok())
        .and_then(|process| process.mountinfo().ok());
    mounts.is_some_and(|mounts| {
        mounts.into_iter().all(|mount| {
            let kind = mount.fs_type.as_str();
            // FUSE is served by a local program, and by default only its owner can access it.
            !REMOTE_FILE_SYSTEMS.contains(&kind)
                && !["fuse.sshfs", "fuse.glusterfs", "fuse.s3fs"].contains(&kind)
        })
    })
}

/// The generation of a file's inode; 0 if its file system has none.
fn inode_generation(file: &File) -> u32 {
    use rustix::ioctl::{Getter, ioctl, opcode};
    const FS_IOC_GETVERSION: rustix::ioctl::Opcode = opcode::read::<std::ffi::c_long>(b'v', 1);
    // SAFETY: despite its definition the call writes an int, and there is room for a long.
    let version = unsafe { ioctl(file, Getter::<FS_IOC_GETVERSION, u64>::new()) };
    version.map_or(0, |version| version as u32)
}

/// Connections by the inode number of their socket, read once per network namespace.
#[derive(Debug, Default)]
pub struct RunningConnections {
    known: HashMap<u64, HashMap<u64, RemoteAddress>>,
}

impl RunningConnections {
    /// The outgoing connections among the sockets of a process.
    pub fn outgoing_of(&mut self, pid: u32, sockets: &[u64]) -> Vec<(u64, RemoteAddress)> {
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

fn outgoing(pid: u32) -> ProcResult<HashMap<u64, RemoteAddress>> {
    let process = Process::new(i32::try_from(pid).unwrap_or(0))?;
    let mut tcp = process.tcp()?;
    // The file does not exist without IPv6.
    tcp.extend(process.tcp6().unwrap_or_default());
    let mut udp = process.udp()?;
    udp.extend(process.udp6().unwrap_or_default());
    Ok(select_outgoing(&tcp, &udp))
}

/// Selects connections initiated from here: a socket on a port with a listener was accepted.
fn select_outgoing(tcp: &[TcpNetEntry], udp: &[UdpNetEntry]) -> HashMap<u64, RemoteAddress> {
    let listening: Vec<u16> = tcp
        .iter()
        .filter(|entry| entry.state == TcpState::Listen)
        .map(|entry| entry.local_address.port())
        .collect();
    let remote = |address: SocketAddr, transport| RemoteAddress {
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
    fn open_files_of_this_process() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("open");
        std::fs::write(&path, "x").expect("written");
        let reading = std::fs::File::open(&path).expect("opened");
        let mut writing = std::fs::File::create(directory.path().join("written")).expect("created");
        writing.write_all(b"x").expect("written");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let to = listener.local_addr().expect("an address");
        let none = open_files(std::process::id(), |_| false);
        assert!(none.files.is_empty(), "nothing else is touched");
        let connected = TcpStream::connect(to).expect("connected");
        let accepted = listener.accept().expect("accepted");
        let found = open_files(std::process::id(), |_| true);
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
        let remotes = RunningConnections::default().outgoing_of(std::process::id(), &found.sockets);
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
