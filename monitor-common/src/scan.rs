//! Finds credentials in the bytes that a program sends: header lines of HTTP/1.1.
//!
//! The same steps run in the probes, over a copy of the bytes that never leaves the kernel, and on
//! the host under test. A step reads eight bytes at a time and speaks with the next one through
//! memory only, so that a verifier can walk each of them once.

use crate::{
    eight::{self, SPACES, below, bytes, count, eight_of, exact_zeros, load, sum, through, zeros},
    filter::{HOST, Kind, key},
    fingerprint::{Key, MAX_SECRET, Sip},
};

/// Bytes of a write that are looked at.
pub const WINDOW: usize = 8192;
/// Room behind them, so that a word can be read at any of them.
pub const SLACK: usize = 64;
/// Bytes of a line that are carried from one write to the next.
pub const CARRIED_MAX: usize = 4096;
/// Credentials that one write can show.
pub const VALUES: usize = 4;
/// Bytes of a header's name that are compared; no name in the catalog is longer.
pub const HEADER_MAX: usize = 32;
/// Bytes of a line that one step crosses.
const STRIDE: usize = 256;
/// Bytes in which the word of a scheme has to end.
const SCHEME_MAX: usize = 24;

/// Bytes in which the access key id of SigV4 has to end.
const KEY_ID_MAX: usize = 160;
/// Bytes behind a scheme in which a second blank is looked for.
const BLANK_MAX: usize = 64;

/// The buffer that is scanned.
pub type Window = [u8; WINDOW + SLACK];

/// Eight bytes at any place of the window.
#[inline(always)]
pub fn word(window: &Window, at: u64) -> u64 {
    let at = at as usize & (WINDOW - 1);
    // SAFETY: SLACK bytes follow the last place.
    unsafe { load(window.as_ptr().add(at)) }
}

/// Set in the rule of a value that has nothing around its secret.
pub const BARE: u64 = 1 << 29;

/// What stands for the name of a header, in any case.
pub const fn header_key(name: &str) -> u64 {
    key(Kind::Header, name_sum(name))
}

/// The sum of a name, in any case.
pub(crate) const fn name_sum(name: &str) -> u64 {
    let name = name.as_bytes();
    let (mut total, mut at) = (0, 0);
    // The last word is that with the end in it, and may be empty.
    while at <= name.len() {
        let (mut eight, mut i) = (0u64, 0);
        while i < 8 && at + i < name.len() {
            eight |= ((name[at + i] | 0x20) as u64) << (i * 8);
            i += 1;
        }
        total = sum(total, eight);
        at += 8;
    }
    total
}

/// Where the scan of a write stands.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Lines {
    /// The next byte.
    pub at: u64,
    /// Bytes in the window.
    pub end: u64,
    /// Where the value of the header of this line begins; 0 where no rule is about it.
    pub value: u64,
    /// The rule's value.
    pub rule: u64,
    /// 1 in the middle of a line.
    pub inside: u64,
    /// Where that line begins.
    pub begin: u64,
    /// 1 behind the empty line.
    pub over: u64,
    /// Values found.
    pub found: u64,
    /// Where the name of the server is.
    pub host: Value,
}

/// The value of a header that a rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Value {
    pub at: u64,
    pub len: u64,
    /// The rule's value: which header.
    pub rule: u64,
    /// One of [`form`].
    pub form: u64,
    /// The number that the connection's table has it under, where it is to be referred to; 0
    /// where not.
    pub entry: u64,
    /// One of [`wrapped`].
    pub wrapped: u64,
}

/// What a secret is that is a user and a password in base64.
pub mod wrapped {
    pub const NOT: u64 = 0;
    /// `user:password`.
    pub const COLON: u64 = 1;
    /// The password behind a zero byte, or alone.
    pub const ZERO: u64 = 2;
}

/// How a value stands in the bytes.
pub mod form {
    pub const PLAIN: u64 = 0;
    /// In the Huffman code of HPACK.
    pub const CODED: u64 = 1;
    /// Not at all: it is referred to by its number in the connection's table.
    pub const REFERRED: u64 = 2;
}

