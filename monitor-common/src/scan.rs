//! Finds credentials in the bytes that a program sends: header lines of HTTP/1.1.
//!
//! The same steps run in the probes, over a copy of the bytes that never leaves the kernel, and on
//! the host in tests. A step reads eight bytes at a time and passes state to the next step through
//! memory only, so that a verifier can check each step once.

use crate::{
    filter::{FilterKind, HOST, key},
    fingerprint::{FingerprintKey, MAX_SECRET, SipHasher},
    swar::{
        self, SPACES, add_name_word, count_marks, exact_zero_bytes, hide_from_verifier,
        load_unaligned, mask_below, masked_bytes, splat, zero_bytes,
    },
};

/// Bytes of a write that are scanned.
pub const WINDOW: usize = 8192;
/// Bytes after the window, so that a full word can be read at any offset in it.
pub const SLACK: usize = 64;
/// Bytes of a line that are carried over from one write to the next.
pub const CARRIED_MAX: usize = 4096;
/// Maximum number of credentials found in one write.
pub const VALUES_MAX: usize = 4;
/// Bytes of a header name that are compared; no name in the catalog is longer.
pub const HEADER_MAX: usize = 32;
/// Bytes of a line that one step scans.
const STRIDE: usize = 256;
/// The scheme word must end within this many bytes.
const SCHEME_MAX: usize = 24;

/// The access key id of SigV4 must end within this many bytes.
const KEY_ID_MAX: usize = 160;
/// Bytes after a scheme in which a second space is searched.
const BLANK_MAX: usize = 64;

/// The buffer that is scanned.
pub type ScanWindow = [u8; WINDOW + SLACK];

/// Reads eight bytes at any offset of the window.
#[inline(always)]
pub fn word_at(window: &ScanWindow, at: u64) -> u64 {
    let at = at as usize & (WINDOW - 1);
    // SAFETY: SLACK bytes follow the last offset of the window.
    unsafe { load_unaligned(window.as_ptr().add(at)) }
}

/// Set in the rule of a value that is the secret itself, without a scheme word.
pub const BARE_VALUE: u64 = 1 << 29;

/// The key of a header name, ignoring case.
pub const fn header_key(name: &str) -> u64 {
    key(FilterKind::Header, name_sum(name))
}

/// The sum of a name, ignoring case.
pub(crate) const fn name_sum(name: &str) -> u64 {
    let name = name.as_bytes();
    let (mut total, mut at) = (0, 0);
    // The last word contains the end of the name and may be empty.
    while at <= name.len() {
        let (mut eight, mut i) = (0u64, 0);
        while i < 8 && at + i < name.len() {
            eight |= ((name[at + i] | 0x20) as u64) << (i * 8);
            i += 1;
        }
        total = add_name_word(total, eight);
        at += 8;
    }
    total
}

/// Position and state of the scan over a write.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct HeaderLines {
    /// Offset of the next byte.
    pub at: u64,
    /// Bytes in the window.
    pub end: u64,
    /// Start of this header's value; 0 if no rule matches the header.
    pub value: u64,
    /// The value of the matching rule.
    pub rule: u64,
    /// 1 in the middle of a line.
    pub in_line: u64,
    /// Start of that line.
    pub line_start: u64,
    /// 1 after the empty line that ends the head.
    pub ended: u64,
    /// Values found.
    pub found: u64,
    /// Position of the server's name.
    pub host: HeaderValue,
}

/// The value of a header that a rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HeaderValue {
    pub at: u64,
    pub len: u64,
    /// The value of the rule: which header.
    pub rule: u64,
    /// One of [`form`].
    pub form: u64,
    /// Index in the connection's HPACK table if it can be referenced later; otherwise 0.
    pub table_index: u64,
    /// One of [`wrapped`].
    pub wrapped: u64,
}

