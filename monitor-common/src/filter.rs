//! The kernel-side filter: decides whether an open or a variable is worth a record.
//!
//! The catalog's rules are compiled to 64-bit keys. A probe computes the keys of what it observes,
//! tests each against a [`BLOOM_BITS`]-bit Bloom filter (one load), and looks the key up in the
//! exact map only if a bit is set. The agent makes the final decision with the full path: a key
//! represents only the last component of a path.

/// Bits of the Bloom filter; a power of two.
pub const BLOOM_BITS: usize = 1 << 16;
/// 64-bit words of the Bloom filter.
pub const BLOOM_WORDS: usize = BLOOM_BITS / 64;
/// At most this many bytes of a name are hashed, together with its length.
pub const NAME_BYTES: usize = 32;

/// What a key represents. All kinds share one filter and one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum FilterKind {
    /// The whole last component: `.netrc`.
    Name = 1,
    /// The last four bytes of the last component: `.p12`.
    Suffix = 2,
    /// The first four bytes of the last component: `.env`.
    Prefix = 3,
    /// The name of the directory, or of its parent: everything in `secrets/` and `secrets/x/`.
    Parent = 4,
    /// Directory and last component: `.aws/credentials`.
    Pair = 5,
    /// A word of a variable's name, in lower case, at most eight bytes: `token`.
    Word = 6,
    /// The first bytes of a variable's value: `ghp_`.
    Value = 7,
    /// The name of a header that carries a credential, ignoring case.
    Header = 8,
    /// As [`FilterKind::Header`], in the Huffman code of HPACK.
    CodedHeader = 9,
    /// The name of a response field whose value is a credential, ignoring case.
    Field = 10,
}

/// The value of a [`FilterKind::Name`] rule that requires a [`FilterKind::Pair`] rule to match as
/// well.
pub const NEEDS_PAIR: u32 = 1;
/// The value of a [`FilterKind::Word`] rule whose secret is the password inside a URL.
pub const URL_WORD: u32 = 2;
/// The value of a [`FilterKind::Name`] rule that applies in procfs only: the environment or memory
/// of a process.
pub const PROCFS_ONLY: u32 = 3;
/// The value of the [`FilterKind::Header`] rule for the header that names the server.
pub const HOST: u32 = 1 << 30;
/// The value of any other rule.
pub const PLAIN: u32 = 0;
/// Set in the value of a [`FilterKind::Value`] rule: check whether the value is a JWT.
pub const JWT_VALUE: u32 = 1 << 31;

const P1: u64 = 0x9e37_79b9_7f4a_7c15;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;

#[inline(always)]
const fn mix(hash: u64, word: u64) -> u64 {
    let x = (hash ^ word).wrapping_mul(P1);
    x ^ (x >> 32)
}

/// The key of one word of a given kind.
#[inline(always)]
pub const fn key(kind: FilterKind, word: u64) -> u64 {
    mix((kind as u64).wrapping_mul(P2), word)
}

/// Keeps the first `len` bytes of a little-endian word and clears the rest.
#[inline(always)]
pub const fn keep_low_bytes(word: u64, len: u64) -> u64 {
    if len >= 8 {
        word
    } else {
        word & ((1 << (len * 8)) - 1)
    }
}

/// The hash of a name, computed from its first [`NAME_BYTES`] bytes (bytes past `len` are ignored)
/// and its full length.
#[inline(always)]
pub const fn name_hash(words: &[u64; 4], len: u64) -> u64 {
    let mut hash = len;
    hash = mix(hash, keep_low_bytes(words[0], len));
    if len > 8 {
        hash = mix(hash, keep_low_bytes(words[1], len - 8));
    }
    if len > 16 {
        hash = mix(hash, keep_low_bytes(words[2], len - 16));
    }
    if len > 24 {
        hash = mix(hash, keep_low_bytes(words[3], len - 24));
    }
    hash
}

/// The key of a file name in a directory, from the hashes of both names.
#[inline(always)]
pub const fn pair_key(parent: u64, name: u64) -> u64 {
    key(FilterKind::Pair, name.wrapping_add(parent.rotate_left(21)))
}

