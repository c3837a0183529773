//! From hop to pager: a real Prometheus scrapes the agent, and a real Alertmanager calls a webhook.

use anyhow::{Context as _, Result, ensure};
use lab::{
    agent::Agent,
    child::KilledChild,
    free_port, wait_for,
    web::WebServer,
    workload::{aws_credentials, present_aws_key},
};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

/// As in the configuration below.
const SCRAPE: Duration = Duration::from_secs(5);
/// After the scrape, an alert takes at most this long.
const ALERT: Duration = Duration::from_secs(10);

fn start(program: &str, arguments: &[String], log: &Path) -> Result<KilledChild> {
    let log = fs::File::create(log)?;
    let child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .with_context(|| program.to_owned())?;
    Ok(KilledChild(child))
}

/// Alertmanager expects its templates where its package installs them: for an unpacked one they are
/// mounted there, in a separate mount namespace.
const ALERTMANAGER: &str = r#"
program=$(command -v prometheus-alertmanager)
if [ ! -e /usr/share/prometheus/alertmanager/default.tmpl ]; then
    mount -t overlay overlay -o "lowerdir=$(dirname "$program")/../share:/usr/share" /usr/share
fi
exec "$program" "$@"
"#;

/// Receives what Alertmanager sends.
fn webhook(listener: TcpListener) -> Receiver<Value> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            let mut length = 0;
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                let lower = line.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap_or(0);
                }
                line.clear();
            }
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_err() {
                continue;
            }
            let answered = reader
                .get_mut()
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let Ok(value) = serde_json::from_slice(&body) else {
                continue;
            };
            if answered.is_err() || tell.send(value).is_err() {
                return;
            }
        }
    });
    told
}

