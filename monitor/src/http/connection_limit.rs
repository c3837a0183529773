//! Limits the number of concurrent connections. A new one is always accepted: where there is no
//! room, it takes the place of the one that has been silent for the longest. So neither idle
//! connections nor a few machines can keep a health check or Prometheus out.

use axum_server::accept::Accept;
use std::{
    collections::BTreeMap,
    future::{Ready, ready},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, OwnedFd},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Maximum concurrent connections: enough for Prometheus and several browsers.
const CONNECTIONS_MAX: usize = 64;
/// Maximum of one network, and of one machine: /24 and /64 hold the pods of one node.
const CONNECTIONS_PER_NETWORK_MAX: usize = 32;
const CONNECTIONS_PER_PEER_MAX: usize = 16;
/// A connection is closed if the other side does not take what was sent for this long.
const SEND_TIMEOUT_MS: u32 = 30_000;

/// A connection, and when it last sent or received something.
#[derive(Debug)]
struct OpenConnection {
    id: u64,
    peer: IpAddr,
    /// Another descriptor of its socket, to close it from here.
    socket: OwnedFd,
    progress: Arc<ProgressClock>,
}

/// When something was last sent or received, in milliseconds since the table was made.
#[derive(Debug)]
struct ProgressClock {
    since: Instant,
    last: AtomicU64,
}

impl ProgressClock {
    fn new(since: Instant) -> Self {
        let clock = Self {
            since,
            last: AtomicU64::new(0),
        };
        clock.note();
        clock
    }

    fn note(&self) {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }
}

/// The open connections of a listener.
#[derive(Debug)]
struct ConnectionTable {
    since: Instant,
    next: u64,
    open: Vec<OpenConnection>,
}

/// Accepts connections, and closes others where there is no room.
#[derive(Clone, Debug)]
pub struct ConnectionLimit(Arc<Mutex<ConnectionTable>>);

impl ConnectionLimit {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(ConnectionTable {
            since: Instant::now(),
            next: 0,
            open: Vec::with_capacity(CONNECTIONS_MAX),
        })))
    }

    /// A panic elsewhere can at most leave a connection in the table that has ended.
    fn table(&self) -> MutexGuard<'_, ConnectionTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, stream: TcpStream) -> io::Result<LimitedConnection> {
        let peer = stream.peer_addr()?.ip().to_canonical();
        rustix::net::sockopt::set_tcp_user_timeout(&stream, SEND_TIMEOUT_MS)?;
        let socket = stream.as_fd().try_clone_to_owned()?;
        let mut table = self.table();
        while let Some(index) = surplus(&table.open, peer) {
            let closed = table.open.swap_remove(index);
            // Its task notices, and ends.
            let _ = rustix::net::shutdown(&closed.socket, rustix::net::Shutdown::Both);
        }
        let id = table.next;
        table.next += 1;
        let progress = Arc::new(ProgressClock::new(table.since));
        table.open.push(OpenConnection {
            id,
            peer,
            socket,
            progress: Arc::clone(&progress),
        });
        Ok(LimitedConnection {
            inner: stream,
            progress,
            slot: ConnectionSlot {
                id,
                limit: self.clone(),
            },
        })
    }
}

/// The connection that has to make room for one from `peer`, if there is no room: the most silent one
/// of the address that holds the most, in the network that holds the most.
fn surplus(open: &[OpenConnection], peer: IpAddr) -> Option<usize> {
    let networks = counts(open.iter().map(|one| network(one.peer)));
    let count = |network: IpAddr| networks.get(&network).copied().unwrap_or_default();
    // Everything on this machine has the same address.
    let limited = !peer.is_loopback();
    let own = open.iter().filter(|one| one.peer == peer).count();
    if limited && own >= CONNECTIONS_PER_PEER_MAX {
        return most_silent(open, |one| one.peer == peer);
    }
    let crowded = if limited && count(network(peer)) >= CONNECTIONS_PER_NETWORK_MAX {
        network(peer)
    } else if open.len() >= CONNECTIONS_MAX {
        *networks.iter().max_by_key(|(_, count)| **count)?.0
    } else {
        return None;
    };
    let inside = open.iter().map(|one| one.peer);
    let peers = counts(inside.filter(|peer| network(*peer) == crowded));
    let (largest, _) = peers.iter().max_by_key(|(_, count)| **count)?;
    most_silent(open, |one| one.peer == *largest)
}

fn counts(addresses: impl Iterator<Item = IpAddr>) -> BTreeMap<IpAddr, usize> {
    let mut counts = BTreeMap::new();
    for address in addresses {
        *counts.entry(address).or_default() += 1;
    }
    counts
}

