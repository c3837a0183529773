//! The rules, and what they refer to.

/// A rule and what it refers to.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub name: &'static str,
    /// What it says, in a sentence.
    pub about: &'static str,
    pub references: &'static [&'static str],
}

pub const UNEXPECTED_HOP: Rule = Rule {
    name: "unexpected-hop",
    about: "A credential at a destination that neither its class's home nor an expectation allows.",
    references: &[
        "OWASP NHI2:2025 Secret Leakage",
        "ATT&CK T1567",
        "ATT&CK T1528",
    ],
};
pub const UNEXPECTED_READER: Rule = Rule {
    name: "unexpected-reader",
    about: "A workload outside the written readers; one pod that reads another's credential.",
    references: &["OWASP NHI9:2025 NHI Reuse", "ATT&CK T1552.001"],
};
pub const CREDENTIAL_COPIED: Rule = Rule {
    name: "credential-copied",
    about: "The same fingerprint in a second place or workload.",
    references: &["OWASP NHI9:2025 NHI Reuse", "ATT&CK T1552"],
};
pub const FOREIGN_PROCESS_READ: Rule = Rule {
    name: "foreign-process-read",
    about: "The environment or memory of a process that holds a credential, read by another.",
    references: &[
        "OWASP NHI2:2025 Secret Leakage",
        "ATT&CK T1003.007",
        "ATT&CK T1055.008",
    ],
};
pub const HUMAN_USE: Rule = Rule {
    name: "human-use",
    about: "A machine's credential read from an interactive login.",
    references: &["OWASP NHI10:2025 Human Use of NHI", "ATT&CK T1078"],
};
pub const EXPIRED: Rule = Rule {
    name: "expired-credential-used",
    about: "A credential that was used after its expiry.",
    references: &["OWASP NHI1:2025 Improper Offboarding", "ATT&CK T1550.001"],
};
pub const LONG_LIVED: Rule = Rule {
    name: "long-lived-credential",
    about: "Older than it may be, or static where the class has a short-lived form.",
    references: &["OWASP NHI7:2025 Long-Lived Secrets"],
};
pub const REVOKED: Rule = Rule {
    name: "revoked-credential-used",
    about: "A credential that was used after it was revoked.",
    references: &["OWASP NHI1:2025 Improper Offboarding", "ATT&CK T1078"],
};

pub const CLEARTEXT: Rule = Rule {
    name: "cleartext-credential",
    about: "A credential presented outside TLS, loopback excepted.",
    references: &[
        "OWASP NHI4:2025 Insecure Authentication",
        "ATT&CK T1040",
        "ATT&CK T1552",
    ],
};

pub const UNEXPECTED_MINT: Rule = Rule {
    name: "unexpected-mint",
    about: "A credential obtained from an authenticator by a workload that is not expected to.",
    references: &[
        "OWASP NHI5:2025 Overprivileged NHI",
        "ATT&CK T1552.005",
        "ATT&CK T1550.001",
    ],
};

pub const UNTRUSTED_BINARY: Rule = Rule {
    name: "untrusted-binary",
    about: "A credential read by an executable that lives in memory, was deleted, was added to a container after its image, or lies in a temporary directory.",
    references: &["ATT&CK T1620", "ATT&CK T1036", "ATT&CK T1552.001"],
};

pub const HARVEST: Rule = Rule {
    name: "harvest",
    about: "Credentials of three classes that are not its own, picked up by one workload in ten minutes.",
    references: &[
        "OWASP NHI2:2025 Secret Leakage",
        "ATT&CK T1552",
        "ATT&CK T1555",
    ],
};

pub const BLIND: Rule = Rule {
    name: "blind",
    about: "A probe that is lost, detached or overrun, or an agent that was tampered with.",
    references: &["ATT&CK T1562.001", "ATT&CK T1562.006"],
};

/// The rules of this release.
pub const RULES: [Rule; 13] = [
    UNEXPECTED_HOP,
    UNEXPECTED_READER,
    CREDENTIAL_COPIED,
    FOREIGN_PROCESS_READ,
    CLEARTEXT,
    REVOKED,
    EXPIRED,
    LONG_LIVED,
    HUMAN_USE,
    UNEXPECTED_MINT,
    UNTRUSTED_BINARY,
    HARVEST,
    BLIND,
];

/// Refuses a name that no rule has, and says which there are.
pub fn known(name: &str) -> Result<(), String> {
    if RULES.iter().any(|rule| rule.name == name) {
        return Ok(());
    }
    let known: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
    Err(format!("no rule `{name}`; there are {}", known.join(", ")))
}
