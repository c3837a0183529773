//! `foreign-process-read`: a read of the environment or memory of a process that holds a
//! credential.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    model::{ForeignRead, Look, Severity, WorkloadKind},
    policy::{
        context::Context, decision::Decision, finding::FindingBuilder, label::credential_label,
    },
};

static META: RuleMeta = RuleMeta {
    name: "foreign-process-read",
    description: "The environment or memory of a process that holds a credential, read by another.",
    references: &[
        "OWASP NHI2:2025 Secret Leakage",
        "ATT&CK T1003.007",
        "ATT&CK T1055.008",
    ],
    alert: Some(AlertMeta {
        summary: "{workload} read a process that holds a credential",
        command: Some("keytrail query timeline --workload {workload} --since 1h"),
    }),
};

/// Host programs that inspect others as part of their normal operation.
const INSPECTORS: [&str; 11] = [
    "/usr/lib/systemd/systemd",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd-coredump",
    "/lib/systemd/systemd-coredump",
    "/usr/bin/ps",
    "/bin/ps",
    "/usr/bin/htop",
    "/usr/bin/btop",
    "/usr/bin/top",
    "/usr/bin/lsof",
    "/usr/sbin/needrestart",
];

/// Name prefixes of units that upgrade packages automatically, in whatever language they are
/// written.
const UPGRADES: [&str; 6] = [
    "unattended-upgrades",
    "apt-daily",
    "dnf-automatic",
    "packagekit",
    "needrestart",
    "zypp-",
];

/// Programs below which a read of another process is part of an upgrade.
const PACKAGE_TOOLS: [&str; 8] = [
    "/usr/bin/apt",
    "/usr/bin/apt-get",
    "/usr/bin/dpkg",
    "/usr/bin/unattended-upgrade",
    "/usr/bin/dnf",
    "/usr/bin/rpm",
    "/usr/bin/zypper",
    "/usr/bin/pacman",
];

/// Raises reads of processes that hold credentials.
#[derive(Debug)]
pub struct ForeignProcessRead;

/// Whether the reader does so as part of its normal operation.
fn is_inspector(read: &ForeignRead) -> bool {
    let host = matches!(read.workload.kind, WorkloadKind::Host | WorkloadKind::Unit);
    // A package manager checks which programs still run from files that it replaced.
    let upgrade = || {
        let unit = read.workload.unit.as_deref().unwrap_or_default();
        // Anyone can have a unit of that name below their own service manager.
        (read.process.uid == 0 && UPGRADES.iter().any(|start| unit.starts_with(start)))
            || read
                .process
                .ancestors
                .iter()
                .any(|above| PACKAGE_TOOLS.contains(&above.exe.as_str()))
    };
    host && (INSPECTORS.contains(&read.process.exe.as_str()) || upgrade())
}

impl Rule for ForeignProcessRead {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        true
    }

    fn judge(&mut self, event: &Event<'_>, _: &Context) -> Decision {
        let Event::ForeignRead(read) = event else {
            return Decision::Allowed;
        };
        // The parent gave a process its environment.
        let mild = read.workload == read.victim || read.ancestor || is_inspector(read);
        let severity = if mild { Severity::Low } else { Severity::High };
        let object = match read.look {
            Look::Environ => "the environment",
            Look::Memory => "the memory",
            Look::Trace => "the memory, by tracing,",
        };
        Decision::Violation(
            FindingBuilder::new(&META, severity, read.time, &read.workload)
                .process(&read.process)
                .credential(&read.credential)
                .evidence(read.evidence)
                .summary(format!(
                    "{} read {object} of {} (pid {}, {}), which holds {}",
                    read.workload.key(),
                    read.victim.key(),
                    read.victim_process.pid,
                    read.victim_process.exe,
                    credential_label(&read.credential)
                ))
                .dedup_key(format!("{} {}", read.workload.key(), read.victim.key()))
                .build(),
        )
    }
}
