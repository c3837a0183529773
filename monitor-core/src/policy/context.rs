//! What the rules judge by: the expectations and the catalog, and what both say about credentials
//! and destinations.

use super::expectation::{AuthenticatorEntry, Expectations};
use crate::{
    catalog::Catalog,
    model::{
        Credential, Destination, Evidence, Hop, NameSource, Role, SourcedName, UNKNOWN_NAME,
        Verdict,
    },
};
use std::{net::IpAddr, sync::Arc};

/// The Kubernetes API's object in its cluster.
const API_OBJECT: &str = "kubernetes.default.svc";

/// The expectations in force, and the catalog.
#[derive(Debug)]
pub struct Context {
    pub expectations: Expectations,
    pub catalog: Arc<Catalog>,
}

/// A hop with its verdict.
#[derive(Debug)]
pub struct AssessedHop<'a> {
    pub hop: &'a Hop,
    pub verdict: Verdict,
    /// The evidence shows that the credential was used, not only held with others.
    pub proven: bool,
    /// An expectation lists destinations for the credential.
    pub written: bool,
}

impl Context {
    pub fn new(expectations: Expectations, catalog: Arc<Catalog>) -> Self {
        Self {
            expectations,
            catalog,
        }
    }

    /// The authenticator at a destination, from the expectations or the catalog.
    pub fn authenticator(&self, destination: &Destination) -> Option<&str> {
        self.expectations
            .authenticators
            .iter()
            .find(|authenticator| authenticator.is_at(destination))
            .map(|authenticator| authenticator.name.as_str())
            .or_else(|| {
                self.catalog
                    .authenticator(&host(destination), destination.port)
            })
    }

    /// Addresses at which credentials are minted.
    pub fn minting_addresses(&self) -> Vec<IpAddr> {
        let written = self.expectations.authenticators.iter();
        self.catalog
            .metadata()
            .iter()
            .copied()
            .chain(written.flat_map(AuthenticatorEntry::addresses))
            .collect()
    }

