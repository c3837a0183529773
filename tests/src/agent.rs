//! Runs an agent, and queries it.

use crate::wait_for;
use anyhow::{Context as _, Result, bail};
use monitor_common::fingerprint::{FingerprintKey, fingerprint};
use serde_json::Value;
use std::{
    fmt::Write as _,
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::OnceLock,
    time::Duration,
};

/// The `keytrail` binary that was built beside this program.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KEYTRAIL_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    own.ancestors()
        .map(|directory| directory.join("keytrail"))
        .find(|path| path.is_file())
        .context("no `keytrail` beside this program: build it with `cargo xtask build`")
}

/// An agent that is stopped when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    pub state_dir: PathBuf,
    pub listen: SocketAddr,
    pub findings: PathBuf,
    pub log: PathBuf,
    token: OnceLock<String>,
}

/// The environment in which an agent runs, besides its directory.
#[derive(Debug, Default)]
pub struct Surroundings<'a> {
    /// Limits it to these capabilities; all if empty.
    pub capabilities: &'a [&'a str],
    /// A cgroup directory to run in.
    pub group: Option<&'a Path>,
    /// Standard output, to which findings are written.
    pub stdout: Option<&'a File>,
    pub environment: &'a [(&'a str, &'a str)],
}

/// Timeout for an agent to become ready: in an emulated machine the verifier is slow.
const START_TIMEOUT: Duration = Duration::from_secs(180);

impl Agent {
    /// Starts an agent on a free port, with its state in `directory`, and waits until it is ready.
    pub fn start(directory: &Path, more: &[&str]) -> Result<Self> {
        Self::start_with_capabilities(directory, more, &[])
    }

    /// As [`start`](Self::start), limited to these capabilities, such as `sys_ptrace`; all if
    /// empty.
    pub fn start_with_capabilities(
        directory: &Path,
        more: &[&str],
        capabilities: &[&str],
    ) -> Result<Self> {
        Self::start_in(
            directory,
            more,
            &Surroundings {
                capabilities,
                ..Surroundings::default()
            },
        )
    }

    /// As [`start`](Self::start), in the given surroundings.
    pub fn start_in(
        directory: &Path,
        more: &[&str],
        surroundings: &Surroundings<'_>,
    ) -> Result<Self> {
        let mut agent = Self::spawn(directory, more, surroundings)?;
        wait_for("the agent is ready", START_TIMEOUT, || {
            if let Some(status) = agent.child.try_wait()? {
                bail!("the agent ended with {status}: {}", agent.log_text());
            }
            Ok(agent
                .get_anonymously("/readyz")
                .ok()
                .filter(|(status, _)| *status == 200))
        })?;
        // None if another file is configured.
        let _ = agent.token();
        Ok(agent)
    }

    /// Starts an agent without waiting for it.
    pub fn spawn(directory: &Path, more: &[&str], surroundings: &Surroundings<'_>) -> Result<Self> {
        // A free port; nothing else takes it in between.
        let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let state_dir = directory.join("state");
        let findings = directory.join("findings.jsonl");
        let log = directory.join("agent.log");
        let mut command = match surroundings.group {
            None => Command::new("setpriv"),
            Some(group) => {
                let enter = format!(
                    "echo $$ > {}/cgroup.procs && exec setpriv \"$@\"",
                    group.display()
                );
                let mut command = Command::new("bash");
                command.args(["-c", &enter, "bash"]);
                command
            }
        };
        command.args(["--pdeathsig", "KILL"]);
        command.envs(surroundings.environment.iter().copied());
        let capabilities = surroundings.capabilities;
        if !capabilities.is_empty() {
            let bounding = format!("-all,+{}", capabilities.join(",+"));
            command.args(["--inh-caps=-all", "--bounding-set", &bounding]);
        }
        command
            .arg(binary()?)
            .arg("run")
            .arg("--state-dir")
            .arg(&state_dir)
            .args(["--listen", &listen.to_string()])
            .arg("--findings")
            .arg(if surroundings.stdout.is_some() {
                Path::new("-")
            } else {
                &findings
            })
            .args(more)
            .stdin(Stdio::null())
            .stdout(match surroundings.stdout {
                Some(stdout) => stdout.try_clone()?.into(),
                None => Stdio::null(),
            })
            .stderr(File::options().create(true).append(true).open(&log)?);
        let child = spawn_supervised(command)?;
        Ok(Self {
            child,
            state_dir,
            listen,
            findings,
            log,
            token: OnceLock::new(),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its child processes: the readers.
    pub fn children(&self) -> Result<Vec<u32>> {
        Ok(children_of(self.pid())?)
    }

    /// The agent's standard error.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The token of its API, which is read once: the state directory may hang later.
    pub fn token(&self) -> Result<&str> {
        if let Some(token) = self.token.get() {
            return Ok(token);
        }
        let file = self.state_dir.join("token");
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(self.token.get_or_init(|| text.trim().to_owned()))
    }

    /// What `keytrail page` prints.
    pub fn page_link(&self) -> Result<String> {
        let output = self.query(&["page"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("keytrail page: {said}");
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Sends a GET request with the agent's token; returns status and body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.request(
            path,
            &format!("authorization: Bearer {}\r\n", self.token()?),
        )
    }

    /// As [`get`](Self::get), without the token.
    pub fn get_anonymously(&self, path: &str) -> Result<(u16, String)> {
        self.request(path, "")
    }

    fn request(&self, path: &str, headers: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.listen)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {}\r\n{headers}connection: close\r\n\r\n",
            self.listen
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .context("no HTTP status")?;
        Ok((status, body.to_owned()))
    }

    /// Waits until the agent has loaded a changed configuration.
    pub fn await_loaded(&self) -> Result<()> {
        wait_for(
            "the configuration is reloaded",
            Duration::from_secs(10),
            || {
                let told = self.log_text().contains("configuration reloaded");
                Ok(told.then_some(()))
            },
        )
    }

    /// Runs a `keytrail` command on this agent's ledger.
    pub fn query(&self, arguments: &[&str]) -> Result<Output> {
        Ok(Command::new(binary()?)
            .args(arguments)
            .arg("--state-dir")
            .arg(&self.state_dir)
            .output()?)
    }

    /// As [`query`](Self::query), as JSON; `None` if the command failed, as it does for an unknown
    /// credential.
    pub fn json(&self, arguments: &[&str]) -> Result<Option<Value>> {
        let output = self.query(&[arguments, &["--output", "json"]].concat())?;
        if !output.status.success() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&output.stdout)?))
    }

