//! What the rules judge by: the expectations and the catalog, and what both say about credentials
//! and destinations.

use super::{
    audience::is_audience,
    expectation::{AuthenticatorEntry, CleartextMode, Expectations, GatewayEntry},
    gateways::DeclaredGateways,
};
use crate::{
    catalog::Catalog,
    model::{
        Credential, Destination, Evidence, Hop, NameSource, Role, SourcedName, UNKNOWN_NAME,
        Verdict, Workload,
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
    /// What the first processes of workloads were told.
    pub gateways: DeclaredGateways,
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
    /// Nothing legitimate uses the credential.
    pub decoy: bool,
    /// Why it may be right although it is not expected, or wrong although its name is permitted.
    pub doubt: Option<Doubt>,
}

/// The class of tokens that the API of a cluster issues to its pods.
const SERVICE_ACCOUNT_TOKEN: &str = "k8s-service-account-token";

/// Why a hop is worth no more than a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The first process of the workload was told to send the credential there.
    Gateway,
    /// The request names another server than the connection, which goes to a permitted one.
    KeptHost,
    /// Only the process vouches for the permitted name of the destination.
    Unconfirmed,
    /// It is a pod or a service of the cluster, which may ask the API whose token it is.
    Reviewer,
    /// It is a server on this machine: an emulator, a local model, or a proxy, whose own hops are
    /// judged.
    Local,
}

