//! Credentials seen in the bytes of a connection: inside TLS, in plaintext, or in a response.

use super::{
    Trail,
    event::{Actor, Presented, TrailOutput},
    holding::Holding,
    used,
};
use crate::model::{
    Credential, Destination, Evidence, Hop, Mint, NameSource, Place, Subject, UNKNOWN_NAME,
};
use jiff::Timestamp;
use std::sync::Arc;

/// A credential found in the bytes of a connection.
pub(super) struct PresentedOn {
    pub time: Timestamp,
    pub credential: Arc<Credential>,
    pub place: Place,
    /// Absent if it is not known which connection.
    pub connection: Option<u64>,
    pub clear: bool,
    /// It was sent to loopback, whatever the destination of the connection is.
    pub to_loopback: bool,
    /// How often.
    pub count: u64,
}

impl Trail {
    pub(super) fn presented_in_tls(&mut self, event: Presented, out: &mut Vec<TrailOutput>) {
        let Presented {
            time,
            actor,
            connection,
            server,
            host,
            credential,
            place,
            count,
        } = event;
        let server = server.as_deref();
        let mut destinations = match self.connection_of_write(actor.subject, connection, server) {
            Some(destination) => vec![destination.clone()],
            None => self.connections.tcp_destinations(actor.subject, server),
        };
        if !is_for_proxy(&place) {
            apply_request_host(host.as_deref(), &mut destinations);
        }
        if let (Some(id), [_]) = (connection, &destinations[..]) {
            self.connections.note_presented(id, &credential);
        }
        let presented = PresentedOn {
            time,
            credential,
            place,
            connection,
            clear: false,
            to_loopback: false,
            count,
        };
        self.presented(presented, &actor, &destinations, out);
    }

    pub(super) fn presented_in_plaintext(
        &mut self,
        connection: u64,
        host: Option<&str>,
        presented: PresentedOn,
        out: &mut Vec<TrailOutput>,
    ) {
        let Some(known) = self.connections.get(connection) else {
            self.unmatched += 1;
            return;
        };
        let actor = Arc::clone(&known.actor);
        let for_proxy = known
            .proxy
            .as_ref()
            .filter(|_| is_for_proxy(&presented.place));
        let mut destinations = vec![known.destination.clone()];
        match for_proxy {
            Some(proxy) => destinations = vec![(**proxy).clone()],
            None => apply_request_host(host, &mut destinations),
        }
        self.connections
            .note_presented(connection, &presented.credential);
        self.presented(presented, &actor, &destinations, out);
    }

    /// A credential was issued in a response: the receiver holds it, and this is how it got it.
    pub(super) fn minted(
        &mut self,
        time: Timestamp,
        connection: u64,
        (credential, place): (Arc<Credential>, Place),
        out: &mut Vec<TrailOutput>,
    ) {
        let Some(known) = self.connections.get(connection) else {
            self.unmatched += 1;
            return;
        };
        let actor = Arc::clone(&known.actor);
        let authenticator = known.destination.clone();
        let presented = self.connections.presented_on(connection);
        let presented = presented.map(|presented| (**presented).clone());
        let holding = Holding {
            credential: Arc::clone(&credential),
            source: place.source,
            usual: false,
        };
        // A forgotten process passes nothing on, and would never be forgotten again.
        if self.holders.contains(actor.subject) {
            let tenant = &actor.process.tenant;
            self.holders
                .pick_up(tenant, actor.subject, holding, None, false);
        }
        out.push(used(time, &actor, &credential, place, 1));
        out.push(TrailOutput::Mint(Box::new(Mint {
            time,
            workload: actor.workload.clone(),
            process: actor.process.clone(),
            authenticator,
            // A renewal returns what was presented.
            presented: presented.filter(|presented| presented.id != credential.id),
            minted: Some((*credential).clone()),
        })));
    }

