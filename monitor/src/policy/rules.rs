//! The rules, and their references.

/// A rule and its references.
#[derive(Clone, Copy, Debug)]
pub struct RuleMeta {
    pub name: &'static str,
    /// Its meaning, in one sentence.
    pub description: &'static str,
    pub references: &'static [&'static str],
}

pub const UNEXPECTED_HOP: RuleMeta = RuleMeta {
    name: "unexpected-hop",
    description: "A credential at a destination that neither its class's home nor an expectation allows.",
    references: &[
        "OWASP NHI2:2025 Secret Leakage",
        "ATT&CK T1567",
        "ATT&CK T1528",
    ],
};
pub const UNEXPECTED_READER: RuleMeta = RuleMeta {
    name: "unexpected-reader",
    description: "A workload outside the written readers, or one pod reading another's credential.",
    references: &["OWASP NHI9:2025 NHI Reuse", "ATT&CK T1552.001"],
};
pub const CREDENTIAL_COPIED: RuleMeta = RuleMeta {
    name: "credential-copied",
    description: "The same fingerprint in a second place or workload.",
    references: &["OWASP NHI9:2025 NHI Reuse", "ATT&CK T1552"],
};
pub const FOREIGN_PROCESS_READ: RuleMeta = RuleMeta {
    name: "foreign-process-read",
    description: "The environment or memory of a process that holds a credential, read by another.",
    references: &[
        "OWASP NHI2:2025 Secret Leakage",
        "ATT&CK T1003.007",
        "ATT&CK T1055.008",
    ],
};
pub const HUMAN_USE: RuleMeta = RuleMeta {
    name: "human-use",
    description: "A machine's credential read from an interactive login.",
    references: &["OWASP NHI10:2025 Human Use of NHI", "ATT&CK T1078"],
};
pub const EXPIRED: RuleMeta = RuleMeta {
    name: "expired-credential-used",
    description: "A credential used after its expiry.",
    references: &["OWASP NHI1:2025 Improper Offboarding", "ATT&CK T1550.001"],
};
pub const LONG_LIVED: RuleMeta = RuleMeta {
    name: "long-lived-credential",
    description: "A credential older than its maximum age, or static although its class has a short-lived form.",
    references: &["OWASP NHI7:2025 Long-Lived Secrets"],
};
pub const REVOKED: RuleMeta = RuleMeta {
    name: "revoked-credential-used",
    description: "A credential used after it was revoked.",
    references: &["OWASP NHI1:2025 Improper Offboarding", "ATT&CK T1078"],
};

pub const CLEARTEXT: RuleMeta = RuleMeta {
    name: "cleartext-credential",
    description: "A credential presented outside TLS, except on loopback.",
    references: &[
        "OWASP NHI4:2025 Insecure Authentication",
        "ATT&CK T1040",
        "ATT&CK T1552",
    ],
};

pub const UNEXPECTED_MINT: RuleMeta = RuleMeta {
    name: "unexpected-mint",
    description: "A credential obtained from an authenticator by a workload that is not expected to obtain it.",
    references: &[
        "OWASP NHI5:2025 Overprivileged NHI",
        "ATT&CK T1552.005",
        "ATT&CK T1550.001",
    ],
};

pub const UNTRUSTED_BINARY: RuleMeta = RuleMeta {
    name: "untrusted-binary",
    description: "A credential read by an executable that exists only in memory, was deleted, was added to a container after its image, or is in a temporary directory.",
    references: &["ATT&CK T1620", "ATT&CK T1036", "ATT&CK T1552.001"],
};

pub const HARVEST: RuleMeta = RuleMeta {
    name: "harvest",
    description: "Credentials of three classes that are not its own, picked up by one workload within ten minutes.",
    references: &[
        "OWASP NHI2:2025 Secret Leakage",
        "ATT&CK T1552",
        "ATT&CK T1555",
    ],
};

pub const BLIND: RuleMeta = RuleMeta {
    name: "blind",
    description: "A probe that was lost, detached or overrun, or an agent that was tampered with.",
    references: &["ATT&CK T1562.001", "ATT&CK T1562.006"],
};

/// The rules of this release.
pub const RULES: [RuleMeta; 13] = [
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

/// Rejects a name that no rule has, and lists the rules.
pub fn check_rule_name(name: &str) -> Result<(), String> {
    if RULES.iter().any(|rule| rule.name == name) {
        return Ok(());
    }
    let known: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
    Err(format!(
        "no rule `{name}`; the rules are {}",
        known.join(", ")
    ))
}
