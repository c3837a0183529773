//! What this kernel allows, probe by probe, and what will be missed.

pub use super::inspector::Unattached;
use super::{
    Attached, Options, Sensor, cgroup_root,
    exclude::{Exclude, Exclusion},
    fields, inspector, mapped,
    selftest::{SelfTestError, self_test},
};
use crate::credential::catalog::Catalog;
use monitor_common::{fingerprint::Key, record::Probe};
use serde::Serialize;
use std::path::Path;

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// Without it the agent does not do its job.
    pub needed: bool,
    pub detail: String,
}

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub kernel: String,
    pub checks: Vec<Check>,
    pub probes: Vec<ProbeReport>,
    /// What is not seen on this machine, by design or for want of a hook.
    pub missed: Vec<String>,
    /// Programs that run with TLS inside and have no probes: excluded, or not proven.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_attached: Vec<Unattached>,
}

/// A probe and the hooks that serve it.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeReport {
    pub probe: &'static str,
    pub program: &'static str,
    pub mechanism: String,
    pub attached: bool,
    /// Instructions that the verifier walked, where the kernel tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<u32>,
    /// Better hooks, and why this kernel has them not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passed: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Report {
    /// Whether everything needed is there.
    pub fn healthy(&self) -> bool {
        self.checks.iter().all(|check| check.ok || !check.needed)
            && Probe::ALL.iter().all(|probe| {
                self.probes
                    .iter()
                    .any(|line| line.probe == probe.name() && line.attached)
            })
    }
}

/// What this release does not see on any kernel.
const KNOWN_GAPS: [&str; 13] = [
    "files three or more directories below a directory of secrets, unless it is a projected volume, until they are known by inode",
    "credentials presented through TLS stacks other than OpenSSL, BoringSSL with symbols, GnuTLS and Go since 1.18, such as Java, rustls and NSS: evidence is `sole` or `held`",
    "credentials presented in the first moments, a few tens of milliseconds, of a program with TLS inside that was never seen before",
    "a header behind the first 8 KiB of a write or packet, or behind 4 KiB where a line goes on that the write before began, a line of more than 4 KiB or a field of HTTP/2 that is cut between two; in other protocols than HTTP all but plain sign-ins of Redis, PostgreSQL, MySQL, SMTP, IMAP, POP3, FTP, MQTT and LDAP",
    "credentials outside TLS on connections that began before the agent, or over UDP",
    "what authenticators mint inside TLS for Go, for Node.js and asyncio, and in the first answer to a process; in compressed answers, and cut between two packets or reads: that something was presented to them is kept",
    "names that come by DNS over TCP, TLS or HTTPS, or from a file",
    "that a server name, or a Host, is a lie, where no name server was seen to say otherwise of the address: a process chooses both itself",
    "credentials in HTTP/2 on connections whose table was filled before the agent watched, where they are only referred to",
    "server names in QUIC",
    "unix sockets other than those of the catalog (SPIRE, the Vault agent), abstract ones, and through io_uring",
    "names of containers that neither the Kubernetes API nor a container runtime over CRI knows: they are shown by their ids",
    "the environment after an entry whose page was not in memory at exec (counted as `read`)",
];

/// What is not seen with the hooks that are in use. Shown by `doctor`, kept as gaps.
pub fn missed(attached: &[Attached]) -> Vec<String> {
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
        "a file that only a variable points to (KUBECONFIG, GOOGLE_APPLICATION_CREDENTIALS, …), where it is opened in the first milliseconds of the first program that has this value"
            .to_owned(),
    );
    if super::reads_environ(attached) {
        missed.push(
            "variables of a process that ends before the agent has read its environment, a few milliseconds after exec: the probe needs Linux 5.17"
                .to_owned(),
        );
    }
    if !super::ladder::HELPERS.loops {
        missed.push(
            "credentials presented inside TLS over HTTP/2 or in other protocols than HTTP, in the head of a request after its 24th line, and behind its second credential; server names that programs give their TLS library: the probe needs Linux 5.17"
                .to_owned(),
        );
    }
    if !super::ladder::HELPERS.task_of_packet {
        missed.push(
            "on which connection a credential was presented, where a process has several: programs at packets may not ask for the current task on this kernel"
                .to_owned(),
        );
    }
    if !*super::uprobe::RETURNS {
        missed.push(format!(
            "what authenticators mint inside TLS; that a program with TLS inside took a write back, which is then told twice: {}",
            super::uprobe::NO_RETURNS
        ));
    }
    missed.extend(KNOWN_GAPS.iter().map(ToString::to_string));
    missed
}

/// What a pattern of `inspect.exclude` costs.
pub fn excluded(pattern: &Exclude) -> String {
    format!(
        "what programs present inside TLS that `inspect.exclude: {}` excludes, and for a pattern that may be an image's every container whose image is not known; where they may use a library that others use as well, libraries are attached to process by process, and what others present in the first tens of milliseconds after they start is missed, too",
        pattern.text()
    )
}

/// What it costs where the kernel does not report mapped files.
pub fn unreported(error: &str) -> String {
    format!(
        "what programs present inside TLS in the first seconds after they or their TLS library were first seen: the kernel does not report mapped files ({error})"
    )
}

