//! Who may ask the agent: on loopback, and beyond it with TLS and a token.

use anyhow::{Context as _, Result, ensure};
use lab::{
    agent::{Agent, binary},
    child::KilledChild,
    free_port, wait_for,
    web::WebServer,
    workload::{aws_credentials, present_aws_key},
};
use std::{
    fs,
    io::Read as _,
    net::TcpStream,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

const TOKEN: &str = "FAKE-token-of-the-api-0000000001";
const WRONG: &str = "authorization: Bearer FAKE-token-of-the-api-0000000002";
/// A key that is presented, so that there is something to ask for.
const KEY_ID: &str = "AKIAFAKEFAKEAPI00001";

/// Starts an agent with the configuration in `directory`.
fn start(directory: &Path, listen: &[&str]) -> Result<KilledChild> {
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(binary()?)
        .arg("run")
        .args(listen)
        .arg("--config")
        .arg(directory.join("keytrail.yaml"))
        .arg("--state-dir")
        .arg(directory.join("state"))
        .stdout(Stdio::null())
        .stderr(fs::File::create(directory.join("agent.log"))?)
        .spawn()?;
    Ok(KilledChild(child))
}

/// The status of a response, using curl with a certificate.
fn status(certificate: &Path, url: &str, more: &[&str]) -> Result<String> {
    let output = Command::new("curl")
        .args(["-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg("--cacert")
        .arg(certificate)
        .args(more)
        .arg(url)
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn await_ready(
    agent: &mut KilledChild,
    directory: &Path,
    certificate: &Path,
    url: &str,
) -> Result<()> {
    wait_for("the agent is ready", Duration::from_secs(60), || {
        if let Some(status) = agent.0.try_wait()? {
            let log = fs::read_to_string(directory.join("agent.log"))?;
            anyhow::bail!("{status}: {log}");
        }
        let ready = status(certificate, &format!("{url}/readyz"), &[])?;
        Ok((ready == "200").then_some(()))
    })
}

/// An agent without a configuration, at two addresses: it makes its token and certificate.
struct TwoListeners {
    agent: KilledChild,
    listen: [String; 2],
    certificate: PathBuf,
    /// What presents the token.
    header: String,
}

impl TwoListeners {
    fn start(directory: &Path, api: &str, metrics: u16) -> Result<Self> {
        fs::write(directory.join("keytrail.yaml"), "")?;
        let listen = [
            format!("--listen={api}"),
            format!("--metrics-listen=0.0.0.0:{metrics}"),
        ];
        let certificate = directory.join("state/tls.crt");
        let mut agent = start(directory, &[&listen[0], &listen[1]])?;
        let url = format!("https://localhost:{metrics}");
        await_ready(&mut agent, directory, &certificate, &url)?;
        let token = fs::read_to_string(directory.join("state/token"))?;
        Ok(Self {
            agent,
            listen,
            certificate,
            header: format!("authorization: Bearer {}", token.trim()),
        })
    }
}

/// Presents a key to a server, and waits for the finding; returns the credential's id.
fn present_a_key(directory: &Path, agent: &Agent) -> Result<String> {
    let secret = "FAKE000000000000000000000000000000api001";
    let key = aws_credentials(&directory.join("home"), KEY_ID, secret)?;
    let server = WebServer::start_plain("127.0.0.1")?;
    present_aws_key(&key, KEY_ID, server.address)?;
    let finding = agent.await_finding(|finding| finding["rule"] == "unexpected-hop")?;
    let id = finding["credential"]["id"].as_str().context("an id")?;
    Ok(id.to_owned())
}

/// Without a configuration: the agent makes its token and certificate.
#[test]
fn beyond_loopback_with_tls_and_a_token_only() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name);
    let (api, metrics) = (free_port()?, free_port()?);
    let address = format!("0.0.0.0:{api}");
    let TwoListeners {
        agent,
        listen,
        certificate,
        header,
    } = TwoListeners::start(directory.path(), &address, metrics)?;
    let url = |port| format!("https://localhost:{port}");
    let ask = |port: u16, path: &str, more: &[&str]| {
        status(&certificate, &format!("{}{path}", url(port)), more)
    };
    for (port, path) in [
        (api, "/api/v1/credentials"),
        (api, "/api/v1/openapi.json"),
        (api, "/metrics"),
        (metrics, "/metrics"),
    ] {
        assert_eq!(ask(port, path, &["-H", &header])?, "200", "{path}");
        assert_eq!(ask(port, path, &[])?, "401", "{path} without the token");
        assert_eq!(
            ask(port, path, &["-H", WRONG])?,
            "401",
            "{path} with another"
        );
    }
    for port in [api, metrics] {
        for path in ["/healthz", "/readyz"] {
            assert_eq!(ask(port, path, &[])?, "200", "{path} is for everyone");
        }
        let plain = Command::new("curl")
            .args(["-s", "-m", "10", "-o", "/dev/null"])
            .arg(format!("http://localhost:{port}/healthz"))
            .status()?;
        ensure!(!plain.success(), "{port} answers in clear text");
    }
    // Without the token the page shows no data, and the other address has neither page nor API.
    assert_eq!(ask(api, "/", &[])?, "200");
    for path in ["/", "/api/v1/credentials", "/session"] {
        assert_eq!(ask(metrics, path, &["-H", &header])?, "404", "{path}");
    }
    // The link of `keytrail page` works here too.
    let printed = page(&at("state"))?;
    ensure!(printed.status.success(), "{printed:?}");
    let link = String::from_utf8(printed.stdout)?;
    let (place, code) = link.trim().split_once("#code=").context("a code")?;
    ensure!(
        place.starts_with("https://") && place.ends_with(&format!(":{api}/")),
        "{link}"
    );
    let exchange = || ask(api, "/session", &["--data-raw", code]);
    assert_eq!(exchange()?, "200");
    assert_eq!(exchange()?, "401", "a code works once");
    for file in ["token", "tls.key"] {
        let mode = fs::metadata(at("state").join(file))?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // Failed attempts are slowed down, and those who know the token do not notice.
    let many = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}\n", "--cacert"])
        .arg(&certificate)
        .arg(format!("{}/api/v1/hops?limit=[1-400]", url(api)))
        .output()?;
    let many = String::from_utf8_lossy(&many.stdout).into_owned();
    ensure!(many.lines().any(|status| status == "429"), "{many}");
    ensure!(many.lines().all(|status| status != "200"), "{many}");
    assert_eq!(ask(api, "/api/v1/hops", &["-H", &header])?, "200");
    // The next start has the same token and certificate.
    let before = fs::read(&certificate)?;
    drop(agent);
    let mut again = start(directory.path(), &[&listen[0], &listen[1]])?;
    await_ready(&mut again, directory.path(), &certificate, &url(api))?;
    assert_eq!(fs::read(&certificate)?, before);
    assert_eq!(ask(metrics, "/metrics", &["-H", &header])?, "200");
    Ok(())
}

/// `keytrail page` for the agent of a state directory.
fn page(state_dir: &Path) -> Result<Output> {
    Ok(Command::new(binary()?)
        .arg("page")
        .arg("--state-dir")
        .arg(state_dir)
        .output()?)
}

#[test]
fn a_configured_certificate_and_token() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name);
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    fs::write(at("certificate.pem"), made.cert.pem())?;
    fs::write(at("key.pem"), made.signing_key.serialize_pem())?;
    fs::write(
        at("keytrail.yaml"),
        "tls: { certificate: certificate.pem, key: key.pem }\ntoken_file: token\n",
    )?;
    let port = free_port()?;
    let listen = format!("--listen=127.0.0.1:{port}");
    for (token, said) in [
        (None, "cannot read the token file"),
        (Some("short"), "openssl rand"),
    ] {
        if let Some(token) = token {
            fs::write(at("token"), token)?;
        }
        let mut refused = start(directory.path(), &[&listen])?;
        assert_eq!(refused.0.wait()?.code(), Some(2), "{said}");
        let log = fs::read_to_string(at("agent.log"))?;
        ensure!(log.contains(said), "{log}");
        ensure!(!log.contains("`short`"), "the token is not told: {log}");
    }
    fs::write(at("token"), format!("{TOKEN}\n"))?;
    let mut agent = start(directory.path(), &[&listen])?;
    let (certificate, url) = (at("certificate.pem"), format!("https://localhost:{port}"));
    await_ready(&mut agent, directory.path(), &certificate, &url)?;
    let header = format!("authorization: Bearer {TOKEN}");
    let ask = |path: &str, more: &[&str]| status(&certificate, &format!("{url}{path}"), more);
    assert_eq!(ask("/api/v1/credentials", &["-H", &header])?, "200");
    assert_eq!(ask("/api/v1/credentials", &[])?, "401");
    assert_eq!(ask("/api/v1/nothing", &["-H", &header])?, "404");
    assert_eq!(ask("/metrics", &[])?, "200", "on loopback");
    ensure!(page(&at("state"))?.status.success());
    // Without an agent there is nothing to open.
    drop(agent);
    let printed = page(&at("state"))?;
    assert_eq!(printed.status.code(), Some(1), "{printed:?}");
    let said = String::from_utf8_lossy(&printed.stderr);
    ensure!(said.contains("no agent answers"), "{said}");
    Ok(())
}