#[test]
fn a_hop_becomes_an_alert() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    if Command::new("prometheus")
        .arg("--version")
        .output()
        .is_err()
    {
        return lab::skip::skip("alerts and dashboards", "no prometheus on the PATH");
    }
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name).display().to_string();
    const KEY_ID: &str = "AKIAFAKEFAKEALERT001";
    let home = directory.path().join("home");
    let key = aws_credentials(&home, KEY_ID, "FAKE0000000000000000000000000000alert001")?;
    let agent = Agent::start(directory.path(), &[])?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let hook = listener.local_addr()?;
    let received = webhook(listener);
    let (prometheus, alertmanager) = (free_port()?, free_port()?);
    fs::write(
        at("alertmanager.yml"),
        format!(
            "route: {{ receiver: hook, group_wait: 1s, group_by: [ alertname ] }}\nreceivers: [ {{ name: hook, webhook_configs: [ {{ url: 'http://{hook}/' }} ] }} ]\n"
        ),
    )?;
    fs::write(
        at("prometheus.yml"),
        format!(
            "global: {{ scrape_interval: {}s }}\nrule_files: [ {} ]\nalerting: {{ alertmanagers: [ {{ static_configs: [ {{ targets: [ '127.0.0.1:{alertmanager}' ] }} ] }} ] }}\nscrape_configs: [ {{ job_name: keytrail, honor_labels: true, authorization: {{ credentials_file: '{}' }}, static_configs: [ {{ targets: [ '{}' ] }} ] }} ]\n",
            SCRAPE.as_secs(),
            lab::root()
                .join("dashboards/rules/keytrail.rules.yaml")
                .display(),
            agent.state_dir.join("token").display(),
            agent.listen,
        ),
    )?;
    let _alertmanager = start(
        "unshare",
        &[
            "--mount".to_owned(),
            "sh".to_owned(),
            "-c".to_owned(),
            ALERTMANAGER.to_owned(),
            "sh".to_owned(),
            format!("--config.file={}", at("alertmanager.yml")),
            format!("--storage.path={}", at("alertmanager")),
            format!("--web.listen-address=127.0.0.1:{alertmanager}"),
            "--cluster.listen-address=".to_owned(),
        ],
        &directory.path().join("alertmanager.log"),
    )?;
    let _prometheus = start(
        "prometheus",
        &[
            format!("--config.file={}", at("prometheus.yml")),
            format!("--storage.tsdb.path={}", at("prometheus")),
            format!("--web.listen-address=127.0.0.1:{prometheus}"),
        ],
        &directory.path().join("prometheus.log"),
    )?;
    let ask = |query: &str| -> Result<Value> {
        let output = Command::new("curl")
            .args(["-sG", "--data-urlencode", &format!("query={query}")])
            .arg(format!("http://127.0.0.1:{prometheus}/api/v1/query"))
            .output()?;
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    };
    wait_for(
        "Prometheus has scraped the agent",
        Duration::from_secs(60),
        || {
            let up = ask("up == 1")?;
            let there = up["data"]["result"]
                .as_array()
                .is_some_and(|all| !all.is_empty());
            Ok(there.then_some(()))
        },
    )?;
    wait_for("Alertmanager answers", Duration::from_secs(30), || {
        let answers = std::net::TcpStream::connect(("127.0.0.1", alertmanager)).is_ok();
        Ok(answers.then_some(()))
    })?;
    // The hop: an AWS key, to a server that is not Amazon's.
    let server = WebServer::start_plain("127.0.0.1")?;
    let sent = Instant::now();
    present_aws_key(&key, KEY_ID, server.address)?;
    let alert = loop {
        let message = received
            .recv_timeout(Duration::from_secs(60))
            .context("the webhook was not called")?;
        let alerts = message["alerts"].as_array().cloned().unwrap_or_default();
        let found = alerts
            .into_iter()
            .find(|alert| alert["labels"]["alertname"] == "KeytrailUnexpectedHop");
        if let Some(alert) = found {
            break alert;
        }
    };
    let took = sent.elapsed();
    println!("from the hop to the webhook: {:.1} s", took.as_secs_f64());
    assert_eq!(alert["labels"]["severity"], "critical", "{alert}");
    if let Some(kept) = std::env::var_os("KEYTRAIL_SCREENSHOTS") {
        let text = serde_json::to_string_pretty(&alert)? + "\n";
        fs::write(Path::new(&kept).join("alert.json"), text)?;
    }
    let next = alert["annotations"]["description"]
        .as_str()
        .unwrap_or_default();
    ensure!(
        next.contains("keytrail query blast-radius '/usr/bin/curl'"),
        "{alert}"
    );
    // The suggested command works.
    agent.await_json(&["query", "blast-radius", "/usr/bin/curl"], |answer| {
        answer["credentials"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    })?;
    ensure!(took < SCRAPE + ALERT, "it took {took:?}");
    let credential = alert_credential(&agent)?;
    every_panel(&ask, &credential)?;
    // The owner query in the guide works.
    let guide = fs::read_to_string(lab::root().join("docs/operating.md"))?;
    let joined = guide
        .split('`')
        .find(|code| code.contains("group_left (owner)"))
        .context("the guide joins owners to hops")?;
    let answer = ask(joined)?;
    ensure!(
        answer["data"]["result"]
            .as_array()
            .is_some_and(|series| !series.is_empty()),
        "{joined}: {answer}"
    );
    // Screenshots need data.
    let kept = std::env::var_os("KEYTRAIL_SCREENSHOTS").is_some();
    work(&key, server.address, if kept { 12 } else { 3 } * SCRAPE)?;
    draw(prometheus, &credential, directory.path())
}

/// Runs programs that use the key for a while, at home and elsewhere.
fn work(key: &Path, server: std::net::SocketAddr, length: Duration) -> Result<()> {
    let began = Instant::now();
    let mut round = 0;
    while began.elapsed() < length {
        round += 1;
        for (host, times) in [
            ("s3.eu-central-1.amazonaws.com", 3),
            ("sts.amazonaws.com", 1 + round % 3),
            ("paste.example", usize::from(round % 5 == 0)),
        ] {
            for _ in 0..times {
                let status = Command::new("bash")
                    .arg("-c")
                    .arg(format!(
                        "cat '{}' >/dev/null; curl -s -o /dev/null --resolve '{host}:{port}:127.0.0.1' -H 'Authorization: AWS4-HMAC-SHA256 Credential=AKIAFAKEFAKEALERT001/20261123/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=00' 'http://{host}:{port}/'",
                        key.display(),
                        port = server.port(),
                    ))
                    .status()?;
                ensure!(status.success(), "curl: {status}");
            }
        }
    }
    Ok(())
}

