//! From the hop to the page: a real Prometheus scrapes the agent, a real Alertmanager calls a webhook.

use anyhow::{Context as _, Result, ensure};
use lab::{agent::Agent, free_port, wait_for, web::WebServer};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

/// As in the configuration below.
const SCRAPE: Duration = Duration::from_secs(5);
/// After the scrape, an alert takes no longer than this.
const ALERT: Duration = Duration::from_secs(10);

/// A server that ends with this value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &str, arguments: &[String], log: &Path) -> Result<Server> {
    let log = fs::File::create(log)?;
    let child = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .with_context(|| program.to_owned())?;
    Ok(Server(child))
}

/// Alertmanager looks for its templates where its package puts them: one that is only unpacked is shown them there,
/// in a mount namespace of its own.
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
        println!("skipped: no prometheus on the PATH");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name).display().to_string();
    let home = directory.path().join("home");
    fs::create_dir_all(home.join(".aws"))?;
    let key = home.join(".aws/credentials");
    fs::write(
        &key,
        "[default]\naws_access_key_id = AKIAFAKEFAKEALERT001\naws_secret_access_key = FAKE0000000000000000000000000000alert001\n",
    )?;
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
            "global: {{ scrape_interval: {}s }}\nrule_files: [ {} ]\nalerting: {{ alertmanagers: [ {{ static_configs: [ {{ targets: [ '127.0.0.1:{alertmanager}' ] }} ] }} ] }}\nscrape_configs: [ {{ job_name: keytrail, honor_labels: true, static_configs: [ {{ targets: [ '{}' ] }} ] }} ]\n",
            SCRAPE.as_secs(),
            lab::root()
                .join("dashboards/rules/keytrail.rules.yaml")
                .display(),
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
    // The hop: a key of AWS, to a server that is not Amazon's.
    let server = WebServer::start_plain("127.0.0.1")?;
    let sent = Instant::now();
    let status = Command::new("bash")
        .arg("-c")
        .arg(format!(
            "cat '{}' >/dev/null; curl -s -o /dev/null -H 'Authorization: AWS4-HMAC-SHA256 Credential=AKIAFAKEFAKEALERT001/20261123/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=00' 'http://{}/'",
            key.display(),
            server.address
        ))
        .status()?;
    ensure!(status.success(), "curl: {status}");
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
    let next = alert["annotations"]["description"]
        .as_str()
        .unwrap_or_default();
    ensure!(
        next.contains("keytrail query blast-radius '/usr/bin/curl'"),
        "{alert}"
    );
    // What it says to run answers.
    agent.await_json(&["query", "blast-radius", "/usr/bin/curl"], |answer| {
        answer["credentials"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    })?;
    ensure!(took < SCRAPE + ALERT, "it took {took:?}");
    let credential = alert_credential(&agent)?;
    every_panel(&ask, &credential)
}

/// What the hop was of.
fn alert_credential(agent: &Agent) -> Result<String> {
    let finding = agent.await_finding(|finding| finding["rule"] == "unexpected-hop")?;
    Ok(finding["credential"]["id"]
        .as_str()
        .context("an id")?
        .to_owned())
}

/// Panels that honestly have nothing to show here: nothing expires, is lost, or is folded.
const EMPTY: [&str; 1] = ["Expires"];

/// Asks every query of every dashboard, as Grafana would with this credential and this workload chosen.
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
                // A rate wants two scrapes.
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
