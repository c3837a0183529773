use super::*;
use crate::fingerprint::fingerprint;
use proptest::prelude::*;

const KEY: FingerprintKey = FingerprintKey { k0: 1, k1: 2 };
const HEADERS: [&str; 4] = ["Authorization", "X-Vault-Token", "x-api-key", "Api-Key1"];

fn rule(key: u64) -> Option<u32> {
    HEADERS
        .iter()
        .position(|name| header_key(name) == key)
        .map(|place| place as u32)
}

/// Fingerprint, dots, scheme and rule of a credential.
type Shown = (u64, u64, u32, u64);

/// The credentials in a complete write, computed on the host: fingerprint, dots, scheme and
/// rule of each.
fn credentials(
    key: FingerprintKey,
    write: &[u8],
    rule: impl Fn(u64) -> Option<u32>,
) -> (Vec<Shown>, HeaderLines) {
    let mut window = [0u8; WINDOW + SLACK];
    let len = write.len().min(WINDOW);
    window[..len].copy_from_slice(&write[..len]);
    let mut lines = HeaderLines {
        end: len as u64,
        ..HeaderLines::default()
    };
    let mut values = [HeaderValue::default(); VALUES_MAX];
    while scan_line(&window, &mut lines, &mut values, &rule) {}
    let mut found = Vec::new();
    for value in &values[..lines.found as usize] {
        let (secret, scheme) = find_secret(&window, *value, &mut 0);
        if secret.len == 0 {
            continue;
        }
        let mut print = FingerprintBuilder::new(key);
        let mut i = 0;
        while print.step(&window, secret, i) {
            i += 1;
        }
        let (fingerprint, dots) = print.finish(&window, secret);
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
    let value = HeaderValue {
        at: 6,
        len: coded.len() as u64,
        wrapped,
        ..HeaderValue::default()
    };
    let mut unwrap = Base64Decoder::default();
    let mut i = 0;
    while unwrap.step(&mut text, value, i) {
        i += 1;
    }
    let HeaderValue { at, len, .. } = basic_password(&text, unwrap.len, value);
    let password = &text[at as usize..(at + len) as usize];
    (len > 0).then(|| String::from_utf8_lossy(password).into_owned())
}

fn named(value: &str) -> String {
    let mut window = [b'x'; WINDOW + SLACK];
    window[..value.len()].copy_from_slice(value.as_bytes());
    let found = host_name(
        &window,
        HeaderValue {
            len: value.len() as u64,
            ..HeaderValue::default()
        },
        &mut 0,
    );
    if is_address(&window, found) {
        return String::new();
    }
    let HeaderValue { at, len, .. } = found;
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
    use wrapped::{AFTER_NUL, COLON};
    for (coded, how, expected) in [
        ("dXNlcjpmYWtl", COLON, Some("fake")),
        ("dXNlcjpmYWtlMQ==", COLON, Some("fake1")),
        ("OmZha2U6MjI=", COLON, Some("fake:22")),
        // sk_FAKE_1234: and sk_FAKE_1234:x
        ("c2tfRkFLRV8xMjM0Og==", COLON, Some("sk_FAKE_1234")),
        ("c2tfRkFLRV8xMjM0Ong=", COLON, Some("sk_FAKE_1234")),
        ("AHVzZXIAZmFrZQ==", AFTER_NUL, Some("fake")),
        ("ZmFrZWZha2U=", AFTER_NUL, Some("fakefake")),
        ("dXNlcg==", COLON, None),
        ("dX*lcjpmYWtl", COLON, None),
        ("", COLON, None),
    ] {
        assert_eq!(unwrapped(coded, how).as_deref(), expected, "{coded}");
    }
}

#[test]
fn unlisted_headers_are_ignored() {
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
    assert_eq!((lines.in_line, lines.line_start, lines.ended), (1, 16, 0));
    let (_, lines) = credentials(KEY, &head[..16], rule);
    assert_eq!((lines.in_line, lines.ended), (0, 0));
}

#[test]
fn an_unfinished_head_is_known() {
    let (_, lines) = credentials(KEY, b"GET / HTTP/1.1\r\nHost: x\r\n", rule);
    assert_eq!((lines.ended, lines.in_line), (0, 0));
    let (_, lines) = credentials(KEY, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", rule);
    assert_eq!(lines.ended, 1);
    let (_, lines) = credentials(KEY, b"GET / HTTP/1.1\r\nAuthori", rule);
    assert_eq!((lines.ended, lines.in_line), (0, 1));
}

proptest! {
    #[test]
    fn any_bytes(write in proptest::collection::vec(any::<u8>(), 0..WINDOW + 100)) {
        let _ = credentials(KEY, &write, rule);
    }

    #[test]
    fn base64_matches_the_standard(user in "[a-z]{0,100}", password in "[ -~]{1,600}") {
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
    fn a_token_is_found_at_every_position(
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
