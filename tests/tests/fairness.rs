//! Users who cause very much of something displace nothing of others.

use anyhow::{Context as _, Result, ensure};
use lab::{
    agent::{Agent, Surroundings},
    child::KilledChild,
    wait_for,
    web::WebServer,
    workload::{MemoryLimit, sh},
};
use std::{fs, process::Command, time::Duration};

/// Less than the chart and the unit give the agent.
const MEMORY: u64 = 128 << 20;
/// The secret of a shop, whose name an expectation gives.
const SECRET: &str = "FAKE-secret-of-the-shop-0001";
/// More variables with names of credentials than the agent remembers credentials, other ones in each
/// round. They come faster than most machines can evaluate them.
const JUNK: &str = "
import os, subprocess, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
begin = 1000 * int(sys.argv[1])
for part in range(begin, begin + 1000):
    names = {f'JUNK{part}X{number}_TOKEN': f'FAKE-junk-{part}-{number}' for number in range(40)}
    subprocess.run(['/bin/true'], env=names, check=True)
";

/// More connects to a socket that accepts none than the probes remember calls, as user nobody.
const BLOCKED_CONNECTS: &str = r"
import os, resource, socket, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
server = socket.socket(socket.AF_UNIX)
server.bind('\0keytrail-lab-full')
server.listen(0)
threading.stack_size(65536)
def connect():
    client = socket.socket(socket.AF_UNIX)
    client.connect('\0keytrail-lab-full')
    threading.Event().wait()
for _ in range(int(sys.argv[1])):
    threading.Thread(target=connect, daemon=True).start()
print('started', flush=True)
sys.stdin.read()
";

/// As user nobody, with the agent in a small cgroup.
#[test]
fn junk_variables_beside_a_policy_s_own_secret() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("keytrail.yaml");
    fs::write(
        &config,
        "credentials: [ { name: shop, match: { environment: SHOP_TOKEN } } ]\n",
    )?;
    let limit = MemoryLimit::new("fairness", MEMORY)?;
    let config = config.display().to_string();
    let surroundings = Surroundings {
        group: Some(&limit.path),
        ..Surroundings::default()
    };
    let agent = Agent::start_in(directory.path(), &["--config", &config], &surroundings)?;
    let web = WebServer::start_plain("127.0.0.1")?;
    sh("SHOP_TOKEN=$SECRET /bin/true", &[("SECRET", SECRET)])?;
    agent.await_used("shop")?;
    let forgotten = || agent.metric("keytrail_map_full_total", &["map=\"known_credentials\""]);
    let mut round = 0;
    wait_for("the table is full", Duration::from_secs(120), || {
        let junk = ["-c", JUNK, &round.to_string()];
        let status = Command::new("python3").args(junk).status()?;
        ensure!(status.success(), "{status}");
        round += 1;
        Ok((forgotten()? > 10_000.0).then_some(()))
    })
    .with_context(|| agent.what_is_missing())?;
    let peak = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let peak = peak.lines().find(|line| line.starts_with("VmHWM"));
    println!("the agent at most: {}", peak.unwrap_or_default());
    // A program that has it from elsewhere presents it.
    let header = directory.path().join("header");
    fs::write(&header, format!("Authorization: Bearer {SECRET}\n"))?;
    sh(
        &format!(
            "curl -s -o /dev/null -H @{} http://{}/",
            header.display(),
            web.address
        ),
        &[],
    )?;
    let answer = agent.await_json(&["query", "where", "shop"], |answer| {
        let hops = answer["hops"].as_array().cloned().unwrap_or_default();
        hops.iter().any(|hop| hop["evidence"] == "presented")
    })?;
    let known = &answer["credentials"][0];
    let sources = known["sources"].as_array().cloned().unwrap_or_default();
    ensure!(
        sources
            .iter()
            .any(|place| place["place"] == "env:SHOP_TOKEN"),
        "{known:#}"
    );
    // What was forgotten is a gap, and the agent is well.
    let timeline = agent.query(&["query", "timeline"])?;
    let shown = String::from_utf8_lossy(&timeline.stdout).into_owned();
    ensure!(shown.contains("known_credentials"), "{shown}");
    assert_eq!(agent.get("/healthz")?.0, 200);
    println!(
        "{} forgotten; {} is still known",
        forgotten()?,
        known["name"]
    );
    Ok(())
}

#[test]
fn very_many_calls_that_do_not_return_are_told() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let evicted = || agent.metric("keytrail_map_full_total", &["map=\"pending_connects\""]);
    assert_eq!(evicted()?, 0.0);
    let processors = std::thread::available_parallelism()?.get();
    // A quarter more than the probes remember, on any machine.
    let calls = 5 * processors.max(4) * 256 / 4;
    let mut attack = Command::new("python3");
    attack.args(["-c", BLOCKED_CONNECTS, &calls.to_string()]);
    let _attacker = KilledChild::start(&mut attack, "started")?;
    let told = wait_for("evictions", Duration::from_secs(20), || {
        let count = evicted()?;
        Ok((count > 0.0).then_some(count))
    })?;
    let blind = agent.await_finding(|finding| finding["rule"] == "blind")?;
    let summary = blind["summary"].as_str().unwrap_or_default();
    ensure!(summary.contains("pending_connects"), "{blind:#}");
    println!("{calls} calls at once: {told} evicted; {summary}");
    Ok(())
}
