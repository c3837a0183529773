//! The trail: joins uses and connections into hops.
//!
//! Pure: the input is time and events, the output uses and hops. The same code runs live, in
//! `keytrail replay` and in property tests.
//!
//! # Which processes hold a credential
//!
//! A process holds what it picked up itself, what it received through a pipe, and what its
//! ancestors picked up from files: a script reads a key and starts `curl` with it. Inheritance
//! extends over [`INHERIT_LEVELS`], and never across a change of user or workload. If none of that
//! yields anything, what another child of the same shell picked up counts: `cat key; curl …`.

mod names;
mod pipes;

use crate::model::{
    Credential, Destination, Evidence, ForeignRead, Gap, Hop, Login, Look, Mint, NameSource, Place,
    Process, Source, Subject, Transport, UNKNOWN_NAME, Untrusted, Use, Workload,
};
use jiff::{SignedDuration, Timestamp};
use names::DnsNames;
use pipes::RememberedPipes;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

/// Number of levels over which a process inherits credentials.
const INHERIT_LEVELS: usize = 2;
/// A connection without payload is treated as a hop after this time.
const PAYLOAD_TIMEOUT: SignedDuration = SignedDuration::from_secs(2);
/// Exited processes are kept this long if a descendant lives: they link it to what their own
/// ancestors picked up.
const EXITED_PARENT_TTL: SignedDuration = SignedDuration::from_secs(120);
/// Exited processes without descendants, and their connections, are kept this long: records about
/// them may still arrive.
const EXITED_TTL: SignedDuration = SignedDuration::from_secs(10);
/// Exited processes without descendants, holdings and connections are kept this long: a fork storm
/// consists of these.
const IDLE_EXITED_TTL: SignedDuration = SignedDuration::from_secs(2);
/// Maximum connections remembered, for credentials presented on them later.
const CONNECTIONS_MAX: usize = 65_536;
/// Maximum connections remembered per process, for credentials presented on an unknown one.
const CONNECTIONS_PER_PROCESS_MAX: usize = 256;
/// Maximum credentials remembered per process.
const HOLDINGS_MAX: usize = 64;

/// Ports of DNS, time and address assignment: not a hop unless a credential is presented there.
const SERVICE_PORTS: [u16; 9] = [53, 67, 68, 123, 323, 546, 547, 853, 5353];

/// The actor of an event, as attributed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    pub subject: Subject,
    pub workload: Workload,
    pub process: Process,
}

/// The trail's input: observations with attribution and credentials. `keytrail record` writes them,
/// one JSON object per line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TrailEvent {
    Fork {
        time: Timestamp,
        subject: Subject,
        parent: Option<Subject>,
    },
    Exec {
        time: Timestamp,
        subject: Subject,
        parent: Option<Subject>,
        /// User and cgroup: a credential in memory does not cross them.
        boundary: String,
        /// The executable is a shell.
        #[serde(default)]
        shell: bool,
    },
    Exit {
        time: Timestamp,
        subject: Subject,
    },
    PickUp {
        time: Timestamp,
        who: Actor,
        credential: Credential,
        place: Place,
        count: u64,
        /// The pipe at the reader's standard output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdout: Option<u64>,
        /// The parent has the same standard output, so it does not read from it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        stdout_of_parent: bool,
        /// The reader does so as part of its normal operation, and passes it to no other process.
        #[serde(default)]
        usual: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        login: Option<Login>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume_of: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        home: Option<Box<Workload>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pod_uid: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        modified: Option<Timestamp>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        untrusted: Option<Untrusted>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        given: bool,
    },
    Connect {
        time: Timestamp,
        who: Actor,
        connection: u64,
        destination: Destination,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdin: Option<u64>,
    },
    /// The first payload of a connection, with the server name if it is a ClientHello.
    Payload {
        time: Timestamp,
        connection: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        destination: Option<ConnectionName>,
    },
    /// The connection was never established.
    Refused {
        connection: u64,
    },
    /// A process's environment or memory was read by another.
    Foreign {
        time: Timestamp,
        who: Actor,
        victim: Actor,
        look: Look,
    },
    /// The fingerprint of a credential was seen in the bytes of a connection.
    Presented {
        time: Timestamp,
        who: Actor,
        /// Absent if it is not known which connection.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connection: Option<u64>,
        /// The server name that the program requested, if known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        /// The server name in the head of the request; [`UNKNOWN_NAME`] if it is not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        credential: Credential,
        place: Place,
    },
    /// As `Presented`, outside TLS.
    Clear {
        time: Timestamp,
        connection: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        credential: Credential,
        place: Place,
    },
    /// A credential was issued in a response.
    Minted {
        time: Timestamp,
        connection: u64,
        credential: Credential,
        place: Place,
    },
    /// A DNS response.
    Resolved {
        time: Timestamp,
        /// The requested name, and those that it resolved to.
        names: Vec<String>,
        addresses: Vec<IpAddr>,
    },
    /// A workload got a name, or will not get one soon: then both are the same.
    Renamed {
        time: Timestamp,
        old: Workload,
        new: Workload,
    },
    /// Cluster objects at addresses of existing connections became known.
    Objects {
        time: Timestamp,
        objects: BTreeMap<IpAddr, String>,
    },
    Gap {
        gap: Gap,
    },
    /// Time has passed.
    Tick {
        time: Timestamp,
    },
}

