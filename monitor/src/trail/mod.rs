//! The trail: joins uses and connections into hops.
//!
//! Pure: time and events come in, uses and hops go out. The same code runs live, in `keytrail
//! replay` and in the property tests.
//!
//! # Who holds a credential
//!
//! A process holds what it picked up itself, what came to it through a pipe, and what those above
//! it picked up from files: a script reads a key and starts `curl` with it. It goes up to
//! [`LEVELS`] above, and never across a change of user or of workload. Where none of that gives
//! anything, what another child of the same shell picked up counts: `cat key; curl …`.

mod names;

use crate::model::{
    ANOTHER, Credential, Destination, Evidence, ForeignRead, Gap, Hop, Login, Look, Mint,
    NameSource, Place, Process, Source, Subject, Transport, Untrusted, Use, Workload,
};
use jiff::{SignedDuration, Timestamp};
use names::Names;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

/// How far above a process what it may have been handed is looked for.
const LEVELS: usize = 2;
/// A connection without payload is taken for a hop after this.
const SETTLE: SignedDuration = SignedDuration::from_secs(2);
/// Nodes of the dead are kept this long where somebody below them lives: they stand between those and what those above
/// picked up.
const TOMBSTONE: SignedDuration = SignedDuration::from_secs(120);
/// The dead that left nobody behind are kept this long, and their connections: what was sent on them may be told later.
const ECHO: SignedDuration = SignedDuration::from_secs(10);
/// The dead that left nobody behind, held nothing and connected to nothing: a storm of forks is nothing but such.
const NOTHING: SignedDuration = SignedDuration::from_secs(2);
/// Pipes through which a credential went are remembered, the oldest forgotten first.
const PIPES: usize = 4096;
/// Connections remembered, for what is presented on them later.
const CONNECTIONS: usize = 65_536;
/// Connections remembered of one process, for what is presented on one that is not known.
const CONNECTIONS_OF_ONE: usize = 256;
/// Credentials that one process can hold in the table.
const HOLDINGS: usize = 64;

/// Ports of name and time servers and of address assignment: no hop of a credential, unless it
/// is presented there.
const SERVICE_PORTS: [u16; 9] = [53, 67, 68, 123, 323, 546, 547, 853, 5353];

/// Who did it, as attribution knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    pub subject: Subject,
    pub workload: Workload,
    pub process: Process,
}

/// What the trail is told: observations, attributed and with their credentials. `keytrail
/// record` writes them, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    Fork {
        time: Timestamp,
        subject: Subject,
        parent: Option<Subject>,
    },
    Exec {
        time: Timestamp,
        subject: Subject,
        parent: Option<Subject>,
        /// User and control group: what a credential in memory does not cross.
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
        who: Who,
        credential: Credential,
        place: Place,
        count: u64,
        /// The pipe at the reader's standard output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdout: Option<u64>,
        /// It is the parent's as well, so the parent is not the one that reads from it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        stdout_of_parent: bool,
        /// Whether the reader does so in the course of its duty, and hands it to nobody.
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
        who: Who,
        connection: u64,
        destination: Destination,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdin: Option<u64>,
    },
    /// The first payload of a connection, with the server name where it is a ClientHello.
    Payload {
        time: Timestamp,
        connection: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        destination: Option<NamedBy>,
    },
    /// The connection never came about.
    Refused {
        connection: u64,
    },
    /// The environment or the memory of a process was looked at by another.
    Foreign {
        time: Timestamp,
        who: Who,
        victim: Who,
        look: Look,
    },
    /// The fingerprint of a credential was seen in the bytes of a connection.
    Presented {
        time: Timestamp,
        who: Who,
        /// Absent where it is not known which one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connection: Option<u64>,
        /// The server name that the program asked for, where that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        /// The server's name in the head of the request; [`ANOTHER`] where it is not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        credential: Credential,
        place: Place,
    },
    /// The same outside TLS.
    Clear {
        time: Timestamp,
        connection: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        credential: Credential,
        place: Place,
    },
    /// A credential came back on a connection.
    Minted {
        time: Timestamp,
        connection: u64,
        credential: Credential,
        place: Place,
    },
    /// A name server answered.
    Resolved {
        time: Timestamp,
        /// The name that was asked for, and those that it stands for.
        names: Vec<String>,
        addresses: Vec<IpAddr>,
    },
    /// A workload has a name now, or is not going to have one soon: then both are the same.
    Renamed {
        time: Timestamp,
        old: Workload,
        new: Workload,
    },
    /// A cluster has told what is at addresses to which there are connections already.
    Objects {
        time: Timestamp,
        objects: BTreeMap<IpAddr, String>,
    },
    Gap {
        gap: Gap,
    },
    /// Time passes.
    Tick {
        time: Timestamp,
    },
}

