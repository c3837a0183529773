//! Connections, for what is presented on them later.

use super::event::Actor;
use crate::{
    fair_cache::FairCache,
    model::{Credential, Destination, Subject, Transport, Workload},
};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// A connection without payload is treated as a hop after this time.
const PAYLOAD_TIMEOUT: SignedDuration = SignedDuration::from_secs(2);
/// Maximum connections remembered; the oldest of whoever has the most are evicted first.
const CONNECTIONS_MAX: usize = 32_768;
/// Maximum connections of which it is remembered what was presented on them: a response follows soon,
/// and a credential is much larger than a connection.
const PRESENTED_MAX: usize = 8_192;
/// Maximum connections remembered per process, for credentials presented on an unknown one.
const CONNECTIONS_PER_PROCESS_MAX: usize = 256;

/// Ports of DNS, time and address assignment: not a hop unless a credential is presented there.
pub(super) const SERVICE_PORTS: [u16; 9] = [53, 67, 68, 123, 323, 546, 547, 853, 5353];

#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub time: Timestamp,
    /// Shared by the connections of a process, because there are many.
    pub actor: Arc<Actor>,
    pub destination: Destination,
    /// The proxy that was asked for the destination.
    pub proxy: Option<Box<Destination>>,
    pub stdin: Option<u64>,
    pub settled: bool,
    pub named: bool,
    /// The credential reported as [`crate::model::Evidence::Sole`], until it is seen to be presented.
    pub sole: Option<Arc<Credential>>,
}

/// The connections of one process.
#[derive(Debug)]
struct ProcessConnections {
    /// The actor of the last one.
    actor: Arc<Actor>,
    /// The most recent ones.
    ids: VecDeque<u64>,
}

/// The connections of all processes.
#[derive(Debug)]
pub(super) struct Connections {
    known: FairCache<u64, Connection>,
    /// The credential last presented on each, for as long as a response may follow.
    presented: FairCache<u64, Arc<Credential>>,
    by_process: HashMap<Subject, ProcessConnections>,
    /// Those waiting for a payload.
    waiting: VecDeque<u64>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            known: FairCache::new(CONNECTIONS_MAX),
            presented: FairCache::new(PRESENTED_MAX),
            by_process: HashMap::new(),
            waiting: VecDeque::new(),
        }
    }
}

impl Connections {
    /// Connections that were forgotten for lack of room.
    pub fn evicted(&self) -> u64 {
        self.known.evicted()
    }

    /// Connections of which it was forgotten for lack of room what was presented on them.
    pub fn evicted_presented(&self) -> u64 {
        self.presented.evicted()
    }