/// Formats of a secret that is a base64-encoded user and password.
pub mod wrapped {
    pub const NOT: u64 = 0;
    /// `user:password`.
    pub const COLON: u64 = 1;
    /// The password follows a zero byte, or stands alone.
    pub const AFTER_NUL: u64 = 2;
}

/// How a value is represented in the bytes.
pub mod form {
    pub const PLAIN: u64 = 0;
    /// Huffman-coded (HPACK).
    pub const HUFFMAN: u64 = 1;
    /// Not present: referenced by its index in the connection's HPACK table.
    pub const INDEXED: u64 = 2;
}

/// The sum of the name at the start of a line, and its length; 0 if there is none.
#[inline(always)]
pub fn field_name(window: &ScanWindow, at: u64) -> (u64, u64) {
    let mut total = 0;
    for i in 0..HEADER_MAX as u64 / 8 + 1 {
        let eight = word_at(window, at + i * 8);
        let ends = zero_bytes(eight ^ splat(b':')) | zero_bytes(eight ^ splat(b'\n'));
        let Some(mask) = mask_below(ends) else {
            total = add_name_word(total, eight | SPACES);
            continue;
        };
        let len = masked_bytes(mask);
        let colon = (eight >> (len * 8)) as u8 == b':';
        total = add_name_word(total, (eight | SPACES) & mask);
        return if colon {
            (key(FilterKind::Header, total), i * 8 + len)
        } else {
            (0, 0)
        };
    }
    (0, 0)
}

/// The key of a name of known length, literal or Huffman-coded; 0 if it is not a name.
#[inline(always)]
pub fn name_key(window: &ScanWindow, at: u64, len: u64, kind: FilterKind) -> u64 {
    if len > HEADER_MAX as u64 || len == 0 {
        return 0;
    }
    let coded = matches!(kind, FilterKind::CodedHeader);
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
        let eight = word_at(window, at + i * 8);
        let eight = if coded { eight } else { eight | SPACES };
        total = add_name_word(total, eight & mask);
    }
    key(kind, total)
}

/// Scans a line, or a piece of a long one; returns `false` at the end. `rule` looks up a header's
/// rule by its key.
#[inline(always)]
pub fn scan_line(
    window: &ScanWindow,
    lines: &mut HeaderLines,
    values: &mut [HeaderValue; VALUES_MAX],
    rule: impl FnOnce(u64) -> Option<u32>,
) -> bool {
    let at = lines.at;
    if at >= lines.end || at >= WINDOW as u64 || lines.ended != 0 {
        return false;
    }
    if lines.in_line == 0 {
        lines.value = 0;
        let first = word_at(window, at) as u16;
        if first as u8 == b'\n' || first == u16::from_le_bytes(*b"\r\n") {
            lines.ended = 1;
            return false;
        }
        let (key, len) = field_name(window, at);
        if len > 0
            && let Some(rule) = rule(key)
        {
            lines.value = at + len + 1;
            lines.rule = u64::from(rule);
        }
    }
    let mut passed = STRIDE as u64;
    lines.in_line = 1;
    for i in 0..STRIDE as u64 / 8 {
        if let Some(mask) = mask_below(zero_bytes(word_at(window, at + i * 8) ^ splat(b'\n'))) {
            passed = i * 8 + masked_bytes(mask);
            lines.in_line = 0;
            break;
        }
    }
    let line_end = at + passed;
    if line_end >= lines.end {
        // Bytes after the end do not belong to the write.
        lines.at = lines.end;
        lines.in_line = 1;
        return false;
    }
    if lines.in_line != 0 {
        lines.at = line_end;
        return true;
    }
    lines.at = line_end + 1;
    lines.line_start = line_end + 1;
    if lines.value != 0 && lines.value < line_end {
        let value = HeaderValue {
            at: lines.value,
            len: line_end - lines.value,
            rule: lines.rule,
            ..HeaderValue::default()
        };
        let place = lines.found;
        if value.rule == u64::from(HOST) {
            lines.host = value;
        } else if place < VALUES_MAX as u64 {
            values[place as usize & (VALUES_MAX - 1)] = value;
            lines.found = place + 1;
        }
    }
    true
}

