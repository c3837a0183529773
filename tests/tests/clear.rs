//! Credentials outside TLS, and in the logins of protocols other than HTTP.

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{agent::Agent, client, wait_for, web::WebServer, workload::TestUnit};
use std::{
    process::Command,
    sync::{LazyLock, Mutex, MutexGuard},
    time::Duration,
};
use tempfile::TempDir;

struct PlaintextLab {
    agent: Agent,
    directory: TempDir,
}

static SCENE: LazyLock<Mutex<PlaintextLab>> = LazyLock::new(|| {
    let build = || -> Result<PlaintextLab> {
        ensure!(
            lab::is_root(),
            "the scenarios need root; `cargo xtask test` skips them without"
        );
        let directory = tempfile::tempdir()?;
        let agent = Agent::start(directory.path(), &[])?;
        Ok(PlaintextLab { agent, directory })
    };
    Mutex::new(build().expect("the scene is set"))
});

fn scene() -> MutexGuard<'static, PlaintextLab> {
    SCENE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl PlaintextLab {
    /// Waits until a secret was presented at a place this many times, and nowhere else.
    fn await_presented(&self, secret: &str, place: &str, count: u64) -> Result<()> {
        let expected = vec![(place.to_owned(), count)];
        let mut last = Vec::new();
        wait_for(
            &format!("presented at {place}"),
            Duration::from_secs(3),
            || {
                last = self.agent.presented(secret)?;
                Ok((last == expected).then_some(()))
            },
        )
        .with_context(|| format!("it is said to have gone to {last:?}"))
    }

    fn cleartext(&self, secret: &str) -> Result<bool> {
        let id = self.agent.id_of(secret)?;
        let findings = self.agent.findings()?;
        Ok(findings.iter().any(|finding| {
            finding["rule"] == "cleartext-credential" && finding["credential"]["id"] == id.as_str()
        }))
    }
}

/// Runs a shell script in a network namespace in which 10.99.0.1 and 10.99.0.2 are local, with a
/// server on port 8080.
fn in_network(script: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", UNSHARED]);
    command.env("SCRIPT", with_servers(script));
    command
}

/// The PID namespace ends any process that the script leaves behind.
const UNSHARED: &str = "exec unshare --net --mount --pid --fork --kill-child bash -c \"$SCRIPT\"";

