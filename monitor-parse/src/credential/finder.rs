//! Collects the secrets of one file.

use super::{FoundSecret, LeftOut, SecretFacts, jwt};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use monitor_common::fingerprint::{FingerprintKey, fingerprint, trimmed};
use monitor_core::catalog::{Catalog, entry::CredentialClass};
use percent_encoding::percent_decode_str;

/// Maximum number of secrets per file.
const SECRETS_MAX: usize = 256;
/// Maximum length of a token, of which the fingerprint covers every byte.
const TOKEN_MAX: usize = 4096;
/// Shorter values are not secrets.
const SECRET_MIN: usize = 4;
/// What stands for bytes that are not text.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// The secrets found so far, and what is needed to recognise more.
pub(super) struct SecretFinder<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) class: &'a CredentialClass,
    pub(super) key: FingerprintKey,
    pub(super) found: Vec<FoundSecret>,
    pub(super) left_out: Option<LeftOut>,
    /// Bytes of the file that are not text were replaced.
    pub(super) is_lossy: bool,
}

impl SecretFinder<'_> {
    pub(super) fn fingerprint(&self, secret: &[u8]) -> u64 {
        fingerprint(self.key, secret)
    }

    /// Adds a secret; its form may identify a class that the place does not.
    pub(super) fn add_secret(&mut self, secret: &str, label: Option<String>, aliases: Vec<u64>) {
        let secret = trimmed(secret.as_bytes());
        if secret.len() < SECRET_MIN || is_public(secret) {
            return;
        }
        // Its bytes are not those of the file.
        if self.is_lossy
            && secret
                .windows(REPLACEMENT.len())
                .any(|part| part == REPLACEMENT)
        {
            self.left_out = Some(LeftOut::NotText);
            return;
        }
        if self.found.len() >= SECRETS_MAX {
            self.left_out = Some(LeftOut::Secrets);
            return;
        }
        let facts = jwt::facts(secret).unwrap_or_default();
        let class = self.class_of(secret, &facts);
        let fingerprint = self.fingerprint(secret);
        if self
            .found
            .iter()
            .any(|found| found.fingerprint == fingerprint)
        {
            return;
        }
        let label = label.or_else(|| facts.subject.clone());
        self.found.push(FoundSecret {
            marked: self.catalog.is_marked(&class, secret),
            whole: false,
            class,
            fingerprint,
            aliases,
            label,
            facts,
        });
    }

    pub(super) fn class_of(&self, secret: &[u8], facts: &SecretFacts) -> String {
        if facts
            .subject
            .as_deref()
            .is_some_and(|subject| subject.starts_with("system:serviceaccount:"))
            && !self.class.jwt
        {
            return "k8s-service-account-token".to_owned();
        }
        match self.catalog.class_of_secret(secret) {
            // Any base64-encoded JSON begins like a JWT; and the place tells its purpose better.
            Some(form) if form.class == "jwt" => {
                if facts == &SecretFacts::default() || !self.is_general() {
                    self.class.class.clone()
                } else {
                    form.class.clone()
                }
            }
            Some(form) => form.class.clone(),
            None => self.class.class.clone(),
        }
    }

    /// Whether the place tells only that it is a secret, not of which kind.
    pub(super) fn is_general(&self) -> bool {
        matches!(
            self.class.class.as_str(),
            "mounted-secret"
                | "volume-secret"
                | "dotenv-secret"
                | "systemd-credential"
                | "named-secret"
                | "vault-agent-secret"
        )
    }

    pub(super) fn whole_file(&mut self, bytes: &[u8]) {
        // A token is one under any file's name.
        let line = trimmed(bytes);
        let is_line = line.len() <= TOKEN_MAX && line.is_ascii() && !line.contains(&b'\n');
        if is_line && let Ok(text) = std::str::from_utf8(line) {
            self.add_secret(text, None, Vec::new());
            return;
        }
        if bytes.len() >= SECRET_MIN {
            self.found.push(FoundSecret {
                class: self.class.class.clone(),
                marked: self.catalog.is_marked(&self.class.class, bytes),
                whole: true,
                fingerprint: self.fingerprint(bytes),
                aliases: Vec::new(),
                label: None,
                facts: SecretFacts::default(),
            });
        }
    }

    /// Adds a secret that is valid for the adjacent host.
    pub(super) fn add_for_host(
        &mut self,
        place: &str,
        secret: &str,
        label: Option<String>,
        aliases: Vec<u64>,
    ) {
        let before = self.found.len();
        self.add_secret(secret, label, aliases);
        // The issuer's mark goes before a host that is named in the file.
        if let Some(found) = self.found.get_mut(before)
            && found.facts.audience.is_empty()
            && found.class == self.class.class
            && (!found.marked || !self.catalog.has_home(&found.class))
        {
            found.facts.audience = hosts_in_name(place);
        }
    }

    /// The password of a user and password in base64, and the pair as it is sent; the value itself if
    /// it is no pair.
    pub(super) fn basic_pair(&self, value: &str) -> (String, Vec<u64>) {
        let pair = decode_text(value);
        match pair.as_deref().and_then(|pair| pair.split_once(':')) {
            Some((_, password)) => {
                let as_sent = self.fingerprint(value.trim().as_bytes());
                (password.to_owned(), vec![as_sent])
            }
            None => (value.to_owned(), Vec::new()),
        }
    }

    /// Whether a user name is a token itself, which some servers accept in place of a user.
    pub(super) fn is_token(&self, user: &str) -> bool {
        let class = self.catalog.class_of_secret(user.as_bytes());
        class.is_some_and(|class| class.class != "jwt" || jwt::facts(user.as_bytes()).is_some())
    }

    /// Fingerprint of the pair as sent in `Authorization: Basic`.
    pub(super) fn basic_form(&self, user: &str, password: &str) -> u64 {
        let pair = STANDARD.encode(format!("{user}:{password}"));
        self.fingerprint(pair.as_bytes())
    }
}

/// Whether a value is the same everywhere, or meant to be published.
fn is_public(secret: &[u8]) -> bool {
    /// The client secrets of gcloud, which are in its source.
    const CONSTANTS: [&str; 2] = ["d-FL95Q19q7MQmFpd7hHD0Ty", "ZmssLNjJy2998hD4CTg2ejr2"];
    const PUBLISHABLE: [&str; 2] = ["pk_live_", "pk_test_"];
    CONSTANTS.iter().any(|known| known.as_bytes() == secret)
        || PUBLISHABLE
            .iter()
            .any(|start| secret.starts_with(start.as_bytes()))
}

/// The hosts that an entry is valid for, from a name with or without scheme, port and path; empty
/// if it is valid for any.
fn hosts_in_name(place: &str) -> Vec<String> {
    let place = place.split_once("://").map_or(place, |(_, rest)| rest);
    let host = place.split(['/', ':']).next().unwrap_or_default();
    match host {
        "" | "*" | "default" => Vec::new(),
        // One registry with several names.
        "docker.io" | "index.docker.io" => [
            "docker.io",
            "index.docker.io",
            "registry-1.docker.io",
            "auth.docker.io",
        ]
        .map(str::to_owned)
        .to_vec(),
        host => vec![host.to_ascii_lowercase()],
    }
}

/// A text in base64.
pub(super) fn decode_text(value: &str) -> Option<String> {
    let bytes = STANDARD.decode(value.trim()).ok()?;
    String::from_utf8(bytes).ok()
}

/// Decodes user names and passwords in URLs.
pub(super) fn percent_decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}
