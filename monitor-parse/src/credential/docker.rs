//! Registry logins of Docker and its relatives.

use super::finder::SecretFinder;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        find_registries(finder, &value);
    }
}

/// Finds the logins in a parsed file; returns whether it has the form of one.
pub(super) fn find_registries(finder: &mut SecretFinder<'_>, value: &Value) -> bool {
    // `.dockercfg` has the registries at the top level.
    let registries = value.get("auths").unwrap_or(value);
    let Some(registries) = registries.as_object() else {
        return false;
    };
    for (registry, entry) in registries.iter().filter(|(_, entry)| entry.is_object()) {
        let label = Some(registry.clone());
        for field in ["identitytoken", "registrytoken"] {
            if let Some(token) = entry.get(field).and_then(Value::as_str) {
                finder.add_for_host(registry, token, label.clone(), Vec::new());
            }
        }
        let text = |name: &str| entry.get(name).and_then(Value::as_str);
        let auth = text("auth").filter(|auth| !auth.is_empty());
        let Some(auth) = auth else {
            if let (Some(user), Some(password)) = (text("username"), text("password")) {
                let as_sent = finder.basic_form(user, password);
                finder.add_for_host(registry, password, label, vec![as_sent]);
            }
            continue;
        };
        let password = STANDARD
            .decode(auth.trim())
            .ok()
            .and_then(|pair| String::from_utf8(pair).ok())
            .and_then(|pair| {
                pair.split_once(':')
                    .map(|(_, password)| password.to_owned())
            });
        let as_sent = finder.fingerprint(auth.trim().as_bytes());
        match password {
            Some(password) => {
                let password = password.trim_end_matches('\0').to_owned();
                finder.add_for_host(registry, &password, label, vec![as_sent]);
            }
            None => finder.add_for_host(registry, auth, label, Vec::new()),
        }
    }
    value.get("auths").is_some()
}
