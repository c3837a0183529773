//! Executes the guides in `docs/` literally: their files are written, their commands are run on a
//! real agent, and the output must match what the guide shows.
//!
//! What happens between the commands is in comments, `<!-- happens: NAME -->`, which are
//! implemented here. The first line of a YAML block names its file. Times, ages, pids and ports are
//! treated as equal, as is everything below "Not seen", which depends on the kernel.
//! `KEYTRAIL_WRITE_GUIDES=1` writes the output into the guides.

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use lab::{
    agent::{Agent, binary},
    server::TlsServer,
    wait_for,
    workload::{TestUnit, aws_credentials},
};
use regex::Regex;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

const KEY_ID: &str = "AKIAFAKEGUIDEFAKE001";
const SECRET: &str = "FAKE/guide/secret/0000000000000000000001";
/// The same fingerprint key in every run, so that ids are the same.
const FINGERPRINTS: &str = "000102030405060708090a0b0c0d0e0f";

struct Guide {
    directory: tempfile::TempDir,
    agent: Option<Agent>,
    server: TlsServer,
    units: Vec<(&'static str, TestUnit)>,
    /// Time of the last action.
    happened: Timestamp,
    write: bool,
}

impl Guide {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let home = directory.path().join("srv/payments");
        fs::create_dir_all(&home)?;
        aws_credentials(&home, KEY_ID, SECRET)?;
        fs::write(directory.path().join("fleet.key"), FINGERPRINTS)?;
        let mut units = Vec::new();
        for name in ["payments.service", "reports.service"] {
            units.push((name, TestUnit::new(name)?));
        }
        Ok(Self {
            directory,
            agent: None,
            server: server()?,
            units,
            happened: Timestamp::now(),
            write: std::env::var_os("KEYTRAIL_WRITE_GUIDES").is_some(),
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name.trim_start_matches('/'))
    }

    /// Performs what a guide says has happened.
    fn happens(&mut self, what: &str) -> Result<()> {
        self.happened = Timestamp::now();
        match what.split(' ').collect::<Vec<_>>()[..] {
            ["the", "agent", "runs"] => {
                let config = self.at("keytrail.yaml");
                let config = config.to_str().context("a name")?;
                self.agent = Some(Agent::start(self.directory.path(), &["--config", config])?);
            }
            // UNIT uses the key at HOST …
            [unit, "calls", ref hosts @ ..] => {
                let key = self.at("srv/payments/.aws/credentials");
                let mut script = format!(
                    "k=$(<'{}'); id=$(sed -n 's/^aws_access_key_id = //p' <<<\"$k\"); secret=$(sed -n 's/^aws_secret_access_key = //p' <<<\"$k\")",
                    key.display()
                );
                for host in hosts {
                    write!(
                        script,
                        "; curl -sS --insecure --aws-sigv4 aws:amz:eu-central-1:s3 --user \"$id:$secret\" --connect-to ::127.0.0.1:{port} https://{host}:{port}/ >/dev/null",
                        port = self.server.address.port()
                    )?;
                }
                let (_, unit) = self
                    .units
                    .iter()
                    .find(|(name, _)| *name == unit)
                    .context("no such unit")?;
                unit.sh(&script, &[])?;
            }
            _ => bail!("nobody knows how `{what}` happens"),
        }
        Ok(())
    }

    /// Writes a file of the guide; a configuration is loaded.
    fn file(&self, text: &str) -> Result<()> {
        let name = text.lines().next().context("a first line")?;
        let name = name
            .strip_prefix("# ")
            .context("the first line names the file")?;
        let mut text = text.to_owned();
        if name == "keytrail.yaml" {
            writeln!(
                text,
                "fingerprint_key_file: {}",
                self.at("fleet.key").display()
            )?;
        }
        // Paths are below this guide's own directory.
        let text = text.replace(
            "/srv/",
            &format!("{}/srv/", self.directory.path().display()),
        );
        let loaded = || -> Result<usize> {
            let Some(agent) = &self.agent else {
                return Ok(0);
            };
            Ok(agent.log_text().matches("configuration reloaded").count())
        };
        let before = loaded()?;
        fs::write(self.at(name), text)?;
        if name == "keytrail.yaml" && self.agent.is_some() {
            wait_for(
                "the configuration is taken in",
                Duration::from_secs(10),
                || Ok((loaded()? > before).then_some(())),
            )?;
        }
        Ok(())
    }

