//! Settings of the agent.

use super::exclude::ExcludePattern;
use clap::ValueEnum;
use jiff::SignedDuration;
use monitor_core::time::deserialize_duration;
use serde::Deserialize;
use std::path::PathBuf;

/// Settings of the agent, from the file of `--config`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Files and directories with more expectations.
    pub policies: Vec<PathBuf>,
    /// A file with classes that take precedence over the embedded ones.
    pub catalog: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    pub listen: Option<String>,
    /// Another address, for metrics and health checks only.
    pub metrics_listen: Option<String>,
    /// With both of these the API may be served beyond loopback.
    pub tls: Option<TlsFiles>,
    /// A file with the token that API requests must present.
    pub token_file: Option<PathBuf>,
    /// A file for findings, or `-`.
    pub findings: Option<String>,
    /// `json` or `ocsf`.
    pub findings_format: Option<FindingsFormat>,
    /// A file with the 32 hex digits of a fleet's fingerprint key.
    pub fingerprint_key_file: Option<PathBuf>,
    pub retention: RetentionLimits,
    pub kubernetes: KubernetesSettings,
    pub inspect: InspectSettings,
}

impl Settings {
    /// The names of the settings that are set.
    pub fn names(&self) -> Vec<&'static str> {
        let Self {
            policies,
            catalog,
            state_dir,
            listen,
            metrics_listen,
            tls,
            token_file,
            findings,
            findings_format,
            fingerprint_key_file,
            retention,
            kubernetes,
            inspect,
        } = self;
        [
            ("policies", !policies.is_empty()),
            ("catalog", catalog.is_some()),
            ("state_dir", state_dir.is_some()),
            ("listen", listen.is_some()),
            ("metrics_listen", metrics_listen.is_some()),
            ("tls", tls.is_some()),
            ("token_file", token_file.is_some()),
            ("findings", findings.is_some()),
            ("findings_format", findings_format.is_some()),
            ("fingerprint_key_file", fingerprint_key_file.is_some()),
            ("retention", *retention != RetentionLimits::default()),
            ("kubernetes", *kubernetes != KubernetesSettings::default()),
            ("inspect", !inspect.exclude.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, is_set)| is_set.then_some(name))
        .collect()
    }

    /// Whether settings that an agent reads only at start differ.
    pub fn needs_restart(&self, other: &Self) -> bool {
        let at_start = |settings: &Self| Self {
            policies: Vec::new(),
            catalog: None,
            inspect: InspectSettings::default(),
            ..settings.clone()
        };
        at_start(self) != at_start(other)
    }
}

/// How to reach the Kubernetes API. In a pod with a service account nothing needs to be set.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesSettings {
    /// A kubeconfig. None is used by default: an administrator's is not meant for the agent.
    pub kubeconfig: Option<PathBuf>,
    /// This node's name; `KEYTRAIL_NODE_NAME` takes precedence, and the host name is the default.
    pub node: Option<String>,
}

/// Which programs are inspected for credentials presented inside TLS.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct InspectSettings {
    /// Programs to which no uprobe is attached.
    pub exclude: Vec<ExcludePattern>,
}

/// PEM files: a certificate chain and its key. They are reloaded every minute.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// How much the ledger keeps.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionLimits {
    #[serde(deserialize_with = "deserialize_duration")]
    pub max_age: SignedDuration,
    /// Maximum size of the ledger's file in bytes; the oldest hours are dropped first.
    pub max_bytes: u64,
}

impl Default for RetentionLimits {
    fn default() -> Self {
        Self {
            max_age: SignedDuration::from_hours(90 * 24),
            max_bytes: 1 << 30,
        }
    }
}

/// The format of findings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingsFormat {
    /// Keytrail's own format
    #[default]
    Json,
    /// OCSF Detection Finding (2004)
    Ocsf,
}
