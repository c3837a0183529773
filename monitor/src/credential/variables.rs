//! Credentials in environment variables.

use super::{
    Credentials,
    class::{by_fingerprint, by_form},
};
use crate::sensor::observation::ObservedVariable;
use monitor_common::fingerprint::{FingerprintKey, fingerprint};
use monitor_core::{
    catalog::{Catalog, entry::CredentialClass},
    model::{Credential, CredentialId, Place, Source},
};
use std::{fs::File, sync::Arc};

/// A shorter value is a setting, not a secret.
const SECRET_MIN: u32 = 8;

impl Credentials {
    /// The secrets of an environment, each with its variable: an AWS key pair is one credential.
    pub fn in_environment(&mut self, variables: &[ObservedVariable]) -> Vec<(Credential, Place)> {
        let named = |name: &str| variables.iter().find(|variable| variable.name == name);
        let mut aliases = Vec::new();
        let mut alias_places = Vec::new();
        if let Some(id) = named("AWS_ACCESS_KEY_ID") {
            for other in [
                "AWS_SECRET_ACCESS_KEY",
                "AWS_SESSION_TOKEN",
                "AWS_SECURITY_TOKEN",
            ] {
                if let Some(other) = named(other) {
                    self.known.alias(
                        other.fingerprint,
                        &CredentialId::from_fingerprint(id.fingerprint),
                    );
                    aliases.push(other.fingerprint);
                    alias_places.push(variable_place(&other.name));
                }
            }
        }
        let catalog = &self.catalog;
        let mut picked: Vec<(Credential, Place)> = Vec::new();
        for variable in variables {
            if aliases.contains(&variable.fingerprint) {
                continue;
            }
            let Some(class) = classify(catalog, variable) else {
                continue;
            };
            let place = variable_place(&variable.name);
            let found =
                by_fingerprint(catalog, &class.class, variable.fingerprint, variable.prefix);
            let mut credential = self.known.credential(catalog, &found, &place);
            if variable.name == "AWS_ACCESS_KEY_ID" {
                self.known.is_also_at(&mut credential, &alias_places);
            }
            picked.push((credential, place));
        }
        picked
    }

    /// The secrets in the environment of a process that started before the agent.
    pub fn in_running(&mut self, pid: u32) -> Vec<(Credential, Place)> {
        let Ok(mut file) = File::open(format!("/proc/{pid}/environ")) else {
            return Vec::new();
        };
        let catalog = Arc::clone(&self.catalog);
        let key = self.key;
        let variables = self.buffer.with_file(&mut file, |bytes| {
            bytes
                .split(|byte| *byte == 0)
                .filter_map(|entry| parse_variable(&catalog, key, entry))
                .collect::<Vec<_>>()
        });
        match variables {
            Ok(variables) => self.in_environment(&variables),
            Err(_) => Vec::new(),
        }
    }
}

pub(super) fn variable_place(name: &str) -> Place {
    Place {
        source: Source::Environment,
        place: format!("env:{name}"),
    }
}

/// Parses `name=value`; `None` if it is neither.
pub(super) fn parse_variable(
    catalog: &Catalog,
    key: FingerprintKey,
    entry: &[u8],
) -> Option<ObservedVariable> {
    let at = entry.iter().position(|byte| *byte == b'=')?;
    let name = std::str::from_utf8(&entry[..at]).ok()?;
    let value = &entry[at + 1..];
    let class = catalog.variable(name);
    let is_url = class.is_some_and(|class| !class.url_environment.is_empty());
    let password = monitor_common::environ::value_marks(value).password();
    let url = is_url && password.is_some();
    let secret = match password {
        Some((start, len)) if url => &value[start as usize..(start + len) as usize],
        _ => monitor_common::fingerprint::trimmed(value),
    };
    Some(ObservedVariable {
        name: name.to_owned(),
        fingerprint: fingerprint(key, secret),
        secret_len: secret.len() as u32,
        prefix: catalog.prefix_index(secret),
        dots: value.iter().filter(|byte| **byte == b'.').count() as u32,
        url,
    })
}

fn classify<'a>(catalog: &'a Catalog, variable: &ObservedVariable) -> Option<&'a CredentialClass> {
    let by_name = catalog.variable(&variable.name).filter(|class| {
        // A variable that may hold a URL is a secret only if the URL contains a password.
        let needs_url = !catalog.is_plain(&variable.name) && !class.url_environment.is_empty();
        (!needs_url || variable.url)
            && variable.secret_len >= if variable.url { 1 } else { SECRET_MIN }
    });
    let by_form = by_form(catalog, variable.prefix, variable.secret_len, variable.dots)
        .filter(|_| !variable.url);
    match (by_form, by_name) {
        (Some(form), Some(name)) if form.class == "jwt" => Some(name),
        (Some(form), _) => Some(form),
        (None, name) => name,
    }
}