/// The name that a ClientHello, or the head of a plaintext request, adds to a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionName {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    #[serde(default)]
    pub ech: bool,
    /// It comes from the head of a request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host: bool,
}

/// The trail's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrailOutput {
    Use(Box<Use>),
    Hop(Box<Hop>),
    Foreign(Box<ForeignRead>),
    Mint(Box<Mint>),
    /// Everything about the first workload now belongs to the second.
    Renamed(Box<[Workload; 2]>),
    Gap(Gap),
}

/// A credential found in the bytes of a connection.
struct PresentedOn {
    time: Timestamp,
    credential: Credential,
    place: Place,
    /// Absent if it is not known which connection.
    connection: Option<u64>,
    clear: bool,
}

/// A credential that a process holds.
#[derive(Clone, Debug)]
struct Holding {
    credential: Arc<Credential>,
    source: Source,
    usual: bool,
}

#[derive(Clone, Debug, Default)]
struct ProcessNode {
    parent: Option<Subject>,
    boundary: Arc<str>,
    shell: bool,
    /// Whether it executed a program since it was forked.
    execed: bool,
    own: Vec<Holding>,
    /// Credentials received from helpers through a pipe.
    piped: Vec<Holding>,
    /// Credentials picked up by children, without a known path to this process.
    children: Vec<Holding>,
    exited: Option<Timestamp>,
    /// The actor of its last connection.
    who: Option<Arc<Actor>>,
    /// Its most recent connections.
    connections: VecDeque<u64>,
}

#[derive(Clone, Debug)]
struct Connection {
    time: Timestamp,
    /// Shared by the connections of a process, because there are many.
    who: Arc<Actor>,
    destination: Destination,
    stdin: Option<u64>,
    settled: bool,
    named: bool,
    /// The credential last presented on it.
    presented: Option<Arc<Credential>>,
    /// The credential reported as [`Evidence::Sole`], until it is seen to be presented.
    sole: Option<Arc<Credential>>,
}

/// The state of the trail.
#[derive(Debug, Default)]
pub struct Trail {
    nodes: HashMap<Subject, ProcessNode>,
    /// Pipes that carried a credential, by inode number.
    pipes: RememberedPipes,
    /// Boxed: the table of a burst is large, and soon mostly empty.
    connections: HashMap<u64, Box<Connection>>,
    /// Connections in the order of their start.
    order: VecDeque<u64>,
    /// Connections waiting for a payload.
    waiting: VecDeque<u64>,
    names: DnsNames,
    /// Number of payloads of unknown connections.
    pub unmatched: u64,
}

impl Trail {
    pub fn new() -> Self {
        Self::default()
    }

