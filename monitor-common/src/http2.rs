//! Finds credentials in what a client sends over HTTP/2: frames, and the fields in their headers.
//!
//! Only what is needed to walk from field to field is kept of HPACK: how often something was put
//! into the connection's table, so that a later reference to a credential in it is known.

use crate::{
    filter::{HOST, Kind},
    scan::{HEADER_MAX, VALUES, Value, WINDOW, Window, form, header_key, name_key, word},
};

/// The first eight of the 24 bytes with which a client begins.
pub const PREFACE: u64 = u64::from_le_bytes(*b"PRI * HT");
pub const PREFACE_LEN: u64 = 24;

const FRAME_HEADER: u64 = 9;
const HEADERS: u64 = 1;
const PADDED: u64 = 0x8;
const PRIORITY: u64 = 0x20;
const END_HEADERS: u64 = 0x4;
const END_STREAM: u64 = 0x1;

/// Fields of the table that is the same for all connections.
const STATIC: u64 = 61;
const STATIC_AUTHORITY: u64 = 1;
const STATIC_AUTHORIZATION: u64 = 23;
const STATIC_PROXY_AUTHORIZATION: u64 = 49;
const AUTHORITY: u64 = header_key(":authority");
const AUTHORIZATION: u64 = header_key("authorization");
const PROXY_AUTHORIZATION: u64 = header_key("proxy-authorization");

/// Where the walk over a write stands.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Frames {
    /// The next byte; behind the end where the rest of a frame is still to come.
    pub at: u64,
    /// Bytes in the window.
    pub end: u64,
    /// The end of the fields of a frame; 0 between frames.
    pub block_end: u64,
    /// Where that frame ends.
    pub frame_end: u64,
    /// Fields that the connection's table was given.
    pub inserted: u64,
    /// Values found.
    pub found: u64,
    /// 1 where the walk has lost its way.
    pub lost: u64,
    /// Where the name of the server is.
    pub host: Value,
}

/// Whether a write may begin with the fields of a request, on a connection whose beginning was not
/// seen: its first eight bytes are those of a frame with all of them.
#[inline(always)]
pub const fn may_begin_fields(first: u64) -> bool {
    let flags = (first >> 32) & 0xff;
    first & 0xff == 0
        && (first >> 24) & 0xff == HEADERS
        && flags & !(PADDED | PRIORITY | END_HEADERS | END_STREAM) == 0
        && flags & END_HEADERS != 0
        && (first >> 40) & 0x80 == 0
}

/// One step: into the next frame, or over the next field; `false` at the end.
#[inline(always)]
pub fn step(
    window: &Window,
    frames: &mut Frames,
    values: &mut [Value; VALUES],
    rule: impl FnOnce(u64) -> Option<u32>,
    known: impl FnOnce(u64) -> Option<u32>,
) -> bool {
    if frames.at >= frames.end || frames.at >= WINDOW as u64 || frames.lost != 0 {
        return false;
    }
    if frames.block_end == 0 {
        return frame(window, frames);
    }
    if !field(window, frames, values, rule, known) {
        return false;
    }
    if frames.at >= frames.block_end {
        frames.at = frames.frame_end;
        frames.block_end = 0;
    }
    true
}

#[inline(always)]
fn frame(window: &Window, frames: &mut Frames) -> bool {
    let at = frames.at;
    if at + FRAME_HEADER > frames.end {
        // Cut in the middle of its head.
        frames.lost = 1;
        return false;
    }
    let head = word(window, at);
    let len = (head & 0xff) << 16 | (head >> 8 & 0xff) << 8 | head >> 16 & 0xff;
    let (kind, flags) = (head >> 24 & 0xff, head >> 32 & 0xff);
    let end = at + FRAME_HEADER + len;
    if kind != HEADERS || len == 0 {
        frames.at = end;
        return true;
    }
    let mut begin = at + FRAME_HEADER;
    let mut padding = 0;
    if flags & PADDED != 0 {
        padding = word(window, begin) & 0xff;
        begin += 1;
    }
    if flags & PRIORITY != 0 {
        begin += 5;
    }
    frames.at = begin;
    frames.frame_end = end;
    frames.block_end = end.saturating_sub(padding);
    if begin >= frames.block_end {
        frames.block_end = 0;
        frames.at = end;
    }
    true
}