/// On loopback every user of the host can ask.
#[test]
fn on_loopback_strangers_learn_no_ids() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let id = present_a_key(directory.path(), &agent)?;
    let (status, known) = agent.get("/metrics")?;
    assert_eq!(status, 200);
    ensure!(known.contains(&id), "{known}");
    // What a stranger is told is as new, but for a quarter of a second.
    let stranger = wait_for("the finding is counted", Duration::from_secs(5), || {
        let (status, text) = agent.get_anonymously("/metrics")?;
        assert_eq!(status, 200);
        let counted = text.lines().any(|line| {
            line.starts_with("keytrail_findings_total{rule=\"unexpected-hop\"")
                && line.ends_with(" 1")
        });
        Ok(counted.then_some(text))
    })?;
    for secret in [&id, "credential=", "keytrail_credential_info", KEY_ID] {
        ensure!(!stranger.contains(secret), "{secret}: {stranger}");
    }
    ensure!(
        stranger
            .lines()
            .any(|line| line.starts_with("keytrail_hops_total{")),
        "{stranger}"
    );
    for path in [
        "/api/v1/credentials",
        "/api/v1/openapi.json",
        "/api/v1/hops",
    ] {
        let (status, text) = agent.get_anonymously(path)?;
        assert_eq!(status, 401, "{path}: {text}");
        assert_eq!(agent.get(path)?.0, 200, "{path}");
    }
    // The files that hold the token are for root only.
    for file in ["token", "fingerprint.key", "ledger.sqlite"] {
        let read = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"])
            .arg(agent.state_dir.join(file))
            .output()?;
        ensure!(!read.status.success(), "nobody reads {file}");
    }
    Ok(())
}

