//! Shared parts of the end-to-end scenarios and the demo: a TLS server on loopback, workloads in
//! cgroups of their own, and a running agent.

pub mod agent;
pub mod baseline;
pub mod child;
pub mod cluster;
pub mod containers;
pub mod maps;
pub mod memory;
pub mod nginx;
pub mod server;
pub mod skip;
pub mod tamper;
pub mod treasure;
pub mod web;
pub mod workload;

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Polls until there is an answer; `what` is named in the error.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > end {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A free port on loopback; nothing else takes it in between.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}

/// The root of the workspace.
pub fn root() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The path of a client program.
pub fn client(name: &str) -> String {
    format!("{}/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Whether this process is root, which the probes need.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