/// A number with a prefix of so many bits, and where it ends.
#[inline(always)]
fn integer(window: &Window, at: u64, bits: u64) -> (u64, u64) {
    let most = (1 << bits) - 1;
    let eight = word(window, at);
    let first = eight & most;
    if first < most {
        return (first, at + 1);
    }
    let (one, two, three) = (eight >> 8 & 0xff, eight >> 16 & 0xff, eight >> 24 & 0xff);
    let value = most + (one & 0x7f);
    if one < 0x80 {
        return (value, at + 2);
    }
    let value = value + ((two & 0x7f) << 7);
    if two < 0x80 {
        return (value, at + 3);
    }
    (value + ((three & 0x7f) << 14), at + 4)
}

/// The key of a name as it is coded.
pub fn coded_header_key(coded: &[u8]) -> u64 {
    let mut window = [0u8; WINDOW + crate::scan::SLACK];
    let len = coded.len().min(HEADER_MAX);
    window[..len].copy_from_slice(&coded[..len]);
    name_key(&window, 0, len as u64, Kind::CodedHeader)
}

/// Crosses a field. `rule` tells whether the catalog has a header, `known` whether the connection's
/// table has a credential under a number, and of which header.
#[inline(always)]
fn field(
    window: &Window,
    frames: &mut Frames,
    values: &mut [Value; VALUES],
    rule: impl FnOnce(u64) -> Option<u32>,
    known: impl FnOnce(u64) -> Option<u32>,
) -> bool {
    let at = frames.at;
    let first = word(window, at) & 0xff;
    if first & 0x80 != 0 {
        let (index, next) = integer(window, at, 7);
        frames.at = next;
        if index > STATIC
            && let Some(entry) = frames.inserted.checked_sub(index - STATIC - 1)
            && let Some(rule) = known(entry)
        {
            found(
                frames,
                values,
                Value {
                    rule: u64::from(rule),
                    form: form::REFERRED,
                    entry,
                    ..Value::default()
                },
            );
        }
        return true;
    }
    if first & 0xe0 == 0x20 {
        // The table gets another size.
        frames.at = integer(window, at, 5).1;
        return true;
    }
    let inserts = first & 0x40 != 0;
    let (index, mut next) = integer(window, at, if inserts { 6 } else { 4 });
    let mut key = 0;
    let mut entry_of_name = 0;
    if index == 0 {
        let coded = word(window, next) & 0x80 != 0;
        let (len, begin) = integer(window, next, 7);
        let kind = if coded {
            Kind::CodedHeader
        } else {
            Kind::Header
        };
        key = name_key(window, begin, len, kind);
        next = begin + len;
    } else if index == STATIC_AUTHORITY {
        key = AUTHORITY;
    } else if index == STATIC_AUTHORIZATION {
        key = AUTHORIZATION;
    } else if index == STATIC_PROXY_AUTHORIZATION {
        key = PROXY_AUTHORIZATION;
    } else if index > STATIC {
        entry_of_name = frames.inserted.saturating_sub(index - STATIC - 1);
    }
    if next >= frames.end || next >= WINDOW as u64 {
        frames.lost = 1;
        return false;
    }
    let coded = word(window, next) & 0x80 != 0;
    let (len, begin) = integer(window, next, 7);
    frames.at = begin + len;
    frames.inserted += u64::from(inserts);
    let rule = if entry_of_name != 0 {
        known(entry_of_name)
    } else if key != 0 {
        rule(key)
    } else {
        None
    };
    let Some(rule) = rule else {
        return true;
    };
    if frames.at > frames.end || frames.at > WINDOW as u64 {
        // It goes on in the next write.
        frames.lost = 1;
        return false;
    }
    found(
        frames,
        values,
        Value {
            at: begin,
            len,
            rule: u64::from(rule),
            form: if coded { form::CODED } else { form::PLAIN },
            entry: if inserts { frames.inserted } else { 0 },
            ..Value::default()
        },
    );
    true
}

