//! Byte-by-byte analysis of environment variables, shared by the probes and the agent.

use crate::filter::{FilterKind, key};

/// Bytes of a variable's name that are examined and reported.
pub const NAME_MAX: usize = 64;
/// Bytes of a value that are searched for the parts of a URL or a JWT.
pub const SCAN_MAX: usize = 1024;

/// Splits a name into lower-case words at `_`, `-` and `.`, keeping the first eight bytes of each.
///
/// A word stores its bytes from high to low, so that it shows by itself whether it is full: with a
/// separate byte counter the verifier would explore every value of the counter.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct NameWords {
    word: u64,
}

impl NameWords {
    #[inline(always)]
    pub const fn new() -> Self {
        Self { word: 0 }
    }

    /// Adds a byte of the name; returns the key of the word that this byte ends.
    #[inline(always)]
    pub const fn push(&mut self, byte: u8) -> Option<u64> {
        if byte == b'_' || byte == b'-' || byte == b'.' {
            return self.end();
        }
        if self.word >> 56 == 0 {
            let lower = if byte >= b'A' && byte <= b'Z' {
                byte | 0x20
            } else {
                byte
            };
            self.word = self.word << 8 | lower as u64;
        }
        None
    }

    /// Returns the key of the last word.
    #[inline(always)]
    pub const fn end(&mut self) -> Option<u64> {
        let word = self.word;
        self.word = 0;
        if word == 0 {
            None
        } else {
            Some(key(FilterKind::Word, word))
        }
    }
}

/// Finds the password in a URL's user info and counts the dots of a JWT, in one pass.
///
/// Positions are offsets into the value; 0 means "not seen", because none of the markers can be at
/// offset 0.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ValueMarks {
    /// Just after `://`.
    authority: u32,
    /// Just after the first `:` in the user info.
    password: u32,
    /// The last `@` before the path.
    at: u32,
    /// 1 once the authority has ended.
    done: u32,
    previous: u32,
    pub dots: u32,
}

impl ValueMarks {
    #[inline(always)]
    pub fn push(&mut self, position: u32, byte: u8) {
        let two = self.previous & 0xffff;
        self.previous = (self.previous << 8) | byte as u32;
        if byte == b'.' {
            self.dots += 1;
        }
        if self.authority == 0 {
            if byte == b'/' && two == 0x3a2f {
                self.authority = position + 1;
            }
            return;
        }
        if self.done != 0 {
            return;
        }
        if byte == b'/' || byte == b'?' || byte == b'#' {
            self.done = 1;
        } else if byte == b'@' {
            self.at = position;
        } else if byte == b':' && self.password == 0 {
            self.password = position + 1;
        }
    }

    /// `(start, length)` of the password in the user info, if the value is a URL with one.
    #[inline(always)]
    pub const fn password(&self) -> Option<(u32, u32)> {
        if self.password != 0 && self.at > self.password {
            Some((self.password, self.at - self.password))
        } else {
            None
        }
    }
}

/// Scans a complete value.
pub fn value_marks(value: &[u8]) -> ValueMarks {
    let mut marks = ValueMarks::default();
    for (position, byte) in value.iter().take(SCAN_MAX).enumerate() {
        marks.push(position as u32, *byte);
    }
    marks
}

/// The filter key of one word.
pub fn word_key(word: &str) -> Option<u64> {
    word_keys(word.as_bytes()).next()
}

/// The filter keys of the words of a name.
pub fn word_keys(name: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let mut words = NameWords::new();
    let mut bytes = name.iter().take(NAME_MAX);
    let mut ended = false;
    core::iter::from_fn(move || {
        for byte in bytes.by_ref() {
            if let Some(key) = words.push(*byte) {
                return Some(key);
            }
        }
        if ended {
            return None;
        }
        ended = true;
        words.end()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_of_names() {
        let keys: Vec<u64> = word_keys(b"MY_API_KEY").collect();
        assert_eq!(
            keys,
            ["my", "api", "key"].map(|word| word_key(word).expect("a word"))
        );
        assert_eq!(
            word_keys(b"__PASSWORDS").collect::<Vec<_>>(),
            vec![word_key("password").expect("a word")]
        );
        assert_ne!(word_key("pass"), word_key("password"));
        assert_eq!(word_keys(b"").count(), 0);
    }

    #[test]
    fn passwords_in_urls() {
        for (url, password) in [
            ("postgres://user:fakepass@db:5432/x", Some("fakepass")),
            ("redis://:fakepass@cache:6379", Some("fakepass")),
            ("https://example.com:8443/a@b", None),
            ("https://user@example.com", None),
            ("amqp://u:p@ss@host/", Some("p@ss")),
            ("not a url: x@y", None),
            ("postgres://u:@h", None),
        ] {
            let found = value_marks(url.as_bytes())
                .password()
                .map(|(start, len)| &url[start as usize..(start + len) as usize]);
            assert_eq!(found, password, "{url}");
        }
    }

    proptest! {
        #[test]
        fn a_password_is_inside_the_value(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some((start, len)) = value_marks(&value).password() {
                prop_assert!((start + len) as usize <= value.len());
            }
        }
    }
}
