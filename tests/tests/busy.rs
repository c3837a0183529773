//! Processes so busy with TLS that a trap at each write would slow them: they are sampled, and what
//! others do beside them is observed.

use anyhow::{Context as _, Result, ensure};
use lab::{
    agent::Agent,
    child::KilledChild,
    nginx::{self, Nginx, start_wrk},
    skip, wait_for,
    web::WebServer,
    workload::run,
};
use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Within this time a busy process is recognised, and a new credential of it is observed: its regular
/// windows are ten seconds apart.
const WINDOW_TIMEOUT: Duration = Duration::from_secs(30);

/// How many processes of a program are said to be sampled.
fn sampled(agent: &Agent, program: &str) -> usize {
    let log = agent.log_text();
    let lines = log.lines().filter(|line| {
        line.contains("sampling the TLS writes of a busy process") && line.contains(program)
    });
    lines.count()
}

fn await_sampled(agent: &Agent, program: &str) -> Result<()> {
    wait_for("it is sampled", WINDOW_TIMEOUT, || {
        Ok((sampled(agent, program) > 0).then_some(()))
    })
    .with_context(|| agent.log_text())
}

/// Presents a token by curl, in a process of its own.
fn curl(server: &WebServer, token: &str) -> Result<()> {
    run(Command::new("curl")
        .args(["-sk", "-o", "/dev/null", "-H"])
        .arg(format!("Authorization: Bearer {token}"))
        .arg(format!("https://{}/", server.address)))
    .map(drop)
}

struct BusyNode {
    agent: Agent,
    nginx: Nginx,
    _wrk: KilledChild,
}

/// A busy nginx and its client, both sampled; `None` if they are not installed.
fn busy_node(directory: &Path, more: &str) -> Result<Option<BusyNode>> {
    if !nginx::is_installed() {
        skip::skip("a busy server", "nginx and wrk are not installed")?;
        return Ok(None);
    }
    let agent = Agent::start(directory, &[])?;
    let nginx = Nginx::start(more)?;
    let wrk = start_wrk(&format!("https://{}/", nginx.tls), 8, &[])?;
    await_sampled(&agent, "wrk")?;
    await_sampled(&agent, "nginx")?;
    Ok(Some(BusyNode {
        agent,
        nginx,
        _wrk: wrk,
    }))
}

/// A thief beside a server and its client that saturate the machine, on the same libssl: what it
/// presents again and again is observed, and the answer says what may be missing.
#[test]
fn a_thief_beside_a_busy_server() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let Some(node) = busy_node(directory.path(), "")? else {
        return Ok(());
    };
    let server = WebServer::start("127.0.0.1")?;
    let token = "ghp_FAKEbusyFAKEbusyFAKEbusyFAKEbusy0001";
    let began = Instant::now();
    let mut tries = 0;
    node.agent.await_presented(token, WINDOW_TIMEOUT, || {
        tries += 1;
        curl(&server, token)
    })?;
    eprintln!("observed after {:?}, curl {tries}", began.elapsed());
    let id = node.agent.id_of(token)?;
    node.agent.await_json(&["query", "where", &id], |answer| {
        answer["gaps"].to_string().contains("\"sampled\"")
    })?;
    Ok(())
}

/// A proxy that accepts connections all the time, and opens one to present a credential of its own.
#[test]
fn a_busy_proxy_that_connects() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = WebServer::start("127.0.0.1")?;
    let token = "ghp_FAKEbusyFAKEbusyFAKEbusyFAKEbusy0002";
    let upstream = format!(
        "location /up {{ proxy_pass https://{}/; proxy_set_header Authorization \"Bearer {token}\"; }}",
        server.address
    );
    let Some(node) = busy_node(directory.path(), &upstream)? else {
        return Ok(());
    };
    let worker = node.nginx.worker()?;
    let began = Instant::now();
    node.agent.await_presented(token, WINDOW_TIMEOUT, || {
        run(Command::new("curl")
            .args(["-sk", "-o", "/dev/null"])
            .arg(format!("http://{}/up", node.nginx.plain)))
        .map(drop)
    })?;
    eprintln!("observed after {:?}", began.elapsed());
    let uses = node.agent.await_used(&node.agent.id_of(token)?)?;
    ensure!(
        uses.to_string().contains("nginx"),
        "worker {worker}: {uses}"
    );
    Ok(())
}

/// A busy client that presents one credential all the time, and then others: one on new connections, of
/// which the first may be over before the probes are attached, and, when it is no longer observed for
/// that, one on the connection that it has.
const ATTACKER: &str = "
import http.client, ssl, sys, threading, time
context = ssl._create_unverified_context()
known, place, other, token, last = sys.argv[1:]
commands = threading.Event()
def wait():
    sys.stdin.readline()
    commands.set()
