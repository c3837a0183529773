//! Messages between the agent and a reader: a length, and that many bytes of JSON. A descriptor may
//! accompany the length.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};
use thiserror::Error;

/// Maximum bytes of a message: the answer about 40,000 recovered files has about ten million.
const MESSAGE_MAX: usize = 16 << 20;
/// Bytes of the length.
const LENGTH: usize = 4;

/// Why a message could not be exchanged.
#[derive(Debug, Error)]
pub enum WireError {
    #[error("the other side has closed the socket")]
    Closed,
    #[error("no complete message in time")]
    TimedOut,
    #[error("a message of {0} bytes is larger than {MESSAGE_MAX}")]
    TooLarge(usize),
    #[error("the message cannot be understood: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for WireError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET => Self::Closed,
            other => Self::Io(other.into()),
        }
    }
}

/// When a message must be complete; `None` waits without a limit.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    pub fn after(limit: Duration) -> Self {
        Self(Instant::now().checked_add(limit))
    }

    pub fn never() -> Self {
        Self(None)
    }

    /// Waits until the socket is ready.
    fn wait(self, socket: BorrowedFd<'_>, wanted: PollFlags) -> Result<(), WireError> {
        loop {
            let left = self
                .0
                .map(|end| end.saturating_duration_since(Instant::now()));
            let timeout = left.map(|left| Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            });
            let mut sockets = [PollFd::from_borrowed_fd(socket, wanted)];
            match poll(&mut sockets, timeout.as_ref()) {
                Ok(0) => return Err(WireError::TimedOut),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Sends a message, with a descriptor if there is one.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptor: Option<BorrowedFd<'_>>,
    deadline: Deadline,
) -> Result<(), WireError> {
    let socket = socket.as_fd();
    let body = serde_json::to_vec(message)?;
    if body.len() > MESSAGE_MAX {
        return Err(WireError::TooLarge(body.len()));
    }
    let length = (body.len() as u32).to_le_bytes();
    let whole = [&length[..], &body].concat();
    let mut left: &[u8] = &whole;
    let mut first = true;
    while !left.is_empty() {
        deadline.wait(socket, PollFlags::OUT)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let passed: Vec<BorrowedFd<'_>> = descriptor.filter(|_| first).into_iter().collect();
        if !passed.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&passed));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(socket, &[IoSlice::new(left)], &mut ancillary, flags) {
            Ok(sent) => {
                left = &left[sent..];
                first = false;
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Receives a message, and the descriptor that came with it.
pub fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    deadline: Deadline,
) -> Result<(T, Option<OwnedFd>), WireError> {
    let socket = socket.as_fd();
    let mut length = [0; LENGTH];
    let mut descriptor = None;
    fill(socket, &mut length, &mut descriptor, deadline)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_MAX {
        return Err(WireError::TooLarge(length));
    }
    let mut body = vec![0; length];
    fill(socket, &mut body, &mut descriptor, deadline)?;
    Ok((serde_json::from_slice(&body)?, descriptor))
}

fn fill(
    socket: BorrowedFd<'_>,
    mut place: &mut [u8],
    descriptor: &mut Option<OwnedFd>,
    deadline: Deadline,
) -> Result<(), WireError> {
    while !place.is_empty() {
        deadline.wait(socket, PollFlags::IN)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received =
            retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(place)], &mut ancillary, flags));
        let received = match received {
            Ok(received) => received,
            Err(Errno::AGAIN) => continue,
            Err(error) => return Err(error.into()),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                // Any more than one are closed.
                *descriptor = descriptors.into_iter().next().or(descriptor.take());
            }
        }
        if received.bytes == 0 {
            return Err(WireError::Closed);
        }
        place = &mut place[received.bytes..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
    };

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    #[test]
    fn a_large_message_and_a_descriptor() {
        let (here, there) = UnixStream::pair().expect("sockets");
        let text = "x".repeat(3 << 20);
        let sent = text.clone();
        let sender = std::thread::spawn(move || {
            let file = File::open("/proc/self/comm").expect("opened");
            send(&here, &sent, Some(file.as_fd()), soon()).expect("sent");
            send(&here, &1u32, None, soon()).expect("sent");
        });
        let (received, descriptor) = receive::<String>(&there, soon()).expect("received");
        assert!(received == text);
        let mut comm = String::new();
        let mut file = File::from(descriptor.expect("a descriptor"));
        file.read_to_string(&mut comm).expect("read");
        assert!(!comm.is_empty());
        let (number, none) = receive::<u32>(&there, soon()).expect("received");
        assert_eq!((number, none.is_none()), (1, true));
        sender.join().expect("joined");
        let closed = receive::<u32>(&there, soon()).expect_err("closed");
        assert!(matches!(closed, WireError::Closed), "{closed}");
    }

    #[test]
    fn an_incomplete_message_is_not_waited_for() {
        let (mut here, there) = UnixStream::pair().expect("sockets");
        here.write_all(&[9, 0, 0, 0, b'"']).expect("written");
        let error = receive::<String>(&there, Deadline::after(Duration::from_millis(20)));
        assert!(matches!(error, Err(WireError::TimedOut)), "{error:?}");
    }

    #[test]
    fn a_length_beyond_the_limit_allocates_nothing() {
        let (mut here, there) = UnixStream::pair().expect("sockets");
        here.write_all(&u32::MAX.to_le_bytes()).expect("written");
        let error = receive::<String>(&there, soon());
        assert!(matches!(error, Err(WireError::TooLarge(_))), "{error:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let (mut here, there) = UnixStream::pair().expect("sockets");
            here.write_all(&bytes).expect("written");
            drop(here);
            let _ = receive::<super::super::protocol::ReadAnswer>(&there, soon());
        }
    }
}