    /// A credential was seen in the bytes of a connection, to one of these destinations.
    fn presented(
        &mut self,
        presented: PresentedOn,
        actor: &Actor,
        destinations: &[Destination],
        out: &mut Vec<TrailOutput>,
    ) {
        let PresentedOn {
            time,
            credential,
            place,
            connection,
            clear,
            to_loopback,
            count,
        } = presented;
        let for_proxy = is_for_proxy(&place);
        let stdin = connection.and_then(|id| self.connections.get(id)?.stdin);
        let held = self.holders.holdings_of(actor.subject, stdin);
        let picked_up = held
            .iter()
            .any(|holding| holding.credential.id == credential.id);
        let on_behalf_of = self.relays.sender(time, &actor.workload, &credential);
        if let [destination] = destinations
            && picked_up
        {
            self.relays
                .note(time, actor, &credential, destination, to_loopback);
        }
        out.push(used(time, actor, &credential, place, count));
        if destinations.is_empty() {
            self.unmatched += 1;
        }
        let one_of = destinations.len() as u32;
        for destination in destinations {
            let others = destinations
                .iter()
                .filter(|other| *other != destination)
                .cloned()
                .collect();
            let again = self.take_reported(connection, actor.subject, &credential, destination);
            out.push(TrailOutput::Hop(Box::new(Hop {
                time,
                workload: actor.workload.clone(),
                process: actor.process.clone(),
                credential: Arc::clone(&credential),
                destination: Destination {
                    one_of: if one_of > 1 { one_of } else { 0 },
                    ..destination.clone()
                },
                others,
                evidence: Evidence::Presented,
                // A local rule takes it to a proxy on this machine, which sends it on.
                clear: clear && (!to_loopback || destination.address.is_loopback()),
                again,
                held_with: Vec::new(),
                picked_up,
                on_behalf_of: on_behalf_of.clone(),
                for_proxy,
                count,
            })));
        }
    }

    /// The destination of the connection on which a process presented something, if it is
    /// plausible: not one of an unrelated process, and not one with another server name.
    fn connection_of_write(
        &self,
        subject: Subject,
        connection: Option<u64>,
        server: Option<&str>,
    ) -> Option<&Destination> {
        let connection = self.connections.get(connection?)?;
        let destination = &connection.destination;
        let name = destination
            .name
            .as_deref()
            .filter(|_| destination.name_source == NameSource::Sni);
        let fits = server.is_none() || name.is_none() || name == server;
        (fits && self.holders.are_kin(connection.actor.subject, subject))
            .then_some(&connection.destination)
    }

    /// Whether the presented credential was reported on this connection as [`Evidence::Sole`]; true
    /// only once. If the connection is unknown, one of the process to the same destination counts.
    fn take_reported(
        &mut self,
        id: Option<u64>,
        subject: Subject,
        credential: &Credential,
        destination: &Destination,
    ) -> bool {
        let known = id.filter(|id| self.connections.get(*id).is_some());
        let candidates: Vec<u64> = match known {
            Some(id) => vec![id],
            None => self.connections.ids_of(subject).collect(),
        };
        let label = destination.label();
        for id in candidates {
            if let Some(connection) = self.connections.get_mut(id)
                && let Some(sole) = &connection.sole
                && sole.id == credential.id
                && connection.destination.label() == label
            {
                connection.sole = None;
                return true;
            }
        }
        false
    }
}

/// Whether a credential is meant for a proxy, whatever server the request names.
fn is_for_proxy(place: &Place) -> bool {
    place.place == "header:proxy-authorization"
}

/// Applies the server name in the head of a request. If it differs from the connection's name, the
/// connection was made for another server, or leads through a proxy.
fn apply_request_host(host: Option<&str>, destinations: &mut [Destination]) {
    let Some(host) = host else { return };
    for destination in destinations {
        let outer = destination.ech || destination.name_source == NameSource::HttpHost;
        if outer && host != UNKNOWN_NAME {
            // The name of an encrypted ClientHello is only the outer one; a proxy is told one name
            // after another.
            destination.name = Some(host.to_owned());
            destination.name_source = NameSource::HttpHost;
        } else if destination.ech {
            // The name for which it was encrypted is not known.
        } else if host != UNKNOWN_NAME || destination.name_source == NameSource::Sni {
            destination.add_name(host, NameSource::HttpHost);
        }
    }
}