/// The sum of the name at the front of a line, and its length; 0 where there is none.
#[inline(always)]
pub fn name(window: &Window, at: u64) -> (u64, u64) {
    let mut total = 0;
    for i in 0..HEADER_MAX as u64 / 8 + 1 {
        let eight = word(window, at + i * 8);
        let ends = zeros(eight ^ eight_of(b':')) | zeros(eight ^ eight_of(b'\n'));
        let Some(mask) = below(ends) else {
            total = sum(total, eight | SPACES);
            continue;
        };
        let len = bytes(mask);
        let colon = (eight >> (len * 8)) as u8 == b':';
        total = sum(total, (eight | SPACES) & mask);
        return if colon {
            (key(Kind::Header, total), i * 8 + len)
        } else {
            (0, 0)
        };
    }
    (0, 0)
}

/// The key of a name of a known length, as it stands or in the code of HPACK; 0 where it is none.
#[inline(always)]
pub fn name_key(window: &Window, at: u64, len: u64, kind: Kind) -> u64 {
    if len > HEADER_MAX as u64 || len == 0 {
        return 0;
    }
    let coded = matches!(kind, Kind::CodedHeader);
    let mut total = 0;
    for i in 0..HEADER_MAX as u64 / 8 + 1 {
        if i * 8 > len {
            break;
        }
        let rest = len - i * 8;
        let mask = if rest >= 8 {
            u64::MAX
        } else {
            (1 << (rest * 8)) - 1
        };
        let eight = word(window, at + i * 8);
        let eight = if coded { eight } else { eight | SPACES };
        total = sum(total, eight & mask);
    }
    key(kind, total)
}

/// Crosses a line, or a piece of a long one; `false` at the end. `rule` tells whether the catalog
/// has a header, by its key.
#[inline(always)]
pub fn line(
    window: &Window,
    lines: &mut Lines,
    values: &mut [Value; VALUES],
    rule: impl FnOnce(u64) -> Option<u32>,
) -> bool {
    let at = lines.at;
    if at >= lines.end || at >= WINDOW as u64 || lines.over != 0 {
        return false;
    }
    if lines.inside == 0 {
        lines.value = 0;
        let first = word(window, at) as u16;
        if first as u8 == b'\n' || first == u16::from_le_bytes(*b"\r\n") {
            lines.over = 1;
            return false;
        }
        let (key, len) = name(window, at);
        if len > 0
            && let Some(rule) = rule(key)
        {
            lines.value = at + len + 1;
            lines.rule = u64::from(rule);
        }
    }
    let mut passed = STRIDE as u64;
    lines.inside = 1;
    for i in 0..STRIDE as u64 / 8 {
        if let Some(mask) = below(zeros(word(window, at + i * 8) ^ eight_of(b'\n'))) {
            passed = i * 8 + bytes(mask);
            lines.inside = 0;
            break;
        }
    }
    let line_end = at + passed;
    if line_end >= lines.end {
        // What is behind the end is of no write.
        lines.at = lines.end;
        lines.inside = 1;
        return false;
    }
    if lines.inside != 0 {
        lines.at = line_end;
        return true;
    }
    lines.at = line_end + 1;
    lines.begin = line_end + 1;
    if lines.value != 0 && lines.value < line_end {
        let value = Value {
            at: lines.value,
            len: line_end - lines.value,
            rule: lines.rule,
            ..Value::default()
        };
        let place = lines.found;
        if value.rule == u64::from(HOST) {
            lines.host = value;
        } else if place < VALUES as u64 {
            values[place as usize & (VALUES - 1)] = value;
            lines.found = place + 1;
        }
    }
    true
}

/// Bytes of a server's name.
pub const HOST_MAX: usize = 256;

/// The name of the server in the value of `Host` or `:authority`: without blanks, without a port.
/// The length is 0 where it is an IPv6 address, or too long for a name; see [`is_address`]. `place`
/// is for [`through`].
#[inline(always)]
pub fn host(window: &Window, value: Value, place: &mut u64) -> Value {
    let none = Value { len: 0, ..value };
    let (mut at, end) = (value.at, value.at + value.len);
    // One blank, as everybody writes it.
    at += u64::from(word(window, at) as u8 == b' ');
    if word(window, at) as u8 == b'[' || end < at {
        return none;
    }
    let rest = end - at;
    let mut len = HOST_MAX as u64 + 1;
    for i in 0..HOST_MAX as u64 / 8 + 1 {
        if i * 8 >= rest {
            break;
        }
        let eight = word(window, at + i * 8);
        let ends = zeros(eight ^ eight_of(b':'))
            | zeros(eight ^ SPACES)
            | zeros(eight ^ eight_of(b'\r'))
            | zeros(eight ^ eight_of(b'\t'));
        if let Some(mask) = below(ends) {
            len = i * 8 + bytes(mask);
            break;
        }
    }
    let len = through(place, len);
    let len = if len < rest { len } else { rest };
    if len > HOST_MAX as u64 {
        return none;
    }
    Value { at, len, ..value }
}

