//! The services, and what asks them.

use crate::{
    contender::Peer,
    load::{self, LoadFigures},
};
use anyhow::{Context as _, Result, ensure};
use lab::{
    child::KilledChild,
    free_port,
    nginx::{self, Nginx, certificate},
    wait_for,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A running service with its load.
pub trait RunningService {
    fn load(&mut self, seconds: u64) -> Result<LoadFigures>;
}

/// A service under measurement.
pub struct Service {
    pub name: &'static str,
    /// Whether it is asked over the network.
    pub connects: bool,
    /// Whether it and its clients use the shared library of OpenSSL.
    pub has_openssl: bool,
    pub peers: &'static [Peer],
    /// Starts it; `None` if its programs are not installed.
    pub start: fn() -> Result<Option<Box<dyn RunningService>>>,
}

/// An obviously fake token with an issuer's mark.
const CREDENTIAL: &str = "Authorization: Bearer ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0000";
const CLOSE: &str = "Connection: close";

pub const SERVICES: &[Service] = &[
    Service {
        name: "HTTP, kept alive",
        connects: true,
        has_openssl: false,
        peers: &[Peer::Tcpconnect, Peer::Audit],
        start: || web(false, &[]),
    },
    Service {
        name: "HTTP, a credential in each request",
        connects: true,
        has_openssl: false,
        peers: &[],
        start: || web(false, &[CREDENTIAL]),
    },
    Service {
        name: "HTTP, new connections",
        connects: true,
        has_openssl: false,
        peers: &[Peer::Tcpconnect, Peer::Audit],
        start: || web(false, &[CLOSE]),
    },
    Service {
        name: "HTTPS, kept alive",
        connects: true,
        has_openssl: true,
        peers: &[Peer::SslWrites],
        start: || web(true, &[]),
    },
    Service {
        name: "HTTPS, each request with a credential",
        connects: true,
        has_openssl: true,
        peers: &[],
        start: || web(true, &[CREDENTIAL]),
    },
    Service {
        name: "HTTPS, new connections",
        connects: true,
        has_openssl: true,
        peers: &[Peer::SslWrites],
        start: || web(true, &[CLOSE]),
    },
    Service {
        name: "PostgreSQL over TLS, pgbench",
        connects: true,
        has_openssl: true,
        peers: &[],
        start: || Postgres::start().map(boxed),
    },
    Service {
        name: "Redis",
        connects: true,
        has_openssl: false,
        peers: &[],
        start: || Redis::start().map(boxed),
    },
    Service {
        name: "Go, HTTP/2 over TLS",
        connects: true,
        has_openssl: false,
        peers: &[],
        start: || GoService::start().map(boxed),
    },
    Service {
        name: "a build: a compiler for each file",
        connects: false,
        has_openssl: false,
        peers: &[Peer::Opensnoop, Peer::Execsnoop, Peer::Audit],
        start: || Build::start().map(boxed),
    },
];

fn boxed<S: RunningService + 'static>(service: Option<S>) -> Option<Box<dyn RunningService>> {
    service.map(|service| Box::new(service) as Box<dyn RunningService>)
}

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// nginx, asked by wrk.
struct Web {
    nginx: Nginx,
    tls: bool,
    headers: &'static [&'static str],
}

fn web(tls: bool, headers: &'static [&'static str]) -> Result<Option<Box<dyn RunningService>>> {
    if !nginx::is_installed() {
        return Ok(None);
    }
    let nginx = Nginx::start("")?;
    Ok(boxed(Some(Web {
        nginx,
        tls,
        headers,
    })))
}

impl RunningService for Web {
    fn load(&mut self, seconds: u64) -> Result<LoadFigures> {
        const CONNECTIONS: u32 = 16;
        let url = if self.tls {
            format!("https://{}/", self.nginx.tls)
        } else {
            format!("http://{}/", self.nginx.plain)
        };
        let mut command = nginx::wrk(&url, CONNECTIONS, seconds, self.headers);
        load::run(&mut command, seconds, load::wrk)
    }
}

/// PostgreSQL, asked by pgbench over TLS.
struct Postgres {
    server: Child,
    directory: tempfile::TempDir,
    port: u16,
}

/// The user as whom PostgreSQL runs: it refuses to be root.
const USER: &str = "nobody";

impl Postgres {
    fn start() -> Result<Option<Self>> {
        let Some(programs) = postgres_programs() else {
            return Ok(None);
        };
        let directory = tempfile::tempdir()?;
        let (certificate, key) = certificate(directory.path())?;
        let data = directory.path().join("data");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        let owned = Command::new("chown")
            .arg("-R")
            .arg(USER)
            .arg(directory.path())
            .status()?;
        ensure!(owned.success(), "chown failed");
        let as_user = |program: &str| {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid", USER, "--clear-groups"])
                .arg(programs.join(program))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command
        };
        let made = as_user("initdb")
            .args(["--auth", "trust", "--username", "bench", "--pgdata"])
            .arg(&data)
            .status()?;
        ensure!(made.success(), "initdb failed");
        let port = free_port()?;
        let server = as_user("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k", ""])
            .args(["-c", "ssl=on"])
            .args(["-c", &format!("ssl_cert_file={}", certificate.display())])
            .args(["-c", &format!("ssl_key_file={}", key.display())])
            .spawn()?;
        let running = Self {
            server,
            directory,
            port,
        };
        wait_for("PostgreSQL answers", Duration::from_secs(20), || {
            let made = running.pgbench().args(["-i", "-s", "1"]).output()?;
            Ok(made.status.success().then_some(()))
        })?;
        Ok(Some(running))
    }

    fn pgbench(&self) -> Command {
        let mut command = Command::new("pgbench");
        command
            .env("PGSSLMODE", "require")
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "bench")
            .env("PGDATABASE", "postgres")
            .env("HOME", self.directory.path());
        command
    }
}

