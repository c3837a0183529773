//! Connections: destinations, server names, DNS responses, cluster objects.

use super::{
    Enricher,
    resolvers::{AskedResolver, is_dns},
};
use crate::sensor::observation::{ObservedConnection, PlaintextHost, RecordOwner};
use jiff::{SignedDuration, Timestamp};
use monitor_core::{
    fair_cache::Tenant,
    model::{Destination, Transport, UNKNOWN_NAME},
    trail::{ConnectionName, TrailEvent},
};
use monitor_parse::{client_hello::FirstPayload, dns::DnsAnswer};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

/// A cluster reports a new object within this time.
const OBJECT_NAME_WINDOW: SignedDuration = SignedDuration::from_secs(10);
/// Maximum number of addresses waiting for an object.
const PENDING_ADDRESSES_MAX: usize = 4096;

/// Addresses that had no cluster object, as far as known, when they were connected to.
#[derive(Debug, Default)]
pub(super) struct PendingObjects {
    since: HashMap<IpAddr, Timestamp>,
    /// Whether the cluster's objects were not completely listed at that time.
    before_sync: bool,
}

impl Enricher {
    pub(super) fn connected(
        &mut self,
        connection: &ObservedConnection,
        events: &mut Vec<TrailEvent>,
    ) {
        let task = &connection.task;
        self.attribution.ensure(task);
        self.note_network(connection);
        if is_dns(connection) {
            self.note_asked(connection);
        }
        events.push(TrailEvent::Connect {
            time: task.time,
            actor: self.actor(task.subject),
            connection: connection_id(connection),
            destination: self.destination(
                task.time,
                connection.address,
                connection.port,
                connection.transport,
            ),
            stdin: connection.stdin,
        });
    }

    /// The first payload of a connection, with the server name if it is a ClientHello.
    pub(super) fn first_payload(
        &mut self,
        owner: RecordOwner,
        payload: FirstPayload,
        events: &mut Vec<TrailEvent>,
    ) {
        let FirstPayload {
            time,
            cookie,
            hello,
            malformed,
        } = payload;
        self.malformed += u64::from(malformed);
        if let Some(name) = hello.as_ref().and_then(|hello| hello.server_name.clone()) {
            let tenant = self.tenant_of(owner);
            self.remember_server(&tenant, &name);
        }
        events.push(TrailEvent::Payload {
            time,
            connection: cookie,
            destination: hello.map(|hello| ConnectionName {
                server_name: hello.server_name,
                ech: hello.ech,
                host: false,
                tunnel: false,
            }),
        });
    }

    pub(super) fn plaintext_host(&mut self, host: PlaintextHost, events: &mut Vec<TrailEvent>) {
        if let Some(name) = &host.name {
            let tenant = self.tenant_of(host.owner);
            self.remember_server(&tenant, name);
        }
        events.push(TrailEvent::Payload {
            time: host.time,
            connection: host.cookie,
            destination: (host.name.is_some() || host.asks_for_tunnel).then_some(ConnectionName {
                server_name: host.name,
                ech: false,
                host: true,
                tunnel: host.asks_for_tunnel,
            }),
        });
    }

    pub(super) fn dns_response(
        &mut self,
        owner: RecordOwner,
        time: Timestamp,
        answer: DnsAnswer,
        events: &mut Vec<TrailEvent>,
    ) {
        let DnsAnswer {
            cookie,
            names,
            addresses,
        } = answer;
        let tenant = self.tenant_of(owner);
        for name in &names {
            self.remember_server(&tenant, name);
        }
        let (network, unconfigured) = match self.resolvers.asked_by(cookie) {
            AskedResolver::Configured(network) => (network, false),
            AskedResolver::Other => (String::new(), true),
            AskedResolver::Unclear => return,
        };
        events.push(TrailEvent::Resolved {
            time,
            tenant,
            network,
            unconfigured,
            names,
            addresses,
        });
    }

    pub(super) fn destination(
        &mut self,
        time: Timestamp,
        address: IpAddr,
        port: u16,
        transport: Transport,
    ) -> Destination {
        let destination = Destination::unnamed(address, port, transport)
            .with_object(self.attribution.object_at(address));
        let unknown = destination.object.is_none() || destination.is_object_pending();
        if unknown
            && self.attribution.objects_synced().is_some()
            && (self.pending_objects.since.len() < PENDING_ADDRESSES_MAX
                || self.pending_objects.since.contains_key(&address))
        {
            self.pending_objects.before_sync |= destination.is_object_pending();
            self.pending_objects.since.insert(address, time);
        }
        destination
    }

    /// Emits an event with cluster objects that became known for addresses connected to earlier.
    pub fn add_object_names(&mut self, time: Timestamp, events: &mut Vec<TrailEvent>) {
        if self.pending_objects.since.is_empty() || self.attribution.objects_synced() != Some(true)
        {
            return;
        }
        let mut objects = BTreeMap::new();
        self.pending_objects.since.retain(|address, since| {
            if let Some(object) = self.attribution.object_at(*address) {
                objects.insert(*address, object);
                return false;
            }
            time.duration_since(*since).abs() < OBJECT_NAME_WINDOW
        });
        if !objects.is_empty() || std::mem::take(&mut self.pending_objects.before_sync) {
            events.push(TrailEvent::Objects { time, objects });
        }
    }

    pub(super) fn server_by_fingerprint(&mut self, fingerprint: u64) -> Option<String> {
        self.servers.get(&fingerprint).cloned()
    }

    /// The server name in the head of a request, by its fingerprint.
    pub(super) fn request_host(&mut self, fingerprint: Option<u64>) -> Option<String> {
        let name = self.server_by_fingerprint(fingerprint?);
        Some(name.unwrap_or_else(|| UNKNOWN_NAME.to_owned()))
    }

    /// Remembers a name, to recognise its fingerprint later.
    fn remember_server(&mut self, tenant: &Tenant, name: &str) {
        // A request may contain the name with the trailing dot of the root.
        for spelling in [name, &format!("{name}.")] {
            let fingerprint = self.credentials.print_of(spelling);
            self.servers.insert(tenant, fingerprint, name.to_owned());
        }
    }
}

/// A TCP connection is identified by its socket; a UDP socket sends to several destinations.
fn connection_id(connection: &ObservedConnection) -> u64 {
    match connection.transport {
        Transport::Tcp => connection.cookie,
        Transport::Udp => {
            let time = connection.task.time.as_microsecond() as u64;
            connection.cookie ^ u64::from(connection.port).rotate_left(40) ^ time << 1
        }
    }
}