/// Maximum length of a server name.
pub const HOST_MAX: usize = 256;

/// The server name in the value of `Host` or `:authority`, without spaces and port. The length is 0
/// if it is an IPv6 address or too long for a name; see [`is_address`]. `place` is scratch space
/// for [`hide_from_verifier`].
#[inline(always)]
pub fn host_name(window: &ScanWindow, value: HeaderValue, place: &mut u64) -> HeaderValue {
    let none = HeaderValue { len: 0, ..value };
    let (mut at, end) = (value.at, value.at + value.len);
    // Usually exactly one space.
    at += u64::from(word_at(window, at) as u8 == b' ');
    if word_at(window, at) as u8 == b'[' || end < at {
        return none;
    }
    let rest = end - at;
    let mut len = HOST_MAX as u64 + 1;
    for i in 0..HOST_MAX as u64 / 8 + 1 {
        if i * 8 >= rest {
            break;
        }
        let eight = word_at(window, at + i * 8);
        let ends = zero_bytes(eight ^ splat(b':'))
            | zero_bytes(eight ^ SPACES)
            | zero_bytes(eight ^ splat(b'\r'))
            | zero_bytes(eight ^ splat(b'\t'));
        if let Some(mask) = mask_below(ends) {
            len = i * 8 + masked_bytes(mask);
            break;
        }
    }
    let len = hide_from_verifier(place, len);
    let len = if len < rest { len } else { rest };
    if len > HOST_MAX as u64 {
        return none;
    }
    HeaderValue { at, len, ..value }
}

/// Whether the result of [`host_name`] is an IPv4 address: no host name has a last label that
/// starts with a digit and ends in one.
#[inline(always)]
pub fn is_address(window: &ScanWindow, host: HeaderValue) -> bool {
    let last = (host.at + host.len).saturating_sub(1);
    (word_at(window, host.at) as u8).is_ascii_digit()
        && (word_at(window, last) as u8).is_ascii_digit()
}

/// How a header's value wraps the credential.
pub mod scheme {
    /// The value is the secret.
    pub const NONE: u32 = 0;
    /// Preceded by a scheme word: `Bearer`, `token`, …
    pub const WORD: u32 = 1;
    pub const BASIC: u32 = 2;
    /// AWS SigV4: the access key id identifies the key pair.
    pub const SIGV4: u32 = 3;
}

#[inline(always)]
fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t' || byte == b'\r'
}

/// The distance from `at` to the first occurrence of a byte (given splatted); `limit` (a multiple
/// of eight) if it is farther away.
#[inline(always)]
pub(crate) fn find_byte(
    window: &ScanWindow,
    at: u64,
    limit: usize,
    eight: u64,
    place: &mut u64,
) -> u64 {
    let mut len = limit as u64;
    for i in 0..limit as u64 / 8 {
        if let Some(mask) = mask_below(zero_bytes(word_at(window, at + i * 8) ^ eight)) {
            len = i * 8 + masked_bytes(mask);
            break;
        }
    }
    hide_from_verifier(place, len)
}

