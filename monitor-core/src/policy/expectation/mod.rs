//! Expectations: which workloads may use a credential, and where it may go. Patterns are checked
//! while they are parsed.

pub mod check;
pub mod destination;
pub mod limits;
pub mod pattern;
pub mod reader;

use self::{
    destination::{DestinationPattern, DestinationTarget, is_any_at},
    pattern::{NamePattern, OneOrMany, PathPattern},
    reader::{ReaderMatch, ReaderPattern, allows},
};
use crate::{
    model::{Credential, Destination, Role, Source, Workload},
    time::deserialize_maybe_duration,
};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use std::net::IpAddr;

/// All expectations in force.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expectations {
    pub credentials: Vec<Expectation>,
    pub authenticators: Vec<AuthenticatorEntry>,
    pub gateways: Vec<GatewayEntry>,
    /// Who may read the environments and the memory of other processes.
    pub inspectors: Vec<ReaderPattern>,
    /// The first of several files that sets it wins; default [`PolicyMode::Alert`].
    pub mode: Option<PolicyMode>,
}

impl Expectations {
    /// Appends other expectations.
    pub fn append(&mut self, more: Self) {
        self.credentials.extend(more.credentials);
        self.authenticators.extend(more.authenticators);
        self.gateways.extend(more.gateways);
        self.inspectors.extend(more.inspectors);
        self.mode = self.mode.or(more.mode);
    }

    /// Whether nothing is raised that an expectation would settle.
    pub fn is_learning(&self) -> bool {
        self.mode == Some(PolicyMode::Learn)
    }

    /// The expectations that apply to a credential.
    pub fn about<'a>(
        &'a self,
        credential: &'a Credential,
    ) -> impl Iterator<Item = &'a Expectation> {
        self.credentials
            .iter()
            .filter(move |expectation| expectation.is_about(credential))
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
    #[serde(default, deserialize_with = "deserialize_maybe_duration")]
    pub max_age: Option<SignedDuration>,
    #[serde(default)]
    pub revoked_at: Option<Timestamp>,
    /// Nothing legitimate uses it: any use is critical.
    #[serde(default)]
    pub decoy: bool,
    #[serde(default)]
    pub cleartext: CleartextMode,
    #[serde(default)]
    pub readers: Vec<ReaderPattern>,
    #[serde(default)]
    pub destinations: Vec<DestinationPattern>,
}

/// Whether a credential may be presented outside TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CleartextMode {
    #[default]
    Flagged,
    Allowed,
}

/// Where credentials of some classes go instead of to their issuers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayEntry {
    pub name: String,
    /// All classes if it lists none.
    #[serde(default)]
    pub classes: Vec<NamePattern>,
    pub destinations: Vec<DestinationPattern>,
}

impl GatewayEntry {
    /// Whether credentials of a class may go through it.
    pub fn accepts(&self, class: &str) -> bool {
        self.classes.is_empty() || self.classes.iter().any(|known| known.matches(class))
    }

    pub fn is_at(&self, destination: &Destination) -> bool {
        is_any_at(&self.destinations, destination)
    }
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
        is_any_at(&self.destinations, destination)
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
            || credential
                .sources
                .iter()
                .filter(|place| !credential.copies.contains(place))
                .any(|place| match place.source {
                    Source::File | Source::Socket | Source::Inherited => {
                        self.names_file(&place.place)
                    }
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
