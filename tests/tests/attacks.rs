//! Attacks by an unprivileged user, each beside thefts, with the agent in a small cgroup: a theft is found
//! within a second, the memory suffices, health is right, and the agent ends when it is told to.

use anyhow::{Result, ensure};
use lab::{
    agent::{self, Agent},
    child::KilledChild,
    treasure::{Treasure, stop_in_time},
    workload::MemoryLimit,
};
use std::{
    fs::File,
    process::Command,
    time::{Duration, Instant},
};

/// The memory that a hardened installation gives the agent.
const HARDENED: u64 = 128 << 20;
/// How long each attack lasts.
const ATTACK: Duration = Duration::from_secs(10);
/// A theft is found within this time.
const FOUND: Duration = Duration::from_secs(1);

/// Becomes user nobody. An attack calls `begun` once it is under way, and goes on until `ends` says
/// that standard input is closed.
const PREAMBLE: &str = "
import encodings.idna, itertools, mmap, os, resource, select, shutil, socket, subprocess, sys, tempfile, threading
def nobody():
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
def begun():
    print('begun', flush=True)
def ends():
    return bool(select.select([sys.stdin], [], [], 0)[0])
";

/// Very many variables with names of credentials.
const JUNK_VARIABLES: &str = "
nobody()
for part in itertools.count():
    names = {f'JUNK{part}X{number}_TOKEN': f'FAKE-junk-{part}-{number}' for number in range(40)}
    subprocess.run(['/bin/true'], env=names, check=True)
    if part == 20: begun()
    if ends(): break
";

/// Very many files with names of credentials, each with another content.
const CREDENTIAL_NAMES: &str = "
nobody()
with tempfile.TemporaryDirectory() as base:
    for part in itertools.count():
        home = f'{base}/{part}'
        os.mkdir(home)
        for name in ['.netrc', '.pgpass', '.npmrc', 'id_rsa', 'tls.key', 'kubeconfig', '.env']:
            with open(f'{home}/{name}', 'w') as file: file.write(f'machine a{part}.example login b password FAKE-{part}')
            open(f'{home}/{name}').read()
        shutil.rmtree(home)
        if part == 100: begun()
        if ends(): break
";

/// Very many answers of a resolver, each with other names and addresses.
const DNS_ANSWERS: &str = "
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(('127.0.0.77', 53))
nobody()
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect(('127.0.0.77', 53))
def label(text): return bytes([len(text)]) + text.encode()
for part in itertools.count():
    name = label(f'flood{part}') + label('evil') + label('example') + b'\\0'
    query = part.to_bytes(4, 'big')[2:] + bytes([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + name + bytes([0, 1, 0, 1])
    client.send(query)
    _, sender = server.recvfrom(512)
    address = bytes([10]) + part.to_bytes(4, 'big')[1:]
    answer = query[:2] + bytes([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]) + query[12:] + bytes([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4]) + address
    server.sendto(answer, sender)
    client.recv(512)
    if part == 2000: begun()
    if part % 100 == 0 and ends(): break
";

/// Very many connections, with a request on each.
const CONNECTIONS: &str = "
nobody()
server = socket.create_server(('127.0.0.1', 0), backlog=4096)
def serve():
    while True:
        peer, _ = server.accept()
        peer.recv(100)
        peer.close()
threading.Thread(target=serve, daemon=True).start()
for part in itertools.count():
    client = socket.create_connection(server.getsockname())
    client.send(f'GET / HTTP/1.0\\r\\nHost: flood{part}.example\\r\\nAuthorization: Bearer FAKE-token-{part}\\r\\n\\r\\n'.encode())
    client.close()
    if part == 500: begun()
    if part % 50 == 0 and ends(): break
";

/// Hundreds of different copies of a TLS library per second, each mapped by the process.
const LIBRARIES: &str = "
nobody()
library = open('/usr/lib/x86_64-linux-gnu/libssl.so.3', 'rb').read()
with tempfile.TemporaryDirectory() as base:
    for part in itertools.count():
        path = f'{base}/libssl-{part}.so.3'
        with open(path, 'wb') as file:
            file.write(library)
            file.write(part.to_bytes(8, 'big'))
        with open(path, 'rb') as file:
            mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
        os.unlink(path)
        if part == 100: begun()
        if part > 100 and ends(): break
";

/// Runs an attack, and a few thefts beside it.
fn beside_thefts(name: &str, attack: &str) -> Result<()> {
    let slowest = slowest_theft(name, attack, None)?;
    ensure!(slowest < FOUND, "a theft was found after {slowest:?}");
    Ok(())
}

/// As [`beside_thefts`], with an agent that has only a percentage of a processor; returns how long it
/// took at most until a theft was found.
fn slowest_theft(name: &str, attack: &str, percent: Option<u32>) -> Result<Duration> {
    ensure!(lab::is_root(), "the scenarios need root");
    let mut limit = MemoryLimit::new(&format!("attack-{name}"), HARDENED)?;
    let treasure = Treasure::new()?;
    // As in a pod, the pages of the program count as the agent's: they must not be in memory already.
    let program = File::open(agent::binary()?)?;
    // What was just built stays in memory until it is written.
    program.sync_all()?;
    rustix::fs::fadvise(&program, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut agent = treasure.agent(Some(&limit.path))?;
    if let Some(percent) = percent {
        let mut pids = agent.children()?;
        pids.push(agent.pid());
        limit.limit_processor(percent, &pids)?;
    }
    let program = format!("{PREAMBLE}{attack}");
    let mut attacker = KilledChild::start(Command::new("python3").args(["-c", &program]), "begun")?;
    let (start, mut thefts, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed() < ATTACK {
        slowest = slowest.max(treasure.steal(&agent)?);
        thefts += 1;
    }
    let (health, text) = agent.get("/healthz")?;
    ensure!(health == 200, "{health}: {text}");
    // It must not be over: then the thefts were beside nothing.
    ensure!(attacker.0.try_wait()?.is_none(), "the attack has ended");
    stop_in_time(&mut agent)?;
    drop(attacker);
    println!(
        "{name}: the slowest of {thefts} thefts was found after {} ms; at most {:?} bytes{}",
        slowest.as_millis(),
        limit.peak(),
        gaps_of(&agent)
    );
    Ok(slowest)
}

/// What the agent said that it missed.
fn gaps_of(agent: &Agent) -> String {
    let answer = agent.json(&["query", "timeline"]).ok().flatten();
    let gaps = answer.and_then(|answer| answer["gaps"].as_array().cloned());
    gaps.into_iter()
        .flatten()
        .filter(|gap| !gap["count"].is_null())
        .map(|gap| format!("; {} {} {}", gap["kind"], gap["count"], gap["detail"]))
        .collect()
}

#[test]
fn junk_variables() -> Result<()> {
    beside_thefts("variables", JUNK_VARIABLES)
}

#[test]
fn names_of_credentials() -> Result<()> {
    beside_thefts("names", CREDENTIAL_NAMES)
}

#[test]
fn answers_of_a_resolver() -> Result<()> {
    beside_thefts("dns", DNS_ANSWERS)
}

#[test]
fn connections() -> Result<()> {
    beside_thefts("connections", CONNECTIONS)
}

#[test]
fn connections_faster_than_the_agent() -> Result<()> {
    let slowest = slowest_theft("slow-agent", CONNECTIONS, Some(50))?;
    ensure!(slowest < 2 * FOUND, "a theft was found after {slowest:?}");
    Ok(())
}

#[test]
fn copies_of_a_tls_library() -> Result<()> {
    beside_thefts("libraries", LIBRARIES)
}