/// The key of the first `len` bytes (3 to 8) of a value.
#[inline(always)]
pub const fn value_key(first: u64, len: u64) -> u64 {
    key(FilterKind::Value, keep_low_bytes(first, len) ^ (len << 60))
}

/// The position of a key's bit in the filter, as `(word, mask)`.
#[inline(always)]
pub const fn bloom_position(key: u64) -> (usize, u64) {
    let bit = (key >> 7) as usize & (BLOOM_BITS - 1);
    (bit / 64, 1 << (bit % 64))
}

/// The key of an inode number in the filter of learned inodes.
#[inline(always)]
pub const fn inode_key(ino: u64) -> u64 {
    mix(P2, ino)
}

/// The tag of an open file that was examined in an epoch. Never 0, which marks an empty slot. The
/// parts are multiplied independently rather than one after the other, because every open executes
/// this.
#[inline(always)]
pub const fn seen_tag(epoch: u64, parts: [u64; 5]) -> u64 {
    let sum = epoch
        .wrapping_mul(P1)
        .wrapping_add(parts[0].wrapping_mul(P2))
        .wrapping_add(parts[1].wrapping_mul(0x1656_67b1_9e37_79f9))
        .wrapping_add(parts[2].wrapping_mul(0x27d4_eb2f_1656_67c5))
        .wrapping_add(parts[3].wrapping_mul(0x85eb_ca77_c2b2_ae63))
        .wrapping_add(parts[4].wrapping_mul(0xff51_afd7_ed55_8ccd));
    let tag = sum ^ (sum >> 29);
    tag | (tag == 0) as u64
}

/// The first bytes of a name, as the probes read them.
pub fn name_words(name: &[u8]) -> [u64; 4] {
    let mut bytes = [0u8; NAME_BYTES];
    let len = name.len().min(NAME_BYTES);
    bytes[..len].copy_from_slice(&name[..len]);
    let mut words = [0u64; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut buffer = [0u8; 8];
        buffer.copy_from_slice(chunk);
        *word = u64::from_le_bytes(buffer);
    }
    words
}

/// [`name_hash`] of a name given as bytes.
pub fn hash_of_name(name: &[u8]) -> u64 {
    name_hash(&name_words(name), name.len() as u64)
}

/// The first bytes (at most eight) of a text as a little-endian word.
pub fn prefix_word(text: &[u8]) -> u64 {
    name_words(&text[..text.len().min(8)])[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_past_the_end_do_not_count(name in proptest::collection::vec(any::<u8>(), 1..40), noise: [u64; 4]) {
            let mut words = name_words(&name);
            for i in name.len()..NAME_BYTES {
                let mut bytes = words[i / 8].to_le_bytes();
                bytes[i % 8] = noise[i / 8].to_le_bytes()[i % 8];
                words[i / 8] = u64::from_le_bytes(bytes);
            }
            prop_assert_eq!(name_hash(&words, name.len() as u64), hash_of_name(&name));
        }

        #[test]
        fn a_key_has_a_place_in_the_filter(key: u64) {
            let (word, mask) = bloom_position(key);
            prop_assert!(word < BLOOM_WORDS);
            prop_assert_eq!(mask.count_ones(), 1);
        }
    }

    #[test]
    fn keys_of_different_kinds_do_not_collide() {
        let names = [
            "credentials",
            "config",
            "token",
            ".netrc",
            "id_rsa",
            "a",
            "",
        ];
        let mut keys: Vec<u64> = names
            .iter()
            .map(|n| key(FilterKind::Name, hash_of_name(n.as_bytes())))
            .collect();
        keys.extend(
            names
                .iter()
                .map(|n| key(FilterKind::Parent, hash_of_name(n.as_bytes()))),
        );
        keys.push(pair_key(
            hash_of_name(b".aws"),
            hash_of_name(b"credentials"),
        ));
        keys.push(pair_key(
            hash_of_name(b"credentials"),
            hash_of_name(b".aws"),
        ));
        let unique: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(unique.len(), keys.len());
    }
}
