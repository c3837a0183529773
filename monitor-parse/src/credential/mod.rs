//! Finds the secrets inside a credential file, and their public properties: one file per format.

mod aws;
mod docker;
mod dotenv;
mod finder;
mod ini;
mod json;
mod jwt;
mod netrc;
mod pem;
mod pgpass;
#[cfg(test)]
mod tests;
mod token;
mod urls;
mod yaml;

use finder::SecretFinder;
use jiff::Timestamp;
use monitor_common::fingerprint::FingerprintKey;
use monitor_core::{
    catalog::{
        Catalog,
        entry::{CredentialClass, FileFormat},
    },
    model::IssuedTo,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The secrets of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSecrets {
    pub found: Vec<FoundSecret>,
    /// Why there may be more.
    pub left_out: Option<LeftOut>,
}

/// What of a file or an environment is not examined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeftOut {
    /// All but the first of its many secrets.
    Secrets,
    /// A secret that is not text.
    NotText,
    /// Everything after the first bytes.
    Bytes,
    /// All but the first of its many variables.
    Variables,
}

/// One secret of a file: its fingerprint and its public properties. The secret itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundSecret {
    pub class: String,
    /// It has an issuer's mark.
    pub marked: bool,
    /// It is the whole content of a file without a known format.
    pub whole: bool,
    pub fingerprint: u64,
    /// Fingerprints of other forms of the same credential: the secret half of a key pair,
    /// `user:password` in base64.
    pub aliases: Vec<u64>,
    pub label: Option<String>,
    pub facts: SecretFacts,
}

impl FoundSecret {
    /// Whether it has claims, like a JWT.
    pub fn is_jwt(&self) -> bool {
        self.facts != SecretFacts::default()
    }
}

/// What a credential says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFacts {
    pub issued_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    /// Namespace and name of a Kubernetes service account, a JWT subject, …
    pub subject: Option<String>,
    pub audience: Vec<String>,
    pub issued_to: Option<IssuedTo>,
}

/// Finds the secrets in a file of a given class.
pub fn find_secrets(
    catalog: &Catalog,
    class: &CredentialClass,
    key: FingerprintKey,
    bytes: &[u8],
) -> FileSecrets {
    let mut finder = SecretFinder {
        catalog,
        class,
        key,
        found: Vec::new(),
        left_out: None,
    };
    // One byte that is not text, such as a name in Latin-1, must not hide the secrets beside it.
    let text = (!bytes.contains(&0)).then(|| String::from_utf8_lossy(bytes));
    match (class.format, text.as_deref()) {
        (FileFormat::Opaque, _) => {}
        (FileFormat::Whole, _) | (_, None) => finder.whole_file(bytes),
        (FileFormat::Token, Some(text)) => token::find(&mut finder, text),
        (FileFormat::Pem, Some(text)) => pem::find(&mut finder, text),
        (FileFormat::Ini, Some(text)) => ini::find(&mut finder, text),
        (FileFormat::Json, Some(text)) => json::find(&mut finder, text),
        (FileFormat::Yaml, Some(text)) => yaml::find(&mut finder, text),
        (FileFormat::Netrc, Some(text)) => netrc::find(&mut finder, text),
        (FileFormat::Pgpass, Some(text)) => pgpass::find(&mut finder, text),
        (FileFormat::Urls, Some(text)) => urls::find(&mut finder, text),
        (FileFormat::Dotenv, Some(text)) => dotenv::find(&mut finder, text),
        (FileFormat::Aws, Some(text)) => aws::find(&mut finder, text),
        (FileFormat::Docker, Some(text)) => docker::find(&mut finder, text),
    }
    // It is binary after all.
    if matches!(text, Some(Cow::Owned(_))) && finder.found.is_empty() {
        finder.left_out = None;
        finder.whole_file(bytes);
    }
    // The result is kept as long as the file is known.
    finder.found.shrink_to_fit();
    FileSecrets {
        found: finder.found,
        left_out: finder.left_out,
    }
}