/// What a ClientHello, or the head of a request in clear, adds to a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedBy {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    #[serde(default)]
    pub ech: bool,
    /// From the head of a request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host: bool,
}

/// What comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Use(Box<Use>),
    Hop(Box<Hop>),
    Foreign(Box<ForeignRead>),
    Mint(Box<Mint>),
    /// What was told of the one is of the other.
    Renamed(Box<[Workload; 2]>),
    Gap(Gap),
}

/// A credential in the bytes of a connection.
struct Shown {
    time: Timestamp,
    credential: Credential,
    place: Place,
    /// Absent where it is not known which one.
    connection: Option<u64>,
    clear: bool,
}

/// A credential that somebody holds.
#[derive(Clone, Debug)]
struct Holding {
    credential: Arc<Credential>,
    source: Source,
    usual: bool,
}

#[derive(Clone, Debug, Default)]
struct Node {
    parent: Option<Subject>,
    boundary: Arc<str>,
    shell: bool,
    /// Whether it became another program since it was forked.
    execed: bool,
    own: Vec<Holding>,
    /// What helpers sent up through a pipe.
    piped: Vec<Holding>,
    /// What children picked up without any known way to here.
    children: Vec<Holding>,
    exited: Option<Timestamp>,
    /// As its last connection had it.
    who: Option<Arc<Who>>,
    /// Its last connections.
    connections: VecDeque<u64>,
}

#[derive(Clone, Debug)]
struct Connection {
    time: Timestamp,
    /// Shared by the connections of a process: there are many of them.
    who: Arc<Who>,
    destination: Destination,
    stdin: Option<u64>,
    settled: bool,
    named: bool,
    /// What was presented on it last.
    presented: Option<Arc<Credential>>,
    /// What was told of it as [`Evidence::Sole`], until the same is seen to be presented.
    sole: Option<Arc<Credential>>,
}

/// The state of the trail.
#[derive(Debug, Default)]
pub struct Trail {
    nodes: HashMap<Subject, Node>,
    pipes: HashMap<u64, Vec<Holding>>,
    pipe_order: VecDeque<u64>,
    /// Boxed: the table of a burst is large, and most of it is empty soon after.
    connections: HashMap<u64, Box<Connection>>,
    /// Connections in the order of their beginning.
    order: VecDeque<u64>,
    /// Those that wait for a payload.
    waiting: VecDeque<u64>,
    names: Names,
    /// Payloads of connections that were not known.
    pub unmatched: u64,
}

