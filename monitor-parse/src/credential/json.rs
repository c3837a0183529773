//! JSON files: fields named like secrets, at any depth.

use super::{
    docker,
    finder::{SecretFinder, decode_text},
    pem::pem_blocks,
};
use jiff::Timestamp;
use serde_json::{Map, Value};

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        find_fields(finder, &value, None);
    }
}

/// The names of the two halves of a key pair, and of the token of a session, without regard to case
/// and separators.
const PAIRS: [(&str, &str, &str); 4] = [
    ("accesskeyid", "secretaccesskey", "sessiontoken"),
    ("awsaccesskeyid", "awssecretaccesskey", "awssessiontoken"),
    ("accesskey", "secretkey", "sessiontoken"),
    ("accesskeyid", "accesskeysecret", "securitytoken"),
];

/// A name without case and separators.
fn plain(name: &str) -> String {
    name.replace(['_', '-'], "").to_ascii_lowercase()
}

/// A key pair in an object: one credential, named by its access key id. Returns the names of its
/// fields.
fn find_key_pair(
    finder: &mut SecretFinder<'_>,
    object: &Map<String, Value>,
    label: Option<&str>,
) -> Vec<String> {
    let texts = object
        .iter()
        .filter_map(|(name, value)| Some((plain(name), (name.as_str(), value.as_str()?))));
    let texts: Vec<(String, (&str, &str))> = texts.collect();
    let field = |wanted: &str| {
        let found = texts.iter().find(|(plain, _)| plain == wanted);
        found.map(|(_, field)| *field)
    };
    for (id, secret, token) in PAIRS {
        let (Some(id), Some(secret)) = (field(id), field(secret)) else {
            continue;
        };
        let token = field(token);
        let halves = [Some(secret), token].into_iter().flatten();
        let aliases = halves
            .clone()
            .map(|(_, half)| finder.fingerprint(half.as_bytes()))
            .collect();
        let before = finder.found.len();
        finder.add_secret(id.1, label.map(str::to_owned), aliases);
        for found in &mut finder.found[before..] {
            found.facts.expires_at = found.facts.expires_at.or_else(|| expiry(object));
        }
        let names = halves.chain([id]).map(|(name, _)| name.to_owned());
        return names.collect();
    }
    Vec::new()
}

/// The names of fields that say when the secrets beside them expire.
const EXPIRIES: [&str; 8] = [
    "expiresAt",
    "expires_at",
    "expiresOn",
    "expires_on",
    "Expiration",
    "expiration",
    "expiry_date",
    "expiry",
];

/// When the secrets of an object expire: a text, or seconds or milliseconds since 1970, as a number or
/// in a text.
fn expiry(object: &Map<String, Value>) -> Option<Timestamp> {
    /// More seconds than until the year 5138, fewer milliseconds than until 1973.
    const MILLISECONDS_MIN: i64 = 100_000_000_000;
    let number = |number: i64| {
        if number >= MILLISECONDS_MIN {
            Timestamp::from_millisecond(number).ok()
        } else {
            Timestamp::from_second(number).ok()
        }
    };
    EXPIRIES.iter().find_map(|name| match object.get(*name)? {
        Value::String(text) => text
            .parse()
            .ok()
            .or_else(|| number(text.trim().parse().ok()?)),
        Value::Number(value) => number(
            value
                .as_i64()
                .or_else(|| value.as_f64().map(|value| value as i64))?,
        ),
        _ => None,
    })
}

/// Fields named like secrets, at any depth; adjacent fields tell which secret it is.
pub(super) fn find_fields(finder: &mut SecretFinder<'_>, value: &Value, label: Option<&str>) {
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
            let expires = expiry(object);
            let pair = find_key_pair(finder, object, label);
            find_variable(finder, object, label);
            for (name, field) in object.iter().filter(|(name, _)| !pair.contains(name)) {
                match field {
                    Value::String(secret) if is_secret_name(finder, name) => {
                        let before = finder.found.len();
                        find_in_field(finder, name, secret, label);
                        for found in &mut finder.found[before..] {
                            found.facts.expires_at = found.facts.expires_at.or(expires);
                        }
                    }
                    Value::String(text) => find_in_text(finder, name, text, label),
                    Value::Object(registries) if name == "auths" => {
                        docker::find_registries(finder, registries);
                    }
                    Value::Object(_) | Value::Array(_) => {
                        find_fields(finder, field, label.or(Some(name)));
                    }
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                find_fields(finder, item, label);
            }
        }
        _ => {}
    }
}

/// `{"name": "API_TOKEN", "value": "…"}`, as in lists of variables.
fn find_variable(finder: &mut SecretFinder<'_>, object: &Map<String, Value>, label: Option<&str>) {
    let text = |name: &str| object.get(name).and_then(Value::as_str);
    if let (Some(name), Some(value)) = (text("name"), text("value"))
        && finder.catalog.variable(name).is_some()
    {
        finder.add_secret(value, label.or(Some(name)).map(str::to_owned), Vec::new());
    }
}

/// A secret in a text that is not one as a whole: a connection string, an authorization header, or a
/// marked secret under any name.
fn find_in_text(finder: &mut SecretFinder<'_>, name: &str, text: &str, label: Option<&str>) {
    let label = label.or(Some(name)).map(str::to_owned);
    if name.eq_ignore_ascii_case("authorization") {
        let secret = text.split_once(' ').map_or(text, |(_, secret)| secret);
        finder.add_secret(secret, label, Vec::new());
    } else if plain(name).ends_with("connectionstring") {
        for (key, value) in text.split(';').filter_map(|part| part.split_once('=')) {
            let key = key.trim().to_ascii_lowercase();
            if CONNECTION_SECRETS.contains(&key.as_str()) {
                finder.add_secret(value.trim(), label.clone(), Vec::new());
            }
        }
    } else if finder.is_token(text) {
        finder.add_secret(text, label, Vec::new());
    }
}

/// The parts of connection strings that are secret.
const CONNECTION_SECRETS: [&str; 5] = [
    "password",
    "pwd",
    "accountkey",
    "sharedaccesskey",
    "sharedaccesssignature",
];

fn find_in_field(finder: &mut SecretFinder<'_>, name: &str, secret: &str, label: Option<&str>) {
    let label = label.map(str::to_owned);
    if secret.contains("-----BEGIN ") {
        for (tag, body) in pem_blocks(secret) {
            if tag.contains("PRIVATE KEY") {
                finder.add_secret(&body, label.clone(), Vec::new());
            }
        }
    } else if name.ends_with("-data") {
        // A key in a kubeconfig is base64-encoded PEM.
        match decode_text(secret) {
            Some(text) => find_in_field(finder, "", &text, label.as_deref()),
            None => finder.add_secret(secret, label, Vec::new()),
        }
    } else {
        finder.add_secret(secret, label, Vec::new());
    }
}

fn is_secret_name(finder: &SecretFinder<'_>, name: &str) -> bool {
    if finder.class.keys.is_empty() {
        let lower = name.to_ascii_lowercase();
        return [
            "token",
            "secret",
            "password",
            "private_key",
            "api_key",
            "apikey",
            "passwd",
            "pwd",
            "privatekey",
            "secret_key",
            "secretkey",
            "access_key",
            "auth_key",
            "authkey",
        ]
        .iter()
        .any(|word| lower.ends_with(word));
    }
    finder.class.keys.iter().any(|key| key == name)
}
