//! Finds the secrets inside a file, and their public properties.

use super::{dotenv, ini};
use base64::Engine as _;
use jiff::Timestamp;
use monitor_common::fingerprint::{FingerprintKey, fingerprint, trimmed};
use monitor_core::{
    catalog::{
        Catalog,
        entry::{CredentialClass, FileFormat},
    },
    model::IssuedTo,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// One secret of a file: its fingerprint and its public properties. The secret itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretFacts {
    pub issued_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    /// Namespace and name of a Kubernetes service account, a JWT subject, …
    pub subject: Option<String>,
    pub audience: Vec<String>,
    pub issued_to: Option<IssuedTo>,
}

/// Maximum number of secrets per file.
const SECRETS_MAX: usize = 256;
/// Shorter values are not secrets.
const SECRET_MIN: usize = 4;

/// Finds the secrets in a file of a given class.
pub fn find_secrets(
    catalog: &Catalog,
    class: &CredentialClass,
    key: FingerprintKey,
    bytes: &[u8],
) -> Vec<FoundSecret> {
    let mut finder = SecretFinder {
        catalog,
        class,
        key,
        found: Vec::new(),
    };
    let text = std::str::from_utf8(bytes).ok();
    match (class.format, text) {
        (FileFormat::Opaque, _) => {}
        (FileFormat::Whole, _) | (_, None) => finder.whole_file(bytes),
        (FileFormat::Token, Some(text)) => finder.token(text),
        (FileFormat::Pem, Some(text)) => finder.pem(text),
        (FileFormat::Ini, Some(text)) => finder.ini(text),
        (FileFormat::Json, Some(text)) => finder.json(text),
        (FileFormat::Yaml, Some(text)) => finder.yaml(text),
        (FileFormat::Netrc, Some(text)) => finder.netrc(text),
        (FileFormat::Pgpass, Some(text)) => finder.pgpass(text),
        (FileFormat::Urls, Some(text)) => finder.urls(text),
        (FileFormat::Dotenv, Some(text)) => finder.dotenv(text),
        (FileFormat::Aws, Some(text)) => finder.aws(text),
        (FileFormat::Docker, Some(text)) => finder.docker(text),
    }
    // The result is kept as long as the file is known.
    finder.found.shrink_to_fit();
    finder.found
}

/// The fields of an AWS profile.
#[derive(Debug, Default)]
struct AwsProfile<'a> {
    name: Option<&'a str>,
    id: Option<&'a str>,
    secret: Option<&'a str>,
    token: Option<&'a str>,
}

struct SecretFinder<'a> {
    catalog: &'a Catalog,
    class: &'a CredentialClass,
    key: FingerprintKey,
    found: Vec<FoundSecret>,
}

