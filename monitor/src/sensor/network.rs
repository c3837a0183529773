//! The agent's own network namespace, as the probes report namespaces.

use std::{mem::size_of, net::UdpSocket, os::fd::AsRawFd as _};

/// The cookie of the network namespace of this process. `None` before Linux 5.14, which does not tell
/// it.
pub fn own_cookie() -> Option<u64> {
    /// Not in the C library's headers yet.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to the cookie.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    (status == 0 && cookie != 0).then_some(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_is_that_of_the_namespace() {
        let cookie = own_cookie();
        assert!(cookie.is_none_or(|cookie| cookie != 0));
        assert_eq!(own_cookie(), cookie);
    }
}
