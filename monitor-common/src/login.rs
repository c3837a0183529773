//! Finds credentials in the logins of protocols other than HTTP in which the secret is sent
//! unmodified: Redis (`AUTH`, `HELLO`), PostgreSQL (cleartext password), MySQL (clear password, and
//! the full exchange of `caching_sha2_password`), SMTP and IMAP (`PLAIN`, `LOGIN`), POP3 and FTP
//! (`PASS`), MQTT (`CONNECT`), LDAP (simple bind).
//!
//! As in [`crate::scan`], steps pass state to each other through memory only.

use crate::{
    scan::{self, BARE_VALUE, HeaderValue, ScanWindow, WINDOW, word_at, wrapped},
    swar::{SPACES, hide_from_verifier, mask_below, masked_bytes, splat, zero_bytes},
};

/// The protocol of a connection, or the expected content of its next write.
pub mod protocol {
    pub const REDIS: u64 = 2;
    pub const POSTGRES: u64 = 3;
    pub const MYSQL: u64 = 4;
    /// SMTP, IMAP, POP3 or FTP: words and lines.
    pub const MAIL: u64 = 5;
    pub const MQTT: u64 = 6;
    pub const LDAP: u64 = 7;
    /// The next line answers a challenge of a [`MAIL`] protocol with the secret.
    pub const CHALLENGE_RESPONSE: u64 = 8;
    /// The next line is a user name, and the line after it the secret.
    pub const USER_THEN_SECRET: u64 = 9;
    /// Set by the agent: a label of a TLS server name or of the host of a plaintext request.
    pub const SERVER_NAME: u64 = 10;
    /// Set by the agent: a label of a name in a DNS query.
    pub const DNS: u64 = 11;
}

/// Set in the rule of a value that does not come from a header; the bits below hold one of
/// [`protocol`].
pub const LOGIN: u64 = BARE_VALUE | 1 << 27;
/// Anything shorter is not treated as a secret.
const MIN_SECRET: u64 = 4;

const fn five(text: &[u8; 5]) -> u64 {
    u64::from_le_bytes([text[0], text[1], text[2], text[3], text[4], 0, 0, 0])
}

/// Detects the protocol of a login from the first eight bytes of a write; 0 if it is not a login.
/// `second` returns the next eight bytes if they are needed.
#[inline(always)]
pub fn detect_protocol(first: u64, second: impl FnOnce() -> u64) -> u64 {
    let small = (first | SPACES) & 0xff_ffff_ffff;
    if small == five(b"auth ") || small == five(b"pass ") {
        return protocol::MAIL;
    }
    match first as u8 {
        b'*' => {
            // `*2 $4 AUTH`, `*5 $5 HELLO`
            if first >> 16 & 0xff_ffff == 0x24_0a0d && first >> 48 == 0x0a0d {
                let word = second() | SPACES;
                let len = (first >> 40) as u8;
                let auth = len == b'4' && word & 0xffff_ffff == 0x6874_7561;
                let hello = len == b'5' && word & 0xff_ffff_ffff == five(b"hello");
                if auth || hello {
                    return protocol::REDIS;
                }
            }
            0
        }
        0x10 => {
            const MQ: u64 = 0x514d_0400;
            let name = |shift: u32| first >> shift & 0xffff_ffff == MQ;
            if name(16) || name(24) {
                protocol::MQTT
            } else {
                0
            }
        }
        0x30 => {
            // A sequence, a one-byte message number, a bind request.
            let bind = |shift: u32| first >> shift & 0xff00_ffff == 0x6000_0102;
            let short = bind(16);
            let long = first >> 8 & 0xff == 0x81 && bind(24);
            let longest =
                first >> 8 & 0xff == 0x84 && first >> 48 == 0x0102 && second() >> 8 & 0xff == 0x60;
            if short || long || longest {
                protocol::LDAP
            } else {
                0
            }
        }
        0 if first & 0xffff == 0 && first >> 32 == 0x0300 => protocol::POSTGRES,
        _ => {
            if is_imap(first) {
                return protocol::MAIL;
            }
            // Handshake response: its sequence number, and the capability flags that every current
            // client sets.
            const REQUIRED_CAPABILITIES: u64 = 1 << 9 | 1 << 15 | 1 << 19;
            let number = first >> 24 & 0xff;
            if (number == 1 || number == 2)
                && first >> 32 & REQUIRED_CAPABILITIES == REQUIRED_CAPABILITIES
                && first >> 16 & 0xff == 0
                && second() >> 40 == 0
            {
                protocol::MYSQL
            } else {
                0
            }
        }
    }
}

