//! `keytrail doctor`: what this kernel allows, probe by probe, and what will be missed.

pub use super::inspector::UnattachedProgram;
use super::{
    AttachedProgram, Sensor, SensorOptions,
    capabilities::{CAPABILITIES, has_capabilities},
    cgroup_root,
    exclude::ExclusionRules,
    fields, inspector, mapped,
    selftest::{SelfTestError, self_test},
};
use crate::{
    config::exclude::ExcludePattern,
    host,
    reader::{
        ReaderPool, ReaderRole, Unregistered, mounts,
        protocol::{ReaderSetup, Views},
    },
};
use monitor_common::{fingerprint::FingerprintKey, record::Probe};
use monitor_core::{catalog::Catalog, model::Subject};
use serde::Serialize;
use std::{path::Path, sync::Arc};

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct DoctorCheck {
    pub name: String,
    pub ok: bool,
    /// Whether the agent cannot do its job without it.
    pub needed: bool,
    pub detail: String,
}

/// The complete report.
#[derive(Clone, Debug, Serialize)]
pub struct DoctorReport {
    pub kernel: String,
    pub checks: Vec<DoctorCheck>,
    pub probes: Vec<ProbeReport>,
    /// What is not observed on this machine, by design or because a hook is missing.
    pub missed: Vec<String>,
    /// Running programs that contain TLS and have no probes: excluded, or not proven.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_attached: Vec<UnattachedProgram>,
}

/// A probe and the hooks that serve it.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeReport {
    pub probe: &'static str,
    pub program: &'static str,
    pub mechanism: String,
    pub attached: bool,
    /// Instructions that the verifier processed, if the kernel reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<u32>,
    /// Preferred hooks, and why this kernel does not have them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passed: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl DoctorReport {
    /// Whether everything needed is present.
    pub fn healthy(&self) -> bool {
        self.checks.iter().all(|check| check.ok || !check.needed)
            && Probe::ALL.iter().all(|probe| {
                self.probes
                    .iter()
                    .any(|line| line.probe == probe.name() && line.attached)
            })
    }
}

/// What this release does not observe on any kernel.
const KNOWN_GAPS: [&str; 13] = [
    "files three or more directories below a directory of secrets, unless it is a projected volume, until they are known by inode",
    "credentials presented through TLS stacks other than OpenSSL, BoringSSL with symbols, GnuTLS and Go since 1.18, such as Java, rustls and NSS: evidence is `sole` or `held`",
    "credentials presented in the first few tens of milliseconds of a program that uses TLS and was never observed before",
    "a header after the first 8 KiB of a write or packet, or after 4 KiB if it continues a line of the previous write; a line of more than 4 KiB, or an HTTP/2 field, that is split between two; in protocols other than HTTP everything except plain logins of Redis, PostgreSQL, MySQL, SMTP, IMAP, POP3, FTP, MQTT and LDAP",
    "credentials outside TLS on connections opened before the agent started, or over UDP",
    "credentials issued inside TLS to Go, Node.js and asyncio programs, and in the first response to a process; in compressed responses, and split between two packets or reads: only the presentation to the authenticator is recorded",
    "names resolved by DNS over TCP, TLS or HTTPS, or from a file",
    "a forged server name or Host, unless DNS was observed to contradict it for the address: a process chooses both itself",
    "credentials in HTTP/2 that are only referenced from a table filled before the agent started",
    "server names in QUIC",
    "unix sockets other than those of the catalog (SPIRE, the Vault agent), abstract ones, and through io_uring",
    "names of containers that neither the Kubernetes API nor a container runtime over CRI knows: their ids are shown",
    "the environment after an entry whose page was not in memory at exec (counted as `read`)",
];

/// What is not observed with the hooks in use. Shown by `doctor` and stored as gaps.
pub fn missed(attached: &[AttachedProgram]) -> Vec<String> {
    let mut missed: Vec<String> = attached
        .iter()
        .filter_map(|program| program.missed.map(str::to_owned))
        .collect();
    let uses = |program: &str| {
        attached
            .iter()
            .any(|line| line.program == program && line.error.is_none())
    };
    if uses("file_open_exit") {
        missed.push(if uses("file_open_uring") {
            "files opened through io_uring into a direct descriptor".to_owned()
        } else {
            "files opened through io_uring".to_owned()
        });
    }
    missed.push(
        "a file to which only a variable points (KUBECONFIG, GOOGLE_APPLICATION_CREDENTIALS, …), opened in the first milliseconds of the first program with this value"
            .to_owned(),
    );
    if super::reads_environ(attached) {
        missed.push(
            "variables of a process that exits before the agent has read its environment, a few milliseconds after exec: the probe needs Linux 5.17"
                .to_owned(),
        );
    }
    if !super::ladder::HELPERS.loops {
        missed.push(
            "credentials presented inside TLS over HTTP/2 or in protocols other than HTTP, after the 24th line of a request's head, or after its second credential; server names that programs set in their TLS library: the probe needs Linux 5.17"
                .to_owned(),
        );
    }
    if !super::ladder::HELPERS.task_of_packet {
        missed.push(
            "on which of several connections of a process a credential was presented: on this kernel packet programs cannot access the current task"
                .to_owned(),
        );
    }
    if !*super::uprobe::RETURNS {
        missed.push(format!(
            "credentials issued inside TLS; that a program with a built-in TLS library rejected a write, which is then reported twice: {}",
            super::uprobe::NO_RETURNS
        ));
    }
    missed.extend(KNOWN_GAPS.iter().map(ToString::to_string));
    missed
}

