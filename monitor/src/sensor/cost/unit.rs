//! What can be turned off to spare the node, in the order in which it is.

use monitor_common::record::Probe;
use monitor_parse::tls_functions as tls;

/// A part of the probes that is turned off and on as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CostUnit {
    /// The search of responses to plaintext requests.
    Responses,
    /// The search of plaintext requests.
    Plaintext,
    /// Every uprobe.
    Tls,
    Dns,
    ServerNames,
}

/// Number of units.
pub const COST_UNITS: usize = 5;

impl CostUnit {
    /// The order in which they are turned off: first what finds the least for its price. Processes,
    /// files, environments, memory and connections are never turned off: without them nothing could
    /// be said at all.
    pub const ORDER: [Self; COST_UNITS] = [
        Self::Responses,
        Self::Plaintext,
        Self::Tls,
        Self::Dns,
        Self::ServerNames,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Responses => "responses in plaintext",
            Self::Plaintext => "requests in plaintext",
            Self::Tls => "TLS",
            Self::Dns => "DNS",
            Self::ServerNames => "server names",
        }
    }

    /// What is not observed without it.
    pub fn missed(self) -> &'static str {
        match self {
            Self::Responses => "credentials issued in plaintext",
            Self::Plaintext => "credentials presented or issued in plaintext",
            Self::Tls => "credentials presented inside TLS, and credentials issued inside TLS",
            Self::Dns => "names of destinations from DNS, and credentials issued in plaintext",
            Self::ServerNames => {
                "server names of TLS connections, credentials presented in plaintext, those issued inside TLS, and the connection of each that is presented inside TLS"
            }
        }
    }

    /// The probe whose hooks are no longer attached.
    pub fn probe(self) -> Probe {
        match self {
            Self::Responses | Self::Plaintext => Probe::Clear,
            Self::Tls => Probe::Present,
            Self::Dns => Probe::Dns,
            Self::ServerNames => Probe::Hello,
        }
    }

    /// The programs that no longer run.
    pub fn stops(self, program: &str) -> bool {
        match self {
            Self::Responses => program == "minted_ingress",
            // Without a request no response is searched.
            Self::Plaintext => ["clear_egress", "minted_ingress"].contains(&program),
            Self::Tls => is_uprobe(program),
            // What is called by a program stops with it.
            Self::Dns => ["dns_ingress", "minted_ingress"].contains(&program),
            Self::ServerNames => {
                ["hello_egress", "clear_egress", "minted_ingress"].contains(&program)
            }
        }
    }

    /// Whether the time of a program is that of the unit. What a program calls counts as its own
    /// time.
    pub fn is_paid_by(self, program: &str) -> bool {
        match self {
            Self::Responses | Self::Dns => program == "dns_ingress",
            Self::Plaintext | Self::ServerNames => program == "hello_egress",
            Self::Tls => is_uprobe(program),
        }
    }
}

/// Whether a program is attached to functions in user space, where the kernel's way to the program
/// costs more than the program.
pub fn is_uprobe(program: &str) -> bool {
    [
        tls::WRITE,
        tls::WRITTEN,
        tls::FREED,
        tls::SERVER,
        tls::GO,
        tls::READ,
        tls::READ_EX,
        tls::READ_RETURN,
        "present_write_short",
        "present_go_short",
    ]
    .contains(&program)
}
