//! Finds credentials in what a client sends over HTTP/2: frames, and the fields in their headers.
//!
//! Of HPACK's dynamic table only the number of insertions is kept, so that a later reference to a
//! credential in it is recognised.

use crate::{
    filter::{FilterKind, HOST},
    scan::{
        HEADER_MAX, HeaderValue, ScanWindow, VALUES_MAX, WINDOW, form, header_key, name_key,
        word_at,
    },
};

/// The first eight of the 24 bytes of the client's connection preface.
pub const PREFACE: u64 = u64::from_le_bytes(*b"PRI * HT");
pub const PREFACE_LEN: u64 = 24;

const FRAME_HEADER: u64 = 9;
const HEADERS: u64 = 1;
const PADDED: u64 = 0x8;
const PRIORITY: u64 = 0x20;
const END_HEADERS: u64 = 0x4;
const END_STREAM: u64 = 0x1;

/// Number of entries in HPACK's static table.
const STATIC_ENTRIES: u64 = 61;
const STATIC_AUTHORITY: u64 = 1;
const STATIC_AUTHORIZATION: u64 = 23;
const STATIC_PROXY_AUTHORIZATION: u64 = 49;
const AUTHORITY: u64 = header_key(":authority");
const AUTHORIZATION: u64 = header_key("authorization");
const PROXY_AUTHORIZATION: u64 = header_key("proxy-authorization");

/// Position and state of the scan over a write.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct FrameScan {
    /// Offset of the next byte; beyond the end if the rest of a frame is still to come.
    pub at: u64,
    /// Bytes in the window.
    pub end: u64,
    /// End of the field block of a frame; 0 between frames.
    pub block_end: u64,
    /// End of that frame.
    pub frame_end: u64,
    /// Entries inserted into the connection's dynamic table.
    pub inserted: u64,
    /// Values found.
    pub found: u64,
    /// 1 if the scan has lost its position in the frames.
    pub out_of_sync: u64,
    /// Position of the server's name.
    pub host: HeaderValue,
}

/// Whether a write may begin with the fields of a request, on a connection whose beginning was not
/// seen: its first eight bytes are those of a HEADERS frame that holds all of them.
#[inline(always)]
pub const fn may_begin_fields(first: u64) -> bool {
    let flags = (first >> 32) & 0xff;
    first & 0xff == 0
        && (first >> 24) & 0xff == HEADERS
        && flags & !(PADDED | PRIORITY | END_HEADERS | END_STREAM) == 0
        && flags & END_HEADERS != 0
        && (first >> 40) & 0x80 == 0
}

/// Advances into the next frame or over the next field; returns `false` at the end.
#[inline(always)]
pub fn step(
    window: &ScanWindow,
    frames: &mut FrameScan,
    values: &mut [HeaderValue; VALUES_MAX],
    rule: impl FnOnce(u64) -> Option<u32>,
    known: impl FnOnce(u64) -> Option<u32>,
) -> bool {
    if frames.at >= frames.end || frames.at >= WINDOW as u64 || frames.out_of_sync != 0 {
        return false;
    }
    if frames.block_end == 0 {
        return next_frame(window, frames);
    }
    if !next_field(window, frames, values, rule, known) {
        return false;
    }
    if frames.at >= frames.block_end {
        frames.at = frames.frame_end;
        frames.block_end = 0;
    }
    true
}

