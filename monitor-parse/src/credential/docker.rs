//! Registry logins of Docker and its relatives.

use super::finder::SecretFinder;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
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
                finder.add_for_host(registry, token, label.clone(), Vec::new());
            }
        }
        let Some(auth) = entry.get("auth").and_then(Value::as_str) else {
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
}
