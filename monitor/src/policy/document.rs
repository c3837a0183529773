//! Configuration and expectations as written in YAML.
//!
//! Patterns are checked while they are parsed, so that an error names its line and column.

use crate::{
    credential::catalog::{Catalog, in_any_home, normalise},
    model::{Credential, Destination, Role, Source, Workload, WorkloadKind},
    report::findings::FindingsFormat,
    sensor::exclude::ExcludePattern,
    time,
};
use globset::{GlobBuilder, GlobMatcher};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use std::{
    collections::HashSet,
    net::IpAddr,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Why a document cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    /// Line and column count from 1.
    #[error("{path}:{line}:{column}: {reason}")]
    Syntax {
        path: PathBuf,
        line: u64,
        column: u64,
        reason: String,
    },
}

/// The file of `--config`, and every file of expectations: all keys are optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigDocument {
    pub credentials: Vec<Expectation>,
    pub authenticators: Vec<AuthenticatorEntry>,
    /// The first of several files that sets it wins; default [`PolicyMode::Alert`].
    pub mode: Option<PolicyMode>,
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
    /// Agent settings found in files of expectations, which are only valid in the file of
    /// `--config`.
    #[serde(skip)]
    pub ignored: Vec<String>,
}

/// The custom resource, as passed to kubectl.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicyManifest {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    _metadata: IgnoredAny,
    #[serde(rename = "status", default)]
    _status: IgnoredAny,
    spec: PolicySpec,
}

/// What a custom resource may contain.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicySpec {
    credentials: Vec<Expectation>,
    authenticators: Vec<AuthenticatorEntry>,
}

/// Enough of a YAML document to tell which of the two it is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct DocumentKind {
    kind: Option<String>,
}

/// The kind of the custom resource.
const MANIFEST: &str = "CredentialPolicy";

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
#[derive(Clone, Debug, Default, Deserialize)]
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
    #[serde(deserialize_with = "a_duration")]
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

/// How unexpected hops are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyMode {
    Alert,
    /// Record, and raise nothing that an expectation would settle.
    Learn,
}

/// Which workloads may use a credential, and where it may go.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    pub name: String,
    #[serde(rename = "match")]
    pub matches: CredentialMatch,
    #[serde(default)]
    pub owner: Option<String>,
    #[serde(default, deserialize_with = "maybe_duration")]
    pub max_age: Option<SignedDuration>,
    #[serde(default)]
    pub revoked_at: Option<Timestamp>,
    #[serde(default)]
    pub readers: Vec<ReaderPattern>,
    #[serde(default)]
    pub destinations: Vec<DestinationPattern>,
}

/// Which credentials an expectation applies to: any of these.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CredentialMatch {
    pub file: Option<OneOrMany<PathPattern>>,
    pub environment: Option<OneOrMany<NamePattern>>,
    pub class: Option<OneOrMany<NamePattern>>,
    pub id: Option<OneOrMany<NamePattern>>,
}

/// A system that mints credentials.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthenticatorEntry {
    pub name: String,
    pub destinations: Vec<DestinationPattern>,
    /// The role or roles of what it mints; any if not given.
    #[serde(default)]
    pub mints: Option<OneOrMany<Role>>,
    /// Who may obtain credentials from it; anyone if empty.
    #[serde(default)]
    pub readers: Vec<ReaderPattern>,
}

impl AuthenticatorEntry {
    /// Whether it may mint credentials of a role.
    pub fn may_mint(&self, role: Role) -> bool {
        self.mints
            .as_ref()
            .is_none_or(|roles| roles.iter().any(|known| *known == role))
    }

    pub fn is_at(&self, destination: &Destination) -> bool {
        self.destinations
            .iter()
            .any(|pattern| pattern.matches(destination))
    }

    /// Its destinations that are addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.destinations
            .iter()
            .filter_map(|pattern| match &pattern.target {
                DestinationTarget::Network(network)
                    if network.prefix_len() == network.max_prefix_len() =>
                {
                    Some(network.addr())
                }
                _ => None,
            })
    }
}

