//! The catalog: recognises credentials by place, by name and by form.

use crate::{
    model::{Lifetime, Role},
    sensor::FilterRules,
};
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use monitor_common::{
    environ::word_key,
    filter::{
        FilterKind, HOST, JWT_VALUE, NEEDS_PAIR, PLAIN, URL_WORD, hash_of_name, key, pair_key,
        prefix_word, value_key,
    },
    http2::coded_header_key,
    response::field_key,
    scan::{HEADER_MAX, header_key},
};
use serde::Deserialize;
use std::collections::BTreeMap;
use thiserror::Error;

const EMBEDDED: &str = include_str!("catalog.yaml");

/// Why a catalog cannot be used.
#[derive(Debug, Error)]
pub enum CatalogError {
    #[error("catalog: {0}")]
    Syntax(String),
    #[error("catalog: class {class}: `{glob}` is not a valid glob: {source}")]
    Glob {
        class: String,
        glob: String,
        source: globset::Error,
    },
    #[error("catalog: header {0} is longer than {HEADER_MAX} bytes")]
    Header(String),
}

/// How secrets are stored in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// The file is one token, possibly surrounded by white space.
    #[default]
    Token,
    Pem,
    Ini,
    Json,
    Yaml,
    Netrc,
    Pgpass,
    /// Each line is a URL with user info.
    Urls,
    Dotenv,
    /// AWS profiles: key pairs, named by their access key id.
    Aws,
    /// Docker's registry credentials.
    Docker,
    /// Every byte of the file is the secret.
    Whole,
    /// Known by place only; never read.
    Opaque,
}

/// A class of credentials, as written in the catalog.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialClass {
    pub class: String,
    pub role: Role,
    pub lifetime: Lifetime,
    #[serde(default)]
    pub short_form: bool,
    #[serde(default)]
    pub files: Vec<String>,
    #[serde(default)]
    pub sockets: Vec<String>,
    #[serde(default)]
    pub format: FileFormat,
    #[serde(default)]
    pub keys: Vec<String>,
    #[serde(default)]
    pub environment: Vec<String>,
    #[serde(default)]
    pub url_environment: Vec<String>,
    #[serde(default)]
    pub prefixes: Vec<String>,
    #[serde(default)]
    pub headers: Vec<String>,
    #[serde(default)]
    pub home: Vec<String>,
    #[serde(default)]
    pub self_hosted: bool,
    #[serde(default)]
    pub marked: bool,
    #[serde(default)]
    pub usual: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogDocument {
    #[serde(default)]
    classes: Vec<CredentialClass>,
    #[serde(default)]
    never_files: Vec<String>,
    #[serde(default)]
    never_environment: Vec<String>,
    #[serde(default)]
    metadata: Vec<String>,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    authenticators: Vec<CatalogAuthenticator>,
    #[serde(default)]
    answers: Vec<IssuedField>,
    #[serde(default)]
    pointers: Vec<PathVariable>,
}

/// A variable whose value is the path of a credential.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathVariable {
    pub variable: String,
    pub class: String,
    /// File name, if the variable names its directory.
    #[serde(default)]
    pub below: Option<String>,
}

/// A system that issues credentials, or performs primary authentication.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogAuthenticator {
    name: String,
    hosts: Vec<String>,
    #[serde(default)]
    port: Option<u16>,
}

/// A response field whose value is a credential.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuedField {
    pub field: String,
    /// Its class; without one a value is recognised only by its form.
    #[serde(default)]
    pub class: Option<String>,
    /// The field that identifies the whole key pair.
    #[serde(default)]
    pub of: Option<String>,
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
}

/// A shorter secret has no reliable form.
const FORM_MIN: usize = 16;

/// The class of a file that only an expectation names.
pub const EXPECTATION_CLASS: &str = "named-secret";