/// Describes what a pattern of `inspect.exclude` excludes from observation.
pub fn excluded(pattern: &ExcludePattern) -> String {
    format!(
        "credentials presented inside TLS by programs that `inspect.exclude: {}` excludes, and, for a pattern that may refer to an image, by every container whose image is not known; if an excluded program may use shared libraries, these are attached per process, and credentials that other programs present in their first tens of milliseconds are missed too",
        pattern.text()
    )
}

/// Describes what is missed with `--no-uprobes`.
pub const NO_UPROBES: &str =
    "credentials presented inside TLS, and issued inside it: `--no-uprobes` is set";

/// Describes what is missed if the kernel does not report mapped files.
pub fn unreported(error: &str) -> String {
    format!(
        "credentials presented inside TLS in the first seconds after a program or its TLS library was first observed: the kernel does not report mapped files ({error})"
    )
}

/// Checks everything, and detaches again.
pub fn examine(exclusion: &ExclusionRules) -> DoctorReport {
    let cgroup = cgroup_root();
    let mut checks = vec![
        check_privileges(),
        check_cgroup(cgroup.as_deref()),
        check_fields(),
    ];
    let (probes, mut missed) = match attach(cgroup.as_deref()) {
        Ok((attached, tested)) => {
            checks.push(DoctorCheck {
                name: "self-test".to_owned(),
                ok: tested.is_ok(),
                needed: true,
                detail: tested.err().map_or_else(
                    || "the probes read the same about this process as /proc shows".to_owned(),
                    |error| error.to_string(),
                ),
            });
            (attached.iter().map(report).collect(), missed(&attached))
        }
        Err(error) => {
            checks.push(DoctorCheck {
                name: "probes".to_owned(),
                ok: false,
                needed: true,
                detail: error,
            });
            (Vec::new(), missed(&[]))
        }
    };
    missed.extend(exclusion.patterns().iter().map(excluded));
    missed.extend(
        mapped::MappingReader::open()
            .err()
            .map(|error| unreported(&error.to_string())),
    );
    checks.push(check_lsm());
    DoctorReport {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        checks,
        probes,
        missed,
        not_attached: examine_running(exclusion),
    }
}

fn check_privileges() -> DoctorCheck {
    let uid = rustix::process::geteuid();
    DoctorCheck {
        name: "privileges".to_owned(),
        ok: uid.is_root() || has_capabilities(),
        needed: true,
        detail: if uid.is_root() {
            "running as root".to_owned()
        } else {
            format!("running as uid {}: root, or {CAPABILITIES}", uid.as_raw())
        },
    }
}

fn check_cgroup(root: Option<&Path>) -> DoctorCheck {
    DoctorCheck {
        name: "cgroup v2".to_owned(),
        ok: root.is_some(),
        needed: true,
        detail: root.map_or_else(
            || "no cgroup v2 file system is mounted: connections and TLS server names are not observed".to_owned(),
            |path| format!("mounted at {}", path.display()),
        ),
    }
}

fn check_fields() -> DoctorCheck {
    let fields = fields::resolve(Path::new(fields::VMLINUX));
    DoctorCheck {
        name: "kernel fields".to_owned(),
        ok: fields.is_ok(),
        needed: true,
        detail: fields.as_ref().err().map_or_else(
            || format!("resolved from {}", fields::VMLINUX),
            ToString::to_string,
        ),
    }
}

fn check_lsm() -> DoctorCheck {
    let lsm = super::ladder::active_lsms();
    let has_bpf = |list: &str| list.split(',').any(|name| name == "bpf");
    DoctorCheck {
        name: "bpf in the LSM list".to_owned(),
        ok: lsm.as_deref().is_some_and(has_bpf),
        needed: false,
        detail: lsm.unwrap_or_else(|| "unknown: securityfs is not mounted".to_owned()),
    }
}

/// Attaches every probe and runs the self-test, in a temporary directory.
fn attach(
    cgroup: Option<&Path>,
) -> Result<(Vec<AttachedProgram>, Result<Subject, SelfTestError>), String> {
    let text = |error: std::io::Error| error.to_string();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    runtime.block_on(async {
        let catalog = Catalog::new("", &[], &[]).map_err(|error| error.to_string())?;
        let mut sensor = Sensor::start(&SensorOptions {
            key: FingerprintKey { k0: 0, k1: 0 },
            rules: &catalog.filter_rules([]),
            catalog: &catalog,
            cgroup,
            btf: Path::new(fields::VMLINUX),
            uprobes: true,
            exclusion: ExclusionRules::default(),
            budget: None,
            readers: setup(),
        })
        .map_err(|error| error.to_string())?;
        let directory =
            std::env::temp_dir().join(format!("keytrail-doctor-{}", std::process::id()));
        let tested = self_test(&mut sensor, &directory, &mut Vec::new()).await;
        if let Err(error) = std::fs::remove_dir_all(&directory) {
            tracing::debug!(%error, "cannot remove the directory of the self-test");
        }
        Ok((sensor.attached().to_vec(), tested))
    })
}

/// Readers of programs only.
fn setup() -> ReaderSetup {
    ReaderSetup {
        catalog: None,
        key: [0, 0],
        mounts_at_start: mounts().collect(),
        host: host::process(),
        views: Views::All,
    }
}

/// The running programs that are not attached to.
fn examine_running(exclusion: &ExclusionRules) -> Vec<UnattachedProgram> {
    let readers = ReaderPool::new(setup(), Arc::new(Unregistered));
    inspector::examine_running(&mut readers.client(ReaderRole::Programs), exclusion)
}

fn report(program: &AttachedProgram) -> ProbeReport {
    ProbeReport {
        probe: program.probe.name(),
        program: program.program,
        mechanism: program.mechanism.clone(),
        instructions: program.instructions,
        passed: program.passed.clone(),
        attached: program.error.is_none(),
        error: program.error.clone(),
    }
}
