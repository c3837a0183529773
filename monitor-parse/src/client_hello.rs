//! Parses ClientHello messages: server name, ALPN, encrypted ClientHello.

use hashlink::LruCache;
use jiff::Timestamp;
use monitor_common::record::PAYLOAD_MAX;
use std::collections::BTreeMap;
use tls_parser::{
    TlsExtension, TlsMessage, TlsMessageHandshake, parse_tls_extensions,
    parse_tls_message_handshake,
};

/// The plaintext part of a ClientHello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    pub server_name: Option<String>,
    pub alpn: Vec<String>,
    pub ech: bool,
}

/// The first payload of a connection, as far as it is plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstPayload {
    pub time: Timestamp,
    pub cookie: u64,
    /// `None` if the payload is not a ClientHello.
    pub hello: Option<ClientHello>,
    /// It began like a ClientHello but could not be parsed.
    pub malformed: bool,
}

/// A payload of a connection, or the captured part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloPiece {
    pub time: Timestamp,
    pub cookie: u64,
    /// TCP sequence number of its first byte.
    pub sequence: u32,
    /// Empty if the payload is not part of a ClientHello.
    pub bytes: Vec<u8>,
}

/// Assembles a ClientHello that was split over several writes.
#[derive(Debug)]
pub struct HelloAssembler {
    /// By socket cookie; the oldest is dropped first.
    begun: LruCache<u64, PartialHello>,
}

impl Default for HelloAssembler {
    fn default() -> Self {
        Self {
            begun: LruCache::new(PARTIAL_HELLOS_MAX),
        }
    }
}

#[derive(Debug)]
struct PartialHello {
    sequence: u32,
    /// Pieces by their distance from the first byte; a retransmitted piece replaces itself.
    pieces: BTreeMap<u32, Vec<u8>>,
}

/// Maximum connections with an incomplete ClientHello.
const PARTIAL_HELLOS_MAX: usize = 1024;
/// Maximum size of an assembled ClientHello.
const HELLO_MAX: usize = 16 << 10;

impl HelloAssembler {
    /// Adds a piece; returns the payload once it is complete. Until then the trail waits, and
    /// continues without the name after a timeout.
    pub fn add_piece(&mut self, piece: HelloPiece) -> Option<FirstPayload> {
        let HelloPiece {
            time,
            cookie,
            sequence,
            bytes,
        } = piece;
        let parsed = |payload: &[u8]| {
            let hello = parse_client_hello(payload);
            FirstPayload {
                time,
                cookie,
                malformed: hello.is_none(),
                hello,
            }
        };
        if bytes.is_empty() {
            return Some(FirstPayload {
                time,
                cookie,
                malformed: false,
                hello: None,
            });
        }
        // `peek`: pieces of a connection do not make it newer.
        if self.begun.peek(&cookie).is_none() {
            if is_complete(&bytes) {
                return Some(parsed(&bytes));
            }
            let begun = PartialHello {
                sequence,
                pieces: BTreeMap::new(),
            };
            self.begun.insert(cookie, begun);
        }
        let begun = self.begun.peek_mut(&cookie)?;
        begun
            .pieces
            .insert(sequence.wrapping_sub(begun.sequence), bytes);
        let stream = begun.contiguous_bytes();
        if !is_complete(&stream) && stream.len() < HELLO_MAX {
            return None;
        }
        self.begun.remove(&cookie);
        Some(parsed(&stream))
    }
}

impl PartialHello {
    /// The bytes up to the first missing piece, which may still arrive.
    fn contiguous_bytes(&self) -> Vec<u8> {
        let mut stream = Vec::new();
        for (at, piece) in &self.pieces {
            let Some(new) = stream
                .len()
                .checked_sub(*at as usize)
                .and_then(|known| piece.get(known.min(piece.len())..))
            else {
                break;
            };
            stream.extend_from_slice(new);
        }
        stream
    }
}

/// Whether the bytes contain the whole first TLS record, or as much of it as a probe captures.
fn is_complete(bytes: &[u8]) -> bool {
    let [_, _, _, high, low, body @ ..] = bytes else {
        return false;
    };
    let length = usize::from(*high) << 8 | usize::from(*low);
    body.len() >= length || bytes.len() >= PAYLOAD_MAX
}