/// Tries everything, and detaches it again.
pub fn examine(exclusion: &Exclusion) -> Report {
    let cgroup = cgroup_root();
    let uid = rustix::process::geteuid();
    let mut checks = vec![
        Check {
            name: "privileges".to_owned(),
            ok: uid.is_root() || has_capabilities(),
            needed: true,
            detail: if uid.is_root() {
                "running as root".to_owned()
            } else {
                format!("running as uid {}: root, or {CAPABILITIES}", uid.as_raw())
            },
        },
        Check {
            name: "cgroup v2".to_owned(),
            ok: cgroup.is_some(),
            needed: true,
            detail: cgroup.as_ref().map_or_else(
                || "no cgroup v2 file system is mounted: connections and TLS server names are not seen".to_owned(),
                |path| format!("mounted at {}", path.display()),
            ),
        },
    ];
    let kernel_fields = fields::resolve(Path::new(fields::VMLINUX));
    checks.push(Check {
        name: "kernel fields".to_owned(),
        ok: kernel_fields.is_ok(),
        needed: true,
        detail: kernel_fields.as_ref().err().map_or_else(
            || format!("resolved from {}", fields::VMLINUX),
            ToString::to_string,
        ),
    });
    let (probes, mut missed) = match attach(cgroup.as_deref()) {
        Ok((attached, tested)) => {
            checks.push(Check {
                name: "self-test".to_owned(),
                ok: tested.is_ok(),
                needed: true,
                detail: tested.err().map_or_else(
                    || "what the probes read of this process is what /proc says".to_owned(),
                    |error| error.to_string(),
                ),
            });
            (attached.iter().map(report).collect(), missed(&attached))
        }
        Err(error) => {
            checks.push(Check {
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
        mapped::Mappings::open()
            .err()
            .map(|error| unreported(&error.to_string())),
    );
    let lsm = super::ladder::active_lsms();
    checks.push(Check {
        name: "bpf in the LSM list".to_owned(),
        ok: lsm
            .as_deref()
            .is_some_and(|list| list.split(',').any(|name| name == "bpf")),
        needed: false,
        detail: lsm.unwrap_or_else(|| "unknown: securityfs is not mounted".to_owned()),
    });
    Report {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        checks,
        probes,
        missed,
        not_attached: inspector::examine_running(exclusion),
    }
}

/// Attaches every probe and runs the self-test, in a temporary directory.
fn attach(cgroup: Option<&Path>) -> Result<(Vec<Attached>, Result<u32, SelfTestError>), String> {
    let told = |error: std::io::Error| error.to_string();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(told)?;
    runtime.block_on(async {
        let catalog = Catalog::new("", &[], &[]).map_err(|error| error.to_string())?;
        let mut sensor = Sensor::start(&Options {
            key: Key { k0: 0, k1: 0 },
            rules: &catalog.rules([]),
            cgroup,
            btf: Path::new(fields::VMLINUX),
            exclusion: Exclusion::default(),
        })
        .map_err(|error| error.to_string())?;
        let directory =
            std::env::temp_dir().join(format!("keytrail-doctor-{}", std::process::id()));
        let tested = self_test(&mut sensor, &directory, &mut Vec::new()).await;
        if let Err(error) = std::fs::remove_dir_all(&directory) {
            tracing::debug!(%error, "the directory of the self-test stays");
        }
        Ok((sensor.attached().to_vec(), tested))
    })
}

fn report(program: &Attached) -> ProbeReport {
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

/// The capabilities that serve instead of root.
pub const CAPABILITIES: &str =
    "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH";

/// Bits of the effective set: dac_read_search, net_admin, sys_ptrace, perfmon, bpf.
const CAPABILITY_BITS: u64 = 1 << 2 | 1 << 12 | 1 << 19 | 1 << 38 | 1 << 39;

/// Whether the effective set of this process has what the agent needs.
pub fn has_capabilities() -> bool {
    effective_capabilities().is_some_and(|bits| bits & CAPABILITY_BITS == CAPABILITY_BITS)
}

/// The effective set of this process, a bit for each capability.
pub fn effective_capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
}

#[cfg(test)]
mod tests {
    use super::CAPABILITIES;

    /// What is shipped gives the agent what it says that it needs, and no more.
    #[test]
    fn what_is_shipped_has_these_capabilities() {
        let needed: Vec<&str> = CAPABILITIES
            .split([',', ' '])
            .filter(|word| word.starts_with("CAP_"))
            .collect();
        let unit = include_str!("../../../deploy/systemd/keytrail.service");
        let bounding = unit
            .lines()
            .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        assert_eq!(bounding, Some(needed.join(" ").as_str()));
        let chart = include_str!("../../../deploy/helm/keytrail/templates/daemonset.yaml");
        let bare: Vec<&str> = needed
            .iter()
            .filter_map(|name| name.strip_prefix("CAP_"))
            .collect();
        assert!(chart.contains(&format!("add: [{}\n", bare.join(", "))));
        assert!(chart.contains("drop: [ALL]") && chart.contains("privileged: false"));
    }
}