/// A tag of up to five letters, followed by the start of `LOGIN` or `AUTHENTICATE`.
#[inline(always)]
const fn is_imap(first: u64) -> bool {
    let small = first | SPACES;
    let mut shift = 8;
    while shift <= 40 {
        if first >> shift & 0xff == b' ' as u64 {
            let word = small >> (shift + 8) & 0xffff;
            return word == 0x6f6c || word == 0x7561;
        }
        let letter = (small >> (shift - 8)) as u8;
        if !letter.is_ascii_alphanumeric() {
            return false;
        }
        shift += 8;
    }
    false
}

/// Position and state of the scan over the words of a login.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct LoginScan {
    /// Offset of the next byte.
    pub at: u64,
    /// Bytes in the window.
    pub end: u64,
    /// One of [`protocol`].
    pub protocol: u64,
    /// Start of the current word, and the number of words before it.
    pub word_start: u64,
    pub passed: u64,
    /// The number of the word that is the secret, plus 1; 0 if not known yet.
    pub secret_word: u64,
    /// The number of the word that names an authentication mechanism, plus 1.
    pub mechanism: u64,
    /// The expected content of the connection's next write, one of [`protocol`]; 0 if nothing is
    /// expected.
    pub next: u64,
    /// Scratch space for [`hide_from_verifier`].
    scratch: u64,
    /// The secret; its length is 0 if there is none.
    pub secret: HeaderValue,
}

impl LoginScan {
    /// Starts a scan of a write of `len` bytes.
    #[inline(always)]
    pub fn new(len: u64, protocol: u64) -> Self {
        Self {
            end: len,
            protocol,
            secret_word: u64::from(protocol == protocol::CHALLENGE_RESPONSE),
            ..Self::default()
        }
    }

    #[inline(always)]
    fn found(&mut self, at: u64, len: u64) {
        let coded = self.mechanism != 0 || self.protocol == protocol::CHALLENGE_RESPONSE;
        if len >= MIN_SECRET && len <= self.end && at <= self.end - len {
            self.secret = HeaderValue {
                at,
                len,
                rule: LOGIN | self.protocol,
                wrapped: if coded {
                    wrapped::AFTER_NUL
                } else {
                    wrapped::NOT
                },
                ..HeaderValue::default()
            };
        }
    }
}

/// Bytes of a word that one step scans.
const STRIDE: u64 = 256;

/// Scans one word, or a piece of a long one; returns `false` at the end.
#[inline(always)]
pub fn step(window: &ScanWindow, words: &mut LoginScan) -> bool {
    let at = words.at;
    if at >= words.end || at >= WINDOW as u64 || words.secret.len != 0 {
        return false;
    }
    // The last word of a line may contain spaces.
    let whole_line = words.protocol == protocol::REDIS
        || (words.secret_word != 0 && words.secret_word == words.passed + 1);
    let mut passed = STRIDE;
    for i in 0..STRIDE / 8 {
        let eight = word_at(window, at + i * 8);
        let mut ends = zero_bytes(eight ^ splat(b'\n'));
        if !whole_line {
            ends |= zero_bytes(eight ^ SPACES);
        }
        if let Some(mask) = mask_below(ends) {
            passed = i * 8 + masked_bytes(mask);
            break;
        }
    }
    let passed = hide_from_verifier(&mut words.scratch, passed);
    let word_end = at + passed;
    if passed == STRIDE || word_end >= words.end {
        words.at = word_end;
        return word_end < words.end;
    }
    end_word(window, words, word_end);
    words.at = word_end + 1;
    words.word_start = words.at;
    words.passed += 1;
    true
}

