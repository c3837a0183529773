//! What a canary does, and which probe must report it.

use monitor_common::record::Probe;

/// One action of a canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CanaryStep {
    /// It was started.
    Exec,
    /// With a credential in its environment.
    Variable,
    /// Opens a file with a credential's name.
    Open,
    /// Asks for the agent's memory, at an address where there is none.
    Memory,
    ConnectV4,
    ConnectV6,
    DatagramV4,
    DatagramV6,
    /// Connects to a port on which nobody listens.
    Refused,
    Hello,
    Plaintext,
    Dns,
    /// Calls a function of its own that has the probe of a TLS library's.
    TlsWrite,
}

impl CanaryStep {
    pub const ALL: [Self; 13] = [
        Self::Exec,
        Self::Variable,
        Self::Open,
        Self::Memory,
        Self::ConnectV4,
        Self::ConnectV6,
        Self::DatagramV4,
        Self::DatagramV6,
        Self::Refused,
        Self::Hello,
        Self::Plaintext,
        Self::Dns,
        Self::TlsWrite,
    ];

    /// As the canary names it in its answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Variable => "variable",
            Self::Open => "open",
            Self::Memory => "memory",
            Self::ConnectV4 => "connect-v4",
            Self::ConnectV6 => "connect-v6",
            Self::DatagramV4 => "datagram-v4",
            Self::DatagramV6 => "datagram-v6",
            Self::Refused => "refused",
            Self::Hello => "hello",
            Self::Plaintext => "plaintext",
            Self::Dns => "dns",
            Self::TlsWrite => "tls-write",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.name() == name)
    }

    /// The start of a canary is seen only when there is a new one.
    pub fn is_start(self) -> bool {
        matches!(self, Self::Exec | Self::Variable)
    }

    pub fn probe(self) -> Probe {
        match self {
            Self::Exec => Probe::Process,
            Self::Variable => Probe::Environ,
            Self::Open => Probe::File,
            Self::Memory => Probe::Memory,
            Self::ConnectV4
            | Self::ConnectV6
            | Self::DatagramV4
            | Self::DatagramV6
            | Self::Refused => Probe::Connect,
            Self::Hello => Probe::Hello,
            Self::Plaintext => Probe::Clear,
            Self::Dns => Probe::Dns,
            Self::TlsWrite => Probe::Present,
        }
    }

    /// The programs of which one must report it.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Exec => &["process_fork", "process_exec", "process_exit"],
            Self::Variable => &["environ_exec"],
            Self::Open => &[
                "file_open_lsm",
                "file_open_fentry",
                "file_open_kprobe",
                "file_open_exit",
            ],
            // Those at system calls report only calls that succeed.
            Self::Memory => &["memory_lsm", "memory_fentry", "memory_kprobe"],
            Self::ConnectV4 => &["connect_v4"],
            Self::ConnectV6 => &["connect_v6"],
            Self::DatagramV4 => &["connect_udp_v4"],
            Self::DatagramV6 => &["connect_udp_v6"],
            Self::Refused => &["connect_outcome"],
            Self::Hello => &["hello_egress"],
            Self::Plaintext => &["clear_egress"],
            Self::Dns => &["dns_ingress"],
            Self::TlsWrite => &["present_write", "present_write_short"],
        }
    }
}
