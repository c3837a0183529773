//! Open files and connections of processes that already run, from `/proc`.

use super::{identify::identify_among, mount_table::mounts_of};
use crate::{
    observed::{file::FileId, path::RawPath},
    reader::protocol::RemoteAddress,
};
use monitor_core::model::Transport;
use procfs::{
    ProcResult,
    net::{TcpNetEntry, TcpState, UdpNetEntry},
    process::{FDPermissions, FDTarget, Process},
};
use rustix::fs::{Mode, OFlags};
use std::{
    cell::LazyCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

/// What a process has open.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    /// Readable regular files, with their paths as the process sees them.
    pub files: Vec<(RawPath, FileId)>,
    /// Inode numbers of sockets.
    pub sockets: Vec<u64>,
}

/// Maximum number of descriptors examined of one process.
const DESCRIPTORS_MAX: usize = 65_536;
/// Maximum number of files at places of credentials of one process.
const FILES_MAX: usize = 1024;

/// What a process has open now, limited to files whose path is `wanted`; empty if it exited or may
/// not be read.
pub(super) fn open_files(pid: u32, wanted: impl Fn(&Path) -> bool) -> OpenFiles {
    let mut open = OpenFiles::default();
    let mounts = LazyCell::new(|| mounts_of(pid));
    let descriptors = i32::try_from(pid)
        .ok()
        .and_then(|pid| Process::new(pid).ok())
        .and_then(|process| process.fd().ok());
    for descriptor in descriptors
        .into_iter()
        .flatten()
        .flatten()
        .take(DESCRIPTORS_MAX)
    {
        match descriptor.target {
            FDTarget::Path(path)
                if descriptor.mode().contains(FDPermissions::READ)
                    && open.files.len() < FILES_MAX
                    && wanted(&path) =>
            {
                let link = format!("/proc/{pid}/fd/{}", descriptor.fd);
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let place = rustix::fs::open(link, flags, Mode::empty()).ok();
                let file = place.and_then(|place| identify_among(&place, &mounts));
                open.files.extend(file.map(|file| (path.into(), file)));
            }
            FDTarget::Socket(inode) => open.sockets.push(inode),
            _ => {}
        }
    }
    open
}

/// How long the connections of a namespace are kept, to read them once for all its processes.
const CONNECTIONS_TTL: Duration = Duration::from_secs(2);

/// Connections by the inode number of their socket, read once per network namespace.
#[derive(Debug, Default)]
pub(super) struct RunningConnections {
    known: HashMap<u64, (Instant, HashMap<u64, RemoteAddress>)>,
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
        self.known
            .retain(|_, (read, _)| read.elapsed() < CONNECTIONS_TTL);
        let (_, known) = self
            .known
            .entry(namespace)
            .or_insert_with(|| (Instant::now(), outgoing(pid).unwrap_or_default()));
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
                .any(|(seen, file)| seen.as_path() == path && file.inode == inode)
        );
        assert!(
            !found
                .files
                .iter()
                .any(|(seen, _)| seen.as_path().ends_with("written"))
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