impl Catalog {
    /// Compiles the embedded catalog, preceded by the additions of a configuration and followed by
    /// the places that expectations name.
    pub fn new(
        added: &str,
        written_files: &[String],
        written_variables: &[String],
    ) -> Result<Self, CatalogError> {
        let parse = |text: &str| -> Result<CatalogDocument, CatalogError> {
            if text.trim().is_empty() {
                return Ok(CatalogDocument::default());
            }
            serde_saphyr::from_str(text).map_err(|error| CatalogError::Syntax(error.to_string()))
        };
        let mut document = parse(added)?;
        let embedded = parse(EMBEDDED)?;
        document.classes.extend(embedded.classes);
        document.never_files.extend(embedded.never_files);
        document
            .never_environment
            .extend(embedded.never_environment);
        document.metadata.extend(embedded.metadata);
        document.headers.extend(embedded.headers);
        document.authenticators.extend(embedded.authenticators);
        document.answers.extend(embedded.answers);
        document.pointers.extend(embedded.pointers);
        document.classes.push(CredentialClass {
            class: EXPECTATION_CLASS.to_owned(),
            role: Role::Access,
            lifetime: Lifetime::Static,
            short_form: false,
            files: written_files.to_vec(),
            sockets: written_files.to_vec(),
            format: FileFormat::Token,
            keys: Vec::new(),
            environment: written_variables.to_vec(),
            url_environment: Vec::new(),
            prefixes: Vec::new(),
            headers: Vec::new(),
            home: Vec::new(),
            self_hosted: false,
            marked: false,
            usual: Vec::new(),
        });
        Self::compile(document)
    }

    fn compile(document: CatalogDocument) -> Result<Self, CatalogError> {
        let classes = document.classes;
        let mut files = GlobSetBuilder::new();
        let mut file_class = Vec::new();
        let mut file_globs = Vec::new();
        let mut sockets = GlobSetBuilder::new();
        let mut socket_class = Vec::new();
        let mut variables = GlobSetBuilder::new();
        let mut variable_class = Vec::new();
        let mut prefixes = Vec::new();
        let mut headers = Vec::new();
        let mut homes = Vec::new();
        let mut usual = Vec::new();
        for (index, class) in classes.iter().enumerate() {
            for file in &class.files {
                let file = in_any_home(file);
                files.add(path_glob(&class.class, &file)?);
                file_class.push(index);
                file_globs.push(file);
            }
            for socket in &class.sockets {
                let socket = in_any_home(socket);
                sockets.add(path_glob(&class.class, &socket)?);
                socket_class.push(index);
                file_globs.push(socket);
            }
            let plain = class.environment.iter().map(|name| (name, true));
            let urls = class.url_environment.iter().map(|name| (name, false));
            for (name, plain) in plain.chain(urls) {
                variables.add(name_glob(&class.class, name)?);
                variable_class.push((index, plain));
            }
            headers.extend(
                class
                    .headers
                    .iter()
                    .map(|header| (header.to_ascii_lowercase(), Some(index))),
            );
            prefixes.extend(class.prefixes.iter().map(|prefix| (prefix.clone(), index)));
            homes.push(host_globs(&class.class, &class.home)?);
            usual.push(path_globs(&class.class, &class.usual)?);
        }
        for header in &document.headers {
            let header = header.to_ascii_lowercase();
            if !headers.iter().any(|(known, _)| *known == header) {
                headers.push((header, None));
            }
        }
        let names = headers.iter().map(|(name, _)| name);
        let fields = document.answers.iter().map(|answer| &answer.field);
        if let Some(name) = names.chain(fields).find(|name| name.len() > HEADER_MAX) {
            return Err(CatalogError::Header(name.clone()));
        }
        let mut authenticators = Vec::new();
        for authenticator in document.authenticators {
            let hosts = host_globs(&authenticator.name, &authenticator.hosts)?;
            authenticators.push((authenticator, hosts));
        }
        let build = |builder: GlobSetBuilder| {
            builder.build().map_err(|source| CatalogError::Glob {
                class: "all".to_owned(),
                glob: "the set of all globs".to_owned(),
                source,
            })
        };
        Ok(Self {
            files: build(files)?,
            file_class,
            sockets: build(sockets)?,
            socket_class,
            never_files: path_globs("never_files", &document.never_files)?,
            variables: build(variables)?,
            variable_class,
            never_variables: {
                let mut builder = GlobSetBuilder::new();
                for name in &document.never_environment {
                    builder.add(name_glob("never_environment", name)?);
                }
                build(builder)?
            },
            prefixes,
            headers,
            authenticators,
            answers: document.answers,
            pointers: document.pointers,
            homes,
            usual,
            metadata: document
                .metadata
                .iter()
                .filter_map(|address| address.parse().ok())
                .collect(),
            file_globs,
            classes,
        })
    }

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
            self.classes[*of].class == class && secret.starts_with(prefix.as_bytes())
        })
    }

    /// As [`is_marked`](Self::is_marked), by the prefix index that a probe sends.
    pub fn is_prefix_of(&self, class: &str, prefix: Option<u32>) -> bool {
        let known = prefix.and_then(|index| self.prefix(index));
        known.is_some_and(|(_, of)| of.class == class)
    }

    /// Every entry; a class may have several.
    #[cfg(test)]
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

    /// The home of a class, as globs.
    pub fn home(&self, class: &str) -> Vec<String> {
        self.classes
            .iter()
            .filter(|candidate| candidate.class == class)
            .flat_map(|candidate| candidate.home.iter().cloned())
            .collect()
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

    /// The entries of the kernel filter.
    ///
    /// A rule concerns the last component, or one of the two directories above it: files deeper
    /// below a directory of secrets are recognised only once their inode is known.
    ///
    /// `pointed` are paths that variables named: they may be anywhere, and be links, so only their
    /// last component is used.
    pub fn filter_rules<'a>(&self, pointed: impl IntoIterator<Item = &'a str>) -> FilterRules {
        let mut rules = BTreeMap::new();
        for path in pointed {
            let name = path.rsplit('/').next().unwrap_or_default();
            rules.insert(key(FilterKind::Name, hash_of_name(name.as_bytes())), PLAIN);
        }
        for pointer in &self.pointers {
            if let Some(word) = longest_word(&pointer.variable) {
                rules.entry(word).or_insert(PLAIN);
            }
        }
        for glob in &self.file_globs {
            file_rule(glob, &mut rules);
        }
        for class in &self.classes {
            for name in &class.environment {
                if let Some(word) = filter_word(name) {
                    rules.entry(word).or_insert(PLAIN);
                }
            }
            for name in &class.url_environment {
                if let Some(word) = filter_word(name) {
                    rules.insert(word, URL_WORD);
                }
            }
        }
        for (index, (prefix, _)) in self.prefixes.iter().enumerate() {
            // A PEM block may be a certificate: for variables the name decides.
            if prefix.starts_with('-') || prefix.len() < 3 {
                continue;
            }
            let value = index as u32 | if prefix == "eyJ" { JWT_VALUE } else { 0 };
            let len = prefix.len().min(8);
            rules.insert(value_key(prefix_word(prefix.as_bytes()), len as u64), value);
        }
        // The first entry that lists a header owns it.
        for (index, (header, _)) in self.headers.iter().enumerate().rev() {
            rules.insert(header_key(header), index as u32);
            let mut coded = Vec::new();
            // Every byte has a code.
            if httlib_huffman::encode(header.as_bytes(), &mut coded).is_ok() {
                rules.insert(coded_header_key(&coded), index as u32);
            }
        }
        for (index, answer) in self.answers.iter().enumerate().rev() {
            rules.insert(field_key(&answer.field), index as u32);
        }
        for header in ["host", ":authority"] {
            rules.insert(header_key(header), HOST);
        }
        FilterRules(rules)
    }
}