/// A workload that may read: every given field must match.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReaderPattern {
    pub namespace: Option<NamePattern>,
    pub workload: Option<NamePattern>,
    pub unit: Option<NamePattern>,
    pub executable: Option<PathPattern>,
    pub container: Option<NamePattern>,
    pub service_account: Option<NamePattern>,
}

/// A pattern or a list of them.
#[derive(Clone, Debug)]
pub enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrManyVisitor<T>(std::marker::PhantomData<T>);
        // Written by hand, because an untagged enum hides the error of a single pattern.
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for OneOrManyVisitor<T> {
            type Value = OneOrMany<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a pattern or a list of patterns")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(serde::de::value::StrDeserializer::new(text)).map(OneOrMany::One)
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                items: A,
            ) -> Result<Self::Value, A::Error> {
                Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(items))
                    .map(OneOrMany::Many)
            }
        }
        deserializer.deserialize_any(OneOrManyVisitor(std::marker::PhantomData))
    }
}

impl<T> OneOrMany<T> {
    fn iter(&self) -> std::slice::Iter<'_, T> {
        match self {
            Self::One(one) => std::slice::from_ref(one).iter(),
            Self::Many(many) => many.iter(),
        }
    }
}

/// A glob over names.
#[derive(Clone, Debug)]
pub struct NamePattern {
    pub text: String,
    glob: GlobMatcher,
}

/// A glob over paths: `*` stays in one directory, `**` does not.
#[derive(Clone, Debug)]
pub struct PathPattern(NamePattern);

impl NamePattern {
    fn new(text: &str, paths: bool) -> Result<Self, String> {
        let glob = GlobBuilder::new(text)
            .literal_separator(paths)
            .build()
            .map_err(|error| format!("`{text}` is not a valid glob: {}", error.kind()))?;
        Ok(Self {
            text: text.to_owned(),
            glob: glob.compile_matcher(),
        })
    }

    pub fn matches(&self, text: &str) -> bool {
        self.glob.is_match(text)
    }
}

impl PathPattern {
    pub fn text(&self) -> &str {
        &self.0.text
    }

    fn matches(&self, path: &str) -> bool {
        self.0.matches(path)
    }
}

impl<'de> Deserialize<'de> for NamePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text, false).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for PathPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The catalog uses only `/run`, and matches homes by what is below them.
        let normal = in_any_home(&normalise(&text));
        NamePattern::new(&normal, true)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

/// `host-glob`, an address or a network, with or without `:port`.
#[derive(Clone, Debug)]
pub struct DestinationPattern {
    pub text: String,
    target: DestinationTarget,
    /// The same name inside the cluster's domain, if it is that of a service.
    in_cluster: Option<GlobMatcher>,
    port: Option<u16>,
}

/// The default DNS domain of clusters.
const CLUSTER_DOMAIN: &str = "cluster.local";

#[derive(Clone, Debug)]
enum DestinationTarget {
    Name(GlobMatcher),
    Network(IpNet),
}

impl DestinationPattern {
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (target, port) = split_port(text)?;
        let port = match port {
            None | Some("*") => None,
            Some(port) => Some(
                port.parse()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| format!("`{text}`: `{port}` is not a port"))?,
            ),
        };
        let bare = target.trim_start_matches('[').trim_end_matches(']');
        let glob = |name: &str| {
            GlobBuilder::new(&name.to_ascii_lowercase())
                .build()
                .map(|glob| glob.compile_matcher())
                .map_err(|error| format!("`{text}` is not a valid glob: {}", error.kind()))
        };
        let mut in_cluster = None;
        let target =
            if target.contains('/') {
                let network = target.replace(['[', ']'], "");
                DestinationTarget::Network(network.parse().map_err(|_| {
                    format!("`{text}`: `{target}` is not a network such as 10.0.0.0/8")
                })?)
            } else if let Ok(address) = bare.parse::<IpAddr>() {
                DestinationTarget::Network(IpNet::from(address))
            } else {
                // Names are compared without the trailing dot of the root.
                let name = target.trim_end_matches('.');
                if name.is_empty() || name.contains(char::is_whitespace) || bare.contains(':') {
                    return Err(format!(
                        "`{text}`: `{target}` is not a name, address or network"
                    ));
                }
                if name.to_ascii_lowercase().ends_with(".svc") {
                    in_cluster = Some(glob(&format!("{name}.{CLUSTER_DOMAIN}"))?);
                }
                DestinationTarget::Name(glob(name)?)
            };
        Ok(Self {
            text: text.to_owned(),
            target,
            in_cluster,
            port,
        })
    }

    pub fn matches(&self, destination: &Destination) -> bool {
        if self.port.is_some_and(|port| port != destination.port) {
            return false;
        }
        match &self.target {
            DestinationTarget::Name(glob) => destination.name.as_deref().is_some_and(|name| {
                let in_cluster = self.in_cluster.as_ref();
                glob.is_match(name) || in_cluster.is_some_and(|glob| glob.is_match(name))
            }),
            DestinationTarget::Network(network) => network.contains(&destination.address),
        }
    }
}

