//! The API beyond loopback: TLS, a token, and a rate limit.

use anyhow::{Context as _, Result, ensure};
use lab::{
    agent::{Agent, binary},
    free_port, wait_for,
    web::WebServer,
};
use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

const TOKEN: &str = "FAKE-token-of-the-api-0000000001";

struct AccessLab(Child);

impl Drop for AccessLab {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(directory: &Path, listen: &str) -> Result<AccessLab> {
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(binary()?)
        .args(["run", "--listen", listen, "--config"])
        .arg(directory.join("keytrail.yaml"))
        .arg("--state-dir")
        .arg(directory.join("state"))
        .stdout(Stdio::null())
        .stderr(fs::File::create(directory.join("agent.log"))?)
        .spawn()?;
    Ok(AccessLab(child))
}

/// The status of a response, using curl.
fn status(directory: &Path, port: u16, path: &str, more: &[&str]) -> Result<String> {
    let output = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"])
        .arg(directory.join("certificate.pem"))
        .args(more)
        .arg(format!("https://localhost:{port}{path}"))
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn beyond_loopback_with_tls_and_a_token_only() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name);
    // Without these settings it does not listen beyond loopback.
    fs::write(at("keytrail.yaml"), "")?;
    let mut bare = start(directory.path(), "0.0.0.0:0")?;
    let ended = bare.0.wait()?;
    assert_eq!(ended.code(), Some(2), "it is a wrong configuration");
    let said = fs::read_to_string(at("agent.log"))?;
    ensure!(said.contains("`tls` and `token_file`"), "{said}");

    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    fs::write(at("certificate.pem"), made.cert.pem())?;
    fs::write(at("key.pem"), made.signing_key.serialize_pem())?;
    fs::write(at("token"), "short")?;
    fs::write(
        at("keytrail.yaml"),
        "tls: { certificate: certificate.pem, key: key.pem }\ntoken_file: token\n",
    )?;
    let port = free_port()?;
    let listen = format!("127.0.0.1:{port}");
    let mut short = start(directory.path(), &listen)?;
    assert_eq!(short.0.wait()?.code(), Some(2), "a short token is refused");
    let said = fs::read_to_string(at("agent.log"))?;
    ensure!(said.contains("openssl rand"), "{said}");
    ensure!(!said.contains("`short`"), "the token is not told: {said}");

    fs::write(at("token"), format!("{TOKEN}\n"))?;
    let mut agent = start(directory.path(), &listen)?;
    let header = format!("authorization: Bearer {TOKEN}");
    let with = ["-H", header.as_str()];
    wait_for("the agent is ready", Duration::from_secs(60), || {
        if let Some(status) = agent.0.try_wait()? {
            anyhow::bail!("{status}: {}", fs::read_to_string(at("agent.log"))?);
        }
        let ready = status(directory.path(), port, "/readyz", &with)?;
        Ok((ready == "200").then_some(()))
    })?;
    let ask = |path: &str, more: &[&str]| status(directory.path(), port, path, more);
    for path in [
        "/api/v1/credentials",
        "/api/v1/findings",
        "/metrics",
        "/readyz",
    ] {
        assert_eq!(ask(path, &with)?, "200", "{path}");
        assert_eq!(ask(path, &[])?, "401", "{path} without the token");
        let wrong = [
            "-H",
            "authorization: Bearer FAKE-token-of-the-api-0000000002",
        ];
        assert_eq!(ask(path, &wrong)?, "401", "{path} with another");
    }
    // Without the token the page shows no data.
    assert_eq!(ask("/", &[])?, "200");
    assert_eq!(ask("/api/v1/nothing", &with)?, "404");
    // There is no answer without TLS.
    let plain = Command::new("curl")
        .args([
            "-s",
            "-o",
            "/dev/null",
            &format!("http://localhost:{port}/metrics"),
        ])
        .status()?;
    ensure!(!plain.success(), "the API is not served in clear");
    // Failed attempts are slowed down, and valid requests are answered again a moment later.
    let many = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}\n", "--cacert"])
        .arg(at("certificate.pem"))
        .arg(format!("https://localhost:{port}/metrics?[1-400]"))
        .output()?;
    let many = String::from_utf8_lossy(&many.stdout).into_owned();
    ensure!(many.lines().any(|status| status == "429"), "{many}");
    wait_for(
        "questions are answered again",
        Duration::from_secs(10),
        || Ok((ask("/metrics", &with)? == "200").then_some(())),
    )
    .context("after too many requests")
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
    let home = directory.path().join("home");
    fs::create_dir_all(home.join(".aws"))?;
    let key = home.join(".aws/credentials");
    fs::write(
        &key,
        "[default]\naws_access_key_id = AKIAFAKEFAKEAPI00001\naws_secret_access_key = FAKE000000000000000000000000000000api001\n",
    )?;
    let agent = Agent::start(directory.path(), &[])?;
    let server = WebServer::start_plain("127.0.0.1")?;
    let status = Command::new("bash")
        .arg("-c")
        .arg(format!(
            "cat '{}' >/dev/null; curl -s -o /dev/null -H 'Authorization: AWS4-HMAC-SHA256 Credential=AKIAFAKEFAKEAPI00001/20261123/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=00' 'http://{}/'",
            key.display(),
            server.address
        ))
        .status()?;
    ensure!(status.success(), "curl: {status}");
    let finding = agent.await_finding(|finding| finding["rule"] == "unexpected-hop")?;
    let credential = finding["credential"]["id"].as_str().context("an id")?;

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
