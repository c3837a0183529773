//! Credentials in the answers of authenticators: fields of JSON and elements of XML with known names.
//!
//! As in [`crate::scan`], a step speaks with the next one through memory only.

use crate::{
    eight::{SPACES, below, bytes, count, eight_of, exact_zeros, zeros},
    filter::{Kind, key},
    scan::{BARE, VALUES, Value, WINDOW, Window, name_key, word},
};

/// Set, with [`BARE`], in the rule of a value that is a field of an answer; below it is the index of
/// the field in the catalog.
pub const FIELD: u64 = BARE | 1 << 28;
/// In place of the index: the whole answer is the secret.
pub const WHOLE: u64 = 0xffff;

/// What stands for the name of a field, in any case.
pub const fn field_key(name: &str) -> u64 {
    key(Kind::Field, crate::scan::name_sum(name))
}

/// Where the walk over an answer stands.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Fields {
    /// The next byte.
    pub at: u64,
    /// Bytes in the window.
    pub end: u64,
    /// Where the piece at hand begins.
    pub begin: u64,
    /// 1 where it begins behind a `>`.
    pub element: u64,
    /// One of [`awaits`].
    pub awaits: u64,
    /// The rule of the last name that the catalog has.
    pub rule: u64,
    /// Values found.
    pub found: u64,
}

mod awaits {
    /// A name.
    pub const NAME: u64 = 0;
    /// What stands between a name and its value; in XML that is the value.
    pub const BETWEEN: u64 = 1;
    pub const VALUE: u64 = 2;
}

/// Bytes that one step crosses.
const STRIDE: u64 = 256;

/// One step: over the text between two of `"`, `<` and `>`, or a piece of it; `false` at the end.
/// `rule` tells whether the catalog has a field, by its key.
#[inline(always)]
pub fn step(
    window: &Window,
    fields: &mut Fields,
    values: &mut [Value; VALUES],
    rule: impl FnOnce(u64) -> Option<u32>,
) -> bool {
    let at = fields.at;
    if at >= fields.end || at >= WINDOW as u64 {
        return false;
    }
    let mut passed = STRIDE;
    for i in 0..STRIDE / 8 {
        let eight = word(window, at + i * 8);
        let ends = zeros(eight ^ eight_of(b'"'))
            | zeros(eight ^ eight_of(b'<'))
            | zeros(eight ^ eight_of(b'>'));
        if let Some(mask) = below(ends) {
            passed = i * 8 + bytes(mask);
            break;
        }
    }
    let end = at + passed;
    if passed == STRIDE || end >= fields.end {
        fields.at = end;
        return end < fields.end;
    }
    take(window, fields, values, end, rule);
    fields.element = u64::from(word(window, end) as u8 == b'>');
    fields.at = end + 1;
    fields.begin = end + 1;
    true
}

/// A piece is complete.
#[inline(always)]
fn take(
    window: &Window,
    fields: &mut Fields,
    values: &mut [Value; VALUES],
    end: u64,
    rule: impl FnOnce(u64) -> Option<u32>,
) {
    let (begin, len) = (fields.begin, end - fields.begin);
    let awaits = fields.awaits;
    fields.awaits = awaits::NAME;
    if awaits == awaits::NAME {
        if let Some(rule) = rule(name_key(window, begin, len, Kind::Field)) {
            fields.rule = u64::from(rule);
            fields.awaits = awaits::BETWEEN;
        }
        return;
    }
    if awaits == awaits::BETWEEN && fields.element == 0 {
        // A colon and blanks.
        let eight = word(window, begin);
        let colons = exact_zeros(eight ^ eight_of(b':'));
        let marks = colons | exact_zeros(eight ^ SPACES);
        let all = (1 << ((len & 7) * 8)) - 1;
        if len < 8 && colons & all != 0 && count(marks & all) == len {
            fields.awaits = awaits::VALUE;
        }
        return;
    }
    let place = fields.found;
    if place < VALUES as u64 && len > 0 {
        values[place as usize & (VALUES - 1)] = Value {
            at: begin,
            len,
            rule: FIELD | fields.rule,
            ..Value::default()
        };
        fields.found = place + 1;
    }
}

/// Whether a request, by its first sixteen bytes, asks AWS's metadata service for a token, which is
/// the whole answer.
#[inline(always)]
pub const fn asks_for_whole(first: u64, second: u64) -> bool {
    first == u64::from_le_bytes(*b"PUT /lat") && second == u64::from_le_bytes(*b"est/api/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::SLACK;
    use proptest::prelude::*;

    const NAMES: [&str; 4] = ["AccessKeyId", "access_token", "client_token", "Token"];

    fn found(answer: &[u8]) -> Vec<(u64, String)> {
        let mut window = [0u8; WINDOW + SLACK];
        let len = answer.len().min(WINDOW);
        window[..len].copy_from_slice(&answer[..len]);
        let mut fields = Fields {
            end: len as u64,
            ..Fields::default()
        };
        let mut values = [Value::default(); VALUES];
        let rule = |key: u64| {
            let place = NAMES.iter().position(|name| field_key(name) == key);
            place.map(|place| place as u32)
        };
        while step(&window, &mut fields, &mut values, rule) {}
        values[..fields.found as usize]
            .iter()
            .map(|value| {
                let text = &window[value.at as usize..(value.at + value.len) as usize];
                (
                    value.rule & !FIELD,
                    String::from_utf8_lossy(text).into_owned(),
                )
            })
            .collect()
    }

    #[test]
    fn fields_of_json() {
        let answer = br#"HTTP/1.1 200 OK
ETag: "access_token"

{
  "Code" : "Success",
  "AccessKeyId" : "ASIAFAKE",
  "Token" : "FAKE==", "other": "access_token", "expires": 3600,
  "auth":{"client_token":"hvs.FAKE"}
}"#;
        assert_eq!(
            found(answer),
            [
                (0, "ASIAFAKE".to_owned()),
                (3, "FAKE==".to_owned()),
                (2, "hvs.FAKE".to_owned())
            ]
        );
        assert!(found(br#"{"access_token": null, "x": "y"}"#).is_empty());
        assert!(found(br#"{"access_token": 17}"#).is_empty());
    }

    #[test]
    fn elements_of_xml() {
        let answer =
            b"<Credentials>\n<AccessKeyId>ASIAFAKE</AccessKeyId>\n<Other>x</Other></Credentials>";
        assert_eq!(found(answer), [(0, "ASIAFAKE".to_owned())]);
    }

    proptest! {
        #[test]
        fn any_bytes(answer in proptest::collection::vec(any::<u8>(), 0..WINDOW + 100)) {
            let _ = found(&answer);
        }

        #[test]
        fn any_json(text in r#"(("access_token"|"Token"|"x") ?: ?("[a-z]{0,300}"|1|null),? ?|[<>{}]){0,30}"#) {
            let _ = found(text.as_bytes());
        }
    }
}
