//! `foreign-process-read`: a read of the environment of a process that holds a credential, or of the
//! memory of any process of another workload.

use super::{AlertMeta, Event, Rule, RuleMeta};
use crate::{
    model::{ForeignRead, Kinship, Look, Severity, WorkloadKind},
    policy::{
        context::Context,
        decision::Decision,
        expectation::reader::{ReaderMatch, allows},
        finding::FindingBuilder,
        label::credential_label,
        packaged::is_packaged,
    },
};

static META: RuleMeta = RuleMeta {
    name: "foreign-process-read",
    description: "The environment of a process that holds a credential, or the memory of another workload or of an ancestor, read by a process.",
    references: &[
        "OWASP NHI2:2025 Secret Leakage",
        "ATT&CK T1003.007",
        "ATT&CK T1055.008",
    ],
    alert: Some(AlertMeta {
        summary: "{workload} read the environment or the memory of another process",
        command: Some("keytrail query timeline --workload {workload} --since 1h"),
    }),
};

/// Where packages put programs that others start.
const HELPERS: &str = "/usr/libexec/";

/// Number of credentials that a summary names.
const NAMED_MAX: usize = 3;

/// Raises reads of other processes: of their environments if they hold a credential, and of their
/// memory whatever they are known to hold.
#[derive(Debug)]
pub struct ForeignProcessRead;

/// Whether the reader is a program of a package that root runs on the host, such as `ps`. No name of
/// a program or of an ancestor excuses a read of memory: anyone can have a package manager run a
/// script, or preload a library into a program.
fn is_of_a_package(read: &ForeignRead) -> bool {
    let host = matches!(read.workload.kind, WorkloadKind::Host | WorkloadKind::Unit);
    let exe = &read.process.exe;
    host && read.process.uid == 0 && (is_packaged(exe) || exe.starts_with(HELPERS))
}

/// `None` if it is of no interest.
fn severity(read: &ForeignRead) -> Option<Severity> {
    let holds = !read.credentials.is_empty();
    let is_environ = read.look == Look::Environ;
    match read.relation {
        // The parent gave a process its environment, and a debugger starts its program.
        Kinship::Ancestor => holds.then_some(Severity::Low),
        // What a job runner holds for its jobs is not known, and no job needs its memory.
        Kinship::Descendant if !is_environ => Some(Severity::High),
        _ if is_environ && !holds => None,
        _ if read.workload == read.victim => holds.then_some(Severity::Low),
        _ if is_environ && is_of_a_package(read) => Some(Severity::Low),
        _ => Some(Severity::High),
    }
}

/// What the victim holds, as text.
fn holdings(read: &ForeignRead) -> String {
    let labels = read.credentials.iter().take(NAMED_MAX);
    let mut text = labels
        .map(|credential| credential_label(credential))
        .collect::<Vec<_>>()
        .join(", ");
    let more = read.credentials.len().saturating_sub(NAMED_MAX);
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    match text.as_str() {
        "" => "which is not known to hold a credential".to_owned(),
        text => format!("which holds {text}"),
    }
}

impl Rule for ForeignProcessRead {
    fn meta(&self) -> &'static RuleMeta {
        &META
    }

    fn needs_live_data(&self) -> bool {
        true
    }

    fn judge(&mut self, event: &Event<'_>, context: &Context) -> Decision {
        let Event::ForeignRead(read) = event else {
            return Decision::Allowed;
        };
        let expected = &context.expectations.inspectors;
        if allows(expected, &read.workload, &read.process.exe) == Some(ReaderMatch::Matches) {
            return Decision::Allowed;
        }
        let Some(severity) = severity(read) else {
            return Decision::Allowed;
        };
        let object = match read.look {
            Look::Environ => "the environment",
            Look::Memory => "the memory",
            Look::Trace => "the memory, by tracing,",
        };
        let mut finding = FindingBuilder::new(&META, severity, read.time, &read.workload)
            .process(&read.process)
            .summary(format!(
                "{} read {object} of {} (pid {}, {}), {}",
                read.workload.key(),
                read.victim.key(),
                read.victim_process.pid,
                read.victim_process.exe,
                holdings(read)
            ))
            // One finding, whatever the victim holds.
            .dedup_key(format!("{} {}", read.workload.key(), read.victim.key()))
            .any_credential();
        if let [sole] = &read.credentials[..] {
            finding = finding.credential(sole).evidence(read.evidence);
        }
        Decision::Violation(finding.build())
    }
}
