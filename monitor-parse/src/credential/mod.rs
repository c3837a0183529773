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
mod xml;
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
    pub issued_to: Option<Box<IssuedTo>>,
}

/// How a key begins that is not in PEM.
const DER_SEQUENCE: &[u8] = &[0x30];

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
        is_lossy: false,
    };
    // A byte that is not text, such as a name in Latin-1, must not hide the secrets beside it.
    let text = String::from_utf8_lossy(bytes);
    finder.is_lossy = matches!(text, Cow::Owned(_));
    let text = &*text;
    match class.format {
        FileFormat::Opaque => {}
        FileFormat::Whole => finder.whole_file(bytes),
        FileFormat::Token => token::find(&mut finder, text),
        FileFormat::Pem => pem::find(&mut finder, text),
        FileFormat::Ini => ini::find(&mut finder, text),
        FileFormat::Json => json::find(&mut finder, text),
        FileFormat::Yaml => yaml::find(&mut finder, text),
        FileFormat::Netrc => netrc::find(&mut finder, text),
        FileFormat::Pgpass => pgpass::find(&mut finder, text),
        FileFormat::Urls => urls::find(&mut finder, text),
        FileFormat::Dotenv => dotenv::find(&mut finder, text),
        FileFormat::Aws => aws::find(&mut finder, text),
        FileFormat::Docker => docker::find(&mut finder, text),
        FileFormat::Xml => xml::find(&mut finder, text),
    }
    // It may be binary after all.
    let is_encoded_key = class.format != FileFormat::Pem || bytes.starts_with(DER_SEQUENCE);
    if finder.is_lossy && finder.found.is_empty() && is_encoded_key {
        finder.whole_file(bytes);
    }
    // The result is kept as long as the file is known.
    finder.found.shrink_to_fit();
    FileSecrets {
        found: finder.found,
        left_out: finder.left_out,
    }
}