/// `~/x` means `x` in any directory, because a home directory can be anywhere.
pub fn in_any_home(glob: &str) -> String {
    match glob.strip_prefix("~/") {
        Some(rest) => format!("/**/{rest}"),
        None => glob.to_owned(),
    }
}

fn path_glob(class: &str, glob: &str) -> Result<Glob, CatalogError> {
    GlobBuilder::new(glob)
        .literal_separator(true)
        .build()
        .map_err(|source| CatalogError::Glob {
            class: class.to_owned(),
            glob: glob.to_owned(),
            source,
        })
}

/// A glob over variable names, ignoring case, because programs accept lower case as well.
fn name_glob(class: &str, glob: &str) -> Result<Glob, CatalogError> {
    GlobBuilder::new(glob)
        .case_insensitive(true)
        .build()
        .map_err(|source| CatalogError::Glob {
            class: class.to_owned(),
            glob: glob.to_owned(),
            source,
        })
}

/// Globs over paths; a leading `*` as in `*/sshd` matches any directory.
fn path_globs(class: &str, globs: &[String]) -> Result<GlobSet, CatalogError> {
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        let glob = glob
            .strip_prefix("*/")
            .map_or_else(|| glob.clone(), |rest| format!("**/{rest}"));
        builder.add(path_glob(class, &glob)?);
    }
    builder.build().map_err(|source| CatalogError::Glob {
        class: class.to_owned(),
        glob: globs.join(", "),
        source,
    })
}

