//! The configuration, as written in YAML: the agent's settings, and the expectations.

pub mod error;
pub mod exclude;
pub mod manifest;
pub mod settings;

use self::{
    error::ConfigError,
    manifest::{DocumentKind, MANIFEST, PolicyManifest},
    settings::{
        AccessMode, FindingsFormat, InspectSettings, KubernetesSettings, RetentionLimits, Settings,
        TlsFiles,
    },
};
use monitor_core::{
    catalog::Catalog,
    policy::expectation::{
        AuthenticatorEntry, Expectation, Expectations, GatewayEntry, PolicyMode, check,
        limits::PolicySize, reader::ReaderPattern,
    },
};
use serde::Deserialize;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The configuration: settings come from the file of `--config`, expectations from all files.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub expectations: Expectations,
    pub settings: Settings,
    /// Settings in files other than that of `--config`, which have no effect there.
    pub ignored: Vec<String>,
}

/// A file as written: that of `--config`, or one with expectations. All keys are optional.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConfigFile {
    credentials: Vec<Expectation>,
    authenticators: Vec<AuthenticatorEntry>,
    gateways: Vec<GatewayEntry>,
    inspectors: Vec<ReaderPattern>,
    mode: Option<PolicyMode>,
    policies: Vec<PathBuf>,
    catalog: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    listen: Option<String>,
    metrics_listen: Option<String>,
    tls: Option<TlsFiles>,
    token_file: Option<PathBuf>,
    token_group: Option<String>,
    access: AccessMode,
    findings: Option<String>,
    findings_format: Option<FindingsFormat>,
    fingerprint_key_file: Option<PathBuf>,
    retention: RetentionLimits,
    kubernetes: KubernetesSettings,
    inspect: InspectSettings,
    resolvers: Vec<IpAddr>,
}

impl From<ConfigFile> for Config {
    fn from(file: ConfigFile) -> Self {
        Self {
            expectations: Expectations {
                credentials: file.credentials,
                authenticators: file.authenticators,
                gateways: file.gateways,
                inspectors: file.inspectors,
                mode: file.mode,
            },
            settings: Settings {
                policies: file.policies,
                catalog: file.catalog,
                state_dir: file.state_dir,
                listen: file.listen,
                metrics_listen: file.metrics_listen,
                tls: file.tls,
                token_file: file.token_file,
                token_group: file.token_group,
                access: file.access,
                findings: file.findings,
                findings_format: file.findings_format,
                fingerprint_key_file: file.fingerprint_key_file,
                retention: file.retention,
                kubernetes: file.kubernetes,
                inspect: file.inspect,
                resolvers: file.resolvers,
            },
            ignored: Vec::new(),
        }
    }
}

impl Config {
    /// Reads a file and the expectations of the files that it names, in order; for a directory, all
    /// of its files.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut config = if path.is_dir() {
            let mut all = Self::default();
            all.settings.policies = vec![PathBuf::new()];
            all
        } else {
            Self::read(path)?
        };
        for named in config.settings.policies.clone() {
            let named = base(path).join(named);
            for file in files_in(&named)? {
                let more = Self::read(&file)?;
                let names = more.settings.names();
                if !names.is_empty() {
                    config.ignored.push(format!(
                        "{}: `{}` has no effect here: agent settings belong in the file of --config",
                        file.display(),
                        names.join("`, `")
                    ));
                }
                config.expectations.append(more.expectations);
            }
        }
        Ok(config)
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Parses a text, which may contain several documents, or manifests of the custom resource;
    /// `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let kinds = serde_saphyr::from_multiple::<DocumentKind>(text);
        let is_manifest = |kind: &DocumentKind| kind.kind.as_deref() == Some(MANIFEST);
        // One of several documents may be the invalid one.
        let single = kinds.as_ref().is_ok_and(|kinds| kinds.len() <= 1);
        let parsed: Result<Vec<Self>, _> = if kinds.unwrap_or_default().iter().any(is_manifest) {
            serde_saphyr::from_multiple::<PolicyManifest>(text)
                .map(|manifests| manifests.into_iter().map(Self::from).collect())
        } else if !single {
            serde_saphyr::from_multiple::<ConfigFile>(text)
                .map(|files| files.into_iter().map(Self::from).collect())
        } else {
            serde_saphyr::from_str::<ConfigFile>(text).map(|file| vec![Self::from(file)])
        };
        let mut documents = parsed
            .map_err(|error| ConfigError::Syntax {
                path: path.to_owned(),
                error: error.into(),
            })?
            .into_iter();
        let mut config = documents.next().unwrap_or_default();
        for more in documents {
            config.expectations.append(more.expectations);
        }
        Ok(config)
    }

    /// The catalog: the embedded one, with the additions of the configuration and the places that
    /// expectations name. `path` is the configuration's own. Expectations that are too large are
    /// refused.
    pub fn catalog(&self, path: Option<&Path>) -> Result<Arc<Catalog>, ConfigError> {
        PolicySize::default().plus(&self.expectations)?;
        let added = match &self.settings.catalog {
            Some(catalog) => {
                let file = path.map_or(Path::new("."), base).join(catalog);
                std::fs::read_to_string(&file).map_err(|source| ConfigError::UnreadableCatalog {
                    path: file.clone(),
                    source,
                })?
            }
            None => String::new(),
        };
        let (files, variables) = self.expectations.places();
        Ok(Arc::new(Catalog::new(&added, &files, &variables)?))
    }

    /// Valid but probably unintended content.
    pub fn warnings(&self, catalog: &Catalog) -> Vec<String> {
        let mut warnings = self.ignored.clone();
        warnings.extend(check::warnings(&self.expectations, catalog));
        warnings
    }
}

impl From<PolicyManifest> for Config {
    fn from(manifest: PolicyManifest) -> Self {
        Self {
            expectations: manifest.into(),
            ..Self::default()
        }
    }
}

/// The base of a configuration's relative paths: its directory, or itself if it is one.
pub fn base(config: &Path) -> &Path {
    if config.is_dir() {
        config
    } else {
        config.parent().unwrap_or(Path::new("."))
    }
}

/// A file, or the `.yaml` and `.yml` files of a directory by name; hidden files belong to editors.
fn files_in(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let hidden = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            let yaml = path
                .extension()
                .is_some_and(|extension| extension == "yaml" || extension == "yml");
            yaml && !hidden
        })
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests;