impl RunningService for Postgres {
    fn load(&mut self, seconds: u64) -> Result<LoadFigures> {
        let mut command = self.pgbench();
        command.args(["-S", "-n", "-c", "4", "-T", &seconds.to_string()]);
        load::run(&mut command, seconds, load::pgbench)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // It ends its connections and processes.
        let _ = kill_process(Pid::from_child(&self.server), Signal::INT);
        let _ = self.server.wait();
    }
}

/// Debian keeps the server's programs by version, and not on the path.
fn postgres_programs() -> Option<PathBuf> {
    if !is_installed("pgbench") {
        return None;
    }
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    versions
        .map(|version| version.path().join("bin"))
        .find(|programs| programs.join("initdb").is_file())
}

/// Redis, asked by redis-benchmark.
struct Redis {
    _server: KilledChild,
    port: u16,
}

impl Redis {
    fn start() -> Result<Option<Self>> {
        if !is_installed("redis-server") || !is_installed("redis-benchmark") {
            return Ok(None);
        }
        let port = free_port()?;
        let server = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--save",
                "",
                "--bind",
                "127.0.0.1",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let server = KilledChild(server);
        wait_for("Redis listens", Duration::from_secs(10), || {
            Ok(TcpStream::connect(("127.0.0.1", port)).ok())
        })?;
        Ok(Some(Self {
            _server: server,
            port,
        }))
    }
}

impl RunningService for Redis {
    fn load(&mut self, seconds: u64) -> Result<LoadFigures> {
        // It runs for a number of requests, not for a time.
        const PER_SECOND: u64 = 50_000;
        let mut command = Command::new("redis-benchmark");
        command
            .args(["-p", &self.port.to_string(), "-t", "get", "--csv"])
            .args(["-c", "16", "-n", &(PER_SECOND * seconds).to_string()]);
        let before = Instant::now();
        let mut figures = load::run(&mut command, seconds, load::redis)?;
        figures.processor *= figures.rate * seconds as f64 / (PER_SECOND * seconds) as f64;
        ensure!(before.elapsed().as_secs() < 20 * seconds, "too slow");
        Ok(figures)
    }
}

/// A client and a server in Go.
struct GoService {
    program: PathBuf,
    _directory: tempfile::TempDir,
    _server: KilledChild,
    port: u16,
}

impl GoService {
    fn start() -> Result<Option<Self>> {
        let Some(go) = std::env::var_os("KEYTRAIL_GO") else {
            return Ok(None);
        };
        let directory = tempfile::tempdir()?;
        let program = directory.path().join("http2");
        let built = Command::new(go)
            .args(["build", "-o"])
            .arg(&program)
            .arg("main.go")
            .current_dir(lab::client("http2"))
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=mod")
            .env("GOCACHE", directory.path().join("cache"))
            .output()?;
        ensure!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
        let (certificate, key) = certificate(directory.path())?;
        let port = free_port()?;
        let mut command = Command::new(&program);
        command
            .args(["serve", &format!("127.0.0.1:{port}")])
            .arg(&certificate)
            .arg(&key);
        let server = KilledChild::start(&mut command, "ready")?;
        Ok(Some(Self {
            program,
            _directory: directory,
            _server: server,
            port,
        }))
    }
}

impl RunningService for GoService {
    fn load(&mut self, seconds: u64) -> Result<LoadFigures> {
        let mut command = Command::new(&self.program);
        command.args([
            "load",
            &format!("https://127.0.0.1:{}/", self.port),
            &seconds.to_string(),
        ]);
        load::run(&mut command, seconds, load::numbers)
    }
}

/// Compiles small files, each with processes of its own, as `make` does.
struct Build {
    directory: tempfile::TempDir,
}

impl Build {
    fn start() -> Result<Option<Self>> {
        if !is_installed("cc") {
            return Ok(None);
        }
        let directory = tempfile::tempdir()?;
        fs::write(
            directory.path().join("main.c"),
            "#include <stdio.h>\n#include <stdlib.h>\nint main(void) { puts(\"x\"); return 0; }\n",
        )?;
        Ok(Some(Self { directory }))
    }

    fn compile(&self, at: &Path) -> Result<()> {
        let status = Command::new("cc")
            .args(["-c", "-o"])
            .arg(at)
            .arg(self.directory.path().join("main.c"))
            .status()
            .context("cannot run cc")?;
        ensure!(status.success(), "cc failed");
        Ok(())
    }
}

impl RunningService for Build {
    fn load(&mut self, seconds: u64) -> Result<LoadFigures> {
        let object = self.directory.path().join("main.o");
        let (begin, length) = (Instant::now(), Duration::from_secs(seconds));
        let mut times = Vec::new();
        let mut figures = load::measured(seconds, || {
            while begin.elapsed() < length {
                let each = Instant::now();
                self.compile(&object)?;
                times.push(each.elapsed().as_secs_f64() * 1000.0);
            }
            Ok(times.len() as f64 / begin.elapsed().as_secs_f64())
        })?;
        times.sort_by(f64::total_cmp);
        figures.p50 = times[times.len() / 2];
        figures.p99 = times[times.len() * 99 / 100];
        Ok(figures)
    }
}
