//! Brokers: proxies on the same machine that present what others send through them.

use crate::{
    fair_cache::FairCache,
    model::{Credential, Destination, OnBehalfOf, Workload},
    trail::event::Actor,
};
use jiff::{SignedDuration, Timestamp};

/// Number of credentials remembered.
const CREDENTIALS_CACHED: usize = 1024;
/// A broker passes a request on within this time.
const RELAYED_WITHIN: SignedDuration = SignedDuration::from_secs(10);

/// Which workloads presented credentials to something on this machine.
#[derive(Debug)]
pub(super) struct Relays(FairCache<u64, SentLocally>);

/// The last time that a credential was presented on this machine.
#[derive(Debug)]
struct SentLocally {
    time: Timestamp,
    workload: Workload,
    /// The pod's object to which it was sent, `OWNER.NAMESPACE.pod`; absent on loopback.
    object: Option<String>,
}

impl Default for Relays {
    fn default() -> Self {
        Self(FairCache::new(CREDENTIALS_CACHED))
    }
}

impl Relays {
    /// A credential was presented; remembers it if another workload here may pass it on.
    pub fn note(
        &mut self,
        time: Timestamp,
        actor: &Actor,
        credential: &Credential,
        destination: &Destination,
        to_loopback: bool,
    ) {
        let object = destination.object.clone();
        let object = object.filter(|object| object.ends_with(".pod") && !to_loopback);
        // Another name tells of a server behind it, which is no broker.
        let is_local = destination.address.is_loopback() && destination.has_local_names();
        if is_local || to_loopback || object.is_some() {
            let sent = SentLocally {
                time,
                workload: actor.workload.clone(),
                object,
            };
            if let Some(fingerprint) = credential.id.fingerprint() {
                self.0.insert(&actor.process.tenant, fingerprint, sent);
            }
        }
    }

    /// The workload whose credential another one presents, if it passed it on.
    pub fn sender(
        &self,
        time: Timestamp,
        presenter: &Workload,
        credential: &Credential,
    ) -> Option<Box<OnBehalfOf>> {
        let sent = self.0.peek(&credential.id.fingerprint()?)?;
        let is_recent = time.duration_since(sent.time).abs() <= RELAYED_WITHIN;
        let is_to_presenter = match (&sent.object, &presenter.namespace) {
            (None, _) => true,
            (Some(object), Some(namespace)) => {
                *object == format!("{}.{namespace}.pod", presenter.name)
            }
            (Some(_), None) => false,
        };
        (is_recent && is_to_presenter && sent.workload != *presenter).then(|| {
            Box::new(OnBehalfOf {
                workload: sent.workload.clone(),
            })
        })
    }

    /// Credentials that were forgotten for lack of room.
    pub fn forgotten(&self) -> u64 {
        self.0.evicted()
    }
}