#[inline(always)]
fn found(frames: &mut Frames, values: &mut [Value; VALUES], value: Value) {
    let place = frames.found;
    if value.rule == u64::from(HOST) {
        frames.host = value;
    } else if place < VALUES as u64 {
        values[place as usize & (VALUES - 1)] = value;
        frames.found = place + 1;
    }
}

/// States of the decoder of the Huffman code, and half-bytes.
pub const STATES: usize = 256;
pub const HALVES: usize = 16;

/// What half a byte does in a state: the next state in the low byte, the letter that is complete in
/// the second, and [`LETTER`] where there is one.
pub type Table = [u32; STATES * HALVES];
/// A letter is complete.
pub const LETTER: u32 = 1 << 16;
/// No text is coded so.
pub const WRONG: u32 = 1 << 17;

/// Where the decoder stands.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Decoder {
    pub state: u64,
    /// Bytes of text so far.
    pub len: u64,
}

impl Decoder {
    /// Decodes the `i`th byte of a value into `text`; `false` behind its end, or where the text is
    /// full.
    #[inline(always)]
    pub fn step(
        &mut self,
        window: &Window,
        value: Value,
        i: u64,
        table: &Table,
        text: &mut Window,
    ) -> bool {
        if i >= value.len {
            return false;
        }
        let byte = word(window, value.at + i) as usize;
        self.half(byte >> 4, table, text) && self.half(byte, table, text)
    }

    #[inline(always)]
    fn half(&mut self, half: usize, table: &Table, text: &mut Window) -> bool {
        let place = (self.state as usize & (STATES - 1)) * HALVES + (half & (HALVES - 1));
        let does = table[place & (STATES * HALVES - 1)];
        self.state = u64::from(does & 0xff);
        if does & LETTER != 0 {
            text[self.len as usize & (WINDOW - 1)] = (does >> 8) as u8;
            self.len += 1;
        }
        does & WRONG == 0 && self.len < WINDOW as u64
    }
}