/// The setting of one version, for those who have to change their scrapes first.
#[test]
fn open_access_is_as_in_version_0_1() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("keytrail.yaml");
    fs::write(&config, "access: open\n")?;
    let metrics = free_port()?;
    let agent = Agent::start(
        directory.path(),
        &[
            "--config",
            &config.display().to_string(),
            "--metrics-listen",
            &format!("0.0.0.0:{metrics}"),
        ],
    )?;
    let id = present_a_key(directory.path(), &agent)?;
    assert_eq!(agent.get_anonymously("/api/v1/credentials")?.0, 200);
    ensure!(agent.get_anonymously("/metrics")?.1.contains(&id));
    let scraped = Command::new("curl")
        .args(["-s", "-m", "10"])
        .arg(format!("http://127.0.0.1:{metrics}/metrics"))
        .output()?;
    ensure!(String::from_utf8_lossy(&scraped.stdout).contains(&id));
    assert_eq!(agent.logged(&["`access: open`", "the next version"]), 1);
    Ok(())
}

/// A group that runs Prometheus on the host reads the token.
#[test]
fn a_token_for_a_group() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    const GROUP: u32 = 61_234;
    let directory = tempfile::tempdir()?;
    // The group enters the directory of the token, not that of the state.
    let shared = directory.path().join("shared");
    fs::create_dir(&shared)?;
    chown(directory.path(), None, Some(GROUP))?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o750))?;
    let config = directory.path().join("keytrail.yaml");
    fs::write(
        &config,
        format!("token_file: shared/token\ntoken_group: \"{GROUP}\"\n"),
    )?;
    let agent = Agent::start(
        directory.path(),
        &["--config", &config.display().to_string()],
    )?;
    let read = |group: u32| {
        Command::new("setpriv")
            .args(["--reuid=65534", "--clear-groups"])
            .arg(format!("--regid={group}"))
            .arg("cat")
            .arg(shared.join("token"))
            .output()
    };
    let token = String::from_utf8(read(GROUP)?.stdout)?;
    assert_eq!(token.trim().len(), 64);
    ensure!(!read(65_534)?.status.success(), "others do not read it");
    let url = format!("http://{}/api/v1/credentials", agent.listen);
    let header = format!("authorization: Bearer {}", token.trim());
    assert_eq!(status(&config, &url, &["-H", &header])?, "200");
    Ok(())
}

