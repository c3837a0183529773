//! The catalog: what is a credential, by place, by name and by form.

use crate::{
    model::{Lifetime, Role},
    sensor::Rules,
};
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use monitor_common::{
    answer::field_key,
    environ::word_key,
    filter::{
        HOST, JWT_VALUE, Kind, NEEDS_PAIR, PLAIN, URL_WORD, hash_of, key, pair_key, value_key,
        word_of,
    },
    http2::coded_header_key,
    scan::{HEADER_MAX, header_key},
};
use serde::Deserialize;
use std::collections::BTreeMap;
use thiserror::Error;

const EMBEDDED: &str = include_str!("catalog.yaml");

/// Why a catalog is not usable.
#[derive(Debug, Error)]
pub enum CatalogError {
    #[error("catalog: {0}")]
    Syntax(String),
    #[error("catalog: class {class}: `{glob}` is no glob: {source}")]
    Glob {
        class: String,
        glob: String,
        source: globset::Error,
    },
    #[error("catalog: header {0} is longer than {HEADER_MAX} bytes")]
    Header(String),
}

/// How secrets stand in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The file is one token, with white space around it.
    #[default]
    Token,
    Pem,
    Ini,
    Json,
    Yaml,
    Netrc,
    Pgpass,
    /// A line is a URL with user info.
    Urls,
    Dotenv,
    /// AWS profiles: key pairs named by their access key id.
    Aws,
    /// Docker's registry credentials.
    Docker,
    /// Every byte of the file is the secret.
    Whole,
    /// Known by place only; never read.
    Opaque,
}

/// A class as the catalog has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
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
    pub format: Format,
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
struct Document {
    #[serde(default)]
    classes: Vec<Class>,
    #[serde(default)]
    never_files: Vec<String>,
    #[serde(default)]
    never_environment: Vec<String>,
    #[serde(default)]
    metadata: Vec<String>,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    authenticators: Vec<Authenticator>,
    #[serde(default)]
    answers: Vec<Answer>,
    #[serde(default)]
    pointers: Vec<Pointer>,
}

/// A variable whose value is where a credential is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pointer {
    pub variable: String,
    pub class: String,
    /// The file in the directory that the variable names.
    #[serde(default)]
    pub below: Option<String>,
}

/// A system that mints credentials, or before which one proves who one is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Authenticator {
    name: String,
    hosts: Vec<String>,
    #[serde(default)]
    port: Option<u16>,
}

/// A field of an answer whose value is a credential.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    pub field: String,
    /// Its class; without one a value counts only by its form.
    #[serde(default)]
    pub class: Option<String>,
    /// The field that stands for the whole key.
    #[serde(default)]
    pub of: Option<String>,
}

/// The compiled catalog.
#[derive(Debug)]
pub struct Catalog {
    classes: Vec<Class>,
    files: GlobSet,
    /// Class of each glob in `files`.
    file_class: Vec<usize>,
    sockets: GlobSet,
    socket_class: Vec<usize>,
    never_files: GlobSet,
    variables: GlobSet,
    /// Class of each glob in `variables`, and whether its value is the secret, or a URL that may have one in it.
    variable_class: Vec<(usize, bool)>,
    never_variables: GlobSet,
    /// `(prefix, class)`; the index is what the probes send.
    prefixes: Vec<(String, usize)>,
    /// Names of headers, each with its class where it has one; the index is what the probes send.
    headers: Vec<(String, Option<usize>)>,
    homes: Vec<GlobSet>,
    usual: Vec<GlobSet>,
    metadata: Vec<std::net::IpAddr>,
    file_globs: Vec<String>,
    authenticators: Vec<(Authenticator, GlobSet)>,
    /// The index is what the probes send.
    answers: Vec<Answer>,
    pointers: Vec<Pointer>,
}

/// A secret shorter than this has no form that could be trusted.
const SHORTEST_FORM: usize = 16;

/// The class under which a file is known that only an expectation names.
pub const WRITTEN: &str = "named-secret";