/// Finds the secret in a header's value. The length is 0 if there is none: in a challenge response
/// of several words, no word is the secret itself. Values shorter than eight bytes, `Basic`
/// excepted, are not secrets. `place` is scratch space for [`hide_from_verifier`].
#[inline(always)]
pub fn find_secret(window: &ScanWindow, value: HeaderValue, place: &mut u64) -> (HeaderValue, u32) {
    let none = (HeaderValue { len: 0, ..value }, scheme::NONE);
    let (mut at, mut end) = (value.at, value.at + value.len);
    for _ in 0..4 {
        if at < end && is_blank(word_at(window, at) as u8) {
            at += 1;
        }
        if end > at && is_blank(word_at(window, end - 1) as u8) {
            end -= 1;
        }
    }
    at = hide_from_verifier(place, at);
    let end = hide_from_verifier(place, end);
    let begin = at;
    let mut scheme = scheme::NONE;
    let space = begin + find_byte(window, begin, SCHEME_MAX, SPACES, place);
    if space < end && space < begin + SCHEME_MAX as u64 {
        at = space + 1;
        scheme = scheme::WORD;
    }
    if scheme == scheme::WORD {
        let five = (word_at(window, begin) | SPACES) & 0xff_ffff_ffff;
        if five == u64::from_le_bytes(*b"basic\0\0\0") {
            scheme = scheme::BASIC;
        } else if word_at(window, begin) == u64::from_le_bytes(*b"AWS4-HMA") {
            // `AWS4-HMAC-SHA256 Credential=AKIA…/20240101/…, SignedHeaders=…`
            if word_at(window, at) != u64::from_le_bytes(*b"Credenti") {
                return none;
            }
            at += 11;
            let len = find_byte(window, at, KEY_ID_MAX, splat(b'/'), place);
            if len >= KEY_ID_MAX as u64 || at + len >= end {
                return none;
            }
            return (HeaderValue { at, len, ..value }, scheme::SIGV4);
        }
    }
    // A second space within the next bytes: not a single secret.
    let blank = find_byte(window, at, BLANK_MAX, SPACES, place);
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
        HeaderValue {
            at,
            len: end - at,
            wrapped,
            ..value
        },
        scheme,
    )
}

/// The value of each base64 letter; [`PADDING`] for padding, [`INVALID`] for any other byte.
const BASE64_VALUES: [u8; 256] = {
    let mut letters = [INVALID; 256];
    let all = *b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut i = 0;
    while i < all.len() {
        letters[all[i] as usize] = i as u8;
        i += 1;
    }
    letters[b'=' as usize] = PADDING;
    letters
};
const PADDING: u8 = 0x40;
const INVALID: u8 = 0x80;

/// Decodes a base64 secret in place: the decoded bytes go to the front of the text.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Base64Decoder {
    /// Bytes decoded so far.
    pub len: u64,
    /// 1 after the end, or after an invalid letter.
    pub ended: u64,
}

impl Base64Decoder {
    /// Decodes four letters; returns `false` after the last ones.
    #[inline(always)]
    pub fn step(&mut self, text: &mut ScanWindow, secret: HeaderValue, i: u64) -> bool {
        if i * 4 + 4 > secret.len || self.ended != 0 {
            return false;
        }
        let four = word_at(text, secret.at + i * 4);
        let letter = |place: u32| BASE64_VALUES[(four >> (place * 8)) as usize & 0xff];
        let (a, b, c, d) = (letter(0), letter(1), letter(2), letter(3));
        let six = |letter: u8| u32::from(letter & 0x3f);
        let bits = six(a) << 18 | six(b) << 12 | six(c) << 6 | six(d);
        if (a | b | c | d) & INVALID != 0 {
            self.len = 0;
            self.ended = 1;
            return false;
        }
        let fill = u64::from(c & PADDING) / 64 + u64::from(d & PADDING) / 64;
        // SAFETY: inside the window, which has SLACK more bytes; the letters still to be read are
        // behind these bytes.
        unsafe {
            text.as_mut_ptr()
                .add((i * 3) as usize & (WINDOW - 1))
                .cast::<u32>()
                .write_unaligned((bits << 8).swap_bytes());
        }
        self.len = i * 3 + 3 - fill;
        self.ended = u64::from(fill != 0);
        true
    }
}

/// A password shorter than this is ignored if the user before it is longer: API keys are sent as
/// the user, with nothing or a placeholder as the password.
const MIN_PASSWORD: u64 = 8;