/// The credential in the alert.
fn alert_credential(agent: &Agent) -> Result<String> {
    let finding = agent.await_finding(|finding| finding["rule"] == "unexpected-hop")?;
    Ok(finding["credential"]["id"]
        .as_str()
        .context("an id")?
        .to_owned())
}

/// Panels that are empty here for a good reason: nothing expires, is lost, or is folded.
const EMPTY: [&str; 1] = ["Expires"];

/// Runs every query of every dashboard, as Grafana would with this credential and workload
/// selected.
fn every_panel(ask: &impl Fn(&str) -> Result<Value>, credential: &str) -> Result<()> {
    let mut count = 0;
    for file in fs::read_dir(lab::root().join("dashboards/grafana"))?.flatten() {
        let board: Value = serde_json::from_slice(&fs::read(file.path())?)?;
        let name = board["title"].as_str().unwrap_or_default().to_owned();
        for panel in board["panels"].as_array().into_iter().flatten() {
            let title = panel["title"].as_str().unwrap_or_default();
            for target in panel["targets"].as_array().into_iter().flatten() {
                let query = target["expr"]
                    .as_str()
                    .context("a query")?
                    .replace("$credential", credential)
                    .replace("$namespace", ".*")
                    .replace("$workload", "/usr/bin/curl")
                    .replace("$instance", ".*")
                    .replace("$__rate_interval", "1m");
                // A rate needs two scrapes.
                wait_for(
                    &format!("{name}, {title}: `{query}` has something to show"),
                    Duration::from_secs(30),
                    || {
                        let answer = ask(&query)?;
                        ensure!(answer["status"] == "success", "{name}, {title}: {answer}");
                        let shown = answer["data"]["result"].as_array().map_or(0, Vec::len);
                        Ok((shown > 0 || EMPTY.contains(&title)).then_some(()))
                    },
                )?;
                count += 1;
            }
        }
    }
    println!("{count} queries of dashboards were answered");
    ensure!(count > 20);
    Ok(())
}

/// Draws every dashboard with Grafana's own components, from the data of this Prometheus. With
/// `KEYTRAIL_SCREENSHOTS` the images are kept there.
fn draw(prometheus: u16, credential: &str, directory: &Path) -> Result<()> {
    let (Some(page), Some(modules)) = (
        std::env::var_os("KEYTRAIL_RENDER"),
        std::env::var_os("KEYTRAIL_PLAYWRIGHT"),
    ) else {
        return lab::skip::skip(
            "drawing the dashboards",
            "no browser (KEYTRAIL_RENDER, KEYTRAIL_PLAYWRIGHT)",
        );
    };
    let kept = std::env::var_os("KEYTRAIL_SCREENSHOTS").map(PathBuf::from);
    for (name, variables) in [
        ("fleet", vec![]),
        ("credential", vec![format!("credential={credential}")]),
        ("workload", vec!["workload=/usr/bin/curl".to_owned()]),
        ("health", vec![]),
    ] {
        let image = kept
            .as_deref()
            .unwrap_or(directory)
            .join(format!("dashboard-{name}.png"));
        let output = Command::new("node")
            .args(["--input-type=module", "-"])
            .arg(format!("http://127.0.0.1:{prometheus}"))
            .arg(lab::root().join(format!("dashboards/grafana/keytrail-{name}.json")))
            .arg(&image)
            .args(["from=now-2m", "to=now"])
            .arg(format!("interval={}s", SCRAPE.as_secs()))
            .args(variables)
            .env("KEYTRAIL_RENDER", &page)
            .current_dir(&modules)
            .stdin(fs::File::open(
                lab::root().join("dashboards/render/render.mjs"),
            )?)
            .output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{name}: {error}");
        let drawn: Value = serde_json::from_slice(&output.stdout)?;
        println!("{drawn}");
        for panel in drawn["withoutData"].as_array().context("panels")? {
            ensure!(
                EMPTY.contains(&panel.as_str().unwrap_or_default()),
                "{name}: {panel} shows nothing"
            );
        }
        ensure!(
            fs::metadata(&image)?.len() > 10_000,
            "{name}: the picture is empty"
        );
    }
    Ok(())
}
