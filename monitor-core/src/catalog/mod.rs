//! The catalog: recognises credentials by place, by name and by form.

use crate::{
    catalog::entry::{CatalogAuthenticator, CiSystem, CredentialClass, IssuedField, PathVariable},
    model::{CiJob, context_value},
    yaml::YamlError,
};
use globset::GlobSet;
use monitor_common::scan::HEADER_MAX;
use std::{collections::HashMap, fmt::Debug};
use thiserror::Error;
use wildcard::{Wildcard, WildcardSet};

mod compile;
pub mod entry;
pub mod glob;
pub mod kernel_filter;
pub mod secret_marks;
mod wildcard;

pub use compile::CatalogSources;

/// Why a catalog cannot be used.
#[derive(Debug, Error)]
pub enum CatalogError {
    #[error("catalog:{0}")]
    Syntax(YamlError),
    #[error("catalog: class {class}: `{glob}` is not a valid glob: {source}")]
    Glob {
        class: String,
        glob: String,
        source: globset::Error,
    },
    #[error("catalog: header {0} is longer than {HEADER_MAX} bytes")]
    Header(String),
}

/// The compiled catalog.
#[derive(Debug)]
pub struct Catalog {
    classes: Vec<CredentialClass>,
    files: GlobSet,
    /// The class of each glob in `files`.
    file_class: Vec<usize>,
    sockets: GlobSet,
    socket_class: Vec<usize>,
    never_files: GlobSet,
    variables: GlobSet,
    /// The class of each glob in `variables`, and whether its value is the secret itself rather
    /// than a URL that may contain one.
    variable_class: Vec<(usize, bool)>,
    never_variables: GlobSet,
    /// `(prefix, class)`; probes send the index.
    prefixes: Vec<(String, usize)>,
    /// Header names, with their class if they have one; probes send the index.
    headers: Vec<(String, Option<usize>)>,
    homes: Vec<GlobSet>,
    usual: Vec<GlobSet>,
    metadata: Vec<std::net::IpAddr>,
    file_globs: Vec<String>,
    authenticators: Vec<(CatalogAuthenticator, GlobSet)>,
    /// Probes send the index.
    answers: Vec<IssuedField>,
    pointers: Vec<PathVariable>,
    /// Hosts below an issuer's domain at which its customers run what they like.
    tenants: WildcardSet,
    /// Variables that name a gateway, and the classes that go there.
    gateways: Vec<(Wildcard, Vec<String>)>,
    ci_systems: Vec<CiSystem>,
    /// Names of the programs of AI agents.
    ai_agents: Vec<String>,
    sources: CatalogSources,
}

/// Whether a class tells only that something is secret.
pub fn is_general(class: &str) -> bool {
    matches!(
        class,
        "generic-secret" | "mounted-secret" | "volume-secret" | "dotenv-secret" | "jwt"
    ) || class == EXPECTATION_CLASS
}

/// A shorter secret has no reliable form.
const FORM_MIN: usize = 16;

/// The class of a token of which only the form is known.
pub const JWT_CLASS: &str = "jwt";

/// The class of a file that only an expectation names.
pub const EXPECTATION_CLASS: &str = "named-secret";

impl Catalog {
    /// The class of a file, by its normalised path.
    pub fn file(&self, path: &str) -> Option<&CredentialClass> {
        let matched = self.files.matches(path);
        let first = matched.iter().map(|glob| self.file_class[*glob]).min()?;
        let class = &self.classes[first];
        // What an expectation names is a credential even if the catalog excludes it.
        if self.never_files.is_match(path)
            && !matched
                .iter()
                .any(|glob| self.classes[self.file_class[*glob]].class == EXPECTATION_CLASS)
        {
            return None;
        }
        Some(class)
    }

    /// The class of what is issued at a socket, by its normalised path.
    pub fn socket(&self, path: &str) -> Option<&CredentialClass> {
        let matched = self.sockets.matches(path);
        let first = matched.iter().map(|glob| self.socket_class[*glob]).min()?;
        Some(&self.classes[first])
    }

    /// Whether a path never holds a credential, even if a variable points to it.
    pub fn is_excluded_path(&self, path: &str) -> bool {
        self.never_files.is_match(path)
    }