/// Network namespaces that are attached to a bridge of this host, as pods are.
struct Pods(usize);

impl Pods {
    const HOST: &str = "10.98.7.1";

    fn start(count: usize) -> Result<Self> {
        let pods = Self(count);
        let mut script = format!(
            "set -e; ip link add ktpods type bridge; ip addr add {}/24 dev ktpods; ip link set ktpods up;",
            Self::HOST
        );
        for number in 0..count {
            use std::fmt::Write as _;
            write!(
                script,
                "ip netns add ktpod{number}; ip link add ktv{number} type veth peer name eth0 netns ktpod{number};
                 ip link set ktv{number} master ktpods up;
                 ip -n ktpod{number} addr add 10.98.7.{}/24 dev eth0; ip -n ktpod{number} link set eth0 up;",
                10 + number
            )?;
        }
        let status = Command::new("bash").args(["-c", &script]).status()?;
        ensure!(status.success(), "cannot make network namespaces: {status}");
        Ok(pods)
    }

    fn run(number: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("ktpod{number}"), program]);
        command
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        let remove = |arguments: &[&str]| drop(Command::new("ip").args(arguments).status());
        for number in 0..self.0 {
            remove(&["netns", "del", &format!("ktpod{number}")]);
        }
        remove(&["link", "del", "ktpods"]);
    }
}

/// Opens connections and holds them: some say nothing, some ask and take no answer.
const HOLD: &str = "
import socket, sys, time
held = []
for number in range(200):
    try:
        held.append(socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2))
        if number % 2:
            held[-1].sendall(b'GET /metrics HTTP/1.1\\r\\nhost: localhost\\r\\n\\r\\n')
    except OSError:
        pass
    if number == 100:
        print('held', flush=True)
    time.sleep(0.02)
time.sleep(60)
";

