//! JSON files: fields named like secrets, at any depth.

use super::{finder::SecretFinder, pem::pem_blocks};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::Value;

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        if find_key_pair(finder, &value) {
            return;
        }
        find_fields(finder, &value, None);
    }
}

/// An AWS key pair in JSON: one credential, named by its access key id.
fn find_key_pair(finder: &mut SecretFinder<'_>, value: &Value) -> bool {
    let credentials = value.get("Credentials").unwrap_or(value);
    let text = |name| credentials.get(name).and_then(Value::as_str);
    let (Some(id), Some(secret)) = (text("AccessKeyId"), text("SecretAccessKey")) else {
        return false;
    };
    let mut aliases = vec![finder.fingerprint(secret.as_bytes())];
    aliases.extend(text("SessionToken").map(|token| finder.fingerprint(token.as_bytes())));
    let expires_at = text("Expiration").and_then(|time| time.parse().ok());
    finder.add_secret(id, None, aliases);
    if let Some(found) = finder.found.last_mut() {
        found.facts.expires_at = expires_at;
    }
    true
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
            let expires = ["expiresAt", "expires_at", "expiresOn", "Expiration"]
                .iter()
                .find_map(|name| object.get(*name).and_then(Value::as_str))
                .and_then(|time| time.parse::<Timestamp>().ok());
            for (name, field) in object {
                match field {
                    Value::String(secret) if is_secret_name(finder, name) => {
                        let before = finder.found.len();
                        find_in_field(finder, name, secret, label);
                        for found in &mut finder.found[before..] {
                            found.facts.expires_at = found.facts.expires_at.or(expires);
                        }
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
        let decoded = STANDARD
            .decode(secret.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded {
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
        ]
        .iter()
        .any(|word| lower.ends_with(word));
    }
    finder.class.keys.iter().any(|key| key == name)
}