/// Whether what [`host`] found is an IPv4 address: a name that ends with a digit begins with none.
#[inline(always)]
pub fn is_address(window: &Window, host: Value) -> bool {
    let last = (host.at + host.len).saturating_sub(1);
    (word(window, host.at) as u8).is_ascii_digit() && (word(window, last) as u8).is_ascii_digit()
}

/// How a credential is dressed in a header's value.
pub mod scheme {
    /// The value is the secret.
    pub const NONE: u32 = 0;
    /// A word before it: `Bearer`, `token`, …
    pub const WORD: u32 = 1;
    pub const BASIC: u32 = 2;
    /// AWS SigV4: the access key id stands for the pair.
    pub const SIGV4: u32 = 3;
}

#[inline(always)]
fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t' || byte == b'\r'
}

/// How far the first of a byte, given eight times, is behind a place; `limit` (a multiple of eight)
/// where it is further.
#[inline(always)]
pub(crate) fn first(window: &Window, at: u64, limit: usize, eight: u64, place: &mut u64) -> u64 {
    let mut len = limit as u64;
    for i in 0..limit as u64 / 8 {
        if let Some(mask) = below(zeros(word(window, at + i * 8) ^ eight)) {
            len = i * 8 + bytes(mask);
            break;
        }
    }
    through(place, len)
}

/// Finds the secret in a header's value; the length is 0 where there is none: in a challenge's
/// answer of several words nothing is the secret itself. What is shorter than eight bytes, and no
/// `Basic`, is none. `place` is for [`through`].
#[inline(always)]
pub fn secret(window: &Window, value: Value, place: &mut u64) -> (Value, u32) {
    let none = (Value { len: 0, ..value }, scheme::NONE);
    let (mut at, mut end) = (value.at, value.at + value.len);
    for _ in 0..4 {
        if at < end && is_blank(word(window, at) as u8) {
            at += 1;
        }
        if end > at && is_blank(word(window, end - 1) as u8) {
            end -= 1;
        }
    }
    at = through(place, at);
    let end = through(place, end);
    let begin = at;
    let mut scheme = scheme::NONE;
    let space = begin + first(window, begin, SCHEME_MAX, SPACES, place);
    if space < end && space < begin + SCHEME_MAX as u64 {
        at = space + 1;
        scheme = scheme::WORD;
    }
    if scheme == scheme::WORD {
        let five = (word(window, begin) | SPACES) & 0xff_ffff_ffff;
        if five == u64::from_le_bytes(*b"basic\0\0\0") {
            scheme = scheme::BASIC;
        } else if word(window, begin) == u64::from_le_bytes(*b"AWS4-HMA") {
            // `AWS4-HMAC-SHA256 Credential=AKIA…/20240101/…, SignedHeaders=…`
            if word(window, at) != u64::from_le_bytes(*b"Credenti") {
                return none;
            }
            at += 11;
            let len = first(window, at, KEY_ID_MAX, eight_of(b'/'), place);
            if len >= KEY_ID_MAX as u64 || at + len >= end {
                return none;
            }
            return (Value { at, len, ..value }, scheme::SIGV4);
        }
    }
    // A second space within the next bytes: not one secret.
    let blank = first(window, at, BLANK_MAX, SPACES, place);
    if blank < BLANK_MAX as u64 && at + blank < end {
        return none;
    }
    let shortest = if scheme == scheme::BASIC { 4 } else { 8 };
    if end < at + shortest {
        return none;
    }
    let wrapped = if scheme == scheme::BASIC {
        wrapped::COLON
    } else {
        wrapped::NOT
    };
    (
        Value {
            at,
            len: end - at,
            wrapped,
            ..value
        },
        scheme,
    )
}