/// Pods of the node open connections to its metrics, more and more of them, beside the kubelet and
/// Prometheus.
#[test]
fn connections_of_pods_keep_nobody_from_health_and_metrics() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    let (api, metrics) = (free_port()?, free_port()?);
    let address = format!("127.0.0.1:{api}");
    let TwoListeners {
        agent: _agent,
        certificate,
        header,
        ..
    } = TwoListeners::start(directory.path(), &address, metrics)?;
    let url = format!("https://localhost:{metrics}");
    let _pods = Pods::start(6)?;
    let hold = |number: usize| -> Result<KilledChild> {
        let mut child = Pods::run(number, "python3")
            .args(["-c", HOLD, Pods::HOST, &metrics.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut held = [0; 4];
        child
            .stdout
            .as_mut()
            .context("a pipe")?
            .read_exact(&mut held)?;
        Ok(KilledChild(child))
    };
    let attackers: Vec<KilledChild> = (0..5).map(hold).collect::<Result<_>>()?;
    let limit = Duration::from_secs(1);
    let mut slowest = Duration::ZERO;
    let mut asked = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        for (path, more) in [
            ("/healthz", vec![]),
            ("/metrics", vec!["-H", header.as_str()]),
        ] {
            // As the kubelet asks, from this host; and as Prometheus does, from a pod.
            let sent = Instant::now();
            assert_eq!(
                status(&certificate, &format!("{url}{path}"), &more)?,
                "200",
                "{path}"
            );
            let scraped = Pods::run(5, "curl")
                .args(["-sk", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}"])
                .args(&more)
                .arg(format!("https://{}:{metrics}{path}", Pods::HOST))
                .output()?;
            assert_eq!(
                String::from_utf8_lossy(&scraped.stdout),
                "200",
                "{path} from a pod"
            );
            slowest = slowest.max(sent.elapsed());
            asked += 2;
        }
    }
    println!(
        "{asked} requests beside {} pods: the slowest pair took {slowest:?}",
        attackers.len()
    );
    ensure!(slowest < 2 * limit, "{slowest:?}");
    // The same on loopback, where everything has one address.
    let idle: Vec<TcpStream> = (0..200)
        .map(|_| TcpStream::connect(("127.0.0.1", api)))
        .collect::<Result<_, _>>()?;
    let sent = Instant::now();
    let plain = format!("http://127.0.0.1:{api}/healthz");
    assert_eq!(status(&certificate, &plain, &[])?, "200");
    ensure!(sent.elapsed() < limit, "{:?}", sent.elapsed());
    drop(idle);
    Ok(())
}

/// The agent's OpenAPI document is valid, and every response matches it, whatever is requested.
#[test]
fn answers_are_as_described() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    if !Command::new("schemathesis")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        return lab::skip::skip("the OpenAPI document", "no schemathesis on the PATH");
    }
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    let credential = present_a_key(directory.path(), &agent)?;

    let (status, text) = agent.get("/api/v1/openapi.json")?;
    assert_eq!(status, 200);
    let document = directory.path().join("openapi.json");
    fs::write(&document, &text)?;
    let checked = Command::new("openapi-spec-validator")
        .arg(&document)
        .output()?;
    ensure!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );
    // Known names, so that not all responses are errors.
    let settings = directory.path().join("schemathesis.toml");
    fs::write(
        &settings,
        format!(
            "seed = 20261123\n[parameters]\n\"query.credential\" = \"{credential}\"\n\"query.workload\" = \"/usr/bin/curl\"\n"
        ),
    )?;
    // Once with those names, and once with arbitrary values. An invalid time is rejected, which the
    // schema cannot express.
    for known in [true, false] {
        let mut tested = Command::new("schemathesis");
        if known {
            tested.arg("--config-file").arg(&settings);
        } else {
            tested.current_dir(directory.path().join("state"));
        }
        let tested = tested
            .args([
                "run",
                &format!("http://{}/api/v1/openapi.json", agent.listen),
            ])
            .args([
                "--rate-limit=40/s",
                "--max-examples=12",
                "--phases=coverage,fuzzing",
                "--seed=20261123",
            ])
            .args(["--exclude-checks=positive_data_acceptance", "--no-color"])
            .arg(format!("--header=Authorization: Bearer {}", agent.token()?))
            .output()?;
        let said = String::from_utf8_lossy(&tested.stdout).into_owned();
        let cases = said
            .lines()
            .find(|line| line.contains(" generated, "))
            .unwrap_or_default();
        println!("{}", cases.trim());
        ensure!(tested.status.success(), "{said}");
        ensure!(said.contains("Tested: 10"), "every question: {said}");
    }
    ensure!(
        !agent.log_text().contains("panicked"),
        "{}",
        agent.log_text()
    );
    Ok(())
}
