//! Which DNS answers are believed: those of the resolvers that the host or the container is configured
//! with. Any process can ask a resolver of its own, which answers as it likes.

use super::{Enricher, networks::Networks};
use crate::{
    reader::{ReadId, protocol::ResolversAnswer},
    sensor::observation::ObservedConnection,
};
use hashlink::LruCache;
use jiff::{SignedDuration, Timestamp};
use monitor_core::{
    fair_cache::FairCache,
    model::{Subject, Transport},
    trail::TrailEvent,
};
use std::net::IpAddr;

const DNS_PORT: u16 = 53;
/// Number of sockets of which it is remembered which resolvers they asked.
const SOCKETS_CACHED: usize = 4_096;
/// Number of containers and units of which it is remembered which resolvers they use.
const VIEWS_CACHED: usize = 1_024;
/// A configuration is read again at most this often.
const READ_INTERVAL: SignedDuration = SignedDuration::from_secs(10);
/// Objects of this namespace are the cluster's own, such as its DNS service. Names of pods may contain
/// dots.
const OF_SYSTEM: [&str; 2] = [".kube-system.svc", ".kube-system.pod"];

/// Whose configuration counts: that of the first process of a container or a system's unit, which may
/// have a network of its own, or the host's.
pub(super) type View = Option<Subject>;

/// Resolvers, and the sockets that asked them.
#[derive(Debug)]
pub(super) struct Resolvers {
    asked: FairCache<u64, AskedResolver>,
    known: LruCache<View, KnownResolvers>,
    networks: Networks,
    /// The names of the host's `hosts` file.
    hosts: Vec<(String, IpAddr)>,
    /// Those that the agent's configuration names.
    configured: Vec<IpAddr>,
}

/// Whom a socket asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AskedResolver {
    /// A resolver with which this network is configured.
    Configured(String),
    Other,
    /// It is not known in which network: the answers tell nothing.
    Unclear,
}

/// The resolvers of a view.
#[derive(Debug, Default)]
struct KnownResolvers {
    name_servers: Vec<IpAddr>,
    read_at: Timestamp,
}

impl Resolvers {
    /// `own` is the cookie of the agent's network namespace.
    pub fn new(own: Option<u64>) -> Self {
        Self {
            asked: FairCache::new(SOCKETS_CACHED),
            known: LruCache::new(VIEWS_CACHED),
            networks: Networks::new(own),
            hosts: Vec::new(),
            configured: Vec::new(),
        }
    }

    pub fn set_configured(&mut self, configured: Vec<IpAddr>) {
        self.configured = configured;
    }

    /// Sockets of which it was forgotten for lack of room whom they asked.
    pub fn forgotten(&self) -> u64 {
        self.asked.evicted()
    }

    /// Whom a socket asked.
    pub fn asked_by(&self, cookie: u64) -> AskedResolver {
        let asked = self.asked.peek(&cookie);
        asked.cloned().unwrap_or(AskedResolver::Unclear)
    }

    fn lists(&self, view: View, address: IpAddr) -> bool {
        let known = self.known.peek(&view);
        known.is_some_and(|known| known.name_servers.contains(&address))
    }

    /// What was read some time ago may have been changed since.
    fn is_due(&self, view: View, now: Timestamp) -> bool {
        self.known.peek(&view).is_none_or(|known| {
            // The clock may have been set back.
            now.duration_since(known.read_at).abs() >= READ_INTERVAL
        })
    }
}

/// Whether a connection is a question to a resolver.
pub(super) fn is_dns(connection: &ObservedConnection) -> bool {
    connection.transport == Transport::Udp && connection.port == DNS_PORT
}

impl Enricher {
    fn view_of(&mut self, now: Timestamp, subject: Subject) -> View {
        let workload = self.attribution.workload(subject);
        // A user chooses the processes of his own units.
        let is_service = |unit: &str| unit.ends_with(".service") && !unit.starts_with("user@");
        let has_own = workload.is_contained() || workload.unit.as_deref().is_some_and(is_service);
        has_own
            .then(|| self.attribution.first_process(now, subject))
            .flatten()
    }

    /// Requests the configuration of whoever asks a resolver that is not known to be configured.
    pub(super) fn request_resolvers(
        &mut self,
        now: Timestamp,
        connection: &ObservedConnection,
    ) -> Option<ReadId> {
        let view = self.view_of(now, connection.task.subject);
        if self.is_configured(view, connection.address) || !self.resolvers.is_due(view, now) {
            return None;
        }
        // Until the answer comes, those that were read before count.
        let known = self.resolvers.known.remove(&view).unwrap_or_default();
        let known = KnownResolvers {
            read_at: now,
            ..known
        };
        self.resolvers.known.insert(view, known);
        Some(self.reads.request_resolvers(view))
    }

    /// Takes the configuration of the host or of a container.
    pub(super) fn take_resolvers(
        &mut self,
        now: Timestamp,
        view: View,
        answer: ResolversAnswer,
        events: &mut Vec<TrailEvent>,
    ) {
        let known = KnownResolvers {
            name_servers: answer.name_servers,
            read_at: now,
        };
        self.resolvers.known.insert(view, known);
        // It is read again and again, and seldom changes.
        if view.is_some() || self.resolvers.hosts == answer.hosts {
            return;
        }
        self.resolvers.hosts.clone_from(&answer.hosts);
        let marks = self.credentials.marks();
        let mut known = answer.hosts;
        known.retain(|(name, _)| marks.mask(name).is_none());
        events.push(TrailEvent::Names { time: now, known });
    }

    /// Learns from a connection which namespace has which cookie.
    pub(super) fn note_network(&mut self, connection: &ObservedConnection) {
        let networks = &mut self.resolvers.networks;
        networks.note(connection.network, connection.task.subject);
    }

    /// Remembers whom a socket asked.
    pub(super) fn note_asked(&mut self, connection: &ObservedConnection) {
        let subject = connection.task.subject;
        let view = self.view_of(connection.task.time, subject);
        // In a network namespace that a process made, it can have any address.
        let networks = &mut self.resolvers.networks;
        let on_host = networks.is_of_host(connection.network);
        let is_there = view.map_or(on_host, |first| networks.is_of(connection.network, first));
        // Anybody can have the host's loopback address in a network of his own.
        let is_known = self.is_configured(view, connection.address)
            && (!connection.address.is_loopback()
                || on_host
                || self.resolvers.lists(view, connection.address));
        let mut asked = match (is_there, is_known) {
            (false, _) => AskedResolver::Unclear,
            (true, false) => AskedResolver::Other,
            (true, true) => AskedResolver::Configured(self.attribution.workload(subject).network()),
        };
        let before = self.resolvers.asked.peek(&connection.cookie);
        // It is not known which of several answers.
        if let Some(before) = before.filter(|before| **before != asked) {
            asked = match (before, asked) {
                (AskedResolver::Unclear, _) | (_, AskedResolver::Unclear) => AskedResolver::Unclear,
                _ => AskedResolver::Other,
            };
        }
        let tenant = self.attribution.tenant(subject);
        self.resolvers
            .asked
            .insert(&tenant, connection.cookie, asked);
    }

    fn is_configured(&self, view: View, address: IpAddr) -> bool {
        let of_cluster = || {
            let object = self.attribution.object_at(address);
            object.is_some_and(|object| OF_SYSTEM.iter().any(|end| object.ends_with(end)))
        };
        self.resolvers.lists(view, address)
            || self.resolvers.lists(None, address)
            || self.resolvers.configured.contains(&address)
            || of_cluster()
    }
}