/// What a letter of base64 stands for; [`FILL`] for what only fills up, [`NO_LETTER`] for the rest.
const LETTERS: [u8; 256] = {
    let mut letters = [NO_LETTER; 256];
    let all = *b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut i = 0;
    while i < all.len() {
        letters[all[i] as usize] = i as u8;
        i += 1;
    }
    letters[b'=' as usize] = FILL;
    letters
};
const FILL: u8 = 0x40;
const NO_LETTER: u8 = 0x80;

/// Takes the base64 off a secret, where it stands: what comes out goes to the front of the text.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Unwrap {
    /// Bytes so far.
    pub len: u64,
    /// 1 behind the end, or behind what is no base64.
    pub over: u64,
}

impl Unwrap {
    /// Four letters; `false` behind the last ones.
    #[inline(always)]
    pub fn step(&mut self, text: &mut Window, secret: Value, i: u64) -> bool {
        if i * 4 + 4 > secret.len || self.over != 0 {
            return false;
        }
        let four = word(text, secret.at + i * 4);
        let letter = |place: u32| LETTERS[(four >> (place * 8)) as usize & 0xff];
        let (a, b, c, d) = (letter(0), letter(1), letter(2), letter(3));
        let six = |letter: u8| u32::from(letter & 0x3f);
        let bits = six(a) << 18 | six(b) << 12 | six(c) << 6 | six(d);
        if (a | b | c | d) & NO_LETTER != 0 {
            self.len = 0;
            self.over = 1;
            return false;
        }
        let fill = u64::from(c & FILL) / 64 + u64::from(d & FILL) / 64;
        // SAFETY: inside the window, which has SLACK more; the next letters are behind these bytes.
        unsafe {
            text.as_mut_ptr()
                .add((i * 3) as usize & (WINDOW - 1))
                .cast::<u32>()
                .write_unaligned((bits << 8).swap_bytes());
        }
        self.len = i * 3 + 3 - fill;
        self.over = u64::from(fill != 0);
        true
    }
}

/// A password that is shorter than this is none, where the user before it is not: keys of an API are sent so, with
/// nothing or with a word behind the colon.
const SHORTEST: u64 = 8;

/// The password in what [`Unwrap`] gave, or the key in place of the user; the length is 0 where there is none.
#[inline(always)]
pub fn password(text: &Window, len: u64, value: Value) -> Value {
    let mut at = 0;
    let mut found = value.wrapped == wrapped::ZERO;
    let (wanted, first) = if found {
        (0, u64::from(word(text, 0) as u8 == 0))
    } else {
        (eight_of(b':'), 0)
    };
    for i in 0..HOST_MAX as u64 / 8 {
        if let Some(mask) = below(zeros(word(text, first + i * 8) ^ wanted)) {
            let place = first + i * 8 + bytes(mask) + 1;
            if place <= len {
                at = place;
                found = true;
            }
            break;
        }
    }
    let behind = if found && len > at { len - at } else { 0 };
    let user = at.saturating_sub(1);
    if value.wrapped == wrapped::COLON && behind < SHORTEST && user >= SHORTEST {
        return Value {
            at: 0,
            len: user,
            ..value
        };
    }
    Value {
        at,
        len: behind,
        ..value
    }
}

/// Makes capital letters at the front of a text small, as far as a server's name goes.
#[inline(always)]
pub fn small_front(text: &mut Window) {
    for i in 0..HOST_MAX / 8 {
        // SAFETY: inside the window, which has many more bytes.
        unsafe {
            let place = text.as_mut_ptr().add(i * 8).cast::<u64>();
            place.write_unaligned(eight::small(place.read_unaligned()));
        }
    }
}

/// A fingerprint in the making, and the dots passed on the way.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Print {
    pub sip: Sip,
    pub dots: u64,
}

impl Print {
    #[inline(always)]
    pub fn new(key: Key) -> Self {
        Self {
            sip: Sip::new(key),
            dots: 0,
        }
    }

    /// Takes in the `i`th word of a secret; `false` behind its last whole one.
    #[inline(always)]
    pub fn step(&mut self, window: &Window, secret: Value, i: u64) -> bool {
        if i >= counted(secret.len) / 8 {
            return false;
        }
        let eight = word(window, secret.at + i * 8);
        self.dot(eight);
        self.sip.word(eight);
        true
    }

