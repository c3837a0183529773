//! What one round of a canary leaves in the probes' records: names and a fake secret that contain
//! its random number.

use monitor_common::fingerprint::{FingerprintKey, fingerprint};
use std::fmt::Display;

/// The domain of the canary's names; nobody can register it.
const DOMAIN: &str = "canary.keytrail.invalid";

/// The random number of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CanaryMark(u64);

impl CanaryMark {
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)?;
        Ok(Self(u64::from_le_bytes(bytes)))
    }

    pub fn parse(text: &str) -> Option<Self> {
        u64::from_str_radix(text, 16).ok().map(Self)
    }

    /// The directory of the file that is opened.
    pub fn directory(self) -> String {
        format!("canary-{self}")
    }

    /// The server name of every connection, and the name in DNS.
    pub fn host(self) -> String {
        format!("{self}.{DOMAIN}")
    }

    /// It opens nothing.
    pub fn secret(self) -> String {
        format!("FAKE-keytrail-canary-{self}")
    }

    pub fn fingerprint(self, key: FingerprintKey) -> u64 {
        fingerprint(key, self.secret().as_bytes())
    }

    /// A request with the secret in its head.
    pub fn request(self) -> String {
        format!(
            "GET / HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\r\n",
            self.host(),
            self.secret()
        )
    }

    /// A ClientHello of TLS 1.2 with a server name.
    pub fn client_hello(self) -> Vec<u8> {
        let name = self.host().into_bytes();
        let server_name = [&[0][..], &with_length_16(&name)].concat();
        let extension = [&[0, 0][..], &with_length_16(&with_length_16(&server_name))].concat();
        let body = [
            // Version, random number, no session.
            &[3, 3][..],
            &[0x4b; 32],
            &[0],
            // One cipher suite, no compression.
            &[0, 2, 0x13, 0x01, 1, 0],
            &with_length_16(&extension),
        ]
        .concat();
        let handshake = [&[1, 0][..], &with_length_16(&body)].concat();
        [&[22, 3, 1][..], &with_length_16(&handshake)].concat()
    }

    pub fn dns_query(self) -> Vec<u8> {
        let header = [0x4b, 0x54, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        [&header[..], &self.dns_question()].concat()
    }

    /// An answer with an address that belongs to nobody.
    pub fn dns_response(self) -> Vec<u8> {
        let header = [0x4b, 0x54, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        // The question's name, A, IN, one second, 192.0.2.1.
        let answer = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 192, 0, 2, 1];
        [&header[..], &self.dns_question(), &answer].concat()
    }

    fn dns_question(self) -> Vec<u8> {
        let host = self.host();
        let labels = host.split('.').flat_map(|label| {
            let len = label.len() as u8;
            std::iter::once(len).chain(label.bytes())
        });
        labels.chain([0, 0, 1, 0, 1]).collect()
    }
}

impl Display for CanaryMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Bytes after their length in two bytes.
fn with_length_16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use monitor_parse::{client_hello, dns};

    const MARK: CanaryMark = CanaryMark(0x00ab_cdef_0123_4567);

    #[test]
    fn a_mark_survives_its_text() {
        assert_eq!(CanaryMark::parse(&MARK.to_string()), Some(MARK));
    }

    #[test]
    fn the_parsers_find_the_name() {
        let host = "00abcdef01234567.canary.keytrail.invalid";
        let hello = client_hello::parse_client_hello(&MARK.client_hello()).expect("a ClientHello");
        assert_eq!(hello.server_name.as_deref(), Some(host));
        let answer = dns::parse_response(&MARK.dns_response(), 0).expect("an answer");
        assert_eq!(answer.names, [host]);
    }
}
