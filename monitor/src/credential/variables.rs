//! Credentials in environment variables.

use super::{
    Credentials,
    class::{by_fingerprint, by_form},
};
use crate::observed::variable::ObservedVariable;
use monitor_core::{
    catalog::{Catalog, entry::CredentialClass},
    fair_cache::Tenant,
    model::{Credential, CredentialId, Place, Source},
};
use std::sync::Arc;

/// A shorter value is a setting, not a secret.
const SECRET_MIN: u32 = 8;

impl Credentials {
    /// The secrets of an environment, each with its variable: an AWS key pair is one credential.
    pub fn in_environment(
        &mut self,
        tenant: &Tenant,
        variables: &[ObservedVariable],
    ) -> Vec<(Arc<Credential>, Place)> {
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
                        tenant,
                        other.fingerprint,
                        &CredentialId::from_fingerprint(id.fingerprint),
                    );
                    aliases.push(other.fingerprint);
                    alias_places.push(variable_place(&other.name));
                }
            }
        }
        let catalog = &self.catalog;
        let mut picked: Vec<(Arc<Credential>, Place)> = Vec::new();
        for variable in variables {
            if aliases.contains(&variable.fingerprint) {
                continue;
            }
            let Some(class) = classify(catalog, variable) else {
                continue;
            };
            let shown = self.mask.marks.mask(&variable.name);
            let place = variable_place(shown.as_deref().unwrap_or(&variable.name));
            let found =
                by_fingerprint(catalog, &class.class, variable.fingerprint, variable.prefix);
            let mut credential = self.known.credential(tenant, catalog, &found, &place, None);
            if variable.name == "AWS_ACCESS_KEY_ID" {
                self.known.is_also_at(&mut credential, &alias_places);
            }
            picked.push((credential, place));
        }
        picked
    }
}

pub(super) fn variable_place(name: &str) -> Place {
    Place {
        source: Source::Environment,
        place: format!("env:{name}"),
    }
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