fn host_globs(class: &str, globs: &[String]) -> Result<GlobSet, CatalogError> {
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add(
            GlobBuilder::new(glob)
                .case_insensitive(true)
                .build()
                .map_err(|source| CatalogError::Glob {
                    class: class.to_owned(),
                    glob: glob.clone(),
                    source,
                })?,
        );
    }
    builder.build().map_err(|source| CatalogError::Glob {
        class: class.to_owned(),
        glob: globs.join(", "),
        source,
    })
}

fn is_literal(text: &str) -> bool {
    !text.contains(['*', '?', '[', '{'])
}

/// The kernel filter's rule for a file glob.
fn file_rule(glob: &str, rules: &mut BTreeMap<u64, u32>) {
    let (directory, name) = glob.rsplit_once('/').unwrap_or(("", glob));
    let parent = directory.rsplit('/').next().unwrap_or_default();
    if is_literal(name) {
        let hash = hash_of_name(name.as_bytes());
        // A rule that matches alone makes pairs with the same name unnecessary.
        if is_literal(parent) && !parent.is_empty() {
            rules
                .entry(key(FilterKind::Name, hash))
                .or_insert(NEEDS_PAIR);
            rules.insert(pair_key(hash_of_name(parent.as_bytes()), hash), PLAIN);
        } else {
            rules.insert(key(FilterKind::Name, hash), PLAIN);
        }
        return;
    }
    let literal_end = name.rsplit(['*', '?', ']', '}']).next().unwrap_or_default();
    let literal_start = name.split(['*', '?', '[', '{']).next().unwrap_or_default();
    if literal_end.len() >= 4 {
        let last = &literal_end.as_bytes()[literal_end.len() - 4..];
        rules.insert(key(FilterKind::Suffix, prefix_word(last)), PLAIN);
    } else if literal_start.len() >= 4 {
        let first = &literal_start.as_bytes()[..4];
        rules.insert(key(FilterKind::Prefix, prefix_word(first)), PLAIN);
    } else {
        // Any file name: the directory decides, or its parent if the directory is a wildcard too.
        let named = directory.split('/').rev().find(|part| is_literal(part));
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            rules.insert(
                key(FilterKind::Parent, hash_of_name(named.as_bytes())),
                PLAIN,
            );
        }
    }
}

/// The key of the word in a variable's name by which the kernel recognises it: the last one, unless
/// every environment contains it.
fn filter_word(glob: &str) -> Option<u64> {
    let words: Vec<String> = glob
        .split(['_', '-', '.', '*', '?', '[', ']', '{', '}'])
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    let last = words.last()?;
    let word = if last == "pwd" { words.first()? } else { last };
    (word != "pwd").then(|| word_key(word)).flatten()
}

/// The key of the longest word of a name, which most names do not contain.
fn longest_word(name: &str) -> Option<u64> {
    let longest = name.split('_').rev().max_by_key(|word| word.len())?;
    word_key(&longest.to_ascii_lowercase())
}

