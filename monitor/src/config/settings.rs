//! Settings of the agent.

use super::exclude::ExcludePattern;
use clap::ValueEnum;
use jiff::SignedDuration;
use monitor_core::time::deserialize_duration;
use serde::Deserialize;
use std::{net::IpAddr, path::PathBuf};

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
    /// The certificate; the agent makes one where it needs one and none is configured.
    pub tls: Option<TlsFiles>,
    /// A file with the token that API requests must present; by default the agent makes one in the
    /// state directory.
    pub token_file: Option<PathBuf>,
    /// A local group that may read the token. The agent makes the token, outside the state
    /// directory.
    pub token_group: Option<String>,
    pub access: AccessMode,
    /// A file for findings, or `-`.
    pub findings: Option<String>,
    /// `json` or `ocsf`.
    pub findings_format: Option<FindingsFormat>,
    /// A file with the 32 hex digits of a fleet's fingerprint key.
    pub fingerprint_key_file: Option<PathBuf>,
    pub retention: RetentionLimits,
    pub kubernetes: KubernetesSettings,
    pub inspect: InspectSettings,
    /// Resolvers to believe besides those that the host and its containers are configured with.
    pub resolvers: Vec<IpAddr>,
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
            token_group,
            access,
            findings,
            findings_format,
            fingerprint_key_file,
            retention,
            kubernetes,
            inspect,
            resolvers,
        } = self;
        [
            ("policies", !policies.is_empty()),
            ("catalog", catalog.is_some()),
            ("state_dir", state_dir.is_some()),
            ("listen", listen.is_some()),
            ("metrics_listen", metrics_listen.is_some()),
            ("tls", tls.is_some()),
            ("token_file", token_file.is_some()),
            ("token_group", token_group.is_some()),
            ("access", *access != AccessMode::default()),
            ("findings", findings.is_some()),
            ("findings_format", findings_format.is_some()),
            ("fingerprint_key_file", fingerprint_key_file.is_some()),
            ("retention", *retention != RetentionLimits::default()),
            ("kubernetes", *kubernetes != KubernetesSettings::default()),
            ("inspect", *inspect != InspectSettings::default()),
            ("resolvers", !resolvers.is_empty()),
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
            inspect: InspectSettings {
                exclude: Vec::new(),
                ..settings.inspect.clone()
            },
            ..settings.clone()
        };
        at_start(self) != at_start(other)
    }
}

/// What the API and metrics require of those who ask.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum AccessMode {
    /// The API requires the token. So do metrics, but for scrapes on loopback that are not told which
    /// credentials there are.
    #[default]
    Token,
    /// As in version 0.1: the API on loopback and metrics everywhere require nothing, and metrics
    /// beyond loopback are in clear text.
    Open,
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

/// Which programs are inspected for credentials presented inside TLS, and what the probes may cost.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct InspectSettings {
    /// Programs to which no uprobe is attached.
    pub exclude: Vec<ExcludePattern>,
    /// Above it, probes are turned off.
    pub budget: CostBudget,
}

/// A share of the time of all processors, such as `1%`, in hundredths of a percent.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct CostBudget(u32);

impl CostBudget {
    /// As a fraction of one.
    pub fn share(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

impl Default for CostBudget {
    /// A safety net rather than a regulator: on an ordinary node the probes stay far below it.
    fn default() -> Self {
        Self(500)
    }
}

impl TryFrom<String> for CostBudget {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = text.trim().strip_suffix('%').map(str::trim_end);
        let percent: Option<f64> = number.and_then(|number| number.parse().ok());
        match percent {
            Some(percent) if (0.01..=100.0).contains(&percent) => {
                Ok(Self((percent * 100.0).round() as u32))
            }
            _ => Err(format!(
                "`{text}` is no share of the processors: write a percentage from 0.01% to 100%"
            )),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_percentage() {
        let parsed = |text: &str| CostBudget::try_from(text.to_owned()).map(CostBudget::share);
        assert_eq!(parsed("1%"), Ok(0.01));
        assert_eq!(parsed(" 0.5 % "), Ok(0.005));
        assert_eq!(parsed("100%"), Ok(1.0));
        for wrong in ["", "1", "0%", "101%", "-1%", "NaN%", "inf%", "much%"] {
            assert!(
                parsed(wrong).is_err_and(|error| error.contains("0.01%")),
                "{wrong}"
            );
        }
        assert_eq!(CostBudget::default().share(), 0.05);
    }
}