    /// The output of a command.
    fn run(&self, command: &str) -> Result<String> {
        let time = Regex::new(r"^\d{4}-\d\d-\d\dT")?;
        let directory = self.directory.path().display().to_string();
        let mut arguments: Vec<String> = command
            .split(' ')
            .skip(1)
            .map(|word| {
                if time.is_match(word) {
                    self.happened.to_string()
                } else if word.starts_with("/srv/") {
                    format!("{directory}{word}")
                } else {
                    word.to_owned()
                }
            })
            .collect();
        ensure!(
            command.starts_with("keytrail "),
            "`{command}` is none of ours"
        );
        if !command.starts_with("keytrail policy check") {
            let agent = self.agent.as_ref().context("no agent runs")?;
            arguments.extend([
                "--state-dir".to_owned(),
                agent.state_dir.display().to_string(),
            ]);
        }
        let output = Command::new(binary()?)
            .args(arguments)
            .env("TZ", "UTC")
            .current_dir(self.directory.path())
            .output()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text)?.replace(&directory, "");
        let lines = text.trim_end().lines().map(str::trim_end);
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// Runs a command until it prints what the guide shows; returns the output.
    fn show(&self, command: &str, shown: &str) -> Result<String> {
        let mut last = String::new();
        let done = wait_for(command, Duration::from_secs(10), || {
            let before = std::mem::replace(&mut last, self.run(command)?);
            let right = if self.write {
                same(&before)? == same(&last)?
            } else {
                same(&last)? == same(shown)?
            };
            // Retried until the last action has had time to be written.
            let late = Timestamp::now().duration_since(self.happened).as_secs() > 3;
            Ok((right && (late || !self.write)).then_some(()))
        });
        if done.is_err() {
            bail!("`{command}` prints\n{last}\nand the guide shows\n{shown}");
        }
        Ok(last)
    }
}

/// One server for all hosts, preferably on the HTTPS port.
fn server() -> Result<TlsServer> {
    static SERVER: OnceLock<TlsServer> = OnceLock::new();
    if let Some(server) = SERVER.get() {
        return Ok(*server);
    }
    let server = TlsServer::start_at("127.0.0.1:443").or_else(|_| TlsServer::start("127.0.0.1"))?;
    Ok(*SERVER.get_or_init(|| server))
}

/// Replaces what differs in every run.
fn same(text: &str) -> Result<String> {
    let mut lines = Vec::new();
    let mut below = false;
    for line in text.lines() {
        // What is not seen depends on the kernel.
        if below && !line.trim().is_empty() {
            continue;
        }
        below = line == "Not seen";
        lines.push(line);
    }
    let mut text = lines.join("\n");
    for (pattern, word) in [
        (
            r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)",
            "TIME",
        ),
        (r"\d\d:\d\d:\d\dZ", "TIME"),
        (r"\d{4}-\d\d-\d\d", "DAY"),
        (r"\d+ (s|min|h|d)\b( ago)?", "AGO"),
        (r"\[\d+\]", "[PID]"),
        (r"\b(pid|process) \d+", "PID"),
        (r":\d{3,5}\b", ":PORT"),
        (r"[ \t]+", " "),
    ] {
        text = Regex::new(pattern)?.replace_all(&text, word).into_owned();
    }
    Ok(text)
}

/// Executes a guide from the first line to the last.
fn follow(name: &str) -> Result<()> {
    ensure!(lab::is_root(), "the scenarios need root");
    let path: PathBuf = lab::root().join("docs").join(name);
    let text = fs::read_to_string(&path)?;
    let mut guide = Guide::new()?;
    let mut written = String::new();
    let mut lines = text.lines();
    let mut commands = 0;
    while let Some(line) = lines.next() {
        writeln!(written, "{line}")?;
        if let Some(what) = line.strip_prefix("<!-- happens: ") {
            guide.happens(what.trim_end_matches(" -->"))?;
        }
        let kind = line.strip_prefix("```").unwrap_or_default();
        if kind.is_empty() {
            continue;
        }
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let block = block.join("\n");
        match kind {
            "yaml" => {
                guide.file(&format!("{block}\n"))?;
                writeln!(written, "{block}\n```")?;
            }
            "console" => {
                let (command, shown) = block.split_once('\n').unwrap_or((&block, ""));
                let command = command.strip_prefix("$ ").context("a command")?;
                let printed = guide.show(command, shown)?;
                commands += 1;
                writeln!(written, "$ {command}\n{}\n```", printed.trim_end())?;
            }
            _ => writeln!(written, "{block}\n```")?,
        }
    }
    println!("{commands} commands of docs/{name} print what it shows");
    ensure!(commands > 0);
    if guide.write {
        fs::write(Path::new(&path), written)?;
    }
    Ok(())
}

#[test]
fn responding() -> Result<()> {
    follow("responding.md")
}

#[test]
fn writing() -> Result<()> {
    follow("writing.md")
}