/// The port of a destination, if any: the text after the last `:` outside brackets, unless the
/// whole is an IPv6 address.
fn split_port(text: &str) -> Result<(&str, Option<&str>), String> {
    if text.is_empty() {
        return Err("a destination is empty".to_owned());
    }
    if let Some(end) = text.rfind(']') {
        let after = text[end + 1..].rfind(':').map(|at| end + 1 + at);
        return Ok(after.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..]))));
    }
    if text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok() {
        return Ok((text, None));
    }
    Ok(text
        .rsplit_once(':')
        .map_or((text, None), |(target, port)| (target, Some(port))))
}

impl<'de> Deserialize<'de> for DestinationPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

fn a_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SignedDuration, D::Error> {
    time::duration(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn maybe_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SignedDuration>, D::Error> {
    Option::<String>::deserialize(deserializer)?
        .map(|text| time::duration(&text).map_err(serde::de::Error::custom))
        .transpose()
}

impl Expectation {
    /// Whether it applies to a credential.
    pub fn is_about(&self, credential: &Credential) -> bool {
        let any = |patterns: &Option<OneOrMany<NamePattern>>, text: &str| {
            patterns
                .as_ref()
                .is_some_and(|patterns| patterns.iter().any(|pattern| pattern.matches(text)))
        };
        any(&self.matches.class, &credential.class)
            || any(&self.matches.id, &credential.id.0)
            || credential.sources.iter().any(|place| match place.source {
                Source::File | Source::Socket | Source::Inherited => self.names_file(&place.place),
                Source::Environment => any(
                    &self.matches.environment,
                    place.place.trim_start_matches("env:"),
                ),
                _ => false,
            })
    }

    /// Whether it names a file.
    pub fn names_file(&self, path: &str) -> bool {
        let mut files = self.matches.file.iter().flat_map(OneOrMany::iter);
        files.any(|file| file.matches(path))
    }

    /// Whether a workload is among its readers; `None` if it lists no readers.
    pub fn allows_reader(&self, workload: &Workload, executable: &str) -> Option<ReaderMatch> {
        allows(&self.readers, workload, executable)
    }

    /// The files and variables that it names.
    pub fn places(&self) -> (Vec<String>, Vec<String>) {
        let files = self
            .matches
            .file
            .iter()
            .flat_map(OneOrMany::iter)
            .map(|pattern| pattern.text().to_owned())
            .collect();
        let variables = self
            .matches
            .environment
            .iter()
            .flat_map(OneOrMany::iter)
            .map(|pattern| pattern.text.clone())
            .collect();
        (files, variables)
    }
}

/// Whether a workload matches a reader pattern, ordered from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReaderMatch {
    Differs,
    /// It depends on a part of the name that is not known yet.
    Unknown,
    Matches,
}

/// Whether a workload is among readers; `None` if there are none.
pub fn allows(
    readers: &[ReaderPattern],
    workload: &Workload,
    executable: &str,
) -> Option<ReaderMatch> {
    readers
        .iter()
        .map(|reader| reader.fits(workload, executable))
        .max()
}

impl ReaderPattern {
    fn fits(&self, workload: &Workload, executable: &str) -> ReaderMatch {
        let fit = |pattern: &Option<NamePattern>, text: Option<&str>, known: bool| match pattern {
            None => ReaderMatch::Matches,
            Some(pattern) if text.is_some_and(|text| pattern.matches(text)) => ReaderMatch::Matches,
            Some(_) if known => ReaderMatch::Differs,
            Some(_) => ReaderMatch::Unknown,
        };
        // In a partial name the runtime's parts are correct, and the owner is missing. A pod has
        // names even if no provider knows them; a plain container has only its own.
        let runtime = if workload.partial || workload.kind == WorkloadKind::Pod {
            !workload.is_unnamed()
        } else {
            true
        };
        let whole = runtime && !workload.partial;
        let account = whole && (workload.service_account.is_some() || workload.pod.is_none());
        let executable = match &self.executable {
            Some(pattern) if !pattern.matches(executable) => ReaderMatch::Differs,
            _ => ReaderMatch::Matches,
        };
        [
            fit(&self.namespace, workload.namespace.as_deref(), runtime),
            fit(&self.workload, Some(&workload.name), whole),
            fit(&self.unit, workload.unit.as_deref(), true),
            fit(&self.container, workload.container.as_deref(), runtime),
            fit(
                &self.service_account,
                workload.service_account.as_deref(),
                account,
            ),
            executable,
        ]
        .into_iter()
        .min()
        .unwrap_or(ReaderMatch::Matches)
    }

    /// As shown in a finding.
    pub fn text(&self) -> String {
        let parts = [
            ("namespace", self.namespace.as_ref()),
            ("workload", self.workload.as_ref()),
            ("unit", self.unit.as_ref()),
            ("executable", self.executable.as_ref().map(|path| &path.0)),
            ("container", self.container.as_ref()),
            ("service_account", self.service_account.as_ref()),
        ];
        let shown: Vec<String> = parts
            .iter()
            .filter_map(|(name, pattern)| Some(format!("{name}={}", pattern.as_ref()?.text)))
            .collect();
        shown.join(" ")
    }
}

impl ConfigDocument {
    /// Reads a document and the expectations of the files that it names, in order; for a directory,
    /// all of its files.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut document = if path.is_dir() {
            Self {
                policies: vec![PathBuf::new()],
                ..Self::default()
            }
        } else {
            Self::read(path)?
        };
        for named in document.policies.clone() {
            let named = base(path).join(named);
            for file in files_in(&named)? {
                let more = Self::read(&file)?;
                let settings = more.settings();
                if !settings.is_empty() {
                    document.ignored.push(format!(
                        "{}: `{}` has no effect here: agent settings belong in the file of --config",
                        file.display(),
                        settings.join("`, `")
                    ));
                }
                document.take(more);
            }
        }
        Ok(document)
    }

    /// Appends the expectations of another document.
    fn take(&mut self, more: Self) {
        self.credentials.extend(more.credentials);
        self.authenticators.extend(more.authenticators);
        self.mode = self.mode.or(more.mode);
    }

    /// The settings that an agent reads only at start, for comparison.
    pub fn settings_text(&self) -> String {
        format!(
            "{:?}",
            (
                (
                    &self.state_dir,
                    &self.listen,
                    &self.metrics_listen,
                    &self.tls
                ),
                (&self.token_file, &self.findings, self.findings_format),
                (
                    &self.fingerprint_key_file,
                    &self.retention,
                    &self.kubernetes
                ),
            )
        )
    }

    /// The agent settings that it contains.
    fn settings(&self) -> Vec<&'static str> {
        [
            ("policies", !self.policies.is_empty()),
            ("catalog", self.catalog.is_some()),
            ("state_dir", self.state_dir.is_some()),
            ("listen", self.listen.is_some()),
            ("metrics_listen", self.metrics_listen.is_some()),
            ("tls", self.tls.is_some()),
            ("token_file", self.token_file.is_some()),
            ("findings", self.findings.is_some()),
            ("findings_format", self.findings_format.is_some()),
            ("fingerprint_key_file", self.fingerprint_key_file.is_some()),
            ("retention", self.retention != RetentionLimits::default()),
            (
                "kubernetes",
                self.kubernetes != KubernetesSettings::default(),
            ),
            ("inspect", !self.inspect.exclude.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, is_set)| is_set.then_some(name))
        .collect()
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Parses a document from text, which may contain several, or manifests of the custom resource;
    /// `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let kinds: Vec<DocumentKind> = serde_saphyr::from_multiple(text).unwrap_or_default();
        let is_manifest = |kind: &DocumentKind| kind.kind.as_deref() == Some(MANIFEST);
        let read = if kinds.iter().any(is_manifest) {
            serde_saphyr::from_multiple::<PolicyManifest>(text)
                .map(|manifests| manifests.into_iter().map(Self::from).collect())
        } else if kinds.len() > 1 {
            serde_saphyr::from_multiple(text)
        } else {
            serde_saphyr::from_str(text).map(|document| vec![document])
        };
        let mut documents: Vec<Self> = read.map_err(|error| {
            let location = error.location();
            let reason = error.without_snippet().to_string();
            let mut reason = reason.lines().next().unwrap_or_default().to_owned();
            if let Some(meant) = meant(&reason) {
                reason.push_str(&format!("; did you mean `{meant}`?"));
            }
            ConfigError::Syntax {
                path: path.to_owned(),
                line: location.map_or(1, |location| location.line()),
                column: location.map_or(1, |location| location.column()),
                reason,
            }
        })?;
        let mut whole = if documents.is_empty() {
            Self::default()
        } else {
            documents.remove(0)
        };
        for more in documents {
            whole.take(more);
        }
        Ok(whole)
    }

    /// Valid but probably unintended content.
    pub fn doubts(&self, catalog: &Catalog) -> Vec<String> {
        let mut doubts = self.ignored.clone();
        let mut names = HashSet::new();
        for expectation in &self.credentials {
            let name = &expectation.name;
            if !names.insert(name) {
                doubts.push(format!(
                    "several credentials are named `{name}`: if two match, the first one applies"
                ));
            }
            let of = &expectation.matches;
            if of.file.is_none()
                && of.environment.is_none()
                && of.class.is_none()
                && of.id.is_none()
            {
                doubts.push(format!(
                    "`{name}` matches nothing: write `file`, `environment`, `class` or `id` in its `match`"
                ));
            }
            if name.trim().is_empty() {
                doubts.push(
                    "a credential has an empty name, which findings and answers would show"
                        .to_owned(),
                );
            }
            if expectation
                .readers
                .iter()
                .any(|reader| reader.text().is_empty())
            {
                doubts.push(format!(
                    "`{name}` has an empty reader: it matches every workload"
                ));
            }
            for unit in expectation
                .readers
                .iter()
                .filter_map(|reader| reader.unit.as_ref())
            {
                if !unit.text.contains(['.', '*', '?', '[', '{']) {
                    doubts.push(format!(
                        "`{name}` has the reader unit `{unit}` without a suffix: write `{unit}.service`",
                        unit = unit.text
                    ));
                }
            }
            for file in of.file.iter().flat_map(OneOrMany::iter) {
                if !file.text().starts_with(['/', '*', '?', '[', '{']) {
                    doubts.push(format!(
                        "`{name}` matches the file `{}`, but paths begin with `/`: it never matches; write `/**/{}` to match it anywhere",
                        file.text(),
                        file.text().trim_start_matches("./")
                    ));
                }
            }
            for id in of.id.iter().flat_map(OneOrMany::iter) {
                if !may_be_an_id(&id.text) {
                    doubts.push(format!(
                        "`{name}` matches the id `{}`, but an id is `kt-` or `loc-` and 16 hex digits: `keytrail inventory` lists them",
                        id.text
                    ));
                }
            }
            for class in of.class.iter().flat_map(OneOrMany::iter) {
                let known: Vec<&str> = catalog.class_names().collect();
                if known.iter().any(|known| class.matches(known)) {
                    continue;
                }
                let like = nearest(&class.text, known.into_iter())
                    .map_or_else(String::new, |like| format!("; did you mean `{like}`?"));
                doubts.push(format!(
                    "`{name}` matches the class `{}`, which the catalog does not have{like}",
                    class.text
                ));
            }
        }
        doubts
    }

    /// Every file and variable that an expectation names.
    pub fn places(&self) -> (Vec<String>, Vec<String>) {
        let mut files = Vec::new();
        let mut variables = Vec::new();
        for expectation in &self.credentials {
            let (more_files, more_variables) = expectation.places();
            files.extend(more_files);
            variables.extend(more_variables);
        }
        (files, variables)
    }
}