fn most_silent(open: &[OpenConnection], among: impl Fn(&OpenConnection) -> bool) -> Option<usize> {
    let candidates = open.iter().enumerate().filter(|(_, one)| among(one));
    candidates
        .min_by_key(|(_, one)| (one.progress.last.load(Ordering::Relaxed), one.id))
        .map(|(index, _)| index)
}

/// The network of an address: what one owner of machines or pods can easily have many of.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address) & !0xff).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
    }
}

/// Removes a connection from the table when it ends.
#[derive(Debug)]
struct ConnectionSlot {
    id: u64,
    limit: ConnectionLimit,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.limit.table().open.retain(|one| one.id != self.id);
    }
}

impl<S> Accept<TcpStream, S> for ConnectionLimit {
    type Stream = LimitedConnection;
    type Service = S;
    type Future = Ready<io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(self.admit(stream).map(|stream| (stream, service)))
    }
}

/// A connection that is in the table while it is open.
#[derive(Debug)]
pub struct LimitedConnection {
    inner: TcpStream,
    progress: Arc<ProgressClock>,
    #[expect(dead_code, reason = "it is removed from the table when it is dropped")]
    slot: ConnectionSlot,
}

impl AsyncRead for LimitedConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        if polled.is_ready() {
            self.progress.note();
        }
        polled
    }
}

impl AsyncWrite for LimitedConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        if polled.is_ready() {
            self.progress.note();
        }
        polled
    }

    /// As in one piece: otherwise the server would copy each response into a buffer of its own.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(context, pieces);
        if polled.is_ready() {
            self.progress.note();
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(id: u64, peer: &str) -> OpenConnection {
        let since = Instant::now();
        let progress = ProgressClock::new(since);
        progress.last.store(1_000 + id, Ordering::Relaxed);
        OpenConnection {
            id,
            peer: peer.parse().expect("an address"),
            socket: std::fs::File::open("/dev/null").expect("a file").into(),
            progress: Arc::new(progress),
        }
    }

    /// Opens connections from each peer in turn; returns how many of each stay.
    fn opened(peers: &[&str], each: usize) -> Vec<usize> {
        let mut open: Vec<OpenConnection> = Vec::new();
        let mut id = 0;
        for _ in 0..each {
            for peer in peers {
                let new = connection(id, peer);
                id += 1;
                while let Some(index) = surplus(&open, new.peer) {
                    open.swap_remove(index);
                }
                open.push(new);
                assert!(open.len() <= CONNECTIONS_MAX);
            }
        }
        let count = |peer: &&str| {
            let peer: IpAddr = peer.parse().expect("an address");
            open.iter().filter(|one| one.peer == peer).count()
        };
        peers.iter().map(count).collect()
    }

    #[test]
    fn machines_and_networks_have_a_share() {
        assert_eq!(opened(&["10.0.0.1"], 100), [CONNECTIONS_PER_PEER_MAX]);
        assert_eq!(opened(&["127.0.0.1"], 100), [CONNECTIONS_MAX]);
        let pods = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
        let of_pods: usize = opened(&pods, 100).iter().sum();
        assert_eq!(of_pods, CONNECTIONS_PER_NETWORK_MAX);
        let of_hosts: usize = opened(&["fd00::1", "fd00::2", "fd00::3"], 100).iter().sum();
        assert_eq!(of_hosts, CONNECTIONS_PER_NETWORK_MAX);
    }

    #[test]
    fn the_most_silent_makes_room_for_a_new_one() {
        let open: Vec<OpenConnection> = (0..64).map(|id| connection(id, "127.0.0.1")).collect();
        let new = "127.0.0.1".parse().expect("an address");
        assert_eq!(surplus(&open[1..], new), None);
        assert_eq!(surplus(&open, new), Some(0));
        open[0].progress.last.store(5_000, Ordering::Relaxed);
        assert_eq!(surplus(&open, new), Some(1));
    }

    /// Pods of two nodes that keep asking, and reconnect at once.
    #[test]
    fn whoever_holds_the_most_makes_room() {
        let mut open = vec![connection(0, "10.9.0.1"), connection(1, "10.8.0.1")];
        for id in 2..1_000 {
            let peer = format!("10.{}.0.{}", 1 + id % 2, 10 + id % 3);
            let new = connection(id, &peer);
            while let Some(index) = surplus(&open, new.peer) {
                open.swap_remove(index);
            }
            open.push(new);
        }
        // The kubelet and Prometheus, though they are the most silent.
        for id in [0, 1] {
            assert!(open.iter().any(|one| one.id == id), "{id}");
        }
    }
}
