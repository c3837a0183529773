//! So many connections at a time, and no more.

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

/// Connections at a time: a Prometheus, some browsers, and room.
const CONNECTIONS: usize = 64;
/// Of one other machine: none is to keep the rest out.
const OF_ONE: usize = 16;

/// Accepts as another does, while there is room; whoever comes then is let go at once.
#[derive(Clone, Debug)]
pub struct Few<A> {
    inner: A,
    room: Arc<Semaphore>,
    peers: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl<A> Few<A> {
    pub fn new(inner: A) -> Self {
        Self {
            inner,
            room: Arc::new(Semaphore::new(CONNECTIONS)),
            peers: Arc::default(),
        }
    }

    /// A place for a connection from a peer; nothing where there is no room.
    fn place(&self, peer: IpAddr) -> Option<Place> {
        let room = Arc::clone(&self.room).try_acquire_owned().ok()?;
        if !peer.is_loopback() {
            let mut peers = self.peers.lock().ok()?;
            let count = peers.entry(peer).or_default();
            if *count >= OF_ONE {
                return None;
            }
            *count += 1;
        }
        Some(Place {
            _room: room,
            peer,
            peers: Arc::clone(&self.peers),
        })
    }
}

/// A place is given back when its connection is over.
#[derive(Debug)]
struct Place {
    _room: OwnedSemaphorePermit,
    peer: IpAddr,
    peers: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Drop for Place {
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

impl<A, S> Accept<TcpStream, S> for Few<A>
where
    A: Accept<TcpStream, S>,
    A::Future: Send + 'static,
{
    type Stream = Held<A::Stream>;
    type Service = A::Service;
    type Future =
        Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send + 'static>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let peer = stream.peer_addr().map(|peer| peer.ip().to_canonical());
        let Some(place) = peer.ok().and_then(|peer| self.place(peer)) else {
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
            let held = Held {
                inner: stream,
                _place: place,
            };
            Ok((held, service))
        })
    }
}

/// A connection that has its place for as long as it is open.
#[derive(Debug)]
pub struct Held<I> {
    inner: I,
    _place: Place,
}

impl<I: AsyncRead + Unpin> AsyncRead for Held<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Held<I> {
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
    fn one_machine_does_not_take_the_place_of_the_others() {
        let few = Few::new(());
        let peer = |text: &str| text.parse::<IpAddr>().expect("an address");
        let mut held: Vec<Place> = (0..20)
            .filter_map(|_| few.place(peer("10.0.0.1")))
            .collect();
        assert_eq!(held.len(), OF_ONE);
        held.extend((0..100).filter_map(|_| few.place(peer("127.0.0.1"))));
        assert_eq!(held.len(), CONNECTIONS);
        assert!(few.place(peer("10.0.0.2")).is_none());
        held.clear();
        assert!(few.place(peer("10.0.0.1")).is_some());
        assert!(few.peers.lock().expect("whole").is_empty());
    }
}