    /// Processes an event; appends the resulting outputs.
    pub fn process(&mut self, event: TrailEvent, out: &mut Vec<TrailOutput>) {
        match event {
            TrailEvent::Fork {
                subject, parent, ..
            } => self.fork(subject, parent),
            TrailEvent::Exec {
                subject,
                parent,
                boundary,
                shell,
                ..
            } => self.exec(subject, parent, &boundary, shell),
            TrailEvent::Exit { time, subject } => self.exit(time, subject, out),
            TrailEvent::PickUp {
                time,
                who,
                credential,
                place,
                count,
                stdout,
                stdout_of_parent,
                usual,
                login,
                volume_of,
                home,
                pod_uid,
                modified,
                untrusted,
                given,
            } => {
                let holding = Holding {
                    credential: Arc::new(credential.clone()),
                    source: place.source,
                    usual,
                };
                self.pick_up(who.subject, holding, stdout, stdout_of_parent);
                out.push(TrailOutput::Use(Box::new(Use {
                    time,
                    workload: who.workload,
                    process: who.process,
                    credential,
                    place,
                    count,
                    login,
                    volume_of,
                    home,
                    pod_uid,
                    modified,
                    untrusted,
                    given,
                })));
            }
            TrailEvent::Connect {
                time,
                who,
                connection,
                destination,
                stdin,
            } => self.connect(time, who, connection, destination, stdin, out),
            TrailEvent::Payload {
                time,
                connection,
                destination,
            } => self.payload(time, connection, destination, out),
            TrailEvent::Refused { connection } => {
                self.connections.remove(&connection);
            }
            TrailEvent::Foreign {
                time,
                who,
                victim,
                look,
            } => self.foreign(time, &who, &victim, look, out),
            TrailEvent::Presented {
                time,
                who,
                connection,
                server,
                host,
                credential,
                place,
            } => {
                let server = server.as_deref();
                let mut destinations =
                    match self.connection_of_write(who.subject, connection, server) {
                        Some(destination) => vec![destination.clone()],
                        None => self.tcp_destinations(who.subject, server),
                    };
                apply_request_host(host.as_deref(), &mut destinations);
                if let [_] = destinations[..] {
                    self.note_presented(connection, &credential);
                }
                let shown = PresentedOn {
                    time,
                    credential,
                    place,
                    connection,
                    clear: false,
                };
                self.presented(shown, &who, &destinations, out);
            }
            TrailEvent::Clear {
                time,
                connection,
                host,
                credential,
                place,
            } => {
                let Some(known) = self.connections.get(&connection) else {
                    self.unmatched += 1;
                    return;
                };
                let who = Arc::clone(&known.who);
                let mut destinations = vec![known.destination.clone()];
                apply_request_host(host.as_deref(), &mut destinations);
                self.note_presented(Some(connection), &credential);
                let shown = PresentedOn {
                    time,
                    credential,
                    place,
                    connection: Some(connection),
                    clear: true,
                };
                self.presented(shown, &who, &destinations, out);
            }
            TrailEvent::Minted {
                time,
                connection,
                credential,
                place,
            } => self.minted(time, connection, credential, place, out),
            TrailEvent::Resolved {
                names, addresses, ..
            } => self.names.learn(&names, &addresses),
            TrailEvent::Renamed { old, new, .. } => {
                self.rename(&old, &new);
                out.push(TrailOutput::Renamed(Box::new([old, new])));
            }
            TrailEvent::Objects { objects, .. } => {
                for connection in self.connections.values_mut() {
                    let destination = &mut connection.destination;
                    let told = objects.get(&destination.address);
                    if destination.object.is_none() || destination.is_object_pending() {
                        destination.object = None;
                        told.into_iter()
                            .for_each(|object| destination.set_object(object));
                    }
                }
            }
            TrailEvent::Gap { gap } => out.push(TrailOutput::Gap(gap)),
            TrailEvent::Tick { time } => self.tick(time, out),
        }
    }

    fn fork(&mut self, subject: Subject, parent: Option<Subject>) {
        let mut node = ProcessNode {
            parent,
            ..ProcessNode::default()
        };
        if let Some(above) = parent.and_then(|parent| self.nodes.get(&parent)) {
            node.boundary = Arc::clone(&above.boundary);
            node.shell = above.shell;
        }
        self.nodes.insert(subject, node);
    }