    /// Queries until the answer satisfies `wanted`; returns it.
    pub fn await_json(&self, arguments: &[&str], wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = None;
        wait_for(
            &format!("`keytrail {}`", arguments.join(" ")),
            Duration::from_secs(8),
            || {
                last = self.json(arguments)?;
                Ok(last.clone().filter(|answer| wanted(answer)))
            },
        )
        .with_context(|| {
            let refused = self
                .query(arguments)
                .map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
            let known = self.query(&["query", "timeline"]);
            let known = known.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            format!(
                "the last answer: {last:?}, {refused:?}\nthe agent's log:\n{}\nwhat is known:\n{}",
                self.log_text(),
                known.unwrap_or_default()
            )
        })
    }

    /// The id that this agent gives a secret.
    pub fn id_of(&self, secret: &str) -> Result<String> {
        let key = std::fs::read_to_string(self.state_dir.join("fingerprint.key"))?;
        let key = FingerprintKey::from_bytes(u128::from_str_radix(key.trim(), 16)?.to_be_bytes());
        Ok(format!("kt-{:016x}", fingerprint(key, secret.as_bytes())))
    }

    /// Where a secret was presented, and how often; empty while it is unknown.
    pub fn presented(&self, secret: &str) -> Result<Vec<(String, u64)>> {
        let id = self.id_of(secret)?;
        let answer = self.json(&["query", "where", &id])?;
        let hops = answer
            .map(|answer| answer["hops"].clone())
            .unwrap_or_default();
        let mut found = Vec::new();
        for hop in hops.as_array().into_iter().flatten() {
            if hop["evidence"] == "presented" {
                let place = &hop["destination"];
                let one_of = place["one_of"].as_u64().unwrap_or(0);
                let mut label = format!(
                    "{}:{}",
                    place["address"].as_str().unwrap_or_default(),
                    place["port"]
                );
                if one_of > 0 {
                    write!(label, " (one of {one_of})")?;
                }
                found.push((label, hop["count"].as_u64().unwrap_or(0)));
            }
        }
        Ok(found)
    }

    /// Repeats an action until a secret is known to have been presented.
    pub fn await_presented(
        &self,
        secret: &str,
        limit: Duration,
        mut act: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        wait_for("what was presented", limit, || {
            act()?;
            Ok((!self.presented(secret)?.is_empty()).then_some(()))
        })
        .with_context(|| self.log_text())
    }

    /// Waits until something is known to use the credential at a place; returns the use.
    pub fn await_used(&self, place: &str) -> Result<Value> {
        self.await_json(&["query", "who", place], |answer| {
            answer["uses"]
                .as_array()
                .is_some_and(|uses| !uses.is_empty())
        })
    }

    /// Number of log lines that contain all of these texts.
    pub fn logged(&self, texts: &[&str]) -> usize {
        let log = self.log_text();
        log.lines()
            .filter(|line| texts.iter().all(|text| line.contains(text)))
            .count()
    }

    /// All findings in the stream so far.
    pub fn findings(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.findings).unwrap_or_default();
        // The agent may be writing the last line.
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).context("a line of findings is no JSON"))
            .collect()
    }

    /// Waits for a finding in the stream.
    pub fn await_finding(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for("a finding", Duration::from_secs(8), || {
            Ok(self.findings()?.into_iter().find(|finding| wanted(finding)))
        })
    }

    /// The value of a metric, summed over all series that have every one of `labels`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let (_, text) = self.get("/metrics")?;
        Ok(text
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && labels.iter().all(|label| line.contains(label))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    /// What it has counted as lost, and its last findings: the context of a failure.
    pub fn what_is_missing(&self) -> String {
        let metrics = self
            .get("/metrics")
            .map(|(_, text)| text)
            .unwrap_or_default();
        let counters = metrics.lines().filter(|line| {
            ["_lost_total", "_full_total"]
                .iter()
                .any(|part| line.contains(part))
                && !line.starts_with('#')
                && !line.ends_with(" 0")
        });
        let findings = self.findings().unwrap_or_default();
        let findings = findings.iter().rev().take(3).map(ToString::to_string);
        counters
            .map(str::to_owned)
            .chain(findings)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it with SIGTERM, as a service manager does, and waits.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        Ok(self.child.wait()?)
    }
}

/// The child processes of a process.
pub fn children_of(pid: u32) -> std::io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // The thread may have ended.
        let of_thread = std::fs::read_to_string(thread?.path().join("children"));
        let of_thread = of_thread.unwrap_or_default();
        children.extend(
            of_thread
                .split_ascii_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    Ok(children)
}

/// Starts a command that is killed when this process ends, however it ends. The kernel ties it to
/// the starting thread, which therefore stays alive.
pub(crate) fn spawn_supervised(mut command: Command) -> Result<Child> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        if sender.send(command.spawn()).is_ok() {
            loop {
                std::thread::park();
            }
        }
    });
    receiver
        .recv()
        .context("the thread that starts it ended")?
        .context("it cannot be started")
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