    /// The paths that a variable's value refers to, if it is such a variable.
    pub fn pointers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a PathVariable> {
        self.pointers
            .iter()
            .filter(move |pointer| pointer.variable == name)
    }

    /// The class of a variable, by its name.
    pub fn variable(&self, name: &str) -> Option<&CredentialClass> {
        let matched = self.variables.matches(name);
        let first = matched
            .iter()
            .map(|glob| self.variable_class[*glob].0)
            .min()?;
        let class = &self.classes[first];
        if self.never_variables.is_match(name) && class.class != EXPECTATION_CLASS {
            return None;
        }
        Some(class)
    }

    /// Whether the value of a variable is the secret itself, according to the class that lists the
    /// variable.
    pub fn is_plain(&self, name: &str) -> bool {
        let matched = self.variables.matches(name);
        let all = matched.iter().map(|glob| self.variable_class[*glob]);
        let first = all.clone().map(|(class, _)| class).min();
        all.into_iter()
            .any(|(class, plain)| plain && Some(class) == first)
    }

    /// Whether a secret begins like those of a class, however short it is.
    pub fn is_marked(&self, class: &str, secret: &[u8]) -> bool {
        self.prefixes.iter().any(|(prefix, of)| {
            self.is_mark_of(class, &self.classes[*of]) && secret.starts_with(prefix.as_bytes())
        })
    }

    /// Whether a secret that begins like those of another class shows this one: a token's form is all
    /// that can be seen of an issuer of tokens.
    fn is_mark_of(&self, class: &str, by_prefix: &CredentialClass) -> bool {
        by_prefix.class == class
            || (by_prefix.class == JWT_CLASS
                && self
                    .classes
                    .iter()
                    .any(|known| known.class == class && known.jwt))
    }

    /// As [`is_marked`](Self::is_marked), by the prefix index that a probe sends.
    pub fn is_prefix_of(&self, class: &str, prefix: Option<u32>) -> bool {
        let known = prefix.and_then(|index| self.prefix(index));
        known.is_some_and(|(_, of)| self.is_mark_of(class, of))
    }

    /// The first characters of secrets, and their classes.
    pub fn marks(&self) -> impl Iterator<Item = (&str, &str)> {
        let marks = self.prefixes.iter();
        marks.map(|(mark, class)| (mark.as_str(), self.classes[*class].class.as_str()))
    }

    /// Every entry; a class may have several.
    pub fn class_entries(&self) -> &[CredentialClass] {
        &self.classes
    }

    /// Whether anyone can run an issuer of this class, anywhere.
    pub fn is_self_hosted(&self, class: &str) -> bool {
        self.classes
            .iter()
            .any(|candidate| candidate.class == class && candidate.self_hosted)
    }

    /// The class of a prefix, by the index that a probe sends.
    pub fn prefix(&self, index: u32) -> Option<(&str, &CredentialClass)> {
        let (prefix, class) = self.prefixes.get(index as usize)?;
        Some((prefix, &self.classes[*class]))
    }

    /// A header by the index that a probe sends: its name, and its class if it has one.
    pub fn header(&self, index: u32) -> Option<(&str, Option<&CredentialClass>)> {
        let (name, class) = self.headers.get(index as usize)?;
        Some((name, class.map(|class| &self.classes[class])))
    }

    /// The class of a secret by its first bytes; the longest prefix wins.
    pub fn class_of_secret(&self, secret: &[u8]) -> Option<&CredentialClass> {
        let index = self.prefix_index(secret)?;
        Some(&self.classes[self.prefixes[index as usize].1])
    }

    /// The index of the longest prefix that a secret begins with.
    pub fn prefix_index(&self, secret: &[u8]) -> Option<u32> {
        self.prefixes
            .iter()
            .enumerate()
            .filter(|(_, (prefix, _))| {
                secret.starts_with(prefix.as_bytes()) && secret.len() >= FORM_MIN
            })
            .max_by_key(|(_, (prefix, _))| prefix.len())
            .map(|(index, _)| index as u32)
    }

    pub fn class(&self, name: &str) -> Option<&CredentialClass> {
        self.classes.iter().find(|class| class.class == name)
    }

