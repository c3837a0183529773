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