impl Catalog {
    /// The embedded catalog, what a configuration adds before it, and the places that
    /// expectations name after it.
    pub fn new(
        added: &str,
        written_files: &[String],
        written_variables: &[String],
    ) -> Result<Self, CatalogError> {
        let parse = |text: &str| -> Result<Document, CatalogError> {
            if text.trim().is_empty() {
                return Ok(Document::default());
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
        document.classes.push(Class {
            class: WRITTEN.to_owned(),
            role: Role::Access,
            lifetime: Lifetime::Static,
            short_form: false,
            files: written_files.to_vec(),
            sockets: written_files.to_vec(),
            format: Format::Token,
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

    fn compile(document: Document) -> Result<Self, CatalogError> {
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
    pub fn file(&self, path: &str) -> Option<&Class> {
        let matched = self.files.matches(path);
        let first = matched.iter().map(|glob| self.file_class[*glob]).min()?;
        let class = &self.classes[first];
        // What a person wrote down is a credential, even where the list says that such are not.
        if self.never_files.is_match(path)
            && !matched
                .iter()
                .any(|glob| self.classes[self.file_class[*glob]].class == WRITTEN)
        {
            return None;
        }
        Some(class)
    }

    /// The class of what is handed out at a socket, by its normalised path.
    pub fn socket(&self, path: &str) -> Option<&Class> {
        let matched = self.sockets.matches(path);
        let first = matched.iter().map(|glob| self.socket_class[*glob]).min()?;
        Some(&self.classes[first])
    }

    /// Whether a path is never a credential's, whoever says so.
    pub fn is_never(&self, path: &str) -> bool {
        self.never_files.is_match(path)
    }

    /// What a variable points to, where it is one that does.
    pub fn pointers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Pointer> {
        self.pointers
            .iter()
            .filter(move |pointer| pointer.variable == name)
    }

    /// The class of a variable by its name.
    pub fn variable(&self, name: &str) -> Option<&Class> {
        let matched = self.variables.matches(name);
        let first = matched
            .iter()
            .map(|glob| self.variable_class[*glob].0)
            .min()?;
        let class = &self.classes[first];
        if self.never_variables.is_match(name) && class.class != WRITTEN {
            return None;
        }
        Some(class)
    }

    /// Whether the value of a variable is the secret itself, by the class that has the variable.
    pub fn is_plain(&self, name: &str) -> bool {
        let matched = self.variables.matches(name);
        let all = matched.iter().map(|glob| self.variable_class[*glob]);
        let first = all.clone().map(|(class, _)| class).min();
        all.into_iter()
            .any(|(class, plain)| plain && Some(class) == first)
    }

    /// Whether a secret begins as those of a class do, however short it is.
    pub fn is_marked(&self, class: &str, secret: &[u8]) -> bool {
        self.prefixes.iter().any(|(prefix, of)| {
            self.classes[*of].class == class && secret.starts_with(prefix.as_bytes())
        })
    }

    /// The same, by the index of its prefix that a probe sends.
    pub fn is_prefix_of(&self, class: &str, prefix: Option<u32>) -> bool {
        let known = prefix.and_then(|index| self.prefix(index));
        known.is_some_and(|(_, of)| of.class == class)
    }

    /// Every entry; a class may have several.
    #[cfg(test)]
    pub fn entries(&self) -> &[Class] {
        &self.classes
    }

    /// Whether anybody can run an issuer of a class, anywhere.
    pub fn is_self_hosted(&self, class: &str) -> bool {
        self.classes
            .iter()
            .any(|candidate| candidate.class == class && candidate.self_hosted)
    }

    /// The class of a prefix by the index that a probe sends.
    pub fn prefix(&self, index: u32) -> Option<(&str, &Class)> {
        let (prefix, class) = self.prefixes.get(index as usize)?;
        Some((prefix, &self.classes[*class]))
    }

    /// A header by the index that a probe sends: its name, and its class where it has one.
    pub fn header(&self, index: u32) -> Option<(&str, Option<&Class>)> {
        let (name, class) = self.headers.get(index as usize)?;
        Some((name, class.map(|class| &self.classes[class])))
    }

    /// The class of a secret by its first bytes; the longest prefix counts.
    pub fn form(&self, secret: &[u8]) -> Option<&Class> {
        let index = self.form_index(secret)?;
        Some(&self.classes[self.prefixes[index as usize].1])
    }

    /// The index of the longest prefix that a secret begins with.
    pub fn form_index(&self, secret: &[u8]) -> Option<u32> {
        self.prefixes
            .iter()
            .enumerate()
            .filter(|(_, (prefix, _))| {
                secret.starts_with(prefix.as_bytes()) && secret.len() >= SHORTEST_FORM
            })
            .max_by_key(|(_, (prefix, _))| prefix.len())
            .map(|(index, _)| index as u32)
    }

    pub fn class(&self, name: &str) -> Option<&Class> {
        self.classes.iter().find(|class| class.class == name)
    }

    /// The names of all classes.
    pub fn class_names(&self) -> impl Iterator<Item = &str> {
        self.classes.iter().map(|class| class.class.as_str())
    }

    /// Whether a class has a home at all, and whether the host is in it.
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

    /// Whether an executable reads such a credential in the course of its duty.
    pub fn is_usual(&self, class: &str, executable: &str) -> bool {
        self.classes.iter().enumerate().any(|(index, candidate)| {
            candidate.class == class && self.usual[index].is_match(executable)
        })
    }

    /// Whether an address is a metadata service.
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

    /// A field of an answer by the index that a probe sends.
    pub fn answer(&self, index: u64) -> Option<&Answer> {
        self.answers.get(usize::try_from(index).ok()?)
    }

    /// The rules for the kernel's filter.
    ///
    /// A rule is about the last component, or about the one or two directories before it: what is
    /// deeper below a directory of secrets than that is known only once its inode is.
    ///
    /// `pointed` are paths that variables named: they may be anywhere, and links, so that their last component decides.
    pub fn rules<'a>(&self, pointed: impl IntoIterator<Item = &'a str>) -> Rules {
        let mut rules = BTreeMap::new();
        for path in pointed {
            let name = path.rsplit('/').next().unwrap_or_default();
            rules.insert(key(Kind::Name, hash_of(name.as_bytes())), PLAIN);
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
                if let Some(word) = telling_word(name) {
                    rules.entry(word).or_insert(PLAIN);
                }
            }
            for name in &class.url_environment {
                if let Some(word) = telling_word(name) {
                    rules.insert(word, URL_WORD);
                }
            }
        }
        for (index, (prefix, _)) in self.prefixes.iter().enumerate() {
            // A PEM block may be a certificate: in a variable its name decides.
            if prefix.starts_with('-') || prefix.len() < 3 {
                continue;
            }
            let value = index as u32 | if prefix == "eyJ" { JWT_VALUE } else { 0 };
            let len = prefix.len().min(8);
            rules.insert(value_key(word_of(prefix.as_bytes()), len as u64), value);
        }
        // The first to claim a header has it.
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
        Rules(rules)
    }
}

/// `~/x` is `x` in any directory: a home can be anywhere.
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

/// A glob over names of variables: programs take them in lower case as well.
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

/// Globs over paths; `*` in `*/sshd` stands for any directory.
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

/// The kernel's rule for a file glob.
fn file_rule(glob: &str, rules: &mut BTreeMap<u64, u32>) {
    let (directory, name) = glob.rsplit_once('/').unwrap_or(("", glob));
    let parent = directory.rsplit('/').next().unwrap_or_default();
    if is_literal(name) {
        let hash = hash_of(name.as_bytes());
        // One rule that holds alone makes pairs of the same name moot.
        if is_literal(parent) && !parent.is_empty() {
            rules.entry(key(Kind::Name, hash)).or_insert(NEEDS_PAIR);
            rules.insert(pair_key(hash_of(parent.as_bytes()), hash), PLAIN);
        } else {
            rules.insert(key(Kind::Name, hash), PLAIN);
        }
        return;
    }
    let literal_end = name.rsplit(['*', '?', ']', '}']).next().unwrap_or_default();
    let literal_start = name.split(['*', '?', '[', '{']).next().unwrap_or_default();
    if literal_end.len() >= 4 {
        let last = &literal_end.as_bytes()[literal_end.len() - 4..];
        rules.insert(key(Kind::Suffix, word_of(last)), PLAIN);
    } else if literal_start.len() >= 4 {
        let first = &literal_start.as_bytes()[..4];
        rules.insert(key(Kind::Prefix, word_of(first)), PLAIN);
    } else {
        // Any name: the directory decides, or the one above where that has any name, too.
        let named = directory.split('/').rev().find(|part| is_literal(part));
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            rules.insert(key(Kind::Parent, hash_of(named.as_bytes())), PLAIN);
        }
    }
}

/// The key of the word of a variable's name by which the kernel picks it out: the last, unless every
/// environment has that word.
fn telling_word(glob: &str) -> Option<u64> {
    let words: Vec<String> = glob
        .split(['_', '-', '.', '*', '?', '[', ']', '{', '}'])
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    let last = words.last()?;
    let word = if last == "pwd" { words.first()? } else { last };
    (word != "pwd").then(|| word_key(word)).flatten()
}

/// The key of the longest word of a name, which most names do not have.
fn longest_word(name: &str) -> Option<u64> {
    let longest = name.split('_').rev().max_by_key(|word| word.len())?;
    word_key(&longest.to_ascii_lowercase())
}

/// A path as the catalog knows it: `/var/run` is `/run`, and the `..data` and `..<timestamp>`
/// parts of a projected volume are dropped.
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
                .form(b"ghs_fakefakefakefakefake")
                .map(|c| c.class.as_str()),
            Some("github-app-token")
        );
        assert!(catalog.form(b"plain text of no form").is_none());
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
        let rules = catalog.rules([]).0;
        let has = |kind, text: &str| rules.contains_key(&key(kind, hash_of(text.as_bytes())));
        assert!(has(Kind::Name, "credentials") && has(Kind::Name, ".netrc"));
        assert_eq!(rules[&key(Kind::Name, hash_of(b"credentials"))], NEEDS_PAIR);
        assert!(rules.contains_key(&pair_key(hash_of(b".aws"), hash_of(b"credentials"))));
        assert!(has(Kind::Parent, "secrets") && has(Kind::Parent, "credentials"));
        assert!(rules.contains_key(&key(Kind::Suffix, word_of(b".p12"))));
        assert!(rules.contains_key(&key(Kind::Prefix, word_of(b".env"))));
        assert!(
            !rules.contains_key(&word_key("pwd").expect("a word")),
            "PWD is everywhere"
        );
        assert_eq!(rules[&word_key("url").expect("a word")], URL_WORD);
        assert!(rules.contains_key(&value_key(word_of(b"ghp_"), 4)));
    }

    proptest! {
        #[test]
        fn normalising_twice_is_once(path in "(/[a-z.]{1,8}){1,8}") {
            let once = normalise(&path);
            prop_assert_eq!(normalise(&once), once);
        }
    }
}
