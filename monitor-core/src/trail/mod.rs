//! The trail: joins uses and connections into hops.
//!
//! Pure: the input is time and events, the output uses and hops. The same code runs live, in
//! `keytrail replay` and in property tests.

mod connections;
mod event;
mod holders;
mod holding;
mod names;
mod pipes;
mod presenting;
pub mod recording;
mod relays;

pub use event::{Actor, ConnectionName, PickUp, Presented, TrailEvent, TrailOutput};

use crate::model::{
    Credential, Destination, Evidence, ForeignRead, Hop, Kinship, Look, NameSource, Place,
    Transport, Use,
};
use connections::{Connections, SERVICE_PORTS};
use holders::Holders;
use holding::Holding;
use jiff::Timestamp;
use names::DnsNames;
use presenting::PresentedOn;
use relays::Relays;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// The state of the trail.
#[derive(Debug, Default)]
pub struct Trail {
    holders: Holders,
    connections: Connections,
    names: DnsNames,
    relays: Relays,
    /// Number of payloads of unknown connections.
    pub unmatched: u64,
}

impl Trail {
    pub fn new() -> Self {
        Self::default()
    }

    /// What each bounded table forgot or refused for lack of room, since the start.
    pub fn forgotten(&self) -> [(&'static str, u64); 6] {
        [
            ("connections", self.connections.evicted()),
            ("presented", self.connections.evicted_presented()),
            ("dns_names", self.names.evicted()),
            ("pipes", self.holders.evicted_pipes()),
            ("holdings", self.holders.forgotten()),
            ("relays", self.relays.forgotten()),
        ]
    }

    /// Processes an event; appends the resulting outputs.
    pub fn process(&mut self, event: TrailEvent, out: &mut Vec<TrailOutput>) {
        match event {
            TrailEvent::Recording { .. } => {}
            TrailEvent::Fork {
                subject, parent, ..
            } => self.holders.fork(subject, parent),
            TrailEvent::Exec {
                subject,
                parent,
                boundary,
                shell,
                ..
            } => self.holders.exec(subject, parent, &boundary, shell),
            TrailEvent::Exit { time, subject } => {
                for id in self.connections.unsettled_of(subject) {
                    self.resolve_destination(id, time, out);
                }
            }
            TrailEvent::Gone { subjects } => {
                for subject in subjects {
                    self.holders.forget(subject);
                    self.connections.forget_process(subject);
                }
            }
            TrailEvent::PickUp(event) => self.pick_up(*event, out),
            TrailEvent::Connect {
                time,
                actor,
                connection,
                destination,
                stdin,
            } => self.connect(time, actor, connection, destination, stdin, out),
            TrailEvent::Payload {
                time,
                connection,
                destination,
            } => self.payload(time, connection, destination, out),
            TrailEvent::Refused { connection } => self.connections.remove(connection),
            TrailEvent::Foreign {
                time,
                actor,
                victim,
                look,
            } => self.foreign(time, &actor, &victim, look, out),
            TrailEvent::Presented(event) => self.presented_in_tls(*event, out),
            TrailEvent::Clear {
                time,
                connection,
                host,
                credential,
                place,
                to_loopback,
                count,
            } => {
                let host = host.as_deref();
                let presented = PresentedOn {
                    time,
                    credential,
                    place,
                    connection: Some(connection),
                    clear: true,
                    to_loopback,
                    count,
                };
                self.presented_in_plaintext(connection, host, presented, out);
            }
            TrailEvent::Minted {
                time,
                connection,
                credential,
                place,
            } => self.minted(time, connection, (credential, place), out),
            TrailEvent::Resolved {
                time,
                tenant,
                network,
                unconfigured,
                names,
                addresses,
            } => {
                if unconfigured {
                    self.names.claim(&tenant, &names, &addresses);
                } else {
                    self.names.learn(&tenant, &names, &addresses);
                    self.names.note_working(network, time);
                }
            }
            TrailEvent::Names { known, .. } => {
                known.into_iter().for_each(|known| self.names.list(known));
            }
            TrailEvent::Renamed { old, new, .. } => {
                self.connections.rename(&old, &new);
                out.push(TrailOutput::Renamed(Box::new([old, new])));
            }
            TrailEvent::Objects { objects, .. } => self.add_objects(&objects),
            TrailEvent::Gateways(gateways) => out.push(TrailOutput::Gateways(gateways)),
            TrailEvent::Gap { gap } => out.push(TrailOutput::Gap(gap)),
            TrailEvent::Tick { time } => self.tick(time, out),
        }
    }

    fn pick_up(&mut self, event: PickUp, out: &mut Vec<TrailOutput>) {
        let credential = event.credential;
        let holding = Holding {
            credential: Arc::clone(&credential),
            source: event.place.source,
            usual: event.usual,
        };
        let Actor {
            subject, process, ..
        } = &event.actor;
        self.holders.pick_up(
            &process.tenant,
            *subject,
            holding,
            event.stdout,
            event.stdout_of_parent,
        );
        out.push(TrailOutput::Use(Box::new(Use {
            time: event.time,
            workload: event.actor.workload,
            process: event.actor.process,
            credential,
            place: event.place,
            count: event.count,
            login: event.login,
            volume_of: event.volume_of,
            home: event.home,
            pod_uid: event.pod_uid,
            modified: event.modified,
            untrusted: event.untrusted,
            given: event.given,
            in_mounted_home: event.in_mounted_home,
        })));
    }

    fn connect(
        &mut self,
        time: Timestamp,
        actor: Actor,
        id: u64,
        mut destination: Destination,
        stdin: Option<u64>,
        out: &mut Vec<TrailOutput>,
    ) {
        // A program may call connect again to learn the result of its first call.
        if self.connections.get(id).is_some_and(|known| {
            known.destination.address == destination.address
                && known.destination.port == destination.port
        }) {
            return;
        }
        let tenant = &actor.process.tenant;
        if let Some(name) = self.names.name_at(destination.address, tenant) {
            destination.add_name(name, NameSource::Dns);
        }
        let datagram = destination.transport == Transport::Udp;
        self.holders.ensure(actor.subject);
        self.connections.add(id, time, actor, destination, stdin);
        if datagram {
            self.resolve_destination(id, time, out);
        }
    }

    fn payload(
        &mut self,
        time: Timestamp,
        id: u64,
        named: Option<ConnectionName>,
        out: &mut Vec<TrailOutput>,
    ) {
        let Some(connection) = self.connections.get_mut(id) else {
            self.unmatched += 1;
            return;
        };
        if let Some(named) = named {
            if named.tunnel {
                let proxy = connection.proxy.take();
                let proxy = proxy.unwrap_or_else(|| Box::new(connection.destination.clone()));
                connection.destination = proxy.tunnel_to(named.server_name.as_deref());
                connection.proxy = Some(proxy);
                connection.settled = false;
                // The ClientHello tells an address's name.
                if named.server_name.is_some() {
                    self.resolve_destination(id, time, out);
                }
                return;
            }
            // A name after a STARTTLS arrives after the connection's destination was resolved: it is
            // another destination, reached through the first.
            connection.destination.ech = named.ech;
            if let Some(name) = named.server_name
                && !connection.named
            {
                connection.named = !named.host;
                let source = if named.host {
                    NameSource::HttpHost
                } else {
                    NameSource::Sni
                };
                let destination = &mut connection.destination;
                if destination.name_source != source {
                    connection.settled = false;
                    let asked_for = destination.name.clone();
                    destination.add_name(&name, source);
                    if connection.proxy.is_some() {
                        // The proxy resolves the name, and DNS says nothing about its own address.
                        if asked_for.as_deref() == Some(&name) {
                            destination.name_source = source;
                            connection.settled = true;
                        }
                    } else {
                        self.names.add_disputed(destination, &connection.actor);
                    }
                }
            }
        }
        self.resolve_destination(id, time, out);
    }

    /// A connection's destination will not become better known: emits its hops.
    fn resolve_destination(&mut self, id: u64, time: Timestamp, out: &mut Vec<TrailOutput>) {
        let Some(connection) = self.connections.get_mut(id) else {
            return;
        };
        if std::mem::replace(&mut connection.settled, true) {
            return;
        }
        let connection = connection.clone();
        if is_ignored_destination(&connection.destination) {
            return;
        }
        let presented = self.connections.presented_on(id).cloned();
        let held = self
            .holders
            .holdings_of(connection.actor.subject, connection.stdin);
        let evidence = evidence_of(&held);
        let was_presented = |holding: &Holding| {
            let presented = presented.as_ref();
            presented.is_some_and(|presented| presented.id == holding.credential.id)
        };
        if let [sole] = &held[..]
            && !was_presented(sole)
            && let Some(known) = self.connections.get_mut(id)
        {
            known.sole = Some(Arc::clone(&sole.credential));
        }
        let mut others: Vec<_> = held
            .iter()
            .skip(1)
            .map(|held| Arc::clone(&held.credential))
            .collect();
        for holding in held {
            out.push(TrailOutput::Hop(Box::new(Hop {
                time: time.max(connection.time),
                workload: connection.actor.workload.clone(),
                process: connection.actor.process.clone(),
                credential: Arc::clone(&holding.credential),
                destination: connection.destination.clone(),
                others: Vec::new(),
                evidence,
                clear: false,
                again: was_presented(&holding),
                held_with: std::mem::take(&mut others),
                picked_up: false,
                on_behalf_of: None,
                for_proxy: false,
                count: 1,
            })));
        }
    }

    /// The reader now holds what the victim holds.
    fn foreign(
        &mut self,
        time: Timestamp,
        actor: &Actor,
        victim: &Actor,
        look: Look,
        out: &mut Vec<TrailOutput>,
    ) {
        let held = self.holders.holdings_of(victim.subject, None);
        let evidence = evidence_of(&held);
        let relation = if self.holders.is_ancestor(actor.subject, victim.subject) {
            Kinship::Ancestor
        } else if self.holders.is_ancestor(victim.subject, actor.subject) {
            Kinship::Descendant
        } else {
            Kinship::Unrelated
        };
        for holding in &held {
            self.holders
                .copy(&actor.process.tenant, actor.subject, holding);
        }
        out.push(TrailOutput::Foreign(Box::new(ForeignRead {
            time,
            workload: actor.workload.clone(),
            process: actor.process.clone(),
            victim: victim.workload.clone(),
            victim_process: victim.process.clone(),
            look,
            credentials: held.into_iter().map(|held| held.credential).collect(),
            evidence,
            relation,
        })));
    }

    /// Cluster objects at addresses of existing connections became known.
    fn add_objects(&mut self, objects: &BTreeMap<IpAddr, String>) {
        for destination in self.connections.destinations_mut() {
            if destination.object.is_none() || destination.is_object_pending() {
                destination.object = None;
                if let Some(object) = objects.get(&destination.address) {
                    destination.set_object(object);
                }
            }
        }
    }

    fn tick(&mut self, now: Timestamp, out: &mut Vec<TrailOutput>) {
        while let Some(id) = self.connections.pop_due(now) {
            self.resolve_destination(id, now, out);
        }
        if !self.connections.is_empty() {
            let parents = self.holders.forgotten_parents();
            let may_use = |subject| self.holders.contains(subject) || parents.contains(&subject);
            self.connections.retain_of(may_use);
        }
        self.holders.shrink();
    }
}

fn evidence_of(held: &[Holding]) -> Evidence {
    if held.len() == 1 {
        Evidence::Sole
    } else {
        Evidence::Held
    }
}

/// A use that is derived from a connection.
pub fn used(
    time: Timestamp,
    actor: &Actor,
    credential: &Arc<Credential>,
    place: Place,
    count: u64,
) -> TrailOutput {
    TrailOutput::Use(Box::new(Use {
        time,
        workload: actor.workload.clone(),
        process: actor.process.clone(),
        credential: Arc::clone(credential),
        place,
        count,
        login: None,
        volume_of: None,
        home: None,
        pod_uid: None,
        modified: None,
        untrusted: None,
        given: true,
        in_mounted_home: false,
    }))
}

fn is_ignored_destination(destination: &Destination) -> bool {
    SERVICE_PORTS.contains(&destination.port)
        || (destination.name.is_none() && destination.address.is_loopback())
        || destination.address.is_unspecified()
        || destination.address.is_multicast()
}

#[cfg(test)]
mod tests;
