//! Credentials that a process presents: inside TLS, in plaintext, and those minted in a response.

use super::Enricher;
use crate::sensor::observation::{Observation, ObservedPresentation, PlaintextSecret};
use jiff::Timestamp;
use monitor_core::{
    model::{Credential, Place},
    trail::{Actor, Presented, TrailEvent},
};
use std::{collections::VecDeque, sync::Arc};

/// A presented credential whose destination is not known yet.
#[derive(Debug)]
pub(super) struct PendingPresentation {
    /// Fingerprint of the server name that the program set on its TLS object.
    server: Option<u64>,
    /// Fingerprint of the server name in the head of the request.
    host: Option<u64>,
    time: Timestamp,
    actor: Actor,
    credential: Arc<Credential>,
    place: Place,
    count: u64,
}

/// A packet leaves together with the write, at most this much later, or not in the same task.
const SOCKET_MATCH_WINDOW: jiff::SignedDuration = jiff::SignedDuration::from_millis(250);

impl Enricher {
    /// A credential in a TLS write: its connection is reported later.
    pub(super) fn presented_in_tls(
        &mut self,
        presentation: ObservedPresentation,
        events: &mut Vec<TrailEvent>,
    ) {
        let ObservedPresentation {
            task,
            write,
            server,
            host,
            secret,
        } = presentation;
        self.attribution.ensure(&task);
        let tenant = self.attribution.tenant(task.subject);
        let (mut credential, place) = self.credentials.presented(&tenant, secret);
        self.resolve_issued_to(&mut credential);
        let pending = PendingPresentation {
            server,
            host,
            time: task.time,
            actor: self.actor(task.subject),
            credential,
            place,
            count: u64::from(secret.count),
        };
        // What was counted after a write whose socket is known.
        if let Some(connection) = self.sent_writes.get(&write).copied() {
            let event = self.presented_event(pending, Some(connection));
            events.push(event);
            return;
        }
        self.presented.entry(write).or_default().push(pending);
    }

    /// A credential in a packet outside TLS.
    pub(super) fn presented_in_plaintext(
        &mut self,
        presented: PlaintextSecret,
        events: &mut Vec<TrailEvent>,
    ) {
        let tenant = self.tenant_of(presented.owner);
        let (mut credential, place) = self.credentials.presented(&tenant, presented.secret);
        self.resolve_issued_to(&mut credential);
        events.push(TrailEvent::Clear {
            time: presented.time,
            connection: presented.cookie,
            host: self.request_host(presented.host),
            credential,
            place,
            to_loopback: presented.to_loopback,
            count: u64::from(presented.secret.count),
        });
    }

    /// The socket on which a write was sent.
    pub(super) fn write_sent(&mut self, write: u64, connection: u64, events: &mut Vec<TrailEvent>) {
        self.sent_writes.insert(write, connection);
        for pending in self.presented.remove(&write).unwrap_or_default() {
            let event = self.presented_event(pending, Some(connection));
            events.push(event);
        }
    }

    /// The TLS library did not accept the write.
    pub(super) fn write_rejected(&mut self, write: u64) {
        self.presented.remove(&write);
    }

    /// Emits events for presented credentials whose socket will not become known any more. Called
    /// after each batch with the time up to which all records were read: unread records may still
    /// tell the socket.
    pub fn release_unmatched(&mut self, read_until: Timestamp, events: &mut Vec<TrailEvent>) {
        // So may observations that wait for the reader.
        if self.is_waiting() {
            return;
        }
        while let Some(entry) = self.presented.first_entry() {
            let late = entry
                .get()
                .first()
                // The clock may have been set back: do not wait for that.
                .is_none_or(|first| {
                    read_until.duration_since(first.time).abs() > SOCKET_MATCH_WINDOW
                });
            if !late {
                return;
            }
            for pending in entry.remove() {
                let event = self.presented_event(pending, None);
                events.push(event);
            }
        }
    }

    /// The event of a presented credential on a connection.
    fn presented_event(
        &mut self,
        mut pending: PendingPresentation,
        connection: Option<u64>,
    ) -> TrailEvent {
        // It may have been named while it was pending, and will not be renamed afterwards.
        if pending.actor.workload.partial {
            let now = self.attribution.workload(pending.actor.subject);
            if now.is_contained() && !now.is_unnamed() {
                pending.actor.workload = now;
            }
        }
        TrailEvent::Presented(Box::new(Presented {
            server: pending
                .server
                .and_then(|fingerprint| self.server_by_fingerprint(fingerprint)),
            host: self.request_host(pending.host),
            time: pending.time,
            actor: pending.actor,
            connection,
            credential: pending.credential,
            place: pending.place,
            count: pending.count,
        }))
    }

    /// The credentials minted in one response: `first`, and those at the front of `rest`.
    pub(super) fn minted(
        &mut self,
        first: PlaintextSecret,
        rest: &mut VecDeque<Observation>,
        events: &mut Vec<TrailEvent>,
    ) {
        let PlaintextSecret {
            time,
            owner,
            cookie,
            ..
        } = first;
        let tenant = self.tenant_of(owner);
        let mut secrets = vec![first.secret];
        let same_response = |next: &mut Observation| matches!(next, Observation::Minted(next) if (next.time, next.cookie) == (time, cookie));
        while let Some(Observation::Minted(next)) = rest.pop_front_if(same_response) {
            secrets.push(next.secret);
        }
        for (credential, place) in self.credentials.minted(&tenant, &secrets) {
            events.push(TrailEvent::Minted {
                time,
                connection: cookie,
                credential,
                place,
            });
        }
    }
}