#[inline(always)]
fn next_frame(window: &ScanWindow, frames: &mut FrameScan) -> bool {
    let at = frames.at;
    if at + FRAME_HEADER > frames.end {
        // The write ends in the middle of a frame header.
        frames.out_of_sync = 1;
        return false;
    }
    let head = word_at(window, at);
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
        padding = word_at(window, begin) & 0xff;
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

/// Reads an HPACK integer with a prefix of `bits` bits; returns the value and the offset after it.
#[inline(always)]
fn prefixed_integer(window: &ScanWindow, at: u64, bits: u64) -> (u64, u64) {
    let most = (1 << bits) - 1;
    let eight = word_at(window, at);
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

/// The key of a Huffman-coded name.
pub fn coded_header_key(coded: &[u8]) -> u64 {
    let mut window = [0u8; WINDOW + crate::scan::SLACK];
    let len = coded.len().min(HEADER_MAX);
    window[..len].copy_from_slice(&coded[..len]);
    name_key(&window, 0, len as u64, FilterKind::CodedHeader)
}

/// Advances over one field. `rule` looks up a header in the catalog by its key; `known` returns the
/// header rule if the connection's dynamic table holds a credential at an index.
#[inline(always)]
fn next_field(
    window: &ScanWindow,
    frames: &mut FrameScan,
    values: &mut [HeaderValue; VALUES_MAX],
    rule: impl FnOnce(u64) -> Option<u32>,
    known: impl FnOnce(u64) -> Option<u32>,
) -> bool {
    let at = frames.at;
    let first = word_at(window, at) & 0xff;
    if first & 0x80 != 0 {
        let (index, next) = prefixed_integer(window, at, 7);
        frames.at = next;
        if index > STATIC_ENTRIES
            && let Some(entry) = frames.inserted.checked_sub(index - STATIC_ENTRIES - 1)
            && let Some(rule) = known(entry)
        {
            found_value(
                frames,
                values,
                HeaderValue {
                    rule: u64::from(rule),
                    form: form::INDEXED,
                    table_index: entry,
                    ..HeaderValue::default()
                },
            );
        }
        return true;
    }
    if first & 0xe0 == 0x20 {
        // A dynamic table size update.
        frames.at = prefixed_integer(window, at, 5).1;
        return true;
    }
    let inserts = first & 0x40 != 0;
    let (index, mut next) = prefixed_integer(window, at, if inserts { 6 } else { 4 });
    let mut key = 0;
    let mut entry_of_name = 0;
    if index == 0 {
        let coded = word_at(window, next) & 0x80 != 0;
        let (len, begin) = prefixed_integer(window, next, 7);
        let kind = if coded {
            FilterKind::CodedHeader
        } else {
            FilterKind::Header
        };
        key = name_key(window, begin, len, kind);
        next = begin + len;
    } else if index == STATIC_AUTHORITY {
        key = AUTHORITY;
    } else if index == STATIC_AUTHORIZATION {
        key = AUTHORIZATION;
    } else if index == STATIC_PROXY_AUTHORIZATION {
        key = PROXY_AUTHORIZATION;
    } else if index > STATIC_ENTRIES {
        entry_of_name = frames.inserted.saturating_sub(index - STATIC_ENTRIES - 1);
    }
    if next >= frames.end || next >= WINDOW as u64 {
        frames.out_of_sync = 1;
        return false;
    }
    let coded = word_at(window, next) & 0x80 != 0;
    let (len, begin) = prefixed_integer(window, next, 7);
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
        // The field continues in the next write.
        frames.out_of_sync = 1;
        return false;
    }
    found_value(
        frames,
        values,
        HeaderValue {
            at: begin,
            len,
            rule: u64::from(rule),
            form: if coded { form::HUFFMAN } else { form::PLAIN },
            table_index: if inserts { frames.inserted } else { 0 },
            ..HeaderValue::default()
        },
    );
    true
}

#[inline(always)]
fn found_value(frames: &mut FrameScan, values: &mut [HeaderValue; VALUES_MAX], value: HeaderValue) {
    let place = frames.found;
    if value.rule == u64::from(HOST) {
        frames.host = value;
    } else if place < VALUES_MAX as u64 {
        values[place as usize & (VALUES_MAX - 1)] = value;
        frames.found = place + 1;
    }
}

/// States of the Huffman decoder, and values of half a byte.
pub const STATES: usize = 256;
pub const HALVES: usize = 16;

/// The effect of half a byte in each state: the next state in the low byte, the completed symbol in
/// the second byte, and [`SYMBOL`] if a symbol is complete.
pub type HuffmanTable = [u32; STATES * HALVES];
/// A symbol is complete.
pub const SYMBOL: u32 = 1 << 16;
/// Not a valid Huffman code.
pub const INVALID: u32 = 1 << 17;

/// State of the Huffman decoder.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct HuffmanDecoder {
    pub state: u64,
    /// Bytes decoded so far.
    pub len: u64,
}

impl HuffmanDecoder {
    /// Decodes the `i`th byte of a value into `text`; returns `false` after its end or when the
    /// text is full.
    #[inline(always)]
    pub fn step(
        &mut self,
        window: &ScanWindow,
        value: HeaderValue,
        i: u64,
        table: &HuffmanTable,
        text: &mut ScanWindow,
    ) -> bool {
        if i >= value.len {
            return false;
        }
        let byte = word_at(window, value.at + i) as usize;
        self.push_nibble(byte >> 4, table, text) && self.push_nibble(byte, table, text)
    }

