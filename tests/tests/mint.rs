//! Minted credentials: what was presented for them, what was issued, and where that went.

use anyhow::{Context as _, Result, ensure};
use lab::{agent::Agent, client};
use serde_json::Value;
use std::process::{Command, Stdio};

const TOKEN: &str = "AQAEAFAKEmetadataTOKEN00000000000000001==";
const KEY: &str = "ASIAFAKEMINTED000001";
const SECRET: &str = "FAKE/minted/secret/000000000000000000001";
const SESSION: &str = "IQoJFAKEsessionTOKEN00000000000000000000001";
const ACCESS: &str = "ya29.FAKEaccessTOKEN000000000000000001";

/// Runs a script in a network namespace with a metadata service.
fn with_metadata(script: &str) -> Result<()> {
    let setup = format!(
        "set -e; ip link set lo up; ip addr add 169.254.169.254/32 dev lo; ip addr add 10.99.0.3/32 dev lo
python3 {} '{TOKEN}' '{KEY}' '{SECRET}' '{SESSION}' '{ACCESS}' > /dev/null 2>&1
",
        client("metadata.py")
    );
    let output = Command::new("unshare")
        .args(["--net", "--pid", "--fork", "--kill-child", "bash", "-c"])
        .arg(format!("{setup}{script}"))
        .output()?;
    ensure!(
        output.status.success(),
        "it ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

const AS_THE_SDK_DOES: &str = "
token=$(curl -sS -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)
key=$(curl -sS -H \"X-aws-ec2-metadata-token: $token\" http://169.254.169.254/latest/meta-data/iam/security-credentials/role | sed -n 's/.*AccessKeyId\": \"\\(.*\\)\".*/\\1/p')
curl -sS -o /dev/null --resolve s3.eu-west-1.amazonaws.com:80:10.99.0.3 -H \"Authorization: AWS4-HMAC-SHA256 Credential=$key/20260101/eu/s3/aws4_request, SignedHeaders=host, Signature=00\" http://s3.eu-west-1.amazonaws.com/
";

#[test]
fn from_the_metadata_service_to_the_store() -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let directory = tempfile::tempdir()?;
    let agent = Agent::start(directory.path(), &[])?;
    with_metadata(AS_THE_SDK_DOES)?;
    let (token, key) = (agent.id_of(TOKEN)?, agent.id_of(KEY)?);
    let to_the_store = |hop: &Value| {
        hop["credential"] == key.as_str()
            && hop["evidence"] == "presented"
            && hop["verdict"] == "expected"
            && hop["destination"]["address"] == "10.99.0.3"
    };
    let chain = agent.await_json(&["query", "chain", &key], |answer| {
        answer["links"]
            .as_array()
            .is_some_and(|links| links.len() >= 2)
            && answer["hops"]
                .as_array()
                .is_some_and(|hops| hops.iter().any(to_the_store))
    })?;
    let link = |presented: Option<&str>, minted: &str| -> Option<Value> {
        chain["links"]
            .as_array()?
            .iter()
            .find(|link| link["presented"].as_str() == presented && link["minted"] == minted)
            .cloned()
    };
    let first = link(None, &token).context("the token came from nothing")?;
    assert_eq!(first["authenticator"]["address"], "169.254.169.254");
    let second = link(Some(&token), &key).context("the key came for the token")?;
    assert_eq!(second["authenticator"]["port"], 80);
    ensure!(
        second["workload"]["name"]
            .as_str()
            .is_some_and(|name| name.ends_with("/curl"))
    );
    // Secret and session token are the same credential as the key.
    for other in [SECRET, SESSION] {
        let id = agent.id_of(other)?;
        ensure!(
            agent.json(&["query", "who", &id])?.is_none(),
            "it is told apart from its key"
        );
    }
    let who = agent.await_json(&["query", "who", &key], |answer| {
        answer["uses"]
            .as_array()
            .is_some_and(|uses| !uses.is_empty())
    })?;
    let picked_up = who["uses"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|used| used["source"] == "metadata")
        .context("it was picked up from the metadata service")?;
    assert_eq!(picked_up["place"], "answer:AccessKeyId");
    // Querying the metadata service in plaintext is normal.
    let findings = agent.findings()?;
    ensure!(
        !findings.iter().any(|finding| {
            finding["severity"] != "low" && finding["credential"]["id"] == token.as_str()
        }),
        "{findings:#?}"
    );
    let table = agent.query(&["query", "chain", &token])?;
    let table = String::from_utf8(table.stdout)?;
    ensure!(
        table.contains(&format!(
            "{token} imds-token → 169.254.169.254:80 → {key} aws-session-key"
        )),
        "{table}"
    );
    Ok(())
}

#[test]
fn minted_by_an_unexpected_workload() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("keytrail.yaml");
    std::fs::write(
        &config,
        "credentials:
  - name: node-role
    match: { class: aws-session-key }
    readers: [ { executable: /usr/bin/the-agent-of-the-cloud } ]
authenticators:
  - { name: tokens, destinations: [ \"10.99.0.3:80\" ], readers: [ { unit: backup.service } ] }
",
    )?;
    let agent = Agent::start(
        directory.path(),
        &["--config", &config.display().to_string()],
    )?;
    with_metadata(&format!(
        "{AS_THE_SDK_DOES}
curl -sS -o /dev/null -u client:FAKE-client-secret-1 -d grant_type=client_credentials http://10.99.0.3/oauth/token"
    ))?;
    for (secret, name) in [(KEY, "aws-imds"), (ACCESS, "tokens")] {
        let id = agent.id_of(secret)?;
        let finding = agent.await_finding(|finding| {
            finding["rule"] == "unexpected-mint" && finding["credential"]["id"] == id.as_str()
        })?;
        assert_eq!(finding["severity"], "high");
        let summary = finding["summary"].as_str().unwrap_or_default();
        ensure!(summary.contains(name), "{summary}");
        ensure!(!finding["expected"].as_array().is_none_or(Vec::is_empty));
    }
    // What was presented for it is in the chain.
    let access = agent.id_of(ACCESS)?;
    let chain = agent.await_json(&["query", "chain", &access], |answer| {
        answer["links"]
            .as_array()
            .is_some_and(|links| !links.is_empty())
    })?;
    let shown = chain["links"][0]["presented"].as_str().unwrap_or_default();
    ensure!(
        chain["credentials"]
            .as_array()
            .is_some_and(|known| known.iter().any(|known| known["id"] == shown)),
        "{chain:#}"
    );
    Ok(())
}

/// Inside TLS, responses are observed for a process that is known to talk to an authenticator.
#[test]
fn inside_tls() -> Result<()> {
    const SHOWN: &str = "hvs.FAKEshownInsideTls00000000001";
    const MINTED: &str = "hvs.FAKEmintedInsideTls0000000001";
    let directory = tempfile::tempdir()?;
    let certified = rcgen::generate_simple_self_signed(vec!["vault.example".to_owned()])?;
    let certificate = directory.path().join("server.pem");
    std::fs::write(
        &certificate,
        certified.cert.pem() + &certified.signing_key.serialize_pem(),
    )?;
    let config = directory.path().join("keytrail.yaml");
    std::fs::write(
        &config,
        "authenticators: [ { name: vault, destinations: [ \"vault.example:*\" ] } ]\n",
    )?;
    let agent = Agent::start(
        directory.path(),
        &["--config", &config.display().to_string()],
    )?;
    let mut client = Command::new("python3")
        .arg(client("vault.py"))
        .arg(&certificate)
        .args([SHOWN, MINTED])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let minted = agent.id_of(MINTED)?;
    let chain = agent.await_json(&["query", "chain", &minted], |answer| {
        answer["links"]
            .as_array()
            .is_some_and(|links| !links.is_empty())
    });
    drop(client.stdin.take());
    client.wait()?;
    let link = &chain?["links"][0];
    assert_eq!(link["presented"], agent.id_of(SHOWN)?.as_str());
    assert_eq!(link["minted"], minted.as_str());
    assert_eq!(link["authenticator"]["name"], "vault.example");
    Ok(())
}