/// The decoder's table, from the codes of the 256 letters and of the end: length in bits, and the
/// bits, the first of them the highest.
pub fn table(codes: &[(u8, u32); 257]) -> Table {
    // The tree of all codes: of each node the next for 0 and 1; letters from `STATES` on.
    let mut tree = [[u16::MAX; 2]; STATES];
    let mut nodes = 1u16;
    for (letter, (len, bits)) in codes.iter().enumerate() {
        let mut node = 0usize;
        for i in (0..*len).rev() {
            let bit = (bits >> i & 1) as usize;
            if i == 0 {
                tree[node][bit] = STATES as u16 + letter as u16;
            } else {
                if tree[node][bit] == u16::MAX {
                    tree[node][bit] = nodes;
                    nodes += 1;
                }
                node = tree[node][bit] as usize & (STATES - 1);
            }
        }
    }
    let mut table = [0u32; STATES * HALVES];
    for state in 0..nodes as usize {
        for half in 0..HALVES {
            let (mut node, mut does) = (state as u16, 0u32);
            for i in (0..4).rev() {
                match tree[node as usize][half >> i & 1] {
                    next if (next as usize) < STATES => node = next,
                    letter if letter < STATES as u16 + 256 => {
                        does |= LETTER | u32::from(letter - STATES as u16) << 8;
                        node = 0;
                    }
                    // The end, or nothing at all.
                    _ => {
                        does |= WRONG;
                        node = 0;
                    }
                }
            }
            table[state * HALVES + half] = does | u32::from(node);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::SLACK;
    use httlib_hpack::Encoder;
    use httlib_huffman::encoder::table::ENCODE_TABLE;
    use proptest::prelude::*;

    const NAMES: [&str; 3] = ["authorization", "x-vault-token", "private-token"];

    fn rule(key: u64) -> Option<u32> {
        NAMES
            .iter()
            .position(|name| {
                let mut coded = Vec::new();
                httlib_huffman::encode(name.as_bytes(), &mut coded).expect("coded");
                header_key(name) == key || coded_header_key(&coded) == key
            })
            .map(|place| place as u32)
    }

    /// What the probes do with a connection, on the host.
    #[derive(Default)]
    struct Connection {
        inserted: u64,
        known: std::collections::HashMap<u64, (u32, String)>,
    }

    impl Connection {
        fn take(&mut self, write: &[u8]) -> (Vec<(u32, String)>, Frames) {
            let table = table(&ENCODE_TABLE);
            let mut window = [0u8; WINDOW + SLACK];
            let len = write.len().min(WINDOW);
            window[..len].copy_from_slice(&write[..len]);
            let mut frames = Frames {
                end: len as u64,
                inserted: self.inserted,
                ..Frames::default()
            };
            let mut values = [Value::default(); VALUES];
            let known = |entry: u64| self.known.get(&entry).map(|(rule, _)| *rule);
            while step(&window, &mut frames, &mut values, rule, known) {}
            self.inserted = frames.inserted;
            let mut found = Vec::new();
            for value in &values[..frames.found as usize] {
                let text = match value.form {
                    form::REFERRED => self.known[&value.entry].1.clone(),
                    form::CODED => {
                        let mut text = [0u8; WINDOW + SLACK];
                        let mut decoder = Decoder::default();
                        let mut i = 0;
                        while decoder.step(&window, *value, i, &table, &mut text) {
                            i += 1;
                        }
                        String::from_utf8_lossy(&text[..decoder.len as usize]).into_owned()
                    }
                    _ => {
                        let bytes = &window[value.at as usize..(value.at + value.len) as usize];
                        String::from_utf8_lossy(bytes).into_owned()
                    }
                };
                if value.entry != 0 {
                    self.known
                        .insert(value.entry, (value.rule as u32, text.clone()));
                }
                found.push((value.rule as u32, text));
            }
            (found, frames)
        }
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    fn encoded(encoder: &mut Encoder<'_>, fields: &[(&str, &str, u8)]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value, flags) in fields {
            encoder
                .encode(
                    (name.as_bytes().to_vec(), value.as_bytes().to_vec(), *flags),
                    &mut block,
                )
                .expect("encoded");
        }
        frame(1, 0x5, &block)
    }

    #[test]
    fn every_way_to_write_a_field() {
        for flags in [
            0,
            Encoder::HUFFMAN_VALUE,
            Encoder::HUFFMAN_NAME | Encoder::HUFFMAN_VALUE,
            Encoder::WITH_INDEXING | Encoder::BEST_FORMAT,
            Encoder::NEVER_INDEXED | Encoder::HUFFMAN_VALUE | Encoder::BEST_FORMAT,
            Encoder::BEST_FORMAT,
        ] {
            let mut encoder = Encoder::default();
            let mut connection = Connection::default();
            let write = encoded(
                &mut encoder,
                &[
                    (":method", "GET", Encoder::BEST_FORMAT),
                    (":path", "/a/b", flags),
                    ("user-agent", "fake/1.0", Encoder::WITH_INDEXING),
                    ("authorization", "Bearer FAKE.token-1", flags),
                    ("x-other", "FAKE", flags),
                    ("x-vault-token", "hvs.FAKE", flags),
                ],
            );
            let (found, frames) = connection.take(&write);
            assert_eq!(
                found,
                [
                    (0, "Bearer FAKE.token-1".to_owned()),
                    (1, "hvs.FAKE".to_owned())
                ],
                "{flags:#x}"
            );
            assert_eq!(
                (frames.at, frames.lost),
                (write.len() as u64, 0),
                "{flags:#x}"
            );
        }
    }

    #[test]
    fn what_is_in_the_table_is_referred_to() {
        let mut encoder = Encoder::default();
        let mut connection = Connection::default();
        let indexed = Encoder::WITH_INDEXING | Encoder::BEST_FORMAT | Encoder::HUFFMAN_VALUE;
        let first = [
            ("authorization", "Bearer FAKE-1", indexed),
            ("x-a", "1", indexed),
        ];
        let second = [
            ("x-b", "2", indexed),
            ("authorization", "Bearer FAKE-1", indexed),
        ];
        let third = [("authorization", "Bearer FAKE-2", indexed)];
        for (fields, token) in [
            (&first[..], "FAKE-1"),
            (&second[..], "FAKE-1"),
            (&third[..], "FAKE-2"),
            (&third[..], "FAKE-2"),
        ] {
            let (found, _) = connection.take(&encoded(&mut encoder, fields));
            assert_eq!(found, [(0, format!("Bearer {token}"))]);
        }
    }

    #[test]
    fn frames_before_and_behind() {
        let mut encoder = Encoder::default();
        let mut write = frame(4, 0, &[0; 18]);
        write.extend(frame(8, 0, &[0, 0, 1, 0]));
        let fields = encoded(&mut encoder, &[("authorization", "Bearer FAKE-1", 0)]);
        assert!(may_begin_fields(u64::from_le_bytes(
            fields[..8].try_into().expect("eight")
        )));
        write.extend(fields);
        write.extend(&frame(0, 1, &[b'x'; 100])[..50]);
        let (found, frames) = Connection::default().take(&write);
        assert_eq!(found.len(), 1);
        assert_eq!(
            frames.at - frames.end,
            59,
            "the rest of the frame is to come"
        );
        assert!(!may_begin_fields(PREFACE));
    }

    #[test]
    fn names_of_every_length() {
        for len in 1..=HEADER_MAX {
            let name: String = "abcdefghij-".chars().cycle().take(len).collect();
            let mut window = [b':'; WINDOW + SLACK];
            window[..len].copy_from_slice(name.to_ascii_uppercase().as_bytes());
            assert_eq!(
                name_key(&window, 0, len as u64, Kind::Header),
                header_key(&name)
            );
            assert_eq!(
                crate::scan::name(&window, 0),
                (header_key(&name), len as u64)
            );
        }
    }

    proptest! {
        #[test]
        fn the_code_is_the_standard_one(text in "[ -~]{0,300}") {
            let mut coded = Vec::new();
            httlib_huffman::encode(text.as_bytes(), &mut coded).expect("coded");
            let mut window = [0u8; WINDOW + SLACK];
            window[..coded.len()].copy_from_slice(&coded);
            let value = Value { len: coded.len() as u64, ..Value::default() };
            let mut decoded = [0u8; WINDOW + SLACK];
            let mut decoder = Decoder::default();
            let table = table(&ENCODE_TABLE);
            let mut i = 0;
            while decoder.step(&window, value, i, &table, &mut decoded) {
                i += 1;
            }
            prop_assert_eq!(i, value.len);
            prop_assert_eq!(&decoded[..decoder.len as usize], text.as_bytes());
        }

        #[test]
        fn any_bytes(write in proptest::collection::vec(any::<u8>(), 0..WINDOW + 100), fields: bool) {
            let mut bytes = if fields { vec![0, 16, 0, 1, 4, 0, 0, 0, 1] } else { Vec::new() };
            bytes.extend(write);
            let _ = Connection::default().take(&bytes);
        }
    }
}