    #[inline(always)]
    fn push_nibble(&mut self, half: usize, table: &HuffmanTable, text: &mut ScanWindow) -> bool {
        let place = (self.state as usize & (STATES - 1)) * HALVES + (half & (HALVES - 1));
        let does = table[place & (STATES * HALVES - 1)];
        self.state = u64::from(does & 0xff);
        if does & SYMBOL != 0 {
            text[self.len as usize & (WINDOW - 1)] = (does >> 8) as u8;
            self.len += 1;
        }
        does & INVALID == 0 && self.len < WINDOW as u64
    }
}

/// Builds the decoder's table from the codes of the 256 symbols and of EOS: length in bits, and the
/// bits, most significant first.
pub fn huffman_table(codes: &[(u8, u32); 257]) -> HuffmanTable {
    // The tree of all codes: for each node the next node for bits 0 and 1; values from `STATES` on
    // are symbols.
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
                        does |= SYMBOL | u32::from(letter - STATES as u16) << 8;
                        node = 0;
                    }
                    // EOS, or an invalid code.
                    _ => {
                        does |= INVALID;
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

    /// Simulates on the host what the probes do with a connection.
    #[derive(Default)]
    struct Connection {
        inserted: u64,
        known: std::collections::HashMap<u64, (u32, String)>,
    }

    impl Connection {
        fn take(&mut self, write: &[u8]) -> (Vec<(u32, String)>, FrameScan) {
            let table = huffman_table(&ENCODE_TABLE);
            let mut window = [0u8; WINDOW + SLACK];
            let len = write.len().min(WINDOW);
            window[..len].copy_from_slice(&write[..len]);
            let mut frames = FrameScan {
                end: len as u64,
                inserted: self.inserted,
                ..FrameScan::default()
            };
            let mut values = [HeaderValue::default(); VALUES_MAX];
            let known = |entry: u64| self.known.get(&entry).map(|(rule, _)| *rule);
            while step(&window, &mut frames, &mut values, rule, known) {}
            self.inserted = frames.inserted;
            let mut found = Vec::new();
            for value in &values[..frames.found as usize] {
                let text = match value.form {
                    form::INDEXED => self.known[&value.table_index].1.clone(),
                    form::HUFFMAN => {
                        let mut text = [0u8; WINDOW + SLACK];
                        let mut decoder = HuffmanDecoder::default();
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
                if value.table_index != 0 {
                    self.known
                        .insert(value.table_index, (value.rule as u32, text.clone()));
                }
                found.push((value.rule as u32, text));
            }
            (found, frames)
        }
    }

    fn next_frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
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
        next_frame(1, 0x5, &block)
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
                (frames.at, frames.out_of_sync),
                (write.len() as u64, 0),
                "{flags:#x}"
            );
        }
    }

    #[test]
    fn entries_of_the_hpack_table_are_referenced() {
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
    fn frames_before_and_after_headers() {
        let mut encoder = Encoder::default();
        let mut write = next_frame(4, 0, &[0; 18]);
        write.extend(next_frame(8, 0, &[0, 0, 1, 0]));
        let fields = encoded(&mut encoder, &[("authorization", "Bearer FAKE-1", 0)]);
        assert!(may_begin_fields(u64::from_le_bytes(
            fields[..8].try_into().expect("eight")
        )));
        write.extend(fields);
        write.extend(&next_frame(0, 1, &[b'x'; 100])[..50]);
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
                name_key(&window, 0, len as u64, FilterKind::Header),
                header_key(&name)
            );
            assert_eq!(
                crate::scan::field_name(&window, 0),
                (header_key(&name), len as u64)
            );
        }
    }

    proptest! {
        #[test]
        fn huffman_code_matches_the_standard(text in "[ -~]{0,300}") {
            let mut coded = Vec::new();
            httlib_huffman::encode(text.as_bytes(), &mut coded).expect("coded");
            let mut window = [0u8; WINDOW + SLACK];
            window[..coded.len()].copy_from_slice(&coded);
            let value = HeaderValue { len: coded.len() as u64, ..HeaderValue::default() };
            let mut decoded = [0u8; WINDOW + SLACK];
            let mut decoder = HuffmanDecoder::default();
            let table = huffman_table(&ENCODE_TABLE);
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
