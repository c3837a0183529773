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
mod tests {
    use super::*;
    use crate::scan::SLACK;
    use proptest::prelude::*;

    /// The secrets found in the writes of a connection.
    fn signed_in(writes: &[&[u8]]) -> Vec<String> {
        let mut protocol = 0;
        let mut found = Vec::new();
        for write in writes {
            let mut window = [0u8; WINDOW + SLACK];
            let len = write.len().min(WINDOW);
            window[..len].copy_from_slice(&write[..len]);
            let now = if protocol == 0 {
                detect_protocol(word_at(&window, 0), || word_at(&window, 8))
            } else {
                protocol
            };
            let mut words = LoginScan::new(len as u64, now);
            match now {
                0 => {}
                protocol::POSTGRES => postgres(&window, &mut words),
                protocol::MYSQL => mysql(&window, &mut words),
                protocol::MQTT => mqtt(&window, &mut words),
                protocol::LDAP => ldap(&window, &mut words),
                _ => while step(&window, &mut words) {},
            }
            protocol = words.next;
            let HeaderValue { at, len, .. } = words.secret;
            if len > 0 {
                let secret = &window[at as usize..(at + len) as usize];
                found.push(String::from_utf8_lossy(secret).into_owned());
            }
        }
        found
    }

    fn with_length(front: &[u8], rest: &[u8]) -> Vec<u8> {
        [front, &(rest.len() as u32 + 4).to_be_bytes(), rest].concat()
    }