    #[inline(always)]
    fn dot(&mut self, eight: u64) {
        let marks = exact_zeros(eight ^ eight_of(b'.'));
        self.dots += count(marks);
    }

    /// The fingerprint, and the dots in the secret.
    #[inline(always)]
    pub fn end(mut self, window: &Window, secret: Value) -> (u64, u64) {
        let counted = counted(secret.len);
        let tail = word(window, secret.at + (counted & !7));
        self.dot(tail & ((1 << ((counted & 7) * 8)) - 1));
        (self.sip.end(tail, secret.len), self.dots)
    }
}

#[inline(always)]
const fn counted(len: u64) -> u64 {
    if len > MAX_SECRET as u64 {
        MAX_SECRET as u64
    } else {
        len
    }
}

/// Whether a write may begin a request of HTTP/1.1, by its first eight bytes: a method in capital
/// letters, and no server's answer. What only looks like one costs a scan.
#[inline(always)]
pub const fn may_begin_request(first: u64) -> bool {
    // Three capital letters; then another, or the space behind a short method.
    let letters = (first & 0xe0_e0e0) == 0x40_4040;
    let fourth = (first >> 24) as u8;
    let answer = first as u32 == u32::from_le_bytes(*b"HTTP");
    letters && !answer && (fourth & 0xe0 == 0x40 || fourth == b' ')
}

/// What stands for the first eight bytes of something shorter: its first byte alone.
#[inline(always)]
pub const fn alone(first: u8) -> u64 {
    eight_of(first)
}