impl SecretFinder<'_> {
    fn fingerprint(&self, secret: &[u8]) -> u64 {
        fingerprint(self.key, secret)
    }

    /// Adds a secret; its form may identify a class that the place does not.
    fn add_secret(&mut self, secret: &str, label: Option<String>, aliases: Vec<u64>) {
        let secret = trimmed(secret.as_bytes());
        if secret.len() < SECRET_MIN || self.found.len() >= SECRETS_MAX {
            return;
        }
        let facts = jwt(secret).unwrap_or_default();
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

    fn class_of(&self, secret: &[u8], facts: &SecretFacts) -> String {
        if facts
            .subject
            .as_deref()
            .is_some_and(|subject| subject.starts_with("system:serviceaccount:"))
            && matches!(
                self.class.class.as_str(),
                "mounted-secret" | "volume-secret" | "jwt" | "named-secret"
            )
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
    fn is_general(&self) -> bool {
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

    fn whole_file(&mut self, bytes: &[u8]) {
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

    fn token(&mut self, text: &str) {
        if text.contains("-----BEGIN ") {
            self.pem(text);
            return;
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => self.json_fields(&Value::Object(object), None),
            _ => self.add_secret(text, None, Vec::new()),
        }
    }

    /// Private keys, by their base64 body without line breaks; an adjacent certificate provides the
    /// dates.
    fn pem(&mut self, text: &str) {
        let blocks = pem_blocks(text);
        let dates = blocks
            .iter()
            .filter(|(tag, _)| tag == "CERTIFICATE")
            .find_map(|(_, body)| certificate_dates(body))
            .unwrap_or_default();
        let mut any = false;
        for (tag, body) in &blocks {
            any = true;
            if !tag.contains("PRIVATE KEY") {
                continue;
            }
            let fingerprint = self.fingerprint(body.as_bytes());
            self.found.push(FoundSecret {
                class: if self.is_general() {
                    "private-key".to_owned()
                } else {
                    self.class.class.clone()
                },
                marked: true,
                whole: false,
                fingerprint,
                aliases: Vec::new(),
                label: None,
                facts: SecretFacts {
                    issued_at: dates.0,
                    expires_at: dates.1,
                    ..SecretFacts::default()
                },
            });
        }
        if !any && self.class.format == FileFormat::Pem {
            self.whole_file(trimmed(text.as_bytes()));
        }
    }

    fn ini(&mut self, text: &str) {
        for entry in ini::parse(text) {
            // `.npmrc` has `//registry.example/:_authToken=…`.
            let (scope, field) = match entry.name.rsplit_once("/:") {
                Some((scope, field)) if scope.starts_with("//") => (Some(scope), field),
                _ => (None, entry.name),
            };
            if self.class.keys.iter().any(|key| key == field) {
                let scope = scope.map(|scope| scope.trim_matches('/'));
                let label = entry.section.or(scope).map(str::to_owned);
                self.add_secret(entry.value, label, Vec::new());
            }
        }
    }

    fn json(&mut self, text: &str) {
        if let Ok(value) = serde_json::from_str::<Value>(text) {
            if self.key_pair(&value) {
                return;
            }
            self.json_fields(&value, None);
        }
    }

    fn yaml(&mut self, text: &str) {
        /// Far more than a credential file has, and cheap enough to parse.
        const YAML_NODES_MAX: usize = 50_000;
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_events: 4 * YAML_NODES_MAX,
                max_recorded_anchor_events: YAML_NODES_MAX,
                max_nodes: YAML_NODES_MAX,
            },
            alias_limits: serde_saphyr::alias_limits! {
                max_total_replayed_events: YAML_NODES_MAX,
            },
        };
        if let Ok(value) = serde_saphyr::from_str_with_options::<Value>(text, options) {
            self.json_fields(&value, None);
        }
    }

    /// An AWS key pair in JSON: one credential, named by its access key id.
    fn key_pair(&mut self, value: &Value) -> bool {
        let credentials = value.get("Credentials").unwrap_or(value);
        let text = |name| credentials.get(name).and_then(Value::as_str);
        let (Some(id), Some(secret)) = (text("AccessKeyId"), text("SecretAccessKey")) else {
            return false;
        };
        let mut aliases = vec![self.fingerprint(secret.as_bytes())];
        aliases.extend(text("SessionToken").map(|token| self.fingerprint(token.as_bytes())));
        let expires_at = text("Expiration").and_then(|time| time.parse().ok());
        self.add_secret(id, None, aliases);
        if let Some(found) = self.found.last_mut() {
            found.facts.expires_at = expires_at;
        }
        true
    }

    /// Fields named like secrets, at any depth; adjacent fields tell which secret it is.
    fn json_fields(&mut self, value: &Value, label: Option<&str>) {
        match value {
            Value::Object(object) => {
                let own = [
                    "name",
                    "host",
                    "user",
                    "client_email",
                    "clientId",
                    "startUrl",
                ]
                .iter()
                .find_map(|name| object.get(*name).and_then(Value::as_str));
                let label = own.or(label);
                let expires = ["expiresAt", "expires_at", "expiresOn", "Expiration"]
                    .iter()
                    .find_map(|name| object.get(*name).and_then(Value::as_str))
                    .and_then(|time| time.parse::<Timestamp>().ok());
                for (name, field) in object {
                    match field {
                        Value::String(secret) if self.is_secret_name(name) => {
                            let before = self.found.len();
                            self.json_secret(name, secret, label);
                            for found in &mut self.found[before..] {
                                found.facts.expires_at = found.facts.expires_at.or(expires);
                            }
                        }
                        Value::Object(_) | Value::Array(_) => {
                            self.json_fields(field, label.or(Some(name)));
                        }
                        _ => {}
                    }
                }
            }
            Value::Array(items) => {
                for item in items {
                    self.json_fields(item, label);
                }
            }
            _ => {}
        }
    }

    fn json_secret(&mut self, name: &str, secret: &str, label: Option<&str>) {
        let label = label.map(str::to_owned);
        if secret.contains("-----BEGIN ") {
            for (tag, body) in pem_blocks(secret) {
                if tag.contains("PRIVATE KEY") {
                    self.add_secret(&body, label.clone(), Vec::new());
                }
            }
        } else if name.ends_with("-data") {
            // A key in a kubeconfig is base64-encoded PEM.
            let decoded = base64::engine::general_purpose::STANDARD
                .decode(secret.trim())
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok());
            match decoded {
                Some(text) => self.json_secret("", &text, label.as_deref()),
                None => self.add_secret(secret, label, Vec::new()),
            }
        } else {
            self.add_secret(secret, label, Vec::new());
        }
    }

    fn is_secret_name(&self, name: &str) -> bool {
        if self.class.keys.is_empty() {
            let lower = name.to_ascii_lowercase();
            return [
                "token",
                "secret",
                "password",
                "private_key",
                "api_key",
                "apikey",
                "passwd",
            ]
            .iter()
            .any(|word| lower.ends_with(word));
        }
        self.class.keys.iter().any(|key| key == name)
    }

    fn netrc(&mut self, text: &str) {
        let Ok(netrc) = text.parse::<netrc::Netrc>() else {
            return;
        };
        let hosts: BTreeMap<_, _> = netrc.hosts.iter().collect();
        for (host, entry) in hosts {
            let alias = self.basic_form(&entry.login, &entry.password);
            let password = entry.password.clone();
            self.add_for_host(host, &password, Some(host.clone()), vec![alias]);
        }
    }

    /// Adds a secret that is valid for the adjacent host.
    fn add_for_host(
        &mut self,
        place: &str,
        secret: &str,
        label: Option<String>,
        aliases: Vec<u64>,
    ) {
        let before = self.found.len();
        self.add_secret(secret, label, aliases);
        // A form with a home takes precedence over a host named in the file.
        if let Some(found) = self.found.get_mut(before)
            && found.facts.audience.is_empty()
            && found.class == self.class.class
            && self.catalog.home(&found.class).is_empty()
        {
            found.facts.audience = hosts_in_name(place);
        }
    }

    /// Fingerprint of the pair as sent in `Authorization: Basic`.
    fn basic_form(&self, user: &str, password: &str) -> u64 {
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        self.fingerprint(pair.as_bytes())
    }

    /// `host:port:database:user:password`, with `\:` and `\\` escaped.
    fn pgpass(&mut self, text: &str) {
        for line in text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
        {
            let mut fields = vec![String::new()];
            let mut escaped = false;
            for character in line.chars() {
                match character {
                    _ if escaped => {
                        escaped = false;
                        if let Some(field) = fields.last_mut() {
                            field.push(character);
                        }
                    }
                    '\\' => escaped = true,
                    ':' if fields.len() < 5 => fields.push(String::new()),
                    _ => {
                        if let Some(field) = fields.last_mut() {
                            field.push(character);
                        }
                    }
                }
            }
            if let [host, _, database, user, password] = fields.as_slice() {
                self.add_for_host(
                    host,
                    password,
                    Some(format!("{user}@{host}/{database}")),
                    Vec::new(),
                );
            }
        }
    }

    fn urls(&mut self, text: &str) {
        for line in text.lines() {
            let Ok(url) = url::Url::parse(line.trim()) else {
                continue;
            };
            if let (Some(password), Some(host)) = (url.password(), url.host_str()) {
                let password = percent_decode(password);
                let alias = self.basic_form(&percent_decode(url.username()), &password);
                self.add_for_host(host, &password, Some(host.to_owned()), vec![alias]);
            }
        }
    }

    fn dotenv(&mut self, text: &str) {
        let mut variables: BTreeMap<String, String> = dotenv::parse(text).into_iter().collect();
        if let (Some(id), Some(secret)) = (
            variables.get("AWS_ACCESS_KEY_ID"),
            variables.get("AWS_SECRET_ACCESS_KEY"),
        ) {
            let mut aliases = vec![self.fingerprint(secret.as_bytes())];
            aliases.extend(
                variables
                    .get("AWS_SESSION_TOKEN")
                    .map(|token| self.fingerprint(token.as_bytes())),
            );
            self.add_secret(id, Some("AWS_ACCESS_KEY_ID".to_owned()), aliases);
            variables.retain(|name, _| !name.starts_with("AWS_"));
        }
        for (name, value) in &variables {
            let form = self.catalog.class_of_secret(value.as_bytes());
            let Some(class) = form
                .filter(|form| form.class != "jwt")
                .or_else(|| self.catalog.variable(name))
            else {
                continue;
            };
            let by_url = class.url_environment.iter().any(|_| value.contains("://"));
            let secret = if by_url {
                match url::Url::parse(value) {
                    Ok(url) => match url.password() {
                        Some(password) => percent_decode(password),
                        None => continue,
                    },
                    Err(_) => continue,
                }
            } else {
                value.clone()
            };
            let class_name = class.class.clone();
            let before = self.found.len();
            if secret.len() >= 8 {
                self.add_secret(&secret, Some(name.clone()), Vec::new());
            }
            for found in &mut self.found[before..] {
                if class_name != "generic-secret" {
                    found.class.clone_from(&class_name);
                }
            }
        }
    }

    fn aws(&mut self, text: &str) {
        let mut profile = AwsProfile::default();
        let mut heading = 0;
        for entry in ini::parse(text) {
            if entry.heading != heading {
                self.profile(&std::mem::take(&mut profile));
                heading = entry.heading;
            }
            profile.name = entry.section;
            match entry.name {
                "aws_access_key_id" => profile.id = Some(entry.value),
                "aws_secret_access_key" => profile.secret = Some(entry.value),
                "aws_session_token" => profile.token = Some(entry.value),
                _ => {}
            }
        }
        self.profile(&profile);
    }

    /// The key pair of one profile.
    fn profile(&mut self, profile: &AwsProfile<'_>) {
        let label = profile.name.map(|name| format!("profile {name}"));
        let halves = [profile.secret, profile.token].into_iter().flatten();
        let aliases = halves
            .map(|secret| self.fingerprint(trimmed(secret.as_bytes())))
            .collect();
        match (profile.id, profile.secret) {
            (Some(id), _) => self.add_secret(id, label, aliases),
            (None, Some(secret)) => self.add_secret(secret, label, Vec::new()),
            (None, None) => {}
        }
    }

    fn docker(&mut self, text: &str) {
        let Ok(value) = serde_json::from_str::<Value>(text) else {
            return;
        };
        // `.dockercfg` has the registries at the top level.
        let registries = value.get("auths").unwrap_or(&value);
        let Some(registries) = registries.as_object() else {
            return;
        };
        for (registry, entry) in registries {
            let label = Some(registry.clone());
            for field in ["identitytoken", "registrytoken"] {
                if let Some(token) = entry.get(field).and_then(Value::as_str) {
                    self.add_for_host(registry, token, label.clone(), Vec::new());
                }
            }
            let Some(auth) = entry.get("auth").and_then(Value::as_str) else {
                continue;
            };
            let password = base64::engine::general_purpose::STANDARD
                .decode(auth.trim())
                .ok()
                .and_then(|pair| String::from_utf8(pair).ok())
                .and_then(|pair| {
                    pair.split_once(':')
                        .map(|(_, password)| password.to_owned())
                });
            let as_sent = self.fingerprint(auth.trim().as_bytes());
            match password {
                Some(password) => {
                    let password = password.trim_end_matches('\0').to_owned();
                    self.add_for_host(registry, &password, label, vec![as_sent]);
                }
                None => self.add_for_host(registry, auth, label, Vec::new()),
            }
        }
    }
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

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%'
            && let [high, low, after @ ..] = tail
            && let (Some(high), Some(low)) = (
                char::from(*high).to_digit(16),
                char::from(*low).to_digit(16),
            )
        {
            bytes.push((high * 16 + low) as u8);
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `(tag, base64 body without line breaks)` of every block.
fn pem_blocks(text: &str) -> Vec<(String, String)> {
    // Keys in kubeconfigs and JSON may contain a literal `\n`.
    let text = text.replace("\\n", "\n");
    match pem::parse_many(text.as_bytes()) {
        Ok(blocks) => blocks
            .into_iter()
            .map(|block| {
                let body = base64::engine::general_purpose::STANDARD.encode(block.contents());
                (block.tag().to_owned(), body)
            })
            .collect(),
        Err(_) => Vec::new(),
    }
}

fn certificate_dates(body: &str) -> Option<(Option<Timestamp>, Option<Timestamp>)> {
    let der = base64::engine::general_purpose::STANDARD
        .decode(body)
        .ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let validity = certificate.validity();
    Some((
        Timestamp::from_second(validity.not_before.timestamp()).ok(),
        Timestamp::from_second(validity.not_after.timestamp()).ok(),
    ))
}

/// The public claims of a JWT. Its signature is not verified: the claims are used only to describe
/// the token.
fn jwt(secret: &[u8]) -> Option<SecretFacts> {
    if !secret.starts_with(b"eyJ") {
        return None;
    }
    let token = std::str::from_utf8(secret).ok()?;
    let claims = jsonwebtoken::dangerous::insecure_decode_claims::<Value>(token).ok()?;
    let time = |name: &str| {
        let seconds = claims.get(name)?.as_f64()?;
        Timestamp::from_second(seconds as i64).ok()
    };
    let audience = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    };
    Some(SecretFacts {
        issued_at: time("iat").or_else(|| time("nbf")),
        expires_at: time("exp"),
        subject: claims.get("sub").and_then(Value::as_str).map(printable),
        audience: audience.iter().map(|text| printable(text)).collect(),
        issued_to: issued_to(&claims),
    })
}

/// The pod that a service-account token is bound to.
fn issued_to(claims: &Value) -> Option<IssuedTo> {
    let claims = claims.get("kubernetes.io")?;
    let text = |path: &str| claims.pointer(path).and_then(Value::as_str).map(printable);
    Some(IssuedTo {
        namespace: text("/namespace")?,
        pod: text("/pod/name")?,
        pod_uid: text("/pod/uid")?,
        service_account: text("/serviceaccount/name")?,
        workload: None,
        kind: None,
    })
}

/// Claims are shown in terminals and logs.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(256)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peak;
    use proptest::prelude::*;

    /// Maximum memory that parsing a one-megabyte file may use, whatever its contents.
    const PEAK: usize = 48 << 20;

    /// Files of the maximum size that anyone can write, each in every format.
    #[test]
    fn a_hostile_file_costs_bounded_memory() {
        const SIZE: usize = 1 << 20;
        let catalog = Catalog::new("", &[], &[]).expect("embedded");
        let repeated = |text: &str| text.repeat(SIZE / text.len());
        let doubling: String = (1..20_000)
            .map(|n| format!("A{n}=\"${{A{}}}${{A{}}}\"\n", n - 1, n - 1))
            .collect();
        let aliases: String = std::iter::once("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned())
            .chain((1..2000).map(|n| {
                format!(
                    "a{n}: &a{n} [{}]\n",
                    vec![format!("*a{}", n - 1); 9].join(",")
                )
            }))
            .collect();
        let inputs = [
            doubling,
            aliases,
            repeated("["),
            repeated("{\"a\":"),
            repeated("a: {"),
            repeated("- "),
            repeated("[a]\nk=v\n"),
            repeated("machine a login b password FAKE\n"),
            repeated("-----BEGIN FAKE PRIVATE KEY-----\n"),
            repeated("https://u:p@h/\n"),
            repeated("{\"auths\":{"),
            repeated("a:b:c:d:e\n"),
            repeated("x"),
            repeated("\"\\u0041"),
        ];
        for path in [
            "/home/a/.env",
            "/home/a/.kube/config",
            "/home/a/.docker/config.json",
            "/home/a/.netrc",
            "/home/a/.npmrc",
            "/home/a/.aws/credentials",
            "/home/a/.pgpass",
            "/home/a/.git-credentials",
            "/home/a/.ssh/id_rsa",
            "/home/a/.config/gcloud/application_default_credentials.json",
            "/run/secrets/kubernetes.io/serviceaccount/token",
        ] {
            let class = catalog.file(path).expect("a class");
            for input in &inputs {
                let bytes = peak::of(|| drop(find_secrets(&catalog, class, KEY, input.as_bytes())));
                assert!(
                    bytes < PEAK,
                    "{path}: {} MiB for {:?}…",
                    bytes >> 20,
                    &input[..20]
                );
            }
        }
    }

    const KEY: FingerprintKey = FingerprintKey { k0: 1, k1: 2 };

    fn find(path: &str, text: &str) -> Vec<FoundSecret> {
        let catalog = Catalog::new("", &[], &[]).expect("embedded");
        let class = catalog.file(path).expect("a credential file").clone();
        find_secrets(&catalog, &class, KEY, text.as_bytes())
    }

    fn fingerprint_of(secret: &str) -> u64 {
        fingerprint(KEY, secret.as_bytes())
    }

    fn token(claims: &str) -> String {
        let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        format!(
            "{}.{}.{}",
            part(r#"{"alg":"RS256","typ":"JWT"}"#),
            part(claims),
            part("fakesignature")
        )
    }

    #[test]
    fn aws_profiles_are_named_by_their_key_id() {
        let found = find(
            "/root/.aws/credentials",
            "[default]\naws_access_key_id = AKIAFAKEFAKEFAKEFAKE\naws_secret_access_key = fake/secret+half\n\
             [short]\naws_access_key_id=ASIAFAKEFAKEFAKEFAKE\naws_secret_access_key=other\naws_session_token=faketoken\n",
        );
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].class, "aws-access-key");
        assert_eq!(found[0].fingerprint, fingerprint_of("AKIAFAKEFAKEFAKEFAKE"));
        assert_eq!(found[0].aliases, [fingerprint_of("fake/secret+half")]);
        assert_eq!(found[0].label.as_deref(), Some("profile default"));
        assert_eq!(found[1].class, "aws-session-key");
        assert_eq!(
            found[1].aliases,
            [fingerprint_of("other"), fingerprint_of("faketoken")]
        );
    }

    #[test]
    fn a_service_account_token_tells_its_dates_and_audience() {
        let jwt = token(
            r#"{"iss":"x","sub":"system:serviceaccount:shop:api","aud":["https://kubernetes.default.svc"],"iat":1700000000,"exp":1700003600}"#,
        );
        let found = find(
            "/run/secrets/kubernetes.io/serviceaccount/token",
            &format!("{jwt}\n"),
        );
        assert_eq!(found[0].fingerprint, fingerprint_of(&jwt));
        assert_eq!(found[0].class, "k8s-service-account-token");
        assert_eq!(
            found[0].facts.expires_at,
            Timestamp::from_second(1_700_003_600).ok()
        );
        assert_eq!(found[0].facts.audience, ["https://kubernetes.default.svc"]);
        assert_eq!(
            found[0].label.as_deref(),
            Some("system:serviceaccount:shop:api")
        );
    }

    #[test]
    fn what_stands_beside_a_host_is_for_it() {
        for (path, text, hosts) in [
            (
                "/root/.netrc",
                "machine git.Example login a password FAKE-one\n",
                vec!["git.example"],
            ),
            (
                "/root/.netrc",
                "default login a password FAKE-one\n",
                vec![],
            ),
            (
                "/root/.pgpass",
                "db.example:5432:shop:a:FAKE-one\n",
                vec!["db.example"],
            ),
            ("/root/.pgpass", "*:*:*:a:FAKE-one\n", vec![]),
            (
                "/root/.git-credentials",
                "https://a:FAKE-one@git.example:8443/x\n",
                vec!["git.example"],
            ),
            (
                "/root/.docker/config.json",
                r#"{ "auths": { "registry.example:5000": { "auth": "YTpGQUtFLW9uZQ==" } } }"#,
                vec!["registry.example"],
            ),
            (
                "/root/.docker/config.json",
                r#"{ "auths": { "https://index.docker.io/v1/": { "auth": "YTpGQUtFLW9uZQ==" } } }"#,
                vec![
                    "docker.io",
                    "index.docker.io",
                    "registry-1.docker.io",
                    "auth.docker.io",
                ],
            ),
        ] {
            let found = find(path, text);
            assert_eq!(found[0].fingerprint, fingerprint_of("FAKE-one"), "{text}");
            assert_eq!(found[0].facts.audience, hosts, "{text}");
        }
    }

    #[test]
    fn files_of_several_secrets() {
        let kubeconfig = "apiVersion: v1\nusers:\n- name: a\n  user: {token: faketoken-a}\n- name: b\n  user: {password: fakepass-b}\n";
        let found = find("/root/.kube/config", kubeconfig);
        assert_eq!(
            found
                .iter()
                .map(|f| (f.fingerprint, f.label.clone()))
                .collect::<Vec<_>>(),
            [
                (fingerprint_of("faketoken-a"), Some("a".into())),
                (fingerprint_of("fakepass-b"), Some("b".into()))
            ]
        );
        let auth = base64::engine::general_purpose::STANDARD.encode("user:fakepass");
        let found = find(
            "/root/.docker/config.json",
            &format!(
                r#"{{"auths":{{"registry.example":{{"auth":"{auth}"}},"other":{{"identitytoken":"fakeidentity"}}}}}}"#
            ),
        );
        assert!(
            found
                .iter()
                .any(|f| f.fingerprint == fingerprint_of("fakepass")
                    && f.aliases == [fingerprint_of(&auth)])
        );
        assert!(
            found
                .iter()
                .any(|f| f.fingerprint == fingerprint_of("fakeidentity"))
        );
        let found = find(
            "/root/.netrc",
            "machine a.example login u password fakepw-a\nmachine b.example login v password fakepw-b\n",
        );
        assert_eq!(found.len(), 2);
        assert!(
            found[0].fingerprint == fingerprint_of("fakepw-a")
                && found[0].label.as_deref() == Some("a.example")
        );
        let found = find(
            "/root/.npmrc",
            "//registry.example/:_authToken=npm_fakefakefakefake\nfoo=bar\n",
        );
        assert_eq!(found[0].fingerprint, fingerprint_of("npm_fakefakefakefake"));
        assert_eq!(found[0].class, "npm-token");
        let found = find("/root/.pgpass", "db:5432:shop:app:fake\\:pass\n");
        assert_eq!(found[0].fingerprint, fingerprint_of("fake:pass"));
        let found = find(
            "/root/.git-credentials",
            "https://user:fakepass@git.example\n",
        );
        assert_eq!(found[0].fingerprint, fingerprint_of("fakepass"));
        let found = find(
            "/srv/.env",
            "PORT=80\nexport GITHUB_TOKEN=\"ghp_fakefakefakefakefake\"\nDATABASE_URL=postgres://u:fakedbpass@db/x\nDEBUG=true\n",
        );
        let classes: Vec<_> = found.iter().map(|f| f.class.as_str()).collect();
        assert_eq!(classes, ["database-password", "github-token"]);
        assert_eq!(found[0].fingerprint, fingerprint_of("fakedbpass"));
    }

    #[test]
    fn pem_keys_and_their_dates() {
        let text = "-----BEGIN PRIVATE KEY-----\nRkFLRQ==\n-----END PRIVATE KEY-----\n";
        let found = find("/srv/tls/server.key", text);
        assert_eq!(found[0].fingerprint, fingerprint_of("RkFLRQ=="));
        let found = find(
            "/etc/ssl/private/snake.pem",
            "-----BEGIN CERTIFICATE-----\nRkFLRQ==\n-----END CERTIFICATE-----\n",
        );
        assert!(found.is_empty(), "a certificate alone is no secret");
    }

    #[test]
    fn what_is_not_read_is_not_found() {
        assert!(find("/etc/shadow", "root:$6$fake:1::::::").is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_format(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "[a-z=:{}\\[\\]\"\n -]{0,200}") {
            let catalog = Catalog::new("", &[], &[]).expect("embedded");
            for path in ["/root/.aws/credentials", "/root/.kube/config", "/root/.docker/config.json", "/root/.netrc",
                         "/root/.npmrc", "/srv/.env", "/root/.pgpass", "/root/.git-credentials", "/srv/x.key", "/srv/x.p12",
                         "/run/secrets/x", "/root/.aws/cli/cache/x.json"] {
                let class = catalog.file(path).expect("a credential file");
                let _ = find_secrets(&catalog, class, KEY, &bytes);
                let _ = find_secrets(&catalog, class, KEY, text.as_bytes());
            }
        }
    }
}
