//! Registry logins of Docker and its relatives.

use super::finder::SecretFinder;
use serde_json::{Map, Value};

pub(super) fn find(finder: &mut SecretFinder<'_>, text: &str) {
    let Ok(value) = serde_json::from_str::<Value>(text) else {
        return;
    };
    // `.dockercfg` has the registries at the top level.
    let registries = value.get("auths").unwrap_or(&value);
    if let Some(registries) = registries.as_object() {
        find_registries(finder, registries);
    }
}

/// Finds the logins of registries, by their names.
pub(super) fn find_registries(finder: &mut SecretFinder<'_>, registries: &Map<String, Value>) {
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
        let (password, aliases) = finder.basic_pair(auth);
        let password = password.trim_end_matches('\0');
        finder.add_for_host(registry, password, label, aliases);
    }
}
