//! Credentials in the bytes of a connection.

use super::{
    Credentials,
    class::{GENERIC_CLASS, by_fingerprint, by_form},
};
use crate::sensor::observation::ObservedSecret;
use monitor_common::{
    login::{LOGIN, protocol},
    response::{RESPONSE_FIELD, WHOLE_BODY},
};
use monitor_core::{
    fair_cache::Tenant,
    model::{Credential, CredentialId, Place, Source},
};
use std::sync::Arc;

/// The class of the AWS metadata service's session token.
const IMDS_TOKEN_CLASS: &str = "imds-token";

impl Credentials {
    /// A secret found in the bytes of a connection, and its position in them.
    pub fn presented(
        &mut self,
        tenant: &Tenant,
        observed: ObservedSecret,
    ) -> (Arc<Credential>, Place) {
        let catalog = &self.catalog;
        let (place, by_header) = match u64::from(observed.header) & !LOGIN {
            _ if u64::from(observed.header) & LOGIN == 0 => {
                let (header, class) = catalog.header(observed.header).unwrap_or(("", None));
                (format!("header:{header}"), class)
            }
            protocol => {
                let (protocol, class) = protocol_of(protocol);
                (format!("protocol:{protocol}"), catalog.class(class))
            }
        };
        let place = Place {
            source: Source::Presented,
            place,
        };
        let by_form = by_form(catalog, observed.prefix, observed.secret_len, observed.dots);
        let class = by_form
            .or(by_header)
            .map_or(GENERIC_CLASS, |class| &class.class);
        let found = by_fingerprint(catalog, class, observed.fingerprint, observed.prefix);
        // A known password is the credential, whatever user is sent with it.
        if let Some(inner) = observed.inner {
            let id = self.known.id_of(inner);
            if self.known.is_known(&id) && !self.known.has_alias(observed.fingerprint) {
                self.known.alias(tenant, observed.fingerprint, &id);
            }
        }
        let id = self.known.id_of(observed.fingerprint);
        // The place where it was picked up tells more than where it is presented.
        let credential = self.known.as_known(tenant, catalog, &id, &found, &place);
        (credential, place)
    }

    /// The credentials in one response of an authenticator.
    pub fn minted(
        &mut self,
        tenant: &Tenant,
        answer: &[ObservedSecret],
    ) -> Vec<(Arc<Credential>, Place)> {
        let catalog = &self.catalog;
        let field = |observed: &ObservedSecret| u64::from(observed.header) & !RESPONSE_FIELD;
        let name = |observed: &ObservedSecret| {
            catalog
                .issued_field(field(observed))
                .map(|known| &known.field)
        };
        let mut minted = Vec::new();
        for observed in answer {
            let known = catalog.issued_field(field(observed));
            let whole = known.and_then(|known| known.of.as_ref()).and_then(|of| {
                answer
                    .iter()
                    .find(|other| name(other).is_some_and(|name| name.eq_ignore_ascii_case(of)))
            });
            if let Some(whole) = whole {
                // A server may send anything: a credential known before keeps its identity.
                let own = CredentialId::from_fingerprint(observed.fingerprint);
                if !self.known.is_known(&own) {
                    let id = self.known.id_of(whole.fingerprint);
                    self.known.alias(tenant, observed.fingerprint, &id);
                }
                continue;
            }
            let by_form = by_form(catalog, observed.prefix, observed.secret_len, observed.dots);
            let (field, class) = match known {
                _ if field(observed) == WHOLE_BODY => ("body", Some(IMDS_TOKEN_CLASS)),
                Some(known) => (known.field.as_str(), known.class.as_deref()),
                None => continue,
            };
            // A field with a common name is recognised by its value's form.
            let Some(class) = by_form.map(|class| class.class.as_str()).or(class) else {
                continue;
            };
            let place = Place {
                source: Source::Metadata,
                place: format!("answer:{field}"),
            };
            let found = by_fingerprint(catalog, class, observed.fingerprint, observed.prefix);
            let id = self.known.id_of(observed.fingerprint);
            let credential = self.known.as_known(tenant, catalog, &id, &found, &place);
            minted.push((credential, place));
        }
        minted
    }
}

/// The name of a login protocol, and the class of the secret sent in it.
fn protocol_of(login: u64) -> (&'static str, &'static str) {
    const PASSWORD: &str = "database-password";
    match login {
        protocol::REDIS => ("redis", PASSWORD),
        protocol::POSTGRES => ("postgresql", PASSWORD),
        protocol::MYSQL => ("mysql", PASSWORD),
        protocol::MQTT => ("mqtt", GENERIC_CLASS),
        protocol::LDAP => ("ldap", GENERIC_CLASS),
        protocol::SERVER_NAME => ("server-name", GENERIC_CLASS),
        protocol::DNS => ("dns", GENERIC_CLASS),
        _ => ("mail", GENERIC_CLASS),
    }
}