/// Whether bytes begin with a method and its space: no piece of a value does.
#[inline(always)]
pub fn begins_with_method(first: u64) -> bool {
    let Some(mask) = below(zeros(first ^ SPACES)) else {
        return false;
    };
    let capitals = (first ^ eight_of(0x40)) & eight_of(0xe0);
    capitals & mask == 0 && mask >= 0xff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::fingerprint;
    use proptest::prelude::*;

    const KEY: Key = Key { k0: 1, k1: 2 };
    const HEADERS: [&str; 4] = ["Authorization", "X-Vault-Token", "x-api-key", "Api-Key1"];

    fn rule(key: u64) -> Option<u32> {
        HEADERS
            .iter()
            .position(|name| header_key(name) == key)
            .map(|place| place as u32)
    }

    /// Fingerprint, dots, scheme and rule of a credential.
    type Shown = (u64, u64, u32, u64);

    /// What a whole write shows, on the host: fingerprint, dots, scheme and rule of each credential.
    fn credentials(
        key: Key,
        write: &[u8],
        rule: impl Fn(u64) -> Option<u32>,
    ) -> (Vec<Shown>, Lines) {
        let mut window = [0u8; WINDOW + SLACK];
        let len = write.len().min(WINDOW);
        window[..len].copy_from_slice(&write[..len]);
        let mut lines = Lines {
            end: len as u64,
            ..Lines::default()
        };
        let mut values = [Value::default(); VALUES];
        while line(&window, &mut lines, &mut values, &rule) {}
        let mut found = Vec::new();
        for value in &values[..lines.found as usize] {
            let (secret, scheme) = secret(&window, *value, &mut 0);
            if secret.len == 0 {
                continue;
            }
            let mut print = Print::new(key);
            let mut i = 0;
            while print.step(&window, secret, i) {
                i += 1;
            }
            let (fingerprint, dots) = print.end(&window, secret);
            found.push((fingerprint, dots, scheme, value.rule));
        }
        (found, lines)
    }

    fn found(write: &[u8]) -> Vec<Shown> {
        credentials(KEY, write, rule).0
    }

    fn print(secret: &str) -> u64 {
        fingerprint(KEY, secret.as_bytes())
    }

    #[test]
    fn headers_in_any_case_and_order() {
        let write = b"GET /x HTTP/1.1\r\nHost: a.example\r\nAUTHORIZATION:Bearer FAKE.token.one\r\nX-VAULT-TOKEN: hvs.FAKEFAKE\r\nAccept: */*\r\n\r\nAuthorization: Bearer in-the-body\r\n";
        assert_eq!(
            found(write),
            [
                (print("FAKE.token.one"), 2, scheme::WORD, 0),
                (print("hvs.FAKEFAKE"), 1, scheme::NONE, 1)
            ]
        );
        assert_eq!(
            found(b"POST / HTTP/1.1\nApi-Key1: FAKEFAKE\n\n"),
            [(print("FAKEFAKE"), 0, scheme::NONE, 3)],
            "a name of eight bytes, and bare line feeds"
        );
    }

    #[test]
    fn schemes() {
        for (value, expected) in [
            ("Basic dXNlcjpmYWtl", Some(("dXNlcjpmYWtl", scheme::BASIC))),
            ("basic dXNlcjpmYWtl", Some(("dXNlcjpmYWtl", scheme::BASIC))),
            ("Token FAKEFAKE", Some(("FAKEFAKE", scheme::WORD))),
            ("  FAKEFAKE  ", Some(("FAKEFAKE", scheme::NONE))),
            (
                "AWS4-HMAC-SHA256 Credential=AKIAFAKE0000/20240101/eu/s3/aws4_request, SignedHeaders=host, Signature=00",
                Some(("AKIAFAKE0000", scheme::SIGV4)),
            ),
            ("Digest username=\"a\", realm=\"b\"", None),
            ("", None),
            ("Bearer ", None),
        ] {
            let write = format!("GET / HTTP/1.1\r\nauthorization: {value}\r\n\r\n");
            let expected: Vec<_> = expected
                .map(|(secret, scheme)| {
                    let dots = secret.matches('.').count() as u64;
                    (print(secret), dots, scheme, 0)
                })
                .into_iter()
                .collect();
            assert_eq!(found(write.as_bytes()), expected, "{value}");
        }
    }

    fn unwrapped(coded: &str, wrapped: u64) -> Option<String> {
        let mut text = [0u8; WINDOW + SLACK];
        text[6..6 + coded.len()].copy_from_slice(coded.as_bytes());
        let value = Value {
            at: 6,
            len: coded.len() as u64,
            wrapped,
            ..Value::default()
        };
        let mut unwrap = Unwrap::default();
        let mut i = 0;
        while unwrap.step(&mut text, value, i) {
            i += 1;
        }
        let Value { at, len, .. } = password(&text, unwrap.len, value);
        let password = &text[at as usize..(at + len) as usize];
        (len > 0).then(|| String::from_utf8_lossy(password).into_owned())
    }

    fn named(value: &str) -> String {
        let mut window = [b'x'; WINDOW + SLACK];
        window[..value.len()].copy_from_slice(value.as_bytes());
        let found = host(
            &window,
            Value {
                len: value.len() as u64,
                ..Value::default()
            },
            &mut 0,
        );
        if is_address(&window, found) {
            return String::new();
        }
        let Value { at, len, .. } = found;
        String::from_utf8_lossy(&window[at as usize..(at + len) as usize]).into_owned()
    }

    #[test]
    fn names_of_servers() {
        for (value, expected) in [
            (" a.example", "a.example"),
            ("a.example:8443", "a.example"),
            (" eight.ab", "eight.ab"),
            (" a.example\r", "a.example"),
            (" 1.example", "1.example"),
            (" server1:80", "server1"),
            (" 10.0.0.1:6443", ""),
            (" 10.0.0.1", ""),
            (" [fd00::1]:80", ""),
            ("", ""),
        ] {
            assert_eq!(named(value), expected, "{value:?}");
        }
        assert_eq!(named(&format!(" {}", "n".repeat(300))), "");
    }

    #[test]
    fn the_password_inside() {
        use wrapped::{COLON, ZERO};
        for (coded, how, expected) in [
            ("dXNlcjpmYWtl", COLON, Some("fake")),
            ("dXNlcjpmYWtlMQ==", COLON, Some("fake1")),
            ("OmZha2U6MjI=", COLON, Some("fake:22")),
            // sk_FAKE_1234: and sk_FAKE_1234:x
            ("c2tfRkFLRV8xMjM0Og==", COLON, Some("sk_FAKE_1234")),
            ("c2tfRkFLRV8xMjM0Ong=", COLON, Some("sk_FAKE_1234")),
            ("AHVzZXIAZmFrZQ==", ZERO, Some("fake")),
            ("ZmFrZWZha2U=", ZERO, Some("fakefake")),
            ("dXNlcg==", COLON, None),
            ("dX*lcjpmYWtl", COLON, None),
            ("", COLON, None),
        ] {
            assert_eq!(unwrapped(coded, how).as_deref(), expected, "{coded}");
        }
    }

    #[test]
    fn what_is_no_header_of_the_catalog_is_nothing() {
        assert!(
            found(b"GET / HTTP/1.1\r\nX-Authorization: FAKEFAKE\r\nAuthorizatio: FAKEFAKE\r\n\r\n")
                .is_empty()
        );
        assert!(found(b"GET /a:b HTTP/1.1\r\n\r\n").is_empty());
        assert!(may_begin_request(u64::from_le_bytes(*b"GET / HT")));
        assert!(may_begin_request(u64::from_le_bytes(*b"DELETE /")));
        assert!(!may_begin_request(u64::from_le_bytes(*b"HTTP/1.1")));
        assert!(!may_begin_request(u64::from_le_bytes([0x17; 8])));
    }

    #[test]
    fn methods() {
        for (first, is) in [
            (b"GET / HT", true),
            (b"OPTIONS ", true),
            (b"POST /ab", true),
            (b"DELETEXY", false),
            (b"Bearer x", false),
            (b"AB CD EF", false),
            (b" GET / H", false),
        ] {
            assert_eq!(begins_with_method(u64::from_le_bytes(*first)), is);
        }
    }

    #[test]
    fn an_unfinished_line_is_known() {
        let head = b"GET / HTTP/1.1\r\nX-Vault-Token: ";
        let mut bytes = head.to_vec();
        bytes.extend([b'x'; 600]);
        let (_, lines) = credentials(KEY, &bytes, rule);
        assert_eq!((lines.inside, lines.begin, lines.over), (1, 16, 0));
        let (_, lines) = credentials(KEY, &head[..16], rule);
        assert_eq!((lines.inside, lines.over), (0, 0));
    }

    #[test]
    fn an_unfinished_head_is_known() {
        let (_, lines) = credentials(KEY, b"GET / HTTP/1.1\r\nHost: x\r\n", rule);
        assert_eq!((lines.over, lines.inside), (0, 0));
        let (_, lines) = credentials(KEY, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", rule);
        assert_eq!(lines.over, 1);
        let (_, lines) = credentials(KEY, b"GET / HTTP/1.1\r\nAuthori", rule);
        assert_eq!((lines.over, lines.inside), (0, 1));
    }

    proptest! {
        #[test]
        fn any_bytes(write in proptest::collection::vec(any::<u8>(), 0..WINDOW + 100)) {
            let _ = credentials(KEY, &write, rule);
        }

        #[test]
        fn base64_is_the_standard_one(user in "[a-z]{0,100}", password in "[ -~]{1,600}") {
            use base64::{Engine as _, engine::general_purpose::STANDARD};
            let coded = STANDARD.encode(format!("{user}:{password}"));
            let is_key = password.len() < 8 && user.len() >= 8;
            let secret = if is_key { user } else { password };
            prop_assert_eq!(unwrapped(&coded, wrapped::COLON), Some(secret));
        }

        #[test]
        fn any_base64(coded in "[ -~]{0,300}", how in 1u64..3) {
            let _ = unwrapped(&coded, how);
        }

        #[test]
        fn any_text_of_lines(write in "(GET / HTTP/1\\.1\r\n)?((authorization|x-api-key|Host)?:?[ -~]{0,300}\r?\n){0,20}") {
            let _ = credentials(KEY, write.as_bytes(), rule);
        }

        #[test]
        fn a_token_is_found_wherever_it_stands(
            before in proptest::collection::vec("[A-Za-z-]{1,30}: [!-~]{0,400}\r\n", 0..10),
            token in "[A-Za-z0-9_.=-]{8,2000}",
            bearer: bool,
        ) {
            let before: String = before.into_iter().filter(|line| {
                let name = line.split(':').next().unwrap_or_default();
                !HEADERS.iter().any(|known| known.eq_ignore_ascii_case(name))
            }).collect();
            let dress = if bearer { "Bearer " } else { "" };
            let write = format!("PUT /a HTTP/1.1\r\n{before}Authorization: {dress}{token}\r\n\r\n");
            let found = found(write.as_bytes());
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].0, print(&token));
            prop_assert_eq!(found[0].1, token.matches('.').count() as u64);
        }
    }
}