impl Context {
    pub fn new(expectations: Expectations, catalog: Arc<Catalog>) -> Self {
        Self {
            expectations,
            catalog,
            gateways: DeclaredGateways::default(),
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
        // Every name must be in the domain of the issuer, and one a customer's.
        let is_tenant = |destination: &Destination| {
            let names = destination.disputed.iter().map(|named| &*named.name);
            let mut names = names.chain(destination.name.as_deref());
            names.clone().any(|name| self.catalog.is_tenant(name))
                && names.all(|name| self.catalog.at_home(&credential.class, name) == Some(true))
        };
        let is_tenant = !allowed && is_tenant(destination);
        let keeps_host = !allowed && !is_tenant && self.keeps_host(credential, destination);
        // An address that DNS did not return for the name, although it returned others: a forged
        // name, or an old response.
        let is_unconfirmed = allowed && destination.disputed.iter().any(is_unconfirmed);
        let written = self.has_written_destinations(credential);
        let may_review = !allowed && !written && may_review(credential, destination);
        let excused = hop
            .others
            .iter()
            .any(|other| self.allows(credential, other) != allowed || is_pending(other))
            || (!allowed && (is_pending(destination) || is_kubelet(credential, destination)))
            || is_tenant
            || may_review
            || keeps_host
            || is_unconfirmed;
        let proven = hop.evidence != Evidence::Held;
        let metadata =
            hop.evidence != Evidence::Presented && self.catalog.is_metadata(destination.address);
        let at_gateway = !allowed && self.is_at_gateway(&hop.workload, credential, destination);
        let verdict = if excused || at_gateway {
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
            decoy: self.is_decoy(credential),
            doubt: [
                (at_gateway, Doubt::Gateway),
                (keeps_host, Doubt::KeptHost),
                (is_unconfirmed, Doubt::Unconfirmed),
                (may_review, Doubt::Reviewer),
                (is_local(hop), Doubt::Local),
            ]
            .into_iter()
            .find_map(|(applies, doubt)| applies.then_some(doubt)),
        }
    }

    /// Whether an expectation lists destinations for a credential.
    fn has_written_destinations(&self, credential: &Credential) -> bool {
        let mut about = self.expectations.about(credential);
        about.any(|expectation| !expectation.destinations.is_empty())
    }

    /// Whether the connection was made to a permitted server, and only the request names another, as
    /// a reverse proxy does that keeps the name of its own clients.
    fn keeps_host(&self, credential: &Credential, destination: &Destination) -> bool {
        let by_host = |named: &SourcedName| named.name_source == NameSource::HttpHost;
        if destination.name_source != NameSource::Sni || !destination.disputed.iter().any(by_host) {
            return false;
        }
        let mut by_connection = destination.clone();
        by_connection.disputed.retain(|named| !by_host(named));
        self.allows(credential, &by_connection)
    }

    /// Whether the first process of the workload was told to send credentials of this class there.
    fn is_at_gateway(
        &self,
        workload: &Workload,
        credential: &Credential,
        destination: &Destination,
    ) -> bool {
        let host = host(destination);
        self.gateways.of(workload).iter().any(|gateway| {
            gateway.is_at(&host, destination.port) && gateway.classes.contains(&credential.class)
        })
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
        let at_home = self.catalog.at_home(&credential.class, &host) == Some(true)
            && !self.catalog.is_tenant(&host);
        (!stranger && at_home)
            || is_audience(credential, &host)
            || self
                .expectations
                .gateways
                .iter()
                .any(|gateway| gateway.accepts(&credential.class) && gateway.is_at(destination))
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
        let class = &credential.class;
        let is_of_others = credential.unmarked && self.catalog.is_always_marked(class);
        let is_anywhere = self.catalog.is_self_hosted(class) || !self.catalog.has_home(class);
        !is_of_others && !is_anywhere
    }

    /// Whether none of the credentials that a process holds may go to a destination, and it is known
    /// for each where it may go.
    pub fn none_may_go(&self, hop: &Hop) -> bool {
        let may_go = |credential: &Credential| {
            !(self.has_written_destinations(credential) || self.has_a_home(credential))
                || self.allows(credential, &hop.destination)
                || self.is_at_gateway(&hop.workload, credential, &hop.destination)
        };
        !hop.held_with.is_empty()
            && !self.catalog.is_metadata(hop.destination.address)
            && !hop.destination.is_object_pending()
            && !may_go(&hop.credential)
            && !hop.held_with.iter().any(|credential| may_go(credential))
    }

    /// Whether nothing legitimate uses a credential.
    pub fn is_decoy(&self, credential: &Credential) -> bool {
        let mut all = self.expectations.about(credential);
        all.any(|expectation| expectation.decoy)
    }

    /// Whether a credential may be presented outside TLS.
    pub fn may_be_in_clear(&self, credential: &Credential) -> bool {
        let mut all = self.expectations.about(credential);
        all.any(|expectation| expectation.cleartext == CleartextMode::Allowed)
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
        let fitting = |entry: &&AuthenticatorEntry| self.destination_fits(entry, credential);
        let authenticators = self.expectations.authenticators.iter().filter(fitting);
        let accepting = |entry: &&GatewayEntry| entry.accepts(&credential.class);
        let gateways = self.expectations.gateways.iter().filter(accepting);
        let named = authenticators
            .map(|entry| (&entry.name, &entry.destinations))
            .chain(gateways.map(|entry| (&entry.name, &entry.destinations)));
        for (name, destinations) in named {
            let texts = destinations.iter().map(|pattern| &pattern.text);
            expected.extend(texts.map(|text| format!("{text} ({name})")));
        }
        expected
    }
}

/// Whether DNS resolved a name to other addresses, and returned no name for this address.
fn is_unconfirmed(named: &SourcedName) -> bool {
    named.name_source == NameSource::Dns && named.name == UNKNOWN_NAME
}

/// Whether a service-account token goes to a pod or a service of the cluster: metrics, registries and
/// meshes let the API verify it. Anything else there can do so too, and keep it.
fn may_review(credential: &Credential, destination: &Destination) -> bool {
    let Some(object) = destination.object.as_deref() else {
        return false;
    };
    // A pod that passes requests on to a server outside has that server's name.
    let is_own = |name: &str| {
        name == object
            || name.ends_with(".svc")
            || name.contains(".svc.")
            || object
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('.'))
    };
    credential.class == SERVICE_ACCOUNT_TOKEN
        && (object.ends_with(".svc") || object.ends_with(".pod"))
        && destination.name.as_deref().is_none_or(is_own)
}

/// Whether a service-account token goes to a kubelet, or to the API by its node: both verify it
/// with the API, and node scrapers have no other credential.
fn is_kubelet(credential: &Credential, destination: &Destination) -> bool {
    // The cluster's object, not a claimed name.
    let node = destination.object.as_deref();
    credential.class == SERVICE_ACCOUNT_TOKEN
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

/// Whether a hop ends at a server on this machine. Another name tells of a server that is reached
/// through it, unless a proxy passes on the request of a client, with the name under which the client
/// knows the proxy.
fn is_local(hop: &Hop) -> bool {
    let destination = &hop.destination;
    let by_proxy = hop.clear && !hop.picked_up && hop.on_behalf_of.is_some();
    destination.address.is_loopback() && (by_proxy || destination.has_local_names())
}