    /// The names of all classes.
    pub fn class_names(&self) -> impl Iterator<Item = &str> {
        self.classes.iter().map(|class| class.class.as_str())
    }

    /// Whether a host belongs to the home of a class; `None` if the class has no home.
    pub fn at_home(&self, class: &str, host: &str) -> Option<bool> {
        let mut known = false;
        for (index, candidate) in self.classes.iter().enumerate() {
            if candidate.class == class && !candidate.home.is_empty() {
                known = true;
                if self.homes[index].is_match(host) {
                    return Some(true);
                }
            }
        }
        known.then_some(false)
    }

    /// Whether a host below an issuer's domain is a customer's.
    pub fn is_tenant(&self, host: &str) -> bool {
        self.tenants.matches(host)
    }

    /// Whether every secret of a class has its issuer's mark.
    pub fn is_always_marked(&self, class: &str) -> bool {
        let mut all = self.classes.iter();
        all.any(|known| known.class == class && known.marked)
    }

    /// The classes that go to the server that a variable names.
    pub fn gateway_classes(&self, variable: &str) -> impl Iterator<Item = &str> {
        let known = self.gateways.iter();
        known
            .filter(move |(name, _)| name.matches(variable))
            .flat_map(|(_, classes)| classes.iter().map(String::as_str))
    }

    /// The job of a CI system that an environment names.
    pub fn ci_job<'a>(
        &self,
        environment: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Option<CiJob> {
        let variables: HashMap<&str, &str> = environment
            .filter(|(name, _)| self.ci_systems.iter().any(|system| system.uses(name)))
            .collect();
        let system = self
            .ci_systems
            .iter()
            .find(|system| variables.contains_key(&*system.mark))?;
        let value = |name: &Option<String>| context_value(variables.get(name.as_deref()?)?);
        Some(CiJob {
            system: system.name.clone(),
            repository: value(&system.repository),
            workflow: value(&system.workflow),
            run: value(&system.run),
            job: value(&system.job),
        })
    }

    /// Whether a program runs the jobs of a CI system.
    pub fn is_ci_runner(&self, name: &str) -> bool {
        let mut systems = self.ci_systems.iter();
        systems.any(|system| system.runners.iter().any(|runner| runner == name))
    }

    /// Whether a program is an AI agent.
    pub fn is_ai_agent(&self, name: &str) -> bool {
        self.ai_agents.iter().any(|agent| agent == name)
    }

    /// Whether it is known where the issuer of a class lives.
    pub fn has_home(&self, class: &str) -> bool {
        let mut entries = self.classes.iter();
        entries.any(|known| known.class == class && !known.home.is_empty())
    }

    /// The home of a class, as globs.
    pub fn home(&self, class: &str) -> Vec<String> {
        let mut home = Vec::new();
        let entries = self.classes.iter().filter(|known| known.class == class);
        for host in entries.flat_map(|known| &known.home) {
            // Several entries of a class have the same.
            if !home.contains(host) {
                home.push(host.clone());
            }
        }
        home
    }

    /// Whether an executable reads this class as part of its normal operation.
    pub fn is_usual(&self, class: &str, executable: &str) -> bool {
        self.classes.iter().enumerate().any(|(index, candidate)| {
            candidate.class == class && self.usual[index].is_match(executable)
        })
    }

    /// Whether an address belongs to a metadata service.
    pub fn is_metadata(&self, address: std::net::IpAddr) -> bool {
        self.metadata.contains(&address)
    }

    /// The authenticator at a host and port.
    pub fn authenticator(&self, host: &str, port: u16) -> Option<&str> {
        if self.is_tenant(host) {
            return None;
        }
        self.authenticators
            .iter()
            .find(|(authenticator, hosts)| {
                authenticator.port.is_none_or(|wanted| wanted == port) && hosts.is_match(host)
            })
            .map(|(authenticator, _)| authenticator.name.as_str())
    }

    /// Addresses of metadata services.
    pub fn metadata(&self) -> &[std::net::IpAddr] {
        &self.metadata
    }

    /// A response field, by the index that a probe sends.
    pub fn issued_field(&self, index: u64) -> Option<&IssuedField> {
        self.answers.get(usize::try_from(index).ok()?)
    }
}

#[cfg(test)]
mod tests;