    fn field(text: &str) -> Vec<u8> {
        [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
    }

    #[test]
    fn redis() {
        for write in [
            "*2\r\n$4\r\nAUTH\r\n$9\r\nFAKE-pass\r\n",
            "*2\r\n$4\r\nauth\r\n$9\r\nFAKE-pass\r\n*1\r\n$4\r\nPING\r\n",
            "*3\r\n$4\r\nAUTH\r\n$5\r\nalice\r\n$9\r\nFAKE-pass\r\n",
            "*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$9\r\nFAKE-pass\r\n",
        ] {
            assert_eq!(signed_in(&[write.as_bytes()]), ["FAKE-pass"], "{write:?}");
        }
        for write in [
            "*2\r\n$3\r\nGET\r\n$4\r\nAUTH\r\n",
            "*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n",
            "*2\r\n$4\r\nHGET\r\n$9\r\nFAKE-pass\r\n",
        ] {
            assert!(signed_in(&[write.as_bytes()]).is_empty(), "{write:?}");
        }
    }

    #[test]
    fn postgres_passwords() {
        let startup = with_length(b"", b"\0\x03\0\0user\0alice\0\0");
        let password = with_length(b"p", b"FAKE-pass\0");
        assert_eq!(signed_in(&[&startup, &password]), ["FAKE-pass"]);
        let hashed = with_length(b"p", b"md5000102030405060708090a0b0c0d0e0f\0");
        let scram = with_length(b"p", b"SCRAM-SHA-256\0\0\0\0\x04n,,n");
        let proof = with_length(b"p", b"c=biws,r=x,p=y");
        assert!(signed_in(&[&startup, &hashed]).is_empty());
        assert!(signed_in(&[&startup, &scram, &proof]).is_empty());
        assert!(
            signed_in(&[&password]).is_empty(),
            "nobody said that it is one"
        );
    }

    #[test]
    fn mysql_passwords() {
        let able: u32 = 1 << 9 | 1 << 15 | 1 << 19;
        let mut hello = vec![0, 0, 0, 2];
        hello.extend(able.to_le_bytes());
        hello.extend([0, 0, 0, 1, 255]);
        hello.extend([0; 23]);
        hello.extend(b"alice\0\0caching_sha2_password\0");
        hello[0] = hello.len() as u8 - 4;
        let password = b"\x0a\0\0\x05FAKE-pass\0";
        assert_eq!(signed_in(&[&hello, password]), ["FAKE-pass"]);
        assert!(signed_in(&[&hello, b"\x0a\0\0\0\x03SELECT 1\0"]).is_empty());
    }

    #[test]
    fn mail() {
        for writes in [
            &["AUTH PLAIN RkFLRQBGQUtF\r\n"][..],
            &["AUTH PLAIN\r\n", "RkFLRQBGQUtF\r\n"],
            &["auth login\r\n", "RkFLRQ==\r\n", "RkFLRQBGQUtF\r\n"],
            &["AUTH LOGIN RkFLRQ==\r\n", "RkFLRQBGQUtF\r\n"],
            &["A001 AUTHENTICATE PLAIN RkFLRQBGQUtF\r\n"],
            &["a1 authenticate plain\r\n", "RkFLRQBGQUtF\r\n"],
            &["PASS RkFLRQBGQUtF\r\n"],
            &["KLAE0 LOGIN alice \"RkFLRQBGQUtF\"\r\n"],
            &["1 login alice RkFLRQBGQUtF\r\n"],
        ] {
            let bytes: Vec<&[u8]> = writes.iter().map(|write| write.as_bytes()).collect();
            assert_eq!(signed_in(&bytes), ["RkFLRQBGQUtF"], "{writes:?}");
        }
        for write in [
            "A001 LIST \"\" *\r\n",
            "AUTH CRAM-MD5\r\n",
            "PASS\r\n",
            "a b c d e f\r\n",
        ] {
            assert!(signed_in(&[write.as_bytes()]).is_empty(), "{write:?}");
        }
    }

    #[test]
    fn mqtt_passwords() {
        for (level, properties) in [(4u8, &b""[..]), (5, &b"\x05\x11\0\0\0\x0a"[..])] {
            for (flags, will) in [(0xc2u8, false), (0xc6, true)] {
                let mut body = field("MQTT");
                body.extend([level, flags, 0, 60]);
                body.extend(properties);
                body.extend(field("client-1"));
                if will {
                    if level == 5 {
                        body.push(0);
                    }
                    body.extend(field("a/topic"));
                    body.extend(field("gone"));
                }
                body.extend(field("alice"));
                body.extend(field("FAKE-pass"));
                let packet = [&[0x10, body.len() as u8], &body[..]].concat();
                assert_eq!(signed_in(&[&packet]), ["FAKE-pass"], "{level} {will}");
            }
        }
    }

    #[test]
    fn ldap_binds() {
        let name = b"\x04\x0ecn=admin,dc=ex";
        let secret = b"\x80\x09FAKE-pass";
        let version = b"\x02\x01\x03";
        let body = [&version[..], name, secret].concat();
        let len = body.len() as u8;
        for head in [
            vec![0x30, len + 5, 2, 1, 1, 0x60, len],
            vec![0x30, 0x81, len + 6, 2, 1, 1, 0x60, 0x81, len],
            vec![
                0x30,
                0x84,
                0,
                0,
                0,
                len + 9,
                2,
                1,
                1,
                0x60,
                0x84,
                0,
                0,
                0,
                len,
            ],
        ] {
            let write = [&head[..], &body].concat();
            assert_eq!(signed_in(&[&write]), ["FAKE-pass"], "{head:?}");
        }
        let search = [0x30, 12, 2, 1, 2, 0x63, 7, 4, 0, 10, 1, 2, 10, 1];
        assert!(signed_in(&[&search]).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes(
            front in prop_oneof![
                Just(b"*2\r\n$4\r\nAUTH\r\n".to_vec()), Just(b"AUTH ".to_vec()),
                Just(b"a1 LOGIN ".to_vec()), Just(vec![0x10, 200, 1, 0, 4, b'M', b'Q', b'T', b'T', 5, 0xff]),
                Just(vec![0x30, 12, 2, 1, 1, 0x60, 7]), Just(vec![0, 0, 0, 9, 0, 3, 0, 0]), Just(Vec::new()),
            ],
            rest in proptest::collection::vec(any::<u8>(), 0..WINDOW + 100),
            next in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = signed_in(&[&[front, rest].concat(), &next]);
        }
    }
}
