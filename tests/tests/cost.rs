//! What the agent does on a node that pays too much for it.

use anyhow::{Context as _, Result, ensure};
use lab::{
    agent::{Agent, Surroundings},
    child::KilledChild,
    wait_for,
    web::WebServer,
    workload::aws_credentials,
};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The order in which probes are turned off, as the log names them.
const ORDER: [&str; 5] = [
    "responses in plaintext",
    "requests in plaintext",
    "TLS",
    "DNS",
    "server names",
];
/// Requests over kept connections, in TLS and in plaintext, with a pause: a process without any is
/// sampled, and its TLS costs little.
const LOAD: &str = "
import http.client, ssl, sys, time
context = ssl._create_unverified_context()
tls = http.client.HTTPSConnection(sys.argv[1], context=context)
plain = http.client.HTTPConnection(sys.argv[2])
while True:
    for connection in (tls, plain):
        try:
            connection.request('GET', '/')
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection.close()
    time.sleep(0.002)
";
const SHED_TIMEOUT: Duration = Duration::from_secs(120);

/// The units that were turned off so far, in order.
fn shed(agent: &Agent) -> Vec<String> {
    let log = agent.log_text();
    let lines = log
        .lines()
        .filter(|line| line.contains("turned off: the probes cost more than"));
    let name = |line: &str| {
        let (_, rest) = line.split_once("unit=")?;
        let rest = rest.trim_start_matches('"');
        ORDER.into_iter().find(|unit| rest.starts_with(unit))
    };
    lines.filter_map(name).map(str::to_owned).collect()
}

/// A busy node with a tiny budget, and a key that is stolen after TLS was turned off.
fn probes_are_shed(directory: &Path, capabilities: &[&str]) -> Result<()> {
    let secret = "FAKE00000000000000000000000000000cost001";
    let key = aws_credentials(&directory.join("home"), "AKIAFAKEFAKECOST0001", secret)?;
    let config = directory.join("keytrail.yaml");
    fs::write(&config, "inspect: { budget: 0.01% }\n")?;
    let config = config.display().to_string();
    let surroundings = Surroundings {
        capabilities,
        ..Surroundings::default()
    };
    let agent = Agent::start_in(directory, &["--config", &config], &surroundings)?;
    let tls = WebServer::start("127.0.0.1")?;
    let plain = WebServer::start_plain("127.0.0.1")?;
    let load = Command::new("python3")
        .args([
            "-c",
            LOAD,
            &tls.address.to_string(),
            &plain.address.to_string(),
        ])
        .stdout(Stdio::null())
        .spawn()?;
    let load = KilledChild(load);
    let began = Instant::now();
    let order = wait_for("TLS is turned off", SHED_TIMEOUT, || {
        let units = shed(&agent);
        Ok(units.iter().any(|unit| unit == "TLS").then_some(units))
    })
    .with_context(|| agent.log_text())?;
    println!(
        "{order:?} turned off after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let places: Vec<Option<usize>> = order
        .iter()
        .map(|unit| ORDER.iter().position(|known| known == unit))
        .collect();
    ensure!(places.is_sorted(), "in the declared order: {order:?}");
    wait_for("it is reported", Duration::from_secs(5), || {
        let attached = agent.metric("keytrail_probe_attached", &["probe=\"present\""])?;
        let gap = agent.findings()?.into_iter().any(|finding| {
            finding["rule"] == "blind"
                && finding["summary"]
                    .as_str()
                    .is_some_and(|summary| summary.contains("inspect.budget"))
        });
        Ok((attached == 0.0 && gap).then_some(()))
    })?;
    ensure!(agent.metric("keytrail_probe_cpu_ratio", &[])? > 0.000_1);
    // Processes, files and connections are still observed.
    let connected = agent.metric("keytrail_events_total", &["probe=\"connect\""])?;
    let stolen = Command::new("curl")
        // It reads the file, and finds no header in it.
        .args(["-sk", "-o", "/dev/null", "-H"])
        .arg(format!("@{}", key.display()))
        .arg(format!("https://{}/", tls.address))
        .status()?;
    ensure!(stolen.success(), "curl: {stolen}");
    let used = agent.await_used(&key.display().to_string())?;
    assert_eq!(
        used["uses"][0]["workload"]["name"], "/usr/bin/curl",
        "{used:#}"
    );
    wait_for("the connection is counted", Duration::from_secs(5), || {
        let now = agent.metric("keytrail_events_total", &["probe=\"connect\""])?;
        Ok((now > connected).then_some(()))
    })?;
    // A silent probe that was turned off is no news, and nothing is unhealthy.
    assert_eq!(agent.get("/healthz")?.0, 200);
    assert_eq!(
        agent.logged(&["the probe is silent"]),
        0,
        "{}",
        agent.log_text()
    );
    drop(load);
    Ok(())
}

#[test]
fn probes_are_turned_off_where_they_cost_too_much() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    probes_are_shed(directory.path(), &[])
}

/// As shipped in a pod: the kernel does not account the time of programs for it.
#[test]
fn probes_are_turned_off_by_their_own_counters() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    let capabilities = [
        "bpf",
        "perfmon",
        "net_admin",
        "sys_ptrace",
        "dac_read_search",
    ];
    probes_are_shed(directory.path(), &capabilities)
}
