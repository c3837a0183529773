//! nginx, and wrk, which asks it.

use crate::{child::KilledChild, free_port, wait_for};
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A running nginx, with one port without TLS and one with it.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    _directory: tempfile::TempDir,
}

/// Whether nginx and wrk are installed.
pub fn is_installed() -> bool {
    // wrk ends with an error if it is asked for its version only.
    let starts = |program: &str| self::program(program).arg("-v").output().is_ok();
    starts("nginx") && starts("wrk")
}

/// A program that may have been unpacked beside its libraries.
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    if let Some(libraries) = std::env::var_os("KEYTRAIL_WEB_LIBRARIES") {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}

impl Nginx {
    /// Starts it with one worker on free ports of loopback. `more` is added to the server's
    /// configuration.
    pub fn start(more: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let [plain, tls] = [free_port()?, free_port()?];
        let (certificate, key) = certificate(directory.path())?;
        let place = directory.path().display();
        let configuration = format!(
            "daemon off; worker_processes 1; error_log {place}/error.log; pid {place}/pid;
             events {{ worker_connections 4096; }}
             http {{
               access_log off; keepalive_requests 1000000000;
               client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;
               fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi;
               scgi_temp_path {place}/scgi;
               server {{
                 listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl;
                 ssl_certificate {certificate}; ssl_certificate_key {key};
                 location / {{ return 200 \"{body}\"; }}
                 {more}
               }}
             }}",
            certificate = certificate.display(),
            key = key.display(),
            body = "x".repeat(200),
        );
        let file = directory.path().join("nginx.conf");
        fs::write(&file, configuration)?;
        let child = program("nginx")
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg(directory.path().join("error.log"))
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start nginx")?;
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let nginx = Self {
            child,
            plain: local(plain),
            tls: local(tls),
            _directory: directory,
        };
        wait_for("nginx listens", Duration::from_secs(10), || {
            Ok(TcpStream::connect(nginx.tls).ok())
        })?;
        Ok(nginx)
    }

    /// The process that answers requests.
    pub fn worker(&self) -> Result<u32> {
        crate::agent::children_of(self.child.id())?
            .first()
            .copied()
            .context("nginx has no worker")
    }
}

impl Drop for Nginx {
    /// A killed master leaves its workers behind.
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Writes a self-signed certificate and its key.
pub fn certificate(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    let certified = rcgen::generate_simple_self_signed(vec!["bench.example".to_owned()])?;
    let (certificate, key) = (directory.join("server.pem"), directory.join("server.key"));
    fs::write(&certificate, certified.cert.pem())?;
    fs::write(&key, certified.signing_key.serialize_pem())?;
    Ok((certificate, key))
}

/// wrk with these headers, not started yet.
pub fn wrk(url: &str, connections: u32, seconds: u64, headers: &[&str]) -> Command {
    let mut command = program("wrk");
    command
        .args(["--threads", "1", "--latency"])
        .args(["--connections", &connections.to_string()])
        .args(["--duration", &format!("{seconds}s")]);
    for header in headers {
        command.args(["--header", header]);
    }
    command.arg(url).stdin(Stdio::null());
    command
}

/// Starts wrk in the background, until it is dropped.
pub fn start_wrk(url: &str, connections: u32, headers: &[&str]) -> Result<KilledChild> {
    const LONG: u64 = 3600;
    let child = wrk(url, connections, LONG, headers)
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start wrk")?;
    Ok(KilledChild(child))
}

/// The library with OpenSSL's functions that a program is linked with.
pub fn ssl_library(program: &str) -> Result<PathBuf> {
    let script = format!("ldd $(command -v {program})");
    let output = Command::new("bash").args(["-c", &script]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = text.split_whitespace();
    match words.find(|word| word.starts_with('/') && word.contains("libssl")) {
        Some(path) => Ok(path.into()),
        None => bail!("{program} is not linked with libssl"),
    }
}