/// Normalises a path: `/var/run` becomes `/run`, and the `..data` and `..<timestamp>` parts of a
/// projected volume are removed.
pub fn normalise(path: &str) -> String {
    let path = path
        .strip_prefix("/var/run/")
        .map_or_else(|| path.to_owned(), |rest| format!("/run/{rest}"));
    if !path.contains("/..") {
        return path;
    }
    let mut normal = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part.starts_with("..") && part.len() > 2 {
            continue;
        }
        normal.push('/');
        normal.push_str(part);
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn catalog() -> Catalog {
        Catalog::new("", &[], &[]).expect("the embedded catalog is right")
    }

    fn class_of(path: &str) -> Option<String> {
        catalog()
            .file(&normalise(path))
            .map(|class| class.class.clone())
    }

    #[test]
    fn files_of_every_kind() {
        for (path, class) in [
            (
                "/var/run/secrets/kubernetes.io/serviceaccount/..2024_11_24_01/token",
                "k8s-service-account-token",
            ),
            (
                "/run/secrets/eks.amazonaws.com/serviceaccount/token",
                "eks-web-identity-token",
            ),
            (
                "/run/secrets/azure/wi/token/azure-identity-token",
                "azure-federated-token",
            ),
            ("/home/u/.aws/credentials", "aws-access-key"),
            ("/root/.aws/sso/cache/abc.json", "aws-sso-token"),
            ("/root/.docker/config.json", "registry-credential"),
            ("/root/.kube/config", "kubeconfig"),
            ("/root/.netrc", "netrc-password"),
            ("/root/.ssh/id_ed25519", "ssh-key"),
            ("/etc/ssh/ssh_host_rsa_key", "ssh-host-key"),
            ("/etc/shadow", "password-hashes"),
            ("/srv/app/.env", "dotenv-secret"),
            ("/srv/app/.env.production", "dotenv-secret"),
            ("/srv/tls/server.key", "private-key"),
            ("/srv/tls/server.p12", "keystore"),
            ("/run/secrets/payments/stripe", "mounted-secret"),
            ("/run/credentials/nginx.service/tls", "systemd-credential"),
            (
                "/var/lib/kubelet/pods/1-2/volumes/kubernetes.io~secret/db/..2024_x/password",
                "volume-secret",
            ),
            ("/vault/secrets/db", "vault-agent-secret"),
        ] {
            assert_eq!(class_of(path).as_deref(), Some(class), "{path}");
        }
    }

    #[test]
    fn never_sensitive() {
        for path in [
            "/etc/passwd",
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/ssl/certs/DigiCert.pem",
            "/run/secrets/kubernetes.io/serviceaccount/ca.crt",
            "/run/secrets/kubernetes.io/serviceaccount/..2024/namespace",
            "/root/.ssh/known_hosts",
            "/root/.ssh/config",
            "/root/.ssh/id_rsa.pub",
            "/etc/ssh/ssh_host_rsa_key.pub",
            "/srv/app/.env.example",
            "/srv/app/config.json",
            "/srv/app/credentials",
            "/srv/node_modules/x/test.key",
            "/proc/1/environ",
        ] {
            assert_eq!(class_of(path), None, "{path}");
        }
        let catalog = catalog();
        for name in [
            "PWD",
            "HOME",
            "PATH",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "SSH_AUTH_SOCK",
            "TOKEN_PATH",
            "LANG",
        ] {
            assert!(catalog.variable(name).is_none(), "{name}");
        }
    }

    #[test]
    fn variables_and_forms() {
        let catalog = catalog();
        for (name, class) in [
            ("AWS_SECRET_ACCESS_KEY", "aws-access-key"),
            ("GITHUB_TOKEN", "github-token"),
            ("SLACK_BOT_TOKEN", "slack-token"),
            ("STRIPE_SECRET_KEY", "stripe-key"),
            ("MY_APP_API_KEY", "generic-secret"),
            ("DB_PASSWORD", "generic-secret"),
            ("DATABASE_URL", "database-password"),
        ] {
            assert_eq!(
                catalog.variable(name).map(|c| c.class.as_str()),
                Some(class),
                "{name}"
            );
        }
        assert_eq!(
            catalog
                .class_of_secret(b"ghs_fakefakefakefakefake")
                .map(|c| c.class.as_str()),
            Some("github-app-token")
        );
        assert!(catalog.class_of_secret(b"plain text of no form").is_none());
        assert_eq!(
            catalog.at_home("aws-access-key", "s3.eu-central-1.amazonaws.com"),
            Some(true)
        );
        assert_eq!(
            catalog.at_home("aws-access-key", "paste.example"),
            Some(false)
        );
        assert_eq!(catalog.at_home("private-key", "paste.example"), None);
    }

    #[test]
    fn every_file_class_reaches_the_kernel() {
        let catalog = catalog();
        let rules = catalog.filter_rules([]).0;
        let has = |kind, text: &str| rules.contains_key(&key(kind, hash_of_name(text.as_bytes())));
        assert!(has(FilterKind::Name, "credentials") && has(FilterKind::Name, ".netrc"));
        assert_eq!(
            rules[&key(FilterKind::Name, hash_of_name(b"credentials"))],
            NEEDS_PAIR
        );
        assert!(rules.contains_key(&pair_key(
            hash_of_name(b".aws"),
            hash_of_name(b"credentials")
        )));
        assert!(has(FilterKind::Parent, "secrets") && has(FilterKind::Parent, "credentials"));
        assert!(rules.contains_key(&key(FilterKind::Suffix, prefix_word(b".p12"))));
        assert!(rules.contains_key(&key(FilterKind::Prefix, prefix_word(b".env"))));
        assert!(
            !rules.contains_key(&word_key("pwd").expect("a word")),
            "PWD is everywhere"
        );
        assert_eq!(rules[&word_key("url").expect("a word")], URL_WORD);
        assert!(rules.contains_key(&value_key(prefix_word(b"ghp_"), 4)));
    }

    proptest! {
        #[test]
        fn normalising_twice_is_once(path in "(/[a-z.]{1,8}){1,8}") {
            let once = normalise(&path);
            prop_assert_eq!(normalise(&once), once);
        }
    }
}
