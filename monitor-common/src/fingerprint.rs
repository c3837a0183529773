//! The fingerprint of a secret: SipHash-2-4 under a 128-bit key.
//!
//! The same code runs in the probes, where the secret never leaves the kernel, and in the agent. It
//! consumes 64-bit words, so that a probe can hash a buffer in few steps.

/// Only this many bytes of a secret are hashed; its total length is mixed in.
pub const MAX_SECRET: usize = 4096;
/// [`MAX_SECRET`] in 64-bit words.
pub const MAX_WORDS: usize = MAX_SECRET / 8;

/// The 128-bit key, as two little-endian words.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct FingerprintKey {
    pub k0: u64,
    pub k1: u64,
}

impl FingerprintKey {
    /// Builds the key from its 16 bytes, in the byte order of the SipHash paper.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let value = u128::from_le_bytes(bytes);
        Self {
            k0: value as u64,
            k1: (value >> 64) as u64,
        }
    }
}

impl core::fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// SipHash-2-4, computed incrementally, so that a probe can feed it words read from user memory.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SipHasher {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl SipHasher {
    #[inline(always)]
    pub const fn new(key: FingerprintKey) -> Self {
        Self {
            v0: key.k0 ^ 0x736f_6d65_7073_6575,
            v1: key.k1 ^ 0x646f_7261_6e64_6f6d,
            v2: key.k0 ^ 0x6c79_6765_6e65_7261,
            v3: key.k1 ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    const fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }

    /// Hashes eight bytes, given as one little-endian word.
    #[inline(always)]
    pub const fn push_word(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.round();
        self.v0 ^= word;
    }

    /// Hashes eight bytes of a name in half the time. The result is no fingerprint: it only tells
    /// names apart that somebody without the key chose.
    #[inline(always)]
    pub const fn push_name_word(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.v0 ^= word;
    }

    /// Finishes a name of `len` bytes.
    #[inline(always)]
    pub const fn finish_name(mut self, len: u64) -> u64 {
        self.push_name_word(len);
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }

    /// Finishes a secret of `total` bytes, whose last 0 to 7 hashed bytes are in `tail`. If it is
    /// longer than [`MAX_SECRET`], its total length is hashed as one more word.
    #[inline(always)]
    pub const fn finish_secret(mut self, tail: u64, total: u64) -> u64 {
        if total > MAX_SECRET as u64 {
            self.push_word(total);
            return self.finish(0, MAX_SECRET);
        }
        self.finish(tail, total as usize)
    }

    /// Finishes with the last 0 to 7 bytes in `tail` (low bytes; bytes past `len` are masked away
    /// here) and the total length, of which SipHash uses the low eight bits.
    #[inline(always)]
    pub const fn finish(mut self, tail: u64, len: usize) -> u64 {
        let mask = (1u64 << ((len as u64 & 7) * 8)) - 1;
        self.push_word((tail & mask) | ((len as u64) << 56));
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}

/// The fingerprint of a secret of any length: SipHash-2-4 of its first [`MAX_SECRET`] bytes and,
/// only if it is longer, of its total length as one more word.
///
/// A secret of at most [`MAX_SECRET`] bytes therefore has its plain SipHash-2-4.
pub fn fingerprint(key: FingerprintKey, secret: &[u8]) -> u64 {
    let counted = if secret.len() > MAX_SECRET {
        &secret[..MAX_SECRET]
    } else {
        secret
    };
    let mut sip = SipHasher::new(key);
    let mut words = counted.chunks_exact(8);
    for chunk in &mut words {
        let mut word = [0u8; 8];
        word.copy_from_slice(chunk);
        sip.push_word(u64::from_le_bytes(word));
    }
    let mut tail = [0u8; 8];
    let rest = words.remainder();
    tail[..rest.len()].copy_from_slice(rest);
    sip.finish_secret(u64::from_le_bytes(tail), secret.len() as u64)
}

/// Scheme words that precede a secret and are not part of it.
pub const SCHEMES: [&str; 4] = ["Bearer ", "Basic ", "Token ", "token "];

/// The position of the secret inside `value` as `(start, length)`, without surrounding white space,
/// one pair of quotes and a leading scheme word.
pub fn trim(value: &[u8]) -> (usize, usize) {
    let mut start = 0;
    let mut end = value.len();
    let strip_space = |start: &mut usize, end: &mut usize| {
        while *start < *end && is_space(value[*start]) {
            *start += 1;
        }
        while *end > *start && is_space(value[*end - 1]) {
            *end -= 1;
        }
    };
    strip_space(&mut start, &mut end);
    if end - start >= 2
        && (value[start] == b'"' || value[start] == b'\'')
        && value[end - 1] == value[start]
    {
        start += 1;
        end -= 1;
        strip_space(&mut start, &mut end);
    }
    for scheme in SCHEMES {
        if value[start..end].starts_with(scheme.as_bytes()) {
            start += scheme.len();
            strip_space(&mut start, &mut end);
            break;
        }
    }
    (start, end - start)
}

/// White space, as the probes trim it.
#[inline(always)]
pub const fn is_space(byte: u8) -> bool {
    byte == b' ' || (byte >= 9 && byte <= 13)
}

/// As [`trim`], but returns the slice.
pub fn trimmed(value: &[u8]) -> &[u8] {
    let (start, len) = trim(value);
    &value[start..start + len]
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::hash::Hasher;
    use proptest::prelude::*;

    /// Names that had the same hash when it had no key.
    #[test]
    fn a_name_has_another_hash_under_each_key() {
        let hash = |key: FingerprintKey, name: [u64; 2]| {
            let mut hasher = SipHasher::new(key);
            for word in name {
                hasher.push_name_word(word);
            }
            hasher.finish_name(11)
        };
        let words = |name: &[u8; 11]| {
            let mut padded = [0; 16];
            padded[..11].copy_from_slice(name);
            let (low, high) = padded.split_at(8);
            [low, high].map(|part| u64::from_le_bytes(part.try_into().expect("eight bytes")))
        };
        let (one, other) = (words(b"DB_PASSWORD"), words(b"DB_P3NOXAA0"));
        let mut seen = std::collections::HashSet::new();
        for k0 in 0..1000 {
            let key = FingerprintKey { k0, k1: 7 };
            assert!(seen.insert(hash(key, one)));
            assert!(seen.insert(hash(key, other)));
        }
    }

    /// The vectors of the SipHash reference implementation: key 00..0f, input 00..len-1.
    #[test]
    fn reference_vectors() {
        let key = FingerprintKey::from_bytes(core::array::from_fn(|i| i as u8));
        let input: Vec<u8> = (0..64).collect();
        for (len, expected) in [
            (0, 0x726f_db47_dd0e_0e31_u64),
            (1, 0x74f8_39c5_93dc_67fd),
            (7, 0xab02_00f5_8b01_d137),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
            (63, 0x958a_324c_eb06_4572),
        ] {
            assert_eq!(fingerprint(key, &input[..len]), expected, "length {len}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_an_independent_implementation(
            key: [u8; 16], secret in proptest::collection::vec(any::<u8>(), 0..MAX_SECRET)
        ) {
            let mut other = siphasher::sip::SipHasher24::new_with_key(&key);
            other.write(&secret);
            prop_assert_eq!(fingerprint(FingerprintKey::from_bytes(key), &secret), other.finish());
        }

        #[test]
        fn incremental_and_whole_fingerprints_agree(
            key: [u8; 16], noise: u64,
            secret in proptest::collection::vec(any::<u8>(), 0..(MAX_SECRET + 64)),
        ) {
            let key = FingerprintKey::from_bytes(key);
            let counted = &secret[..secret.len().min(MAX_SECRET)];
            let mut sip = SipHasher::new(key);
            let mut tail = noise;
            for chunk in counted.chunks(8) {
                let mut bytes = noise.to_le_bytes();
                bytes[..chunk.len()].copy_from_slice(chunk);
                if chunk.len() == 8 {
                    sip.push_word(u64::from_le_bytes(bytes));
                } else {
                    tail = u64::from_le_bytes(bytes);
                }
            }
            prop_assert_eq!(sip.finish_secret(tail, secret.len() as u64), fingerprint(key, &secret));
        }

        #[test]
        fn trimming_twice_changes_nothing_for_plain_tokens(token in "[A-Za-z0-9_-]{1,64}") {
            for dressed in [
                format!("  {token}\n"), format!("\"{token}\""), format!("'{token}' "),
                format!("Bearer {token}"), format!("\"Bearer {token}\"\r\n"),
            ] {
                prop_assert_eq!(trimmed(dressed.as_bytes()), token.as_bytes());
            }
        }

        #[test]
        fn trim_never_leaves_the_value(value in proptest::collection::vec(any::<u8>(), 0..64)) {
            let (start, len) = trim(&value);
            prop_assert!(start + len <= value.len());
        }
    }

    #[test]
    fn long_secrets_differ_by_their_length() {
        let key = FingerprintKey { k0: 1, k1: 2 };
        let long = [7u8; MAX_SECRET + 2];
        assert_ne!(
            fingerprint(key, &long[..MAX_SECRET + 1]),
            fingerprint(key, &long)
        );
        assert_ne!(
            fingerprint(key, &long[..MAX_SECRET]),
            fingerprint(key, &long)
        );
    }

    #[test]
    fn a_key_is_not_printed() {
        let key = FingerprintKey {
            k0: 0xdead_beef,
            k1: 1,
        };
        assert_eq!(format!("{key:?}"), "Key(..)");
    }
}