/// A script after what starts a server at several addresses.
fn with_servers(script: &str) -> String {
    const SETUP: &str = "set -e; ip link set lo up; ip addr add 10.99.0.1/32 dev lo; ip addr add 10.99.0.2/32 dev lo; ip addr add 10.99.0.3/32 dev lo
python3 -c '
import http.server, os
server = http.server.ThreadingHTTPServer((\"0.0.0.0\", 8080), http.server.SimpleHTTPRequestHandler)
if os.fork():
    os._exit(0)
os.chdir(\"/nonexistent\" if os.path.isdir(\"/nonexistent\") else \"/proc/self/fdinfo\")
server.serve_forever()
' >/dev/null 2>&1
";
    format!("{SETUP}{script}")
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "it ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[test]
fn plaintext_over_the_network_is_a_finding() -> Result<()> {
    let scene = scene();
    let token = "FAKE-in-clear-over-the-network-1";
    run(&mut in_network(&format!(
        "curl -sS -o /dev/null -H 'Authorization: Bearer {token}' http://10.99.0.1:8080/"
    )))?;
    scene.await_presented(token, "10.99.0.1:8080", 1)?;
    let id = scene.agent.id_of(token)?;
    let finding = scene.agent.await_finding(|finding| {
        finding["rule"] == "cleartext-credential" && finding["credential"]["id"] == id.as_str()
    })?;
    assert_eq!(finding["severity"], "high");
    assert_eq!(finding["evidence"], "presented");
    assert_eq!(finding["destination"]["address"], "10.99.0.1");
    assert_eq!(finding["process"]["comm"], "curl");
    let text = std::fs::read_to_string(&scene.agent.findings)?;
    ensure!(!text.contains(token), "the secret is in a finding");
    Ok(())
}

/// As in a mesh: a rule of the pod takes each request to a sidecar.
#[test]
fn plaintext_that_is_redirected_to_a_sidecar_is_no_finding() -> Result<()> {
    let scene = scene();
    if Command::new("nft").arg("--version").output().is_err() {
        return lab::skip::skip("a redirect to a sidecar", "there is no nft");
    }
    let token = "FAKE-in-clear-to-a-sidecar-0001";
    run(&mut in_network(&format!(
        "nft() {{ LD_LIBRARY_PATH=$KEYTRAIL_WEB_LIBRARIES command nft \"$@\"; }}
nft add table ip mesh
nft add chain ip mesh out '{{ type nat hook output priority -100; }}'
nft add rule ip mesh out tcp dport 80 redirect to :8080
curl -sS -o /dev/null -H 'Authorization: Bearer {token}' http://10.99.0.1/"
    )))?;
    scene.await_presented(token, "10.99.0.1:80", 1)?;
    ensure!(!scene.cleartext(token)?, "it did not leave the pod");
    Ok(())
}

#[test]
fn plaintext_on_loopback_is_no_finding() -> Result<()> {
    let scene = scene();
    let server = WebServer::start_plain("127.0.0.1")?;
    let port = server.address.port();
    // curl 7.88 cannot send twice over HTTP/2 without TLS.
    for (version, count) in [("--http1.1", 2), ("--http2-prior-knowledge", 1)] {
        let token = format!("FAKE-in-clear-on-loopback-{count}");
        // On one connection, with a name that appears only in the head.
        run(Command::new("curl")
            .args(["-sS", version, "-o", "/dev/null", "-o", "/dev/null"])
            .args(["--resolve", &format!("Lab.example:{port}:127.0.0.1")])
            .args(["-H", &format!("X-Api-Key: {token}")])
            .args(vec![format!("http://Lab.example:{port}/a"); count]))?;
        scene
            .await_presented(&token, &format!("127.0.0.1:{port}"), count as u64)
            .with_context(|| version.to_owned())?;
        let id = scene.agent.id_of(&token)?;
        let answer = scene.agent.await_json(&["query", "where", &id], |_| true)?;
        let destination = &answer["hops"][0]["destination"];
        assert_eq!(destination["name"], "lab.example", "{version}");
        assert_eq!(destination["name_source"], "http-host");
        ensure!(!scene.cleartext(&token)?, "loopback is no cleartext");
    }
    Ok(())
}

/// The head of a request in pieces, and a proxy that is told two names.
#[test]
fn plaintext_in_pieces_and_through_a_proxy() -> Result<()> {
    let scene = scene();
    let server = WebServer::start_plain("127.0.0.1")?;
    let (token, proxy) = ("FAKE-in-pieces-0000001", "RkFLRTpwcm94eS1GQUtF");
    let cut = "FAKE-cut-between-packets-0000001";
    let script = "import socket, sys
connection = socket.create_connection((\"127.0.0.1\", int(sys.argv[1])))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for piece in sys.argv[2:]:
    connection.sendall(piece.encode().replace(b\"|\", b\"\\r\\n\"))
print(connection.recv(100)[:12])";
    run(Command::new("python3")
        .args(["-c", script, &server.address.port().to_string()])
        .args(["GET / HTTP/1.1|Host: a|", "X-Other: 1|"])
        .arg(format!("authorization: Bearer {token}|"))
        .arg(format!(
            "Proxy-Authorization: Basic {proxy}|X-Api-Key: {}",
            &cut[..12]
        ))
        .arg(format!("{}||", &cut[12..])))?;
    let bytes = "FAKE-byte-by-byte-0000001";
    run(Command::new("python3")
        .args(["-c", script, &server.address.port().to_string()])
        .args(
            format!("GET / HTTP/1.1|Host: a|Authorization: Bearer {bytes}||")
                .chars()
                .map(String::from),
        ))?;
    let place = server.address.to_string();
    scene.await_presented(token, &place, 1)?;
    scene.await_presented(proxy, &place, 1)?;
    scene.await_presented(cut, &place, 1)?;
    scene.await_presented(bytes, &place, 1)
}

/// The requested name does not belong to the address: it must not be trusted.
#[test]
fn a_name_that_the_address_does_not_have() -> Result<()> {
    let scene = scene();
    let key = "AKIAFAKEDISPUTED0001";
    let names = "python3 -c '
import os, socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((\"127.0.0.1\", 53))
if os.fork():
    os._exit(0)
hosts = {b\"s3\": 1, b\"paste\": 2}
while True:
    query, peer = server.recvfrom(512)
    end = query.index(b\"\\0\", 12) + 5
    kind = query[end - 3]
    label = query[13:13 + query[12]]
    answers = int(kind == 1)
    head = query[:2] + bytes([0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0])
    body = bytes([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 99, 0, hosts.get(label, 9)]) if answers else b\"\"
    server.sendto(head + query[12:end] + body, peer)
' >/dev/null 2>&1
echo nameserver 127.0.0.1 > /tmp/keytrail-resolv.$$; mount --bind /tmp/keytrail-resolv.$$ /etc/resolv.conf; rm /tmp/keytrail-resolv.$$
";
    let sigv4 = format!(
        "Authorization: AWS4-HMAC-SHA256 Credential={key}/20260101/eu/s3/aws4_request, SignedHeaders=host, Signature=00"
    );
    // A unit with a network of its own, as a service manager sets it up.
    let unit = TestUnit::new("keytrail-apart.service")?;
    let run_apart = |script: &str| run(unit.command(UNSHARED).env("SCRIPT", with_servers(script)));
    run_apart(&format!(
        "{names}
curl -sS -o /dev/null -H '{sigv4}' http://s3.eu-west-1.amazonaws.com:8080/
curl -sS -o /dev/null http://paste.example:8080/
curl -sS -o /dev/null --resolve s3.eu-west-1.amazonaws.com:8080:10.99.0.2 -H '{sigv4}' http://s3.eu-west-1.amazonaws.com:8080/"
    ))?;
    // A process that started after the first answer, and asks nobody.
    run_apart(&format!(
        "curl -sS -o /dev/null --resolve sts.amazonaws.com:8080:10.99.0.3 -H '{sigv4}' http://sts.amazonaws.com:8080/"
    ))?;
    let id = scene.agent.id_of(key)?;
    let answer = scene.agent.await_json(&["query", "where", &id], |answer| {
        answer["hops"]
            .as_array()
            .is_some_and(|hops| hops.len() == 3)
    })?;
    let verdict = |address: &str| {
        answer["hops"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|hop| hop["destination"]["address"] == address)
            .map(|hop| (hop["verdict"].clone(), hop["destination"].clone()))
    };
    let (honest, _) = verdict("10.99.0.1").context("the honest one")?;
    assert_eq!(honest, "expected");
    let (lying, destination) = verdict("10.99.0.2").context("the other one")?;
    assert_eq!(lying, "unexpected");
    assert_eq!(destination["disputed"][0]["name"], "paste.example");
    assert_eq!(destination["disputed"][0]["name_source"], "dns");
    let (claimed, destination) = verdict("10.99.0.3").context("that of a name never asked for")?;
    assert_eq!(claimed, "unproven");
    assert_eq!(destination["disputed"][0]["name"], "?");
    scene.agent.await_finding(|finding| {
        let also = finding["also"].as_array().into_iter().flatten();
        finding["rule"] == "cleartext-credential"
            && also.into_iter().any(|rule| rule == "unexpected-hop")
            && finding["destination"]["address"] == "10.99.0.3"
    })?;
    scene.agent.await_finding(|finding| {
        finding["rule"] == "unexpected-hop"
            && finding["severity"] == "critical"
            && finding["credential"]["id"] == id.as_str()
    })?;
    Ok(())
}

/// What a protocol sends of a secret.
fn as_sent(protocol: &str, secret: &str) -> String {
    match protocol {
        "smtp-plain" => STANDARD.encode(format!("\0fake-user\0{secret}")),
        "smtp-login" => STANDARD.encode(secret),
        _ => secret.to_owned(),
    }
}

#[test]
fn sign_ins_of_other_protocols() -> Result<()> {
    let scene = scene();
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let certificate = scene.directory.path().join("server.pem");
    std::fs::write(
        &certificate,
        format!(
            "{}{}",
            certified.cert.pem(),
            certified.signing_key.serialize_pem()
        ),
    )?;
    let mut failed = Vec::new();
    for protocol in [
        "redis",
        "mqtt",
        "ldap",
        "mysql",
        "postgresql",
        "smtp-plain",
        "smtp-login",
        "imap",
        "pop3",
        "ftp",
    ] {
        for tls in [false, true] {
            let secret = format!("FAKE-{protocol}-{tls}-secret");
            let mut command = Command::new("python3");
            command.arg(client("sign_in.py")).args([protocol, &secret]);
            if tls {
                command.arg(&certificate);
            }
            let checked = run(&mut command)
                .and_then(|place| scene.await_presented(&as_sent(protocol, &secret), &place, 1));
            if let Err(error) = checked {
                failed.push(format!("{protocol}, TLS {tls}: {error:#}"));
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}
