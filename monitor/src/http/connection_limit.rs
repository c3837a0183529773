//! Limits the number of concurrent connections.

use axum_server::accept::Accept;
use std::{
    collections::HashMap,
    future::Future,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Maximum concurrent connections: enough for Prometheus and several browsers.
const CONNECTIONS_MAX: usize = 64;
/// Maximum per remote machine, so that one cannot exclude the others.
const CONNECTIONS_PER_PEER_MAX: usize = 16;

/// Accepts connections while there is room; any more are closed at once.
#[derive(Clone, Debug)]
pub struct ConnectionLimit<A> {
    inner: A,
    room: Arc<Semaphore>,
    peers: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl<A> ConnectionLimit<A> {
    pub fn new(inner: A) -> Self {
        Self {
            inner,
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            peers: Arc::default(),
        }
    }

    /// Reserves a slot for a connection from a peer; `None` if there is no room.
    fn reserve_slot(&self, peer: IpAddr) -> Option<ConnectionSlot> {
        let room = Arc::clone(&self.room).try_acquire_owned().ok()?;
        if !peer.is_loopback() {
            let mut peers = self.peers.lock().ok()?;
            let count = peers.entry(peer).or_default();
            if *count >= CONNECTIONS_PER_PEER_MAX {
                return None;
            }
            *count += 1;
        }
        Some(ConnectionSlot {
            _room: room,
            peer,
            peers: Arc::clone(&self.peers),
        })
    }
}

/// A slot is released when its connection ends.
#[derive(Debug)]
struct ConnectionSlot {
    _room: OwnedSemaphorePermit,
    peer: IpAddr,
    peers: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        if let Ok(mut peers) = self.peers.lock()
            && let Some(count) = peers.get_mut(&self.peer)
        {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

impl<A, S> Accept<TcpStream, S> for ConnectionLimit<A>
where
    A: Accept<TcpStream, S>,
    A::Future: Send + 'static,
{
    type Stream = LimitedConnection<A::Stream>;
    type Service = A::Service;
    type Future =
        Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send + 'static>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let peer = stream.peer_addr().map(|peer| peer.ip().to_canonical());
        let Some(place) = peer.ok().and_then(|peer| self.reserve_slot(peer)) else {
            return Box::pin(async {
                Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "too many connections",
                ))
            });
        };
        let accepted = self.inner.accept(stream, service);
        Box::pin(async {
            let (stream, service) = accepted.await?;
            let held = LimitedConnection {
                inner: stream,
                _place: place,
            };
            Ok((held, service))
        })
    }
}

/// A connection that keeps its slot while it is open.
#[derive(Debug)]
pub struct LimitedConnection<I> {
    inner: I,
    _place: ConnectionSlot,
}

impl<I: AsyncRead + Unpin> AsyncRead for LimitedConnection<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for LimitedConnection<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
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

    #[test]
    fn one_client_cannot_use_up_all_connections() {
        let few = ConnectionLimit::new(());
        let peer = |text: &str| text.parse::<IpAddr>().expect("an address");
        let mut held: Vec<ConnectionSlot> = (0..20)
            .filter_map(|_| few.reserve_slot(peer("10.0.0.1")))
            .collect();
        assert_eq!(held.len(), CONNECTIONS_PER_PEER_MAX);
        held.extend((0..100).filter_map(|_| few.reserve_slot(peer("127.0.0.1"))));
        assert_eq!(held.len(), CONNECTIONS_MAX);
        assert!(few.reserve_slot(peer("10.0.0.2")).is_none());
        held.clear();
        assert!(few.reserve_slot(peer("10.0.0.1")).is_some());
        assert!(few.peers.lock().expect("whole").is_empty());
    }
}
