//! What runs beside a service.

use crate::{ServicesArguments, service::Service};
use anyhow::Result;
use lab::{
    agent::Agent,
    baseline::{
        AuditRules, BackgroundLoad, EXECSNOOP, OPENSNOOP, bpftrace, empty_packets, empty_uprobe,
    },
    nginx::ssl_library,
};

/// The service alone.
pub const BARE: &str = "alone";
pub const KEYTRAIL: &str = "Keytrail";
pub const EMPTY_PACKETS: &str = "empty packet programs";

/// A tool under measurement.
pub struct ServiceContender {
    pub name: &'static str,
    /// Starts it; `None` if it is not available here.
    pub start: fn(&ServicesArguments) -> Result<BackgroundLoad>,
}

/// The contenders for a service.
pub fn contenders(service: &Service, peers: bool) -> Vec<ServiceContender> {
    let mut all = Vec::new();
    if service.connects {
        all.push(ServiceContender {
            name: EMPTY_PACKETS,
            start: |arguments| empty_packets(&arguments.probes),
        });
    }
    if service.has_openssl {
        all.push(ServiceContender {
            name: "an empty uprobe on `SSL_write`",
            start: |arguments| empty_uprobe(&arguments.probes, &ssl_library("nginx")?),
        });
    }
    all.push(ServiceContender {
        name: KEYTRAIL,
        start: |_| Ok(Some(Box::new(RunningAgent::start()?))),
    });
    if peers {
        all.extend(service.peers.iter().map(|peer| match peer {
            Peer::Opensnoop => ServiceContender {
                name: "bpftrace opensnoop",
                start: |_| bpftrace(OPENSNOOP),
            },
            Peer::Execsnoop => ServiceContender {
                name: "bpftrace execsnoop",
                start: |_| bpftrace(EXECSNOOP),
            },
            Peer::Tcpconnect => ServiceContender {
                name: "bpftrace connects",
                start: |_| bpftrace(CONNECTS),
            },
            Peer::SslWrites => ServiceContender {
                name: "bpftrace count of `SSL_write`",
                start: |_| {
                    let library = ssl_library("nginx")?;
                    bpftrace(&format!(
                        "uprobe:{}:SSL_write {{ @ = count(); }}",
                        library.display()
                    ))
                },
            },
            Peer::Audit => ServiceContender {
                name: "audit of `connect` and `execve`",
                start: |_| Ok(AuditRules::set([AUDITED])),
            },
        }));
    }
    all
}

/// Other tools.
#[derive(Clone, Copy, Debug)]
pub enum Peer {
    Opensnoop,
    Execsnoop,
    Tcpconnect,
    SslWrites,
    Audit,
}

const AUDITED: &[&str] = &[
    "-a",
    "always,exit",
    "-F",
    "arch=b64",
    "-S",
    "connect",
    "-S",
    "execve",
];
const CONNECTS: &str = "tracepoint:syscalls:sys_enter_connect { printf(\"%d %s\\n\", pid, comm); }";

/// An agent with a state of its own. It stops as a service manager stops it, so that nothing of it
/// disturbs the next measurement.
struct RunningAgent {
    agent: Agent,
    _state: tempfile::TempDir,
}

impl RunningAgent {
    fn start() -> Result<Self> {
        let state = tempfile::tempdir()?;
        Ok(Self {
            agent: Agent::start(state.path(), &[])?,
            _state: state,
        })
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        if let Err(error) = self.agent.stop() {
            eprintln!("the agent did not stop: {error:#}");
        }
    }
}