impl Trail {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in an event; what follows from it is appended.
    pub fn take(&mut self, event: Event, out: &mut Vec<Outcome>) {
        match event {
            Event::Fork {
                subject, parent, ..
            } => self.fork(subject, parent),
            Event::Exec {
                subject,
                parent,
                boundary,
                shell,
                ..
            } => self.exec(subject, parent, &boundary, shell),
            Event::Exit { time, subject } => self.exit(time, subject, out),
            Event::PickUp {
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
                out.push(Outcome::Use(Box::new(Use {
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
            Event::Connect {
                time,
                who,
                connection,
                destination,
                stdin,
            } => self.connect(time, who, connection, destination, stdin, out),
            Event::Payload {
                time,
                connection,
                destination,
            } => self.payload(time, connection, destination, out),
            Event::Refused { connection } => {
                self.connections.remove(&connection);
            }
            Event::Foreign {
                time,
                who,
                victim,
                look,
            } => self.foreign(time, &who, &victim, look, out),
            Event::Presented {
                time,
                who,
                connection,
                server,
                host,
                credential,
                place,
            } => {
                let server = server.as_deref();
                let mut destinations = match self.tied(who.subject, connection, server) {
                    Some(destination) => vec![destination.clone()],
                    None => self.destinations(who.subject, server),
                };
                asked_for(host.as_deref(), &mut destinations);
                if let [_] = destinations[..] {
                    self.note_presented(connection, &credential);
                }
                let shown = Shown {
                    time,
                    credential,
                    place,
                    connection,
                    clear: false,
                };
                self.presented(shown, &who, &destinations, out);
            }
            Event::Clear {
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
                asked_for(host.as_deref(), &mut destinations);
                self.note_presented(Some(connection), &credential);
                let shown = Shown {
                    time,
                    credential,
                    place,
                    connection: Some(connection),
                    clear: true,
                };
                self.presented(shown, &who, &destinations, out);
            }
            Event::Minted {
                time,
                connection,
                credential,
                place,
            } => self.minted(time, connection, credential, place, out),
            Event::Resolved {
                names, addresses, ..
            } => self.names.learn(&names, &addresses),
            Event::Renamed { old, new, .. } => {
                self.rename(&old, &new);
                out.push(Outcome::Renamed(Box::new([old, new])));
            }
            Event::Objects { objects, .. } => {
                for connection in self.connections.values_mut() {
                    let destination = &mut connection.destination;
                    let told = objects.get(&destination.address);
                    if destination.object.is_none() || destination.is_untold() {
                        destination.object = None;
                        told.into_iter()
                            .for_each(|object| destination.take_object(object));
                    }
                }
            }
            Event::Gap { gap } => out.push(Outcome::Gap(gap)),
            Event::Tick { time } => self.tick(time, out),
        }
    }

    fn fork(&mut self, subject: Subject, parent: Option<Subject>) {
        let mut node = Node {
            parent,
            ..Node::default()
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
        // The new program has the environment that it is given, and no memory of the old one's.
        node.own
            .retain(|holding| holding.source != Source::Environment);
    }

    fn exit(&mut self, time: Timestamp, subject: Subject, out: &mut Vec<Outcome>) {
        let Some(node) = self.nodes.get_mut(&subject) else {
            return;
        };
        node.exited = Some(time);
        // Its own list and not that of all who wait: that one is long where there are many connections.
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
            self.settle(id, time, out);
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
        add(&mut node.own, &holding);
        if holding.usual || holding.source == Source::Environment {
            return;
        }
        let parent = node.parent;
        let boundary = Arc::clone(&node.boundary);
        if let Some(pipe) = stdout {
            if !self.pipes.contains_key(&pipe) {
                self.pipe_order.push_back(pipe);
                if self.pipe_order.len() > PIPES
                    && let Some(oldest) = self.pipe_order.pop_front()
                {
                    self.pipes.remove(&oldest);
                }
            }
            add(self.pipes.entry(pipe).or_default(), &holding);
        }
        let Some(above) = parent.and_then(|parent| self.nodes.get_mut(&parent)) else {
            return;
        };
        if above.boundary == boundary {
            if stdout.is_some() && !stdout_of_parent {
                add(&mut above.piped, &holding);
            } else if above.shell {
                add(&mut above.children, &holding);
            }
        }
    }

    fn connect(
        &mut self,
        time: Timestamp,
        who: Who,
        id: u64,
        mut destination: Destination,
        stdin: Option<u64>,
        out: &mut Vec<Outcome>,
    ) {
        // A program may call connect again to learn how a first call went.
        if self.connections.get(&id).is_some_and(|known| {
            known.destination.address == destination.address
                && known.destination.port == destination.port
        }) {
            return;
        }
        if self.order.len() >= CONNECTIONS
            && let Some(oldest) = self.order.pop_front()
        {
            self.connections.remove(&oldest);
        }
        if let Some(name) = self.names.of(destination.address).last() {
            destination.take_name(name, NameSource::Dns);
        }
        let datagram = destination.transport == Transport::Udp;
        let node = self.nodes.entry(who.subject).or_default();
        if node.connections.len() >= CONNECTIONS_OF_ONE {
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
            self.settle(id, time, out);
        } else {
            self.waiting.push_back(id);
        }
    }

    fn payload(
        &mut self,
        time: Timestamp,
        id: u64,
        named: Option<NamedBy>,
        out: &mut Vec<Outcome>,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else {
            self.unmatched += 1;
            return;
        };
        if let Some(named) = named {
            // A name behind a proxy's CONNECT or a STARTTLS comes after the connection settled:
            // that is another destination, reached through the first.
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
                    destination.take_name(&name, source);
                    self.names.dispute(destination);
                }
            }
        }
        self.settle(id, time, out);
    }

    /// The destination of a connection is as well known as it will be: its hops go out.
    fn settle(&mut self, id: u64, time: Timestamp, out: &mut Vec<Outcome>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if std::mem::replace(&mut connection.settled, true) {
            return;
        }
        let connection = connection.clone();
        if is_no_hop(&connection.destination) {
            return;
        }
        let held = self.held(connection.who.subject, connection.stdin);
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
            out.push(Outcome::Hop(Box::new(Hop {
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

    /// Whether what is presented there now was told of the connection as [`Evidence::Sole`]; only once. Where the
    /// connection is not known, it is one of the process to the same place.
    fn was_told(
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

    /// A credential came back: its receiver holds it, and this is how it got it.
    fn minted(
        &mut self,
        time: Timestamp,
        connection: u64,
        credential: Credential,
        place: Place,
        out: &mut Vec<Outcome>,
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
        out.push(Outcome::Mint(Box::new(Mint {
            time,
            workload: who.workload.clone(),
            process: who.process.clone(),
            authenticator,
            // A renewal gives back what was shown.
            presented: presented.filter(|shown| shown.id != credential.id),
            minted: Some(credential),
        })));
    }

    /// Whoever is called something else is so for what comes later too.
    fn rename(&mut self, old: &Workload, new: &Workload) {
        // Connections of one process go on sharing what is known of it.
        let mut renamed: HashMap<*const Who, Arc<Who>> = HashMap::new();
        let known = self.nodes.values_mut().filter_map(|node| node.who.as_mut());
        let connected = self
            .connections
            .values_mut()
            .map(|connection| &mut connection.who);
        for who in known.chain(connected) {
            if who.workload == *old {
                let new = renamed.entry(Arc::as_ptr(who)).or_insert_with(|| {
                    Arc::new(Who {
                        workload: new.clone(),
                        ..(**who).clone()
                    })
                });
                *who = Arc::clone(new);
            }
        }
    }

    /// What the victim holds is in the hands of the one who looked.
    fn foreign(
        &mut self,
        time: Timestamp,
        who: &Who,
        victim: &Who,
        look: Look,
        out: &mut Vec<Outcome>,
    ) {
        let held = self.held(victim.subject, None);
        let evidence = evidence_of(&held);
        let ancestor = self.is_above(who.subject, victim.subject);
        for holding in held {
            out.push(Outcome::Foreign(Box::new(ForeignRead {
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
            add(&mut node.own, &holding);
        }
    }

    /// Whether one may use the other's sockets: the same process, or an ancestor.
    fn are_kin(&self, one: Subject, other: Subject) -> bool {
        one == other || self.is_above(one, other) || self.is_above(other, one)
    }

    /// Whether the first is an ancestor of the second.
    fn is_above(&self, ancestor: Subject, subject: Subject) -> bool {
        let mut above = self.nodes.get(&subject).and_then(|node| node.parent);
        // A chain of parents is as deep as it is; a bound in case the numbers were to lie.
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
        shown: Shown,
        who: &Who,
        destinations: &[Destination],
        out: &mut Vec<Outcome>,
    ) {
        let Shown {
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
            let again = self.was_told(connection, who.subject, &credential, destination);
            out.push(Outcome::Hop(Box::new(Hop {
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

    /// Where a connection goes, if it can be the one on which a process presented something: no
    /// stranger's, and none on which another server was asked for.
    fn tied(
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

    /// Where the connections of a process go over TCP, each place once; only those of a server name
    /// where there are such.
    fn destinations(&self, subject: Subject, server: Option<&str>) -> Vec<Destination> {
        let mut found: Vec<Destination> = Vec::new();
        let own = self.nodes.get(&subject).map(|node| &node.connections);
        let own = own.into_iter().flatten();
        for connection in own.filter_map(|id| self.connections.get(id)) {
            let destination = &connection.destination;
            // The number of a socket may be another's by now.
            if connection.who.subject == subject
                && destination.transport == Transport::Tcp
                && !found.contains(destination)
            {
                found.push(destination.clone());
            }
        }
        // Something is presented to a name server only where it can have been presented to nobody else.
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
    fn held(&self, subject: Subject, stdin: Option<u64>) -> Vec<Holding> {
        let mut held: BTreeMap<String, Holding> = BTreeMap::new();
        let mut hold = |holdings: &[Holding], all: bool| {
            for holding in holdings {
                if all || (holding.source != Source::Environment && !holding.usual) {
                    held.entry(holding.credential.id.0.clone())
                        .or_insert_with(|| holding.clone());
                }
            }
        };
        if let Some(holdings) = stdin.and_then(|pipe| self.pipes.get(&pipe)) {
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
            if lineage.len() == LEVELS || parent.boundary != node.boundary {
                break;
            }
            // A fork that runs no other program has its parent's memory, environment included.
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

    fn tick(&mut self, now: Timestamp, out: &mut Vec<Outcome>) {
        while let Some(id) = self.waiting.front().copied() {
            match self.connections.get(&id) {
                // One of a time to come is of a clock that was set back since.
                Some(connection)
                    if !connection.settled
                        && connection.time <= now
                        && now.duration_since(connection.time) < SETTLE =>
                {
                    break;
                }
                _ => {
                    self.waiting.pop_front();
                    self.settle(id, now, out);
                }
            }
        }
        // The dead are of use to those below them only.
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
                    TOMBSTONE
                } else if node.connections.is_empty() && node.own.is_empty() {
                    NOTHING
                } else {
                    ECHO
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
        // What a burst took is given back.
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

/// A use that is known from a connection.
fn used(time: Timestamp, who: &Who, credential: &Credential, place: Place) -> Outcome {
    Outcome::Use(Box::new(Use {
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

/// The head of a request names its server. Where the name is another one than that of the connection,
/// the connection was made for somebody else, or leads through a proxy.
fn asked_for(host: Option<&str>, destinations: &mut [Destination]) {
    let Some(host) = host else { return };
    for destination in destinations {
        let outer = destination.ech || destination.name_source == NameSource::HttpHost;
        if outer && host != ANOTHER {
            // The name of an encrypted ClientHello is an outer one; a proxy is told one name after
            // the other.
            destination.name = Some(host.to_owned());
            destination.name_source = NameSource::HttpHost;
        } else if destination.ech {
            // What it was encrypted for is not known.
        } else if host != ANOTHER || destination.name_source == NameSource::Sni {
            destination.take_name(host, NameSource::HttpHost);
        }
    }
}

/// Adds a holding unless the credential is there already.
fn add(holdings: &mut Vec<Holding>, holding: &Holding) {
    let known = holdings
        .iter()
        .any(|known| known.credential.id == holding.credential.id);
    if !known && holdings.len() < HOLDINGS {
        holdings.push(holding.clone());
    }
}

fn is_no_hop(destination: &Destination) -> bool {
    SERVICE_PORTS.contains(&destination.port)
        || (destination.name.is_none() && destination.address.is_loopback())
        || destination.address.is_unspecified()
        || destination.address.is_multicast()
}

#[cfg(test)]
mod tests;
