//! Finds credentials in an authenticator's response: JSON fields and XML elements with known names.
//!
//! As in [`crate::scan`], steps pass state to each other through memory only.

use crate::{
    filter::{FilterKind, key},
    scan::{BARE_VALUE, HeaderValue, ScanWindow, VALUES_MAX, WINDOW, name_key, word_at},
    swar::{SPACES, count_marks, exact_zero_bytes, mask_below, masked_bytes, splat, zero_bytes},
};

/// Set together with [`BARE_VALUE`] in the rule of a value that is a field of a response; the bits below
/// hold the field's index in the catalog.
pub const RESPONSE_FIELD: u64 = BARE_VALUE | 1 << 28;
/// Used instead of an index: the whole response body is the secret.
pub const WHOLE_BODY: u64 = 0xffff;

/// The key of a field name, ignoring case.
pub const fn field_key(name: &str) -> u64 {
    key(FilterKind::Field, crate::scan::name_sum(name))
}

/// Position and state of the scan over a response.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ResponseScan {
    /// Offset of the next byte.
    pub at: u64,
    /// Bytes in the window.
    pub end: u64,
    /// Offset at which the current token begins.
    pub token_start: u64,
    /// 1 if the current token follows a `>`.
    pub in_element: u64,
    /// One of the states in `expects`.
    pub expects: u64,
    /// The rule of the last name found in the catalog.
    pub rule: u64,
    /// Values found.
    pub found: u64,
}

mod expects {
    /// A name.
    pub const NAME: u64 = 0;
    /// Between a name and its value; in XML this is the value itself.
    pub const SEPARATOR: u64 = 1;
    pub const VALUE: u64 = 2;
}

/// Bytes scanned in one step.
const STRIDE: u64 = 256;

/// Scans the text between two of `"`, `<` and `>`, or a piece of it. Returns `false` at the end.
/// `rule` looks up a field's rule by its key.
#[inline(always)]
pub fn step(
    window: &ScanWindow,
    fields: &mut ResponseScan,
    values: &mut [HeaderValue; VALUES_MAX],
    rule: impl FnOnce(u64) -> Option<u32>,
) -> bool {
    let at = fields.at;
    if at >= fields.end || at >= WINDOW as u64 {
        return false;
    }
    let mut passed = STRIDE;
    for i in 0..STRIDE / 8 {
        let eight = word_at(window, at + i * 8);
        let ends = zero_bytes(eight ^ splat(b'"'))
            | zero_bytes(eight ^ splat(b'<'))
            | zero_bytes(eight ^ splat(b'>'));
        if let Some(mask) = mask_below(ends) {
            passed = i * 8 + masked_bytes(mask);
            break;
        }
    }
    let end = at + passed;
    if passed == STRIDE || end >= fields.end {
        fields.at = end;
        return end < fields.end;
    }
    end_token(window, fields, values, end, rule);
    fields.in_element = u64::from(word_at(window, end) as u8 == b'>');
    fields.at = end + 1;
    fields.token_start = end + 1;
    true
}

/// Handles a complete token.
#[inline(always)]
fn end_token(
    window: &ScanWindow,
    fields: &mut ResponseScan,
    values: &mut [HeaderValue; VALUES_MAX],
    end: u64,
    rule: impl FnOnce(u64) -> Option<u32>,
) {
    let (begin, len) = (fields.token_start, end - fields.token_start);
    let awaits = fields.expects;
    fields.expects = expects::NAME;
    if awaits == expects::NAME {
        if let Some(rule) = rule(name_key(window, begin, len, FilterKind::Field)) {
            fields.rule = u64::from(rule);
            fields.expects = expects::SEPARATOR;
        }
        return;
    }
    if awaits == expects::SEPARATOR && fields.in_element == 0 {
        // A colon and white space.
        let eight = word_at(window, begin);
        let colons = exact_zero_bytes(eight ^ splat(b':'));
        let marks = colons | exact_zero_bytes(eight ^ SPACES);
        let all = (1 << ((len & 7) * 8)) - 1;
        if len < 8 && colons & all != 0 && count_marks(marks & all) == len {
            fields.expects = expects::VALUE;
        }
        return;
    }
    let place = fields.found;
    if place < VALUES_MAX as u64 && len > 0 {
        values[place as usize & (VALUES_MAX - 1)] = HeaderValue {
            at: begin,
            len,
            rule: RESPONSE_FIELD | fields.rule,
            ..HeaderValue::default()
        };
        fields.found = place + 1;
    }
}

/// Whether a request, judged by its first sixteen bytes, asks the AWS metadata service for a token.
/// The token is then the whole response body.
#[inline(always)]
pub const fn requests_imds_token(first: u64, second: u64) -> bool {
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
        let mut fields = ResponseScan {
            end: len as u64,
            ..ResponseScan::default()
        };
        let mut values = [HeaderValue::default(); VALUES_MAX];
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
                    value.rule & !RESPONSE_FIELD,
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