threading.Thread(target=wait, daemon=True).start()
busy = http.client.HTTPSConnection(place, context=context)
def ask(connection, token):
    connection.request('GET', '/', headers={'Authorization': 'Bearer ' + token})
    connection.getresponse().read()
while not commands.is_set():
    ask(busy, known)
for _ in range(50):
    ask(http.client.HTTPSConnection(other, context=context), token)
connected = time.monotonic()
while time.monotonic() < connected + 3:
    ask(busy, known)
while True:
    ask(busy, last)
";

#[test]
fn an_attacker_inside_a_sampled_process() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let (first, other) = (
        WebServer::start("127.0.0.1")?,
        WebServer::start("127.0.0.2")?,
    );
    let [known, token, last] =
        [3, 4, 5].map(|number| format!("ghp_FAKEbusyFAKEbusyFAKEbusyFAKEbusy000{number}"));
    let mut child = Command::new("python3")
        .args(["-c", ATTACKER, &known])
        .arg(first.address.to_string())
        .arg(other.address.to_string())
        .args([&token, &last])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let go = child.stdin.take().context("its input")?;
    let _child = KilledChild(child);
    await_sampled(&agent, "python")?;
    drop(go);
    let began = Instant::now();
    agent.await_presented(&token, WINDOW_TIMEOUT, || Ok(()))?;
    eprintln!("on a new connection: after {:?}", began.elapsed());
    agent.await_presented(&last, WINDOW_TIMEOUT, || Ok(()))?;
    eprintln!("on the old connection: after {:?}", began.elapsed());
    Ok(())
}

/// One connection to a proxy, one token, and the names of two servers within a second: both are told.
#[test]
fn a_repeat_to_another_server_is_not_a_repeat() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let proxy = WebServer::start_plain("127.0.0.1")?;
    let token = "ghp_FAKEbusyFAKEbusyFAKEbusyFAKEbusy0007";
    let script = format!(
        "import http.client
connection = http.client.HTTPConnection('{}')
for name in ['one.example'] * 5 + ['other.example']:
    connection.request('GET', '/', headers={{'Host': name, 'Authorization': 'Bearer {token}'}})
    connection.getresponse().read()",
        proxy.address
    );
    run(Command::new("python3").args(["-c", &script]))?;
    let id = agent.id_of(token)?;
    agent.await_json(&["query", "where", &id], |answer| {
        let counts = |name: &str| -> u64 {
            let hops = answer["hops"].as_array().into_iter().flatten();
            let named = hops.filter(|hop| hop["destination"]["name"] == name);
            named.filter_map(|hop| hop["count"].as_u64()).sum()
        };
        (counts("one.example"), counts("other.example")) == (5, 1)
    })?;
    Ok(())
}

/// A connection with thousands of requests a second outside TLS is sampled, and the answer says so.
#[test]
fn a_busy_connection_outside_tls() -> Result<()> {
    if !nginx::is_installed() {
        return skip::skip("a busy server", "nginx and wrk are not installed");
    }
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let nginx = Nginx::start("")?;
    let token = "ghp_FAKEbusyFAKEbusyFAKEbusyFAKEbusy0008";
    let header = format!("Authorization: Bearer {token}");
    let url = format!("http://{}/", nginx.plain);
    run(&mut nginx::wrk(&url, 4, 3, &[&header]))?;
    let id = agent.id_of(token)?;
    let answer = agent.await_json(&["query", "where", &id], |answer| {
        let gaps = answer["gaps"].as_array().into_iter().flatten();
        gaps.filter(|gap| gap["kind"] == "sampled")
            .any(|gap| gap["probe"] == "clear")
    })?;
    let count = answer["hops"][0]["count"].as_u64().unwrap_or(0);
    ensure!(count > 500, "{answer}");
    Ok(())
}

/// A client that repeats a credential on one connection is counted to the last request, without a
/// record for each.
#[test]
fn repeats_are_counted_and_not_reported_one_by_one() -> Result<()> {
    /// Fewer than are searched within a second.
    const REQUESTS: u64 = 150;
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let server = WebServer::start_plain("127.0.0.1")?;
    let token = "ghp_FAKEbusyFAKEbusyFAKEbusyFAKEbusy0006";
    let script = format!(
        "import http.client
connection = http.client.HTTPConnection('{}')
for _ in range({REQUESTS}):
    connection.request('GET', '/', headers={{'Authorization': 'Bearer {token}'}})
    connection.getresponse().read()",
        server.address
    );
    run(Command::new("python3").args(["-c", &script]))?;
    wait_for("all are counted", WINDOW_TIMEOUT, || {
        let presented = agent.presented(token)?;
        Ok(presented
            .first()
            .filter(|(_, count)| *count == REQUESTS)
            .map(drop))
    })
    .with_context(|| format!("{:?}", agent.presented(token)))?;
    let records = agent.metric("keytrail_events_total", &["probe=\"clear\""])?;
    ensure!(records < 30.0, "{records} records");
    Ok(())
}