    pub fn get(&self, id: u64) -> Option<&Connection> {
        self.known.peek(&id)
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut Connection> {
        self.known.peek_mut(&id)
    }

    pub fn remove(&mut self, id: u64) {
        self.known.remove(&id);
        self.presented.remove(&id);
    }

    /// A credential was presented on a connection.
    pub fn note_presented(&mut self, id: u64, credential: &Arc<Credential>) {
        if let Some(known) = self.known.peek(&id) {
            let tenant = &known.actor.process.tenant;
            self.presented.insert(tenant, id, Arc::clone(credential));
        }
    }

    /// The credential last presented on a connection.
    pub fn presented_on(&self, id: u64) -> Option<&Arc<Credential>> {
        self.presented.peek(&id)
    }

    /// Adds a connection; it waits for a payload unless it is a datagram's.
    pub fn add(
        &mut self,
        id: u64,
        time: Timestamp,
        actor: Actor,
        destination: Destination,
        stdin: Option<u64>,
    ) {
        let actor = self.note_process(id, actor);
        if destination.transport != Transport::Udp {
            self.waiting.push_back(id);
        }
        let tenant = actor.process.tenant.clone();
        self.presented.remove(&id);
        self.known.insert(
            &tenant,
            id,
            Connection {
                time,
                actor,
                destination,
                proxy: None,
                stdin,
                settled: false,
                named: false,
                sole: None,
            },
        );
    }

    /// Adds to the connections of a process; returns the shared actor.
    fn note_process(&mut self, id: u64, actor: Actor) -> Arc<Actor> {
        let subject = actor.subject;
        let process = self
            .by_process
            .entry(subject)
            .or_insert_with(|| ProcessConnections {
                actor: Arc::new(actor.clone()),
                ids: VecDeque::new(),
            });
        if process.ids.len() >= CONNECTIONS_PER_PROCESS_MAX {
            process.ids.pop_front();
        }
        process.ids.push_back(id);
        if *process.actor != actor {
            process.actor = Arc::new(actor);
        }
        Arc::clone(&process.actor)
    }

    /// The most recent connections of a process.
    pub fn ids_of(&self, subject: Subject) -> impl Iterator<Item = u64> {
        let process = self.by_process.get(&subject);
        process
            .into_iter()
            .flat_map(|process| process.ids.iter().copied())
    }

    /// Connections of a process that wait for a payload.
    pub fn unsettled_of(&self, subject: Subject) -> Vec<u64> {
        // Uses the process's own list, because the list of all waiting connections can be long.
        self.ids_of(subject)
            .filter(|id| {
                let known = self.known.peek(id);
                known.is_some_and(|known| !known.settled && known.actor.subject == subject)
            })
            .collect()
    }

    /// The destinations of a process's TCP connections, each once; only those with a server name if
    /// there are any.
    pub fn tcp_destinations(&self, subject: Subject, server: Option<&str>) -> Vec<Destination> {
        let mut found: Vec<Destination> = Vec::new();
        for connection in self.ids_of(subject).filter_map(|id| self.known.peek(&id)) {
            let destination = &connection.destination;
            // A socket cookie may belong to a later connection by now.
            if connection.actor.subject == subject
                && destination.transport == Transport::Tcp
                && !found.contains(destination)
            {
                found.push(destination.clone());
            }
        }
        // A DNS server counts only if no other destination is possible.
        let is_service = |destination: &Destination| SERVICE_PORTS.contains(&destination.port);
        if !found.iter().all(is_service) {
            found.retain(|destination| !is_service(destination));
        }
        let asked_for =
            |destination: &Destination| server.is_some() && destination.name.as_deref() == server;
        if found.iter().any(asked_for) {
            found.retain(asked_for);
        }
        found
    }

    /// Destinations of all connections: those to which they were made.
    pub fn destinations_mut(&mut self) -> impl Iterator<Item = &mut Destination> {
        self.known
            .values_mut()
            .map(|connection| match &mut connection.proxy {
                Some(proxy) => proxy,
                None => &mut connection.destination,
            })
    }

    /// Renames a workload in the actors.
    pub fn rename(&mut self, old: &Workload, new: &Workload) {
        // Connections of one process keep sharing their actor.
        let mut renamed: HashMap<*const Actor, Arc<Actor>> = HashMap::new();
        let last = self
            .by_process
            .values_mut()
            .map(|process| &mut process.actor);
        let connected = self
            .known
            .values_mut()
            .map(|connection| &mut connection.actor);
        for actor in last.chain(connected) {
            if actor.workload == *old {
                let new = renamed.entry(Arc::as_ptr(actor)).or_insert_with(|| {
                    Arc::new(Actor {
                        workload: actor.workload.renamed(new),
                        ..(**actor).clone()
                    })
                });
                *actor = Arc::clone(new);
            }
        }
    }

    /// The next connection that has waited long enough for a payload, or need not wait any more.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<u64> {
        let known = &self.known;
        self.waiting.pop_front_if(|id| {
            // A connection from the future dates from before the clock was set back.
            known.peek(id).is_none_or(|connection| {
                connection.settled
                    || connection.time > now
                    || now.duration_since(connection.time) >= PAYLOAD_TIMEOUT
            })
        })
    }

    /// The process is forgotten; its connections stay for children that may use them.
    pub fn forget_process(&mut self, subject: Subject) {
        self.by_process.remove(&subject);
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Keeps what still waits, and what a process may use.
    pub fn retain_of(&mut self, may_use: impl Fn(Subject) -> bool) {
        self.known
            .retain(|_, known| !known.settled || may_use(known.actor.subject));
        let known = &self.known;
        self.presented.retain(|id, _| known.contains_key(id));
        // Returns the memory of a burst.
        if self.by_process.capacity() > 1024 + 8 * self.by_process.len() {
            self.by_process.shrink_to_fit();
        }
    }
}