    fn exec(&mut self, subject: Subject, parent: Option<Subject>, boundary: &str, shell: bool) {
        let node = self.nodes.entry(subject).or_default();
        if node.parent.is_none() {
            node.parent = parent;
        }
        if &*node.boundary != boundary {
            node.boundary = boundary.into();
        }
        node.shell = shell;
        node.execed = true;
        // The new program has the environment passed to it, and none of the old program's memory.
        node.own
            .retain(|holding| holding.source != Source::Environment);
    }

    fn exit(&mut self, time: Timestamp, subject: Subject, out: &mut Vec<TrailOutput>) {
        let Some(node) = self.nodes.get_mut(&subject) else {
            return;
        };
        node.exited = Some(time);
        // Uses the process's own list, because the list of all waiting connections can be long.
        let connections = &self.connections;
        let own: Vec<u64> = node
            .connections
            .iter()
            .copied()
            .filter(|id| {
                connections
                    .get(id)
                    .is_some_and(|known| !known.settled && known.who.subject == subject)
            })
            .collect();
        for id in own {
            self.resolve_destination(id, time, out);
        }
    }

    fn pick_up(
        &mut self,
        subject: Subject,
        holding: Holding,
        stdout: Option<u64>,
        stdout_of_parent: bool,
    ) {
        let node = self.nodes.entry(subject).or_default();
        add_holding(&mut node.own, &holding);
        if holding.usual || holding.source == Source::Environment {
            return;
        }
        let parent = node.parent;
        let boundary = Arc::clone(&node.boundary);
        if let Some(pipe) = stdout {
            self.pipes.add(pipe, &holding);
        }
        let Some(above) = parent.and_then(|parent| self.nodes.get_mut(&parent)) else {
            return;
        };
        if above.boundary == boundary {
            if stdout.is_some() && !stdout_of_parent {
                add_holding(&mut above.piped, &holding);
            } else if above.shell {
                add_holding(&mut above.children, &holding);
            }
        }
    }