/// The password in the output of [`Base64Decoder`], or the key in place of the user; the length is
/// 0 if there is none.
#[inline(always)]
pub fn basic_password(text: &ScanWindow, len: u64, value: HeaderValue) -> HeaderValue {
    let mut at = 0;
    let mut found = value.wrapped == wrapped::AFTER_NUL;
    let (wanted, first) = if found {
        (0, u64::from(word_at(text, 0) as u8 == 0))
    } else {
        (splat(b':'), 0)
    };
    for i in 0..HOST_MAX as u64 / 8 {
        if let Some(mask) = mask_below(zero_bytes(word_at(text, first + i * 8) ^ wanted)) {
            let place = first + i * 8 + masked_bytes(mask) + 1;
            if place <= len {
                at = place;
                found = true;
            }
            break;
        }
    }
    let behind = if found && len > at { len - at } else { 0 };
    let user = at.saturating_sub(1);
    if value.wrapped == wrapped::COLON && behind < MIN_PASSWORD && user >= MIN_PASSWORD {
        return HeaderValue {
            at: 0,
            len: user,
            ..value
        };
    }
    HeaderValue {
        at,
        len: behind,
        ..value
    }
}

/// Lower-cases the first bytes of a text, up to the length of a server name.
#[inline(always)]
pub fn lowercase_front(text: &mut ScanWindow) {
    for i in 0..HOST_MAX / 8 {
        // SAFETY: inside the window, which is much larger.
        unsafe {
            let place = text.as_mut_ptr().add(i * 8).cast::<u64>();
            place.write_unaligned(swar::to_lower(place.read_unaligned()));
        }
    }
}

/// Computes a fingerprint and counts dots in one pass.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FingerprintBuilder {
    pub sip: SipHasher,
    pub dots: u64,
}

impl FingerprintBuilder {
    #[inline(always)]
    pub fn new(key: FingerprintKey) -> Self {
        Self {
            sip: SipHasher::new(key),
            dots: 0,
        }
    }

    /// Hashes the `i`th word of a secret; returns `false` after its last full word.
    #[inline(always)]
    pub fn step(&mut self, window: &ScanWindow, secret: HeaderValue, i: u64) -> bool {
        if i >= counted(secret.len) / 8 {
            return false;
        }
        let eight = word_at(window, secret.at + i * 8);
        self.count_dot(eight);
        self.sip.push_word(eight);
        true
    }

    #[inline(always)]
    fn count_dot(&mut self, eight: u64) {
        let marks = exact_zero_bytes(eight ^ splat(b'.'));
        self.dots += count_marks(marks);
    }

    /// Returns the fingerprint and the number of dots.
    #[inline(always)]
    pub fn finish(mut self, window: &ScanWindow, secret: HeaderValue) -> (u64, u64) {
        let counted = counted(secret.len);
        let tail = word_at(window, secret.at + (counted & !7));
        self.count_dot(tail & ((1 << ((counted & 7) * 8)) - 1));
        (self.sip.finish_secret(tail, secret.len), self.dots)
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

/// Whether a write may begin an HTTP/1.1 request, judged by its first eight bytes: a method in
/// capital letters, and not a server's response. A false positive costs one scan.
#[inline(always)]
pub const fn may_begin_request(first: u64) -> bool {
    // Three capital letters; then another one, or the space after a short method.
    let letters = (first & 0xe0_e0e0) == 0x40_4040;
    let fourth = (first >> 24) as u8;
    let answer = first as u32 == u32::from_le_bytes(*b"HTTP");
    letters && !answer && (fourth & 0xe0 == 0x40 || fourth == b' ')
}

/// Represents a payload shorter than eight bytes by its first byte.
#[inline(always)]
pub const fn single_byte_word(first: u8) -> u64 {
    splat(first)
}

/// Whether bytes begin with a method and a space: no piece of a value does.
#[inline(always)]
pub fn begins_with_method(first: u64) -> bool {
    let Some(mask) = mask_below(zero_bytes(first ^ SPACES)) else {
        return false;
    };
    let capitals = (first ^ splat(0x40)) & splat(0xe0);
    capitals & mask == 0 && mask >= 0xff_ffff
}

#[cfg(test)]
mod tests;