    /// The verdict on a hop.
    pub fn assess<'a>(&self, hop: &'a Hop) -> AssessedHop<'a> {
        let credential = &hop.credential;
        let destination = &hop.destination;
        let allowed = self.allows(credential, destination);
        // If it is not known which of several destinations it was, all must be wrong. An unknown
        // cluster object may be allowed.
        let is_pending = |destination: &Destination| {
            destination.name.is_none() && destination.is_object_pending()
        };
        let excused = hop
            .others
            .iter()
            .any(|other| self.allows(credential, other) != allowed || is_pending(other))
            || (!allowed && (is_pending(destination) || is_kubelet(credential, destination)))
            // An address that DNS did not return for the name, although it returned others: a
            // forged name, or an old response.
            || (allowed && destination.disputed.iter().any(is_unconfirmed));
        let written = self
            .expectations
            .about(credential)
            .any(|expectation| !expectation.destinations.is_empty());
        let proven = hop.evidence != Evidence::Held;
        let metadata =
            hop.evidence != Evidence::Presented && self.catalog.is_metadata(destination.address);
        let verdict = if excused {
            Verdict::Unproven
        } else if allowed {
            Verdict::Expected
        } else if proven && !metadata && (self.has_a_home(credential) || written) {
            Verdict::Unexpected
        } else {
            Verdict::Unproven
        };
        AssessedHop {
            hop,
            verdict,
            proven,
            written,
        }
    }

    /// Whether a credential may go to a destination, checked for each name claimed for it: the head
    /// of a request may name another server than the connection, and both must be allowed; of the
    /// names that DNS gave for the address, one must be.
    fn allows(&self, credential: &Credential, destination: &Destination) -> bool {
        let by = |named: &SourcedName| {
            named.name != UNKNOWN_NAME
                && self.allows_name(
                    credential,
                    &Destination {
                        name: Some(named.name.clone()),
                        ..destination.clone()
                    },
                )
        };
        let (by_dns, by_host): (Vec<_>, Vec<_>) = destination
            .disputed
            .iter()
            .filter(|named| !is_unconfirmed(named))
            .partition(|named| named.name_source == NameSource::Dns);
        let by_names = self.allows_name(credential, destination)
            && by_host.into_iter().all(by)
            && (by_dns.is_empty() || by_dns.into_iter().any(by));
        // The cluster's object decides, whatever name is used for it. Anyone can create a service:
        // only the API's own is a home, and others are expected only if an expectation names them.
        let object = || {
            let destination = Destination {
                name: destination
                    .object
                    .clone()
                    .filter(|name| name != UNKNOWN_NAME),
                name_source: NameSource::Kubernetes,
                ..destination.clone()
            };
            destination.name.is_some() && self.allows_name(credential, &destination)
        };
        by_names || object()
    }

    /// As [`allows`](Self::allows), for the destination's own name only.
    fn allows_name(&self, credential: &Credential, destination: &Destination) -> bool {
        let host = host(destination);
        let stranger = destination.name_source == NameSource::Kubernetes && host != API_OBJECT;
        (!stranger && self.catalog.at_home(&credential.class, &host) == Some(true))
            || has_host_name(&credential.audience, &host)
            || self
                .expectations
                .about(credential)
                .flat_map(|expectation| &expectation.destinations)
                .any(|pattern| pattern.matches(destination))
            || self
                .expectations
                .authenticators
                .iter()
                .any(|authenticator| {
                    self.destination_fits(authenticator, credential)
                        && authenticator.is_at(destination)
                })
    }

    /// Whether a credential may go to an authenticator: a workload presents its identity there
    /// first, and then what was minted there, unless the credential's home is elsewhere.
    fn destination_fits(
        &self,
        authenticator: &AuthenticatorEntry,
        credential: &Credential,
    ) -> bool {
        credential.role == Role::Identity
            || (authenticator.may_mint(credential.role) && !self.has_a_home(credential))
    }

    /// Whether a credential has a home, so that any other place is wrong.
    fn has_a_home(&self, credential: &Credential) -> bool {
        !credential.unmarked
            && !self.catalog.is_self_hosted(&credential.class)
            && !self.catalog.home(&credential.class).is_empty()
    }

    /// Where a credential may go, in readable form.
    pub fn expected(&self, credential: &Credential) -> Vec<String> {
        let mut expected = self.catalog.home(&credential.class);
        for expectation in self.expectations.about(credential) {
            expected.extend(
                expectation
                    .destinations
                    .iter()
                    .map(|pattern| pattern.text.clone()),
            );
        }
        for authenticator in &self.expectations.authenticators {
            if self.destination_fits(authenticator, credential) {
                expected.extend(
                    authenticator
                        .destinations
                        .iter()
                        .map(|pattern| format!("{} ({})", pattern.text, authenticator.name)),
                );
            }
        }
        expected
    }
}

/// Whether DNS resolved a name to other addresses, and returned no name for this address.
fn is_unconfirmed(named: &SourcedName) -> bool {
    named.name_source == NameSource::Dns && named.name == UNKNOWN_NAME
}

/// Whether a service-account token goes to a kubelet, or to the API by its node: both verify it
/// with the API, and node scrapers have no other credential.
fn is_kubelet(credential: &Credential, destination: &Destination) -> bool {
    // The cluster's object, not a claimed name.
    let node = destination.object.as_deref();
    credential.class == "k8s-service-account-token"
        && [443, 6443, 10250].contains(&destination.port)
        && node.is_some_and(|name| name.ends_with(".node"))
}

/// The name of a destination, or its address.
fn host(destination: &Destination) -> String {
    destination
        .name
        .clone()
        .unwrap_or_else(|| destination.address.to_string())
}

/// Whether an audience is the host, alone or as a URL.
fn has_host_name(audience: &[String], host: &str) -> bool {
    audience.iter().any(|audience| {
        audience.eq_ignore_ascii_case(host)
            || url::Url::parse(audience)
                .ok()
                .and_then(|url| url.host_str().map(|name| name.eq_ignore_ascii_case(host)))
                .unwrap_or(false)
    })
}