    fn connect(
        &mut self,
        time: Timestamp,
        who: Actor,
        id: u64,
        mut destination: Destination,
        stdin: Option<u64>,
        out: &mut Vec<TrailOutput>,
    ) {
        // A program may call connect again to learn the result of its first call.
        if self.connections.get(&id).is_some_and(|known| {
            known.destination.address == destination.address
                && known.destination.port == destination.port
        }) {
            return;
        }
        if self.order.len() >= CONNECTIONS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.connections.remove(&oldest);
        }
        if let Some(name) = self.names.names_at(destination.address).last() {
            destination.add_name(name, NameSource::Dns);
        }
        let datagram = destination.transport == Transport::Udp;
        let node = self.nodes.entry(who.subject).or_default();
        if node.connections.len() >= CONNECTIONS_PER_PROCESS_MAX {
            node.connections.pop_front();
        }
        node.connections.push_back(id);
        let who = match &node.who {
            Some(known) if **known == who => Arc::clone(known),
            _ => Arc::clone(node.who.insert(Arc::new(who))),
        };
        let connection = Connection {
            time,
            who,
            destination,
            stdin,
            settled: false,
            named: false,
            presented: None,
            sole: None,
        };
        if self.connections.insert(id, Box::new(connection)).is_none() {
            self.order.push_back(id);
        }
        if datagram {
            self.resolve_destination(id, time, out);
        } else {
            self.waiting.push_back(id);
        }
    }

    fn payload(
        &mut self,
        time: Timestamp,
        id: u64,
        named: Option<ConnectionName>,
        out: &mut Vec<TrailOutput>,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else {
            self.unmatched += 1;
            return;
        };
        if let Some(named) = named {
            // A name after a proxy's CONNECT or a STARTTLS arrives after the connection's
            // destination was resolved: it is another destination, reached through the first.
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
                    destination.add_name(&name, source);
                    self.names.add_disputed(destination);
                }
            }
        }
        self.resolve_destination(id, time, out);
    }

    /// A connection's destination will not become better known: emits its hops.
    fn resolve_destination(&mut self, id: u64, time: Timestamp, out: &mut Vec<TrailOutput>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if std::mem::replace(&mut connection.settled, true) {
            return;
        }
        let connection = connection.clone();
        if is_ignored_destination(&connection.destination) {
            return;
        }
        let held = self.holdings_of(connection.who.subject, connection.stdin);
        let evidence = evidence_of(&held);
        let was_shown = |holding: &Holding| {
            let shown = connection.presented.as_ref();
            shown.is_some_and(|shown| shown.id == holding.credential.id)
        };
        if let [sole] = &held[..]
            && !was_shown(sole)
            && let Some(known) = self.connections.get_mut(&id)
        {
            known.sole = Some(Arc::clone(&sole.credential));
        }
        for holding in held {
            out.push(TrailOutput::Hop(Box::new(Hop {
                time: time.max(connection.time),
                workload: connection.who.workload.clone(),
                process: connection.who.process.clone(),
                credential: (*holding.credential).clone(),
                destination: connection.destination.clone(),
                others: Vec::new(),
                evidence,
                clear: false,
                again: was_shown(&holding),
            })));
        }
    }

    fn note_presented(&mut self, connection: Option<u64>, credential: &Credential) {
        let known = connection.and_then(|id| self.connections.get_mut(&id));
        if let Some(connection) = known {
            connection.presented = Some(Arc::new(credential.clone()));
        }
    }

    /// Whether the presented credential was reported on this connection as [`Evidence::Sole`]; true
    /// only once. If the connection is unknown, one of the process to the same destination is used.
    fn take_reported(
        &mut self,
        id: Option<u64>,
        subject: Subject,
        credential: &Credential,
        destination: &Destination,
    ) -> bool {
        let own = self.nodes.get(&subject).map(|node| &node.connections);
        let label = destination.label();
        for id in id.iter().chain(own.into_iter().flatten()) {
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

    /// A credential was issued in a response: the receiver holds it, and this is how it got it.
    fn minted(
        &mut self,
        time: Timestamp,
        connection: u64,
        credential: Credential,
        place: Place,
        out: &mut Vec<TrailOutput>,
    ) {
        let Some(known) = self.connections.get(&connection) else {
            self.unmatched += 1;
            return;
        };
        let who = Arc::clone(&known.who);
        let presented = known.presented.as_deref().cloned();
        let authenticator = known.destination.clone();
        let holding = Holding {
            credential: Arc::new(credential.clone()),
            source: place.source,
            usual: false,
        };
        self.pick_up(who.subject, holding, None, false);
        out.push(used(time, &who, &credential, place));
        out.push(TrailOutput::Mint(Box::new(Mint {
            time,
            workload: who.workload.clone(),
            process: who.process.clone(),
            authenticator,
            // A renewal returns what was presented.
            presented: presented.filter(|shown| shown.id != credential.id),
            minted: Some(credential),
        })));
    }

    /// Renames a workload in everything that is remembered.
    fn rename(&mut self, old: &Workload, new: &Workload) {
        // Connections of one process keep sharing their actor.
        let mut renamed: HashMap<*const Actor, Arc<Actor>> = HashMap::new();
        let known = self.nodes.values_mut().filter_map(|node| node.who.as_mut());
        let connected = self
            .connections
            .values_mut()
            .map(|connection| &mut connection.who);
        for who in known.chain(connected) {
            if who.workload == *old {
                let new = renamed.entry(Arc::as_ptr(who)).or_insert_with(|| {
                    Arc::new(Actor {
                        workload: new.clone(),
                        ..(**who).clone()
                    })
                });
                *who = Arc::clone(new);
            }
        }
    }

    /// The reader now holds what the victim holds.
    fn foreign(
        &mut self,
        time: Timestamp,
        who: &Actor,
        victim: &Actor,
        look: Look,
        out: &mut Vec<TrailOutput>,
    ) {
        let held = self.holdings_of(victim.subject, None);
        let evidence = evidence_of(&held);
        let ancestor = self.is_ancestor(who.subject, victim.subject);
        for holding in held {
            out.push(TrailOutput::Foreign(Box::new(ForeignRead {
                time,
                workload: who.workload.clone(),
                process: who.process.clone(),
                victim: victim.workload.clone(),
                victim_process: victim.process.clone(),
                look,
                credential: (*holding.credential).clone(),
                evidence,
                ancestor,
            })));
            let node = self.nodes.entry(who.subject).or_default();
            add_holding(&mut node.own, &holding);
        }
    }

    /// Whether a process may use the other's sockets: the same process, or an ancestor.
    fn are_kin(&self, one: Subject, other: Subject) -> bool {
        one == other || self.is_ancestor(one, other) || self.is_ancestor(other, one)
    }

    /// Whether the first is an ancestor of the second.
    fn is_ancestor(&self, ancestor: Subject, subject: Subject) -> bool {
        let mut above = self.nodes.get(&subject).and_then(|node| node.parent);
        // A bound in case the parent links form a cycle.
        for _ in 0..64 {
            match above {
                Some(parent) if parent == ancestor => return true,
                Some(parent) => above = self.nodes.get(&parent).and_then(|node| node.parent),
                None => return false,
            }
        }
        false
    }

    /// A credential was seen in the bytes of a connection, to one of these destinations.
    fn presented(
        &mut self,
        shown: PresentedOn,
        who: &Actor,
        destinations: &[Destination],
        out: &mut Vec<TrailOutput>,
    ) {
        let PresentedOn {
            time,
            credential,
            place,
            connection,
            clear,
        } = shown;
        out.push(used(time, who, &credential, place));
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
            let again = self.take_reported(connection, who.subject, &credential, destination);
            out.push(TrailOutput::Hop(Box::new(Hop {
                time,
                workload: who.workload.clone(),
                process: who.process.clone(),
                credential: credential.clone(),
                destination: Destination {
                    one_of: if one_of > 1 { one_of } else { 0 },
                    ..destination.clone()
                },
                others,
                evidence: Evidence::Presented,
                clear,
                again,
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
        let connection = self.connections.get(&connection?)?;
        let destination = &connection.destination;
        let name = destination
            .name
            .as_deref()
            .filter(|_| destination.name_source == NameSource::Sni);
        let fits = server.is_none() || name.is_none() || name == server;
        (fits && self.are_kin(connection.who.subject, subject)).then_some(&connection.destination)
    }

    /// The destinations of a process's TCP connections, each once; only those with a server name if
    /// there are any.
    fn tcp_destinations(&self, subject: Subject, server: Option<&str>) -> Vec<Destination> {
        let mut found: Vec<Destination> = Vec::new();
        let own = self.nodes.get(&subject).map(|node| &node.connections);
        let own = own.into_iter().flatten();
        for connection in own.filter_map(|id| self.connections.get(id)) {
            let destination = &connection.destination;
            // A socket cookie may belong to a later connection by now.
            if connection.who.subject == subject
                && destination.transport == Transport::Tcp
                && !found.contains(destination)
            {
                found.push(destination.clone());
            }
        }
        // A DNS server counts only if no other destination is possible.
        let is_service = |there: &Destination| SERVICE_PORTS.contains(&there.port);
        if !found.iter().all(is_service) {
            found.retain(|there| !is_service(there));
        }
        let asked_for =
            |destination: &Destination| server.is_some() && destination.name.as_deref() == server;
        if found.iter().any(asked_for) {
            found.retain(asked_for);
        }
        found
    }

    /// What a subject holds, each credential once.
    fn holdings_of(&self, subject: Subject, stdin: Option<u64>) -> Vec<Holding> {
        let mut held: BTreeMap<String, Holding> = BTreeMap::new();
        let mut hold = |holdings: &[Holding], all: bool| {
            for holding in holdings {
                if all || (holding.source != Source::Environment && !holding.usual) {
                    held.entry(holding.credential.id.0.clone())
                        .or_insert_with(|| holding.clone());
                }
            }
        };
        if let Some(holdings) = stdin.and_then(|pipe| self.pipes.holdings(pipe)) {
            hold(holdings, true);
        }
        let Some(node) = self.nodes.get(&subject) else {
            return held.into_values().collect();
        };
        hold(&node.own, true);
        hold(&node.piped, true);
        let mut lineage = Vec::new();
        let mut copied = !node.execed;
        let mut above = node.parent;
        while let Some(parent) = above.and_then(|parent| self.nodes.get(&parent)) {
            if lineage.len() == INHERIT_LEVELS || parent.boundary != node.boundary {
                break;
            }
            // A forked process that did not exec has its parent's memory, environment included.
            hold(&parent.own, copied);
            hold(&parent.piped, false);
            copied &= !parent.execed;
            lineage.push(parent);
            above = parent.parent;
        }
        if held.is_empty() {
            for shell in std::iter::once(node)
                .chain(lineage)
                .filter(|node| node.shell)
            {
                for holding in &shell.children {
                    held.entry(holding.credential.id.0.clone())
                        .or_insert_with(|| holding.clone());
                }
                if !held.is_empty() {
                    break;
                }
            }
        }
        held.into_values().collect()
    }

    fn tick(&mut self, now: Timestamp, out: &mut Vec<TrailOutput>) {
        while let Some(id) = self.waiting.front().copied() {
            match self.connections.get(&id) {
                // A connection from the future dates from before the clock was set back.
                Some(connection)
                    if !connection.settled
                        && connection.time <= now
                        && now.duration_since(connection.time) < PAYLOAD_TIMEOUT =>
                {
                    break;
                }
                _ => {
                    self.waiting.pop_front();
                    self.resolve_destination(id, now, out);
                }
            }
        }
        // Exited processes matter only to their descendants.
        let nodes = &mut self.nodes;
        let mut has_heirs = HashSet::new();
        for alive in nodes.values().filter(|node| node.exited.is_none()) {
            let mut above = alive.parent;
            while let Some(parent) = above
                && has_heirs.insert(parent)
            {
                above = nodes.get(&parent).and_then(|node| node.parent);
            }
        }
        nodes.retain(|subject, node| {
            node.exited.is_none_or(|exited| {
                let kept = if has_heirs.contains(subject) {
                    EXITED_PARENT_TTL
                } else if node.connections.is_empty() && node.own.is_empty() {
                    IDLE_EXITED_TTL
                } else {
                    EXITED_TTL
                };
                now.duration_since(exited) < kept
            })
        });
        let connections = &mut self.connections;
        let may_speak =
            |subject: Subject| has_heirs.contains(&subject) || nodes.contains_key(&subject);
        self.order.retain(|id| {
            let keep = connections
                .get(id)
                .is_some_and(|known| !known.settled || may_speak(known.who.subject));
            if !keep {
                connections.remove(id);
            }
            keep
        });
        // Returns the memory of a burst.
        if connections.capacity() > 1024 + 8 * connections.len() {
            connections.shrink_to_fit();
            self.order.shrink_to_fit();
        }
        if self.nodes.capacity() > 1024 + 8 * self.nodes.len() {
            self.nodes.shrink_to_fit();
        }
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
pub fn used(time: Timestamp, who: &Actor, credential: &Credential, place: Place) -> TrailOutput {
    TrailOutput::Use(Box::new(Use {
        time,
        workload: who.workload.clone(),
        process: who.process.clone(),
        credential: credential.clone(),
        place,
        count: 1,
        login: None,
        volume_of: None,
        home: None,
        pod_uid: None,
        modified: None,
        untrusted: None,
        given: true,
    }))
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

/// Adds a holding unless the credential is there already.
fn add_holding(holdings: &mut Vec<Holding>, holding: &Holding) {
    let known = holdings
        .iter()
        .any(|known| known.credential.id == holding.credential.id);
    if !known && holdings.len() < HOLDINGS_MAX {
        holdings.push(holding.clone());
    }
}

fn is_ignored_destination(destination: &Destination) -> bool {
    SERVICE_PORTS.contains(&destination.port)
        || (destination.name.is_none() && destination.address.is_loopback())
        || destination.address.is_unspecified()
        || destination.address.is_multicast()
}

#[cfg(test)]
mod tests;