impl From<PolicyManifest> for ConfigDocument {
    fn from(manifest: PolicyManifest) -> Self {
        Self {
            credentials: manifest.spec.credentials,
            authenticators: manifest.spec.authenticators,
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

/// Whether a pattern can match an id.
fn may_be_an_id(pattern: &str) -> bool {
    let digits = ["kt-", "loc-"]
        .iter()
        .find_map(|prefix| pattern.strip_prefix(prefix));
    let whole = digits.is_some_and(|digits| {
        digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    whole || pattern.contains(['*', '?', '[', '{'])
}

/// The word that was probably meant by an unknown one, from the message that lists the known ones.
fn meant(message: &str) -> Option<&str> {
    let (said, known) = message
        .strip_prefix("unknown ")?
        .split_once(", expected ")?;
    let word = said.split('`').nth(1)?;
    let known = known.split(" at line ").next().unwrap_or(known);
    let known = known.trim_start_matches("one of ").split([',', ' ']);
    nearest(
        word,
        known
            .map(|word| word.trim_matches('`'))
            .filter(|word| !word.is_empty()),
    )
}

/// The known word most similar to another, if there is one.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .map(|known| (strsim::damerau_levenshtein(&word, known), known))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .map(|(_, known)| known)
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
mod tests {
    use super::*;
    use crate::model::{NameSource, Transport};
    use proptest::prelude::*;

    const SAMPLE: &str = r#"
credentials:
  - name: payments-stripe
    match: { file: /var/run/secrets/payments/stripe, environment: STRIPE_*, class: stripe-key }
    owner: team-payments
    max_age: 30d
    revoked_at: null
    readers: [ { namespace: payments, workload: api }, { unit: nginx.service } ]
    destinations: [ "*.stripe.com:443", "10.0.0.0/8:5432", "ledger.payments.svc:8443" ]
authenticators:
  - { name: vault, destinations: [ "vault.internal:8200" ], mints: access }
mode: alert
"#;

    fn destination(name: Option<&str>, address: &str, port: u16) -> Destination {
        Destination {
            address: address.parse().expect("an address"),
            port,
            name: name.map(str::to_owned),
            name_source: NameSource::None,
            transport: Transport::Tcp,
            ech: false,
            one_of: 0,
            disputed: Vec::new(),
            object: None,
        }
    }

    #[test]
    fn the_sample_of_the_documentation() {
        let document = ConfigDocument::parse(Path::new("x.yaml"), SAMPLE).expect("parses");
        let expectation = &document.credentials[0];
        assert_eq!(expectation.max_age, Some(SignedDuration::from_hours(720)));
        assert_eq!(document.places().0, ["/run/secrets/payments/stripe"]);
        let allowed = |name, address, port| {
            expectation
                .destinations
                .iter()
                .any(|pattern| pattern.matches(&destination(name, address, port)))
        };
        assert!(allowed(Some("api.stripe.com"), "203.0.113.5", 443));
        assert!(!allowed(Some("api.stripe.com"), "203.0.113.5", 8443));
        assert!(allowed(None, "10.1.2.3", 5432));
        assert!(!allowed(None, "11.1.2.3", 5432));
    }

    #[test]
    fn errors_name_line_and_column() {
        for (text, line, part) in [
            (
                "credentials:\n  - name: x\n    match: { file: \"/a[\" }\n",
                3,
                "glob",
            ),
            (
                "credentials:\n  - name: x\n    match: {}\n    destinations: [ \"a:99999\" ]\n",
                4,
                "port",
            ),
            (
                "credentials:\n  - name: x\n    match: {}\n    reader: []\n",
                4,
                "reader",
            ),
            ("mode: maybe\n", 1, "maybe"),
            ("credentials: [\n", 2, ""),
        ] {
            match ConfigDocument::parse(Path::new("p.yaml"), text) {
                Err(ConfigError::Syntax {
                    line: found,
                    reason,
                    ..
                }) => {
                    assert!(found.abs_diff(line) <= 1, "{text}: line {found}, {reason}");
                    assert!(reason.contains(part), "{text}: {reason}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_was_meant_is_said() {
        for (text, meant) in [
            (
                "credentials:\n  - name: x\n    match: {}\n    reader: []\n",
                Some("readers"),
            ),
            ("mode: lern\n", Some("learn")),
            ("credentails: []\n", Some("credentials")),
            ("entirely: []\n", None),
        ] {
            let error = ConfigDocument::parse(Path::new("p.yaml"), text).expect_err("wrong");
            let said = error.to_string();
            match meant {
                Some(meant) => {
                    assert!(
                        said.ends_with(&format!("did you mean `{meant}`?")),
                        "{said}"
                    );
                }
                None => assert!(!said.contains("did you mean"), "{said}"),
            }
        }
        let catalog = Catalog::new("", &[], &[]).expect("compiles");
        let text = "credentials:\n- { name: a, match: { class: aws-acess-key } }\n- { name: a, match: {} }\n- { name: b, match: { class: 'aws-*' } }\n";
        let doubts = ConfigDocument::parse(Path::new("p.yaml"), text)
            .expect("parses")
            .doubts(&catalog);
        assert_eq!(doubts.len(), 3, "{doubts:?}");
        assert!(
            doubts[0].ends_with("did you mean `aws-access-key`?"),
            "{doubts:?}"
        );
    }

    #[test]
    fn what_can_match_nothing_or_everybody_is_doubted() {
        let catalog = Catalog::new("", &[], &[]).expect("compiles");
        let doubts = |text: &str| {
            let text = format!("credentials: [ {{ {text} }} ]");
            ConfigDocument::parse(Path::new("p.yaml"), &text)
                .unwrap_or_else(|error| panic!("{error}"))
                .doubts(&catalog)
        };
        for (text, part) in [
            (
                "name: a, match: { file: /x }, readers: [ {} ]",
                "every workload",
            ),
            ("name: ' ', match: { file: /x }", "empty name"),
            ("name: a, match: { file: run/x }", "begin with `/`"),
            ("name: a, match: { id: kt-12 }", "16 hex digits"),
            ("name: a, match: { id: my-key }", "16 hex digits"),
            (
                "name: a, match: { file: /x }, readers: [ { unit: nginx } ]",
                "write `nginx.service`",
            ),
        ] {
            let told = doubts(text);
            assert!(
                told.len() == 1 && told[0].contains(part),
                "{text}: {told:?}"
            );
        }
        for text in [
            "name: a, match: { file: [ /x, '**/y' ], id: [ kt-0123456789abcdef, 'kt-0*' ] }",
            "name: a, match: { file: /x }, readers: [ { unit: a.service }, { unit: 'a*' } ]",
            "name: a, match: { file: '~/.aws/credentials' }",
        ] {
            assert_eq!(doubts(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn a_directory_is_read_by_whatever_path_it_is_given() {
        let parent = tempfile::tempdir().expect("a directory");
        let one =
            |name: &str| format!("credentials: [ {{ name: {name}, match: {{ file: /x }} }} ]");
        let directory = parent.path().join("policies");
        std::fs::create_dir(&directory).expect("made");
        std::fs::write(parent.path().join("other.yaml"), one("other")).expect("written");
        std::fs::write(directory.join("b.yaml"), one("b")).expect("written");
        std::fs::write(directory.join("a.yml"), one("a")).expect("written");
        std::fs::write(directory.join(".#a.yaml"), one("hidden")).expect("written");
        for path in [directory.clone(), directory.join("."), directory.join("")] {
            let names: Vec<String> = ConfigDocument::load(&path)
                .expect("read")
                .credentials
                .into_iter()
                .map(|one| one.name)
                .collect();
            assert_eq!(names, ["a", "b"], "{}", path.display());
        }
    }

    #[test]
    fn settings_of_the_agent_are_for_its_own_file_and_a_mode_is_anybodys() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text);
        write(
            "a.yaml",
            "listen: 127.0.0.1:1\nretention: { max_age: 1d }\n",
        )
        .expect("written");
        write("b.yaml", "mode: learn\n").expect("written");
        write("c.yaml", "mode: alert\n").expect("written");
        let document = ConfigDocument::load(directory.path()).expect("read");
        assert_eq!(
            document.mode,
            Some(PolicyMode::Learn),
            "the first that says one"
        );
        let catalog = Catalog::new("", &[], &[]).expect("compiles");
        let [doubt] = &document.doubts(&catalog)[..] else {
            panic!("one doubt");
        };
        assert!(doubt.contains("a.yaml: `listen`, `retention`"), "{doubt}");
    }

    #[test]
    fn several_documents_and_manifests_are_one() {
        let one =
            |name: &str| format!("credentials: [ {{ name: {name}, match: {{ file: /x }} }} ]\n");
        let manifest = |name: &str| {
            format!(
                "apiVersion: keytrail.dev/v1alpha1\nkind: CredentialPolicy\nmetadata: {{ name: {name} }}\nspec:\n  {}",
                one(name)
            )
        };
        let names = |text: &str| -> Result<Vec<String>, String> {
            ConfigDocument::parse(Path::new("p.yaml"), text)
                .map(|document| {
                    document
                        .credentials
                        .into_iter()
                        .map(|one| one.name)
                        .collect()
                })
                .map_err(|error| error.to_string())
        };
        let both = ["a".to_owned(), "b".to_owned()];
        for text in [
            format!("{}---\n{}", one("a"), one("b")),
            format!("---\n{}---\n{}", manifest("a"), manifest("b")),
        ] {
            assert_eq!(names(&text).expect(&text), both);
        }
        let wrong = format!(
            "{}---\n{}",
            manifest("a"),
            manifest("b").replace("match", "mach")
        );
        let said = names(&wrong).expect_err("wrong");
        assert!(
            said.starts_with("p.yaml:11:") && said.ends_with("did you mean `match`?"),
            "{said}"
        );
    }

    #[test]
    fn what_is_no_destination_is_refused() {
        for text in [
            "",
            " ",
            ":443",
            "a b",
            "[fe80::1%eth0]:443",
            "10.0.0.0/33",
            "a:0",
            ".",
        ] {
            assert!(DestinationPattern::new(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn destinations_of_every_form() {
        for (pattern, name, address, port, expected) in [
            ("[fd00::1]:443", None, "fd00::1", 443, true),
            ("fd00::/8", None, "fd00::2", 1, true),
            ("fd00::1", None, "fd00::1", 80, true),
            ("example.com", Some("example.com"), "10.0.0.1", 80, true),
            ("example.com:*", Some("example.com"), "10.0.0.1", 80, true),
            ("EXAMPLE.com", Some("example.com"), "10.0.0.1", 80, true),
            ("*.example.com", Some("example.com"), "10.0.0.1", 80, false),
            ("example.com", None, "10.0.0.1", 80, false),
            (
                " example.com.:443 ",
                Some("example.com"),
                "10.0.0.1",
                443,
                true,
            ),
            ("a.ns.svc:1", Some("a.ns.svc"), "10.0.0.1", 1, true),
            (
                "a.ns.svc:1",
                Some("a.ns.svc.cluster.local"),
                "10.0.0.1",
                1,
                true,
            ),
            (
                "a.ns.svc:1",
                Some("a.ns.svc.evil.example"),
                "10.0.0.1",
                1,
                false,
            ),
        ] {
            let parsed = DestinationPattern::new(pattern).expect(pattern);
            assert_eq!(
                parsed.matches(&destination(name, address, port)),
                expected,
                "{pattern}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
            let _ = ConfigDocument::parse(Path::new("x"), &text);
            let _ = DestinationPattern::new(&text);
        }
    }
}