/// Handles a complete word.
#[inline(always)]
fn end_word(window: &ScanWindow, words: &mut LoginScan, word_end: u64) {
    let number = words.passed + 1;
    let line_ends = word_at(window, word_end) as u8 == b'\n';
    let (mut begin, mut len) = (words.word_start, word_end - words.word_start);
    if line_ends && len > 0 && word_at(window, word_end - 1) as u8 == b'\r' {
        len -= 1;
    }
    len = hide_from_verifier(&mut words.scratch, len);
    if words.secret_word == number {
        let last = word_at(window, (begin + len).saturating_sub(1)) as u8;
        if len > 2 && word_at(window, begin) as u8 == b'"' && last == b'"' {
            begin += 1;
            len -= 2;
        }
        words.found(begin, len);
        return;
    }
    if words.protocol == protocol::USER_THEN_SECRET {
        words.next = protocol::CHALLENGE_RESPONSE;
        words.at = words.end;
        return;
    }
    let mask = if len >= 8 {
        u64::MAX
    } else {
        (1 << (len * 8)) - 1
    };
    let text = (word_at(window, begin) | SPACES) & mask;
    const AUTH: u64 = u64::from_le_bytes(*b"auth\0\0\0\0");
    const AUTHENTICATE: u64 = u64::from_le_bytes(*b"authenti");
    const PASS: u64 = u64::from_le_bytes(*b"pass\0\0\0\0");
    const PLAIN: u64 = five(b"plain");
    const SIGN_IN: u64 = five(b"login");
    if words.protocol == protocol::REDIS {
        if text == AUTH && words.secret_word == 0 {
            // `AUTH secret`, `AUTH user secret`, `HELLO 3 AUTH user secret`, each word preceded by
            // its length.
            let alone = number == 3 && (word_at(window, 0) >> 8) as u8 == b'2';
            words.secret_word = number + if alone { 2 } else { 4 };
        }
        return;
    }
    if text == PASS && number == 1 {
        words.secret_word = 2;
    } else if (text == AUTH && number == 1) || (text == AUTHENTICATE && number == 2) {
        words.mechanism = number + 1;
    } else if number == words.mechanism {
        match (text, line_ends) {
            (PLAIN, false) => words.secret_word = number + 1,
            (PLAIN, true) | (SIGN_IN, false) => words.next = protocol::CHALLENGE_RESPONSE,
            (SIGN_IN, true) => words.next = protocol::USER_THEN_SECRET,
            _ => {}
        }
    } else if text == SIGN_IN && number == 2 {
        words.secret_word = 4;
    }
    if line_ends {
        words.at = words.end;
    }
}

/// The password message of PostgreSQL: `p`, its length, the text and a zero byte. Messages of other
/// authentication methods have no zero byte there, have one earlier, or contain a hash.
#[inline(always)]
pub fn postgres(window: &ScanWindow, words: &mut LoginScan) {
    let first = word_at(window, 0);
    // Other messages follow the login; it does not continue.
    if first as u8 == b'p' || first as u8 == 0 {
        words.next = protocol::POSTGRES;
    }
    let len = u64::from((first >> 8) as u32).swap_bytes() >> 32;
    if first as u8 != b'p' || len + 1 != words.end || len < 5 {
        return;
    }
    let (text, len) = (5, len - 5);
    let hash = len == 35 && word_at(window, text) & 0xff_ffff == 0x0035_646d;
    if !hash && ends_with_nul(window, text, len, &mut words.scratch) {
        words.found(text, len);
    }
}

