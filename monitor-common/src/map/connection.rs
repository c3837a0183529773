//! Sockets and connections.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An address in network byte order; an IPv4 address is in the first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct PeerAddress {
    pub words: [u32; 4],
}

impl From<core::net::IpAddr> for PeerAddress {
    fn from(address: core::net::IpAddr) -> Self {
        let mut bytes = [0; 16];
        match address {
            core::net::IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
            core::net::IpAddr::V6(address) => bytes = address.octets(),
        }
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            words: [word(0), word(4), word(8), word(12)],
        }
    }
}

/// What is expected from a socket.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct ExpectedResponse {
    /// Payloads still to be checked for a ClientHello.
    pub payloads_left: u32,
    /// 1 once a payload was reported to the agent.
    pub reported: u32,
    /// 1 once the first bytes of a ClientHello were sent.
    pub hello_begun: u32,
    /// The sequence number after those bytes.
    pub end: u32,
    /// 1 if the next payload is searched regardless of how it begins.
    pub continues: u32,
    /// Ingress packets that are still searched for an issued credential.
    pub responses_left: u32,
    /// 1 if the whole response is a secret.
    pub whole_body: u32,
    /// 1 if the address belongs to an authenticator.
    pub is_authenticator: u32,
    /// Fingerprint of the server name in the head of the last plaintext request, or 1 if it had none;
    /// 0 before the first request.
    pub host: u64,
    /// When the current second of requests outside TLS began, and how many it has.
    pub second: u64,
    pub requests: u32,
    pub reserved: u32,
}

/// Requests outside TLS on one connection that are all searched within a second; of the others one in
/// [`SAMPLE_EVERY`] is.
const SEARCHED_PER_SECOND: u32 = 200;
const SAMPLE_EVERY: u32 = 8;
const SECOND_NS: u64 = 1_000_000_000;

impl ExpectedResponse {
    /// Whether a request at this time (nanoseconds since boot) is searched. A search costs more than
    /// everything else that is done for a packet.
    #[inline(always)]
    pub fn is_searched(&mut self, time: u64) -> bool {
        if time.wrapping_sub(self.second) >= SECOND_NS {
            self.second = time;
            self.requests = 0;
        }
        self.requests += 1;
        self.requests <= SEARCHED_PER_SECOND || self.requests.is_multiple_of(SAMPLE_EVERY)
    }

    pub const NONE: Self = Self {
        payloads_left: 0,
        reported: 0,
        hello_begun: 0,
        end: 0,
        continues: 0,
        responses_left: 0,
        whole_body: 0,
        is_authenticator: 0,
        host: 0,
        second: 0,
        requests: 0,
        reserved: 0,
    };
}

/// The peer of a UDP socket.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct UdpPeer {
    pub cookie: u64,
    pub address: PeerAddress,
    pub port: u64,
}

/// Packets searched in the current second, on this CPU, that came from servers not known as
/// authenticators.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct SearchQuota {
    pub begun: u64,
    pub searched: u64,
}

const _: () = {
    assert!(size_of::<PeerAddress>() == 16);
    assert!(size_of::<ExpectedResponse>() == 56);
    assert!(size_of::<UdpPeer>() == 32);
    assert!(size_of::<SearchQuota>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_connection_is_sampled() {
        let mut expected = ExpectedResponse::NONE;
        let start = 10 * SECOND_NS;
        let searched = |expected: &mut ExpectedResponse, from: u64| {
            (0..1_000)
                .filter(|each| expected.is_searched(from + each * 900_000))
                .count()
        };
        assert_eq!(searched(&mut expected, start), 300);
        assert_eq!(searched(&mut expected, start + SECOND_NS), 300);
        let slow = (0..1_000u64).all(|each| expected.is_searched(start + each * SECOND_NS / 100));
        assert!(slow);
    }

    #[test]
    fn an_address_has_the_bytes_of_a_packet() {
        let bytes = |text: &str| {
            let address: core::net::IpAddr = text.parse().expect("an address");
            PeerAddress::from(address)
                .words
                .map(u32::to_ne_bytes)
                .concat()
        };
        let mut v4 = vec![192, 0, 2, 7];
        v4.resize(16, 0);
        assert_eq!(bytes("192.0.2.7"), v4);
        let v6: Vec<u8> = (1..=16).collect();
        assert_eq!(bytes("102:304:506:708:90a:b0c:d0e:f10"), v6);
    }
}