/// The encrypted ClientHello extension (RFC 9849), and that of its last draft.
const ECH: u16 = 0xfe0d;

/// Parses a ClientHello from the first bytes of a connection. `None` if it is not one.
///
/// The bytes may end before the message does, and the message may be split over several TLS
/// records: record headers are removed first.
pub fn parse_client_hello(payload: &[u8]) -> Option<ClientHello> {
    let message = without_record_headers(payload)?;
    let body = message.get(4..)?;
    let declared =
        usize::from(message[1]) << 16 | usize::from(message[2]) << 8 | usize::from(message[3]);
    if message[0] != 1 {
        return None;
    }
    if declared <= body.len() {
        let (_, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello))) =
            parse_tls_message_handshake(&message[..4 + declared]).ok()?
        else {
            return None;
        };
        return Some(extensions(hello.ext.unwrap_or_default()));
    }
    // Truncated: the extensions that are complete still count.
    Some(extensions(extension_bytes(body)?))
}

fn without_record_headers(payload: &[u8]) -> Option<Vec<u8>> {
    let mut rest = payload;
    let mut message = Vec::with_capacity(payload.len());
    while let [22, 3, _, high, low, body @ ..] = rest {
        let len = (usize::from(*high) << 8 | usize::from(*low)).min(body.len());
        message.extend_from_slice(&body[..len]);
        rest = &body[len..];
    }
    (message.len() > 4).then_some(message)
}

/// The bytes of a ClientHello's extensions, as far as they are present.
fn extension_bytes(body: &[u8]) -> Option<&[u8]> {
    let rest = body.get(34..)?;
    let rest = rest.get(1 + usize::from(*rest.first()?)..)?;
    let ciphers = usize::from(*rest.first()?) << 8 | usize::from(*rest.get(1)?);
    let rest = rest.get(2 + ciphers..)?;
    let rest = rest.get(1 + usize::from(*rest.first()?)..)?;
    rest.get(2..)
}

fn extensions(bytes: &[u8]) -> ClientHello {
    let mut hello = ClientHello::default();
    // The parser returns the extensions before the first truncated or broken one.
    let Ok((_, found)) = parse_tls_extensions(bytes) else {
        return hello;
    };
    for extension in found {
        match extension {
            TlsExtension::SNI(names) => {
                hello.server_name = names.first().and_then(|(_, name)| host_name(name));
            }
            TlsExtension::ALPN(protocols) => {
                hello.alpn = protocols
                    .iter()
                    .map(|name| String::from_utf8_lossy(name).into_owned())
                    .collect();
            }
            TlsExtension::Unknown(kind, _) if kind.0 == ECH => hello.ech = true,
            _ => {}
        }
    }
    hello
}