/// A MySQL packet with sequence number 3 or higher that consists of text and a zero byte: a
/// password in clear text.
#[inline(always)]
pub fn mysql(window: &ScanWindow, words: &mut LoginScan) {
    /// Size of an RSA-encrypted password.
    const RSA_CIPHERTEXT_LEN: u64 = 256;
    let first = word_at(window, 0);
    let len = first & 0xff_ffff;
    let number = first >> 24 & 0xff;
    // After the login, each command restarts the sequence numbers at 0.
    if number > 0 {
        words.next = protocol::MYSQL;
    }
    if number < 3 || len + 4 != words.end || len < 1 || len == RSA_CIPHERTEXT_LEN {
        return;
    }
    if ends_with_nul(window, 4, len - 1, &mut words.scratch) {
        words.found(4, len - 1);
    }
}

/// Whether the first zero byte after `at` is exactly `len` bytes away.
#[inline(always)]
fn ends_with_nul(window: &ScanWindow, at: u64, len: u64, place: &mut u64) -> bool {
    const LONGEST: usize = 2048;
    len < LONGEST as u64 && scan::find_byte(window, at, LONGEST, 0, place) == len
}

/// Reads a big-endian length prefix; returns the length and the offset after it.
#[inline(always)]
fn length_prefix(window: &ScanWindow, at: u64) -> (u64, u64) {
    let word = word_at(window, at);
    ((word & 0xff) << 8 | word >> 8 & 0xff, at + 2)
}

#[inline(always)]
fn skip_field(window: &ScanWindow, at: u64) -> u64 {
    let (len, begin) = length_prefix(window, at);
    begin + len
}

/// Skips a variable-length integer (up to four bytes, seven bits each) and the bytes whose length
/// it gives.
#[inline(always)]
fn skip_properties(window: &ScanWindow, at: u64) -> u64 {
    let eight = word_at(window, at);
    let low = eight & 0x7f;
    if eight & 0x80 == 0 {
        at + 1 + low
    } else {
        at + 2 + (low | (eight >> 8 & 0x7f) << 7)
    }
}

/// `CONNECT` of MQTT 3.1.1 and 5, in a packet shorter than 16 KiB.
#[inline(always)]
pub fn mqtt(window: &ScanWindow, words: &mut LoginScan) {
    const FIVE: u64 = 5;
    const WILL: u64 = 0x04;
    const PASSWORD: u64 = 0x40;
    const NAME: u64 = 0x80;
    let name = if word_at(window, 1) & 0x80 == 0 { 2 } else { 3 };
    let head = word_at(window, name + 6);
    let (level, flags) = (head & 0xff, head >> 8 & 0xff);
    if flags & PASSWORD == 0 {
        return;
    }
    let mut at = name + 10;
    if level == FIVE {
        at = skip_properties(window, at);
    }
    at = skip_field(window, at);
    if flags & WILL != 0 {
        if level == FIVE {
            at = skip_properties(window, at);
        }
        at = skip_field(window, at);
        at = skip_field(window, at);
    }
    if flags & NAME != 0 {
        at = skip_field(window, at);
    }
    let (len, begin) = length_prefix(window, at);
    words.found(begin, len);
}

/// Reads the length of a BER element (LDAP); returns the length and the offset after it.
#[inline(always)]
fn ber_length(window: &ScanWindow, at: u64) -> (u64, u64) {
    let eight = word_at(window, at) >> 8;
    match eight & 0xff {
        0x81 => (eight >> 8 & 0xff, at + 3),
        0x82 => ((eight >> 8 & 0xff) << 8 | eight >> 16 & 0xff, at + 4),
        0x84 => ((eight >> 24 & 0xff) << 8 | eight >> 32 & 0xff, at + 6),
        short => (short, at + 2),
    }
}

/// An LDAP bind request with a password.
#[inline(always)]
pub fn ldap(window: &ScanWindow, words: &mut LoginScan) {
    const SIMPLE: u8 = 0x80;
    let (_, number) = ber_length(window, 0);
    let (len, at) = ber_length(window, number);
    let (_, version) = ber_length(window, at + len);
    let (len, at) = ber_length(window, version);
    let name = at + len;
    let (len, at) = ber_length(window, name);
    let choice = at + len;
    if word_at(window, choice) as u8 == SIMPLE {
        let (len, at) = ber_length(window, choice);
        words.found(at, len);
    }
}

#[cfg(test)]
mod tests;