/// Accepts only what a host name can contain, and no address: names from the network go to logs,
/// metrics and terminals. The case stays: a secret in a name is recognised by its exact bytes.
pub fn host_name(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?.trim_end_matches('.');
    let holds = !name.is_empty()
        && name.len() <= 253
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        && name.parse::<std::net::Ipv4Addr>().is_err();
    holds.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A ClientHello with one cipher suite and the given extensions.
    pub fn client_hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend([0, 2, 0x13, 1, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        let mut record = vec![22, 3, 1];
        record.extend((message.len() as u16).to_be_bytes());
        record.extend(message);
        record
    }

    fn sni(name: &str) -> Vec<u8> {
        let len = name.len() as u16;
        let mut extension = vec![0, 0];
        extension.extend((len + 5).to_be_bytes());
        extension.extend((len + 3).to_be_bytes());
        extension.push(0);
        extension.extend(len.to_be_bytes());
        extension.extend(name.as_bytes());
        extension
    }

    #[test]
    fn names_alpn_and_ech() {
        let mut extensions = sni("Paste.Example");
        extensions.extend([0, 16, 0, 5, 0, 3, 2, b'h', b'2']);
        extensions.extend([0xfe, 0x0d, 0, 1, 0]);
        let hello = parse_client_hello(&client_hello(&extensions)).expect("parses");
        assert_eq!(hello.server_name.as_deref(), Some("Paste.Example"));
        assert_eq!(hello.alpn, ["h2"]);
        assert!(hello.ech);
    }

    #[test]
    fn invalid_host_names_are_ignored() {
        let hello =
            parse_client_hello(&client_hello(&sni("evil\u{1b}[31m.example"))).expect("parses");
        assert_eq!(hello.server_name, None);
    }

    #[test]
    fn a_server_name_before_the_cut_is_used() {
        let mut extensions = sni("long.example");
        extensions.extend([0, 51, 4, 0]);
        extensions.extend([9; 1024]);
        let whole = client_hello(&extensions);
        let hello = parse_client_hello(&whole[..200]).expect("parses");
        assert_eq!(hello.server_name.as_deref(), Some("long.example"));
    }

    #[test]
    fn records_cut_inside_the_message() {
        let whole = client_hello(&sni("cut.example"));
        let message = &whole[5..];
        let mut cut = vec![22, 3, 1, 0, 20];
        cut.extend(&message[..20]);
        cut.extend([22, 3, 1]);
        cut.extend(((message.len() - 20) as u16).to_be_bytes());
        cut.extend(&message[20..]);
        let hello = parse_client_hello(&cut).expect("parses");
        assert_eq!(hello.server_name.as_deref(), Some("cut.example"));
    }

    fn piece(sequence: u32, bytes: &[u8]) -> HelloPiece {
        HelloPiece {
            time: Timestamp::UNIX_EPOCH,
            cookie: 7,
            sequence,
            bytes: bytes.to_vec(),
        }
    }

    fn name(payload: Option<FirstPayload>) -> Option<String> {
        payload?.hello?.server_name
    }

    #[test]
    fn pieces_are_assembled_in_any_order_once() {
        let hello = client_hello(&sni("cut.example"));
        let at = u32::MAX - 3;
        let mut assembler = HelloAssembler::default();
        assert_eq!(assembler.add_piece(piece(at, &hello[..1])), None);
        assert_eq!(
            assembler.add_piece(piece(at.wrapping_add(20), &hello[20..])),
            None
        );
        assert_eq!(
            assembler.add_piece(piece(at, &hello[..1])),
            None,
            "sent again"
        );
        let whole = assembler.add_piece(piece(at.wrapping_add(1), &hello[1..20]));
        assert_eq!(name(whole).as_deref(), Some("cut.example"));
        assert!(assembler.begun.is_empty());
        // A payload that is not part of a ClientHello is reported at once.
        let other = assembler.add_piece(piece(1, b""));
        assert!(matches!(
            other,
            Some(FirstPayload {
                hello: None,
                malformed: false,
                ..
            })
        ));
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_name(cuts in proptest::collection::vec(1usize..40, 0..20), from in any::<u32>()) {
            let hello = client_hello(&sni("cut.example"));
            let mut assembler = HelloAssembler::default();
            let (mut at, mut last) = (0, None);
            for cut in cuts.into_iter().chain([hello.len()]) {
                let end = (at + cut).min(hello.len());
                if end > at {
                    last = assembler.add_piece(piece(from.wrapping_add(at as u32), &hello[at..end]));
                }
                at = end;
            }
            let name = name(last);
            prop_assert_eq!(name.as_deref(), Some("cut.example"));
        }

        #[test]
        fn any_pieces_are_accepted(pieces in proptest::collection::vec((0u64..3, any::<u32>(), proptest::collection::vec(any::<u8>(), 0..50)), 0..30)) {
            let mut assembler = HelloAssembler::default();
            for (cookie, sequence, bytes) in pieces {
                let _ = assembler.add_piece(HelloPiece { time: Timestamp::UNIX_EPOCH, cookie, sequence, bytes });
            }
        }
    }

    proptest! {
        #[test]
        fn other_bytes_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300), damage in 0usize..300, byte: u8
        ) {
            let _ = parse_client_hello(&bytes);
            bytes.splice(0..0, [22, 3, 1, 1, 0, 1, 0, 0, 250, 3, 3]);
            let _ = parse_client_hello(&bytes);
            let mut hello = client_hello(&sni("some.example"));
            let at = damage % hello.len();
            hello[at] = byte;
            let _ = parse_client_hello(&hello);
        }
    }
}
