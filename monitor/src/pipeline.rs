//! From observation to outcome: attribution, credential, trail, policy, in one direction, by one
//! owner. What comes out goes to the ledger, the metrics and the stream of findings.

use crate::{
    attribution::{Attribution, names::Renamed},
    credential::{Credentials, Opened, Variable, View},
    ledger::{Entry, Writer},
    model::{
        ANOTHER, Destination, Evidence, Finding, Gap, Look, Mint, NOT_COVERED, NameSource, Place,
        Source, Subject, Transport, Use, Workload,
    },
    policy::{Judged, Policy, document::Document},
    recent::Recent,
    report::{findings::Stream, metrics::Metrics},
    sensor::{
        dns::Resolved,
        observation::{FileId, Manner, Observation, Output, Stamp},
        running,
    },
    trail::{Event, NamedBy, Outcome, Trail, Who},
};
use jiff::{SignedDuration, Timestamp};
use monitor_common::record::Probe;
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fs::File,
    io::{self, BufWriter, Write as _},
    net::IpAddr,
    sync::Arc,
};

/// Who turns observations into events for the trail.
#[derive(Debug)]
pub struct Joiner {
    pub attribution: Attribution,
    pub credentials: Credentials,
    /// What a file and process had when it was last reported, for counts that come later.
    reads: HashMap<(Subject, u32, u64), Reads>,
    read_order: VecDeque<(Subject, u32, u64)>,
    /// Files whose opens are to be reported, or not, whatever their name.
    pub learned: Vec<FileId>,
    pub ignored: Vec<FileId>,
    /// Places became a credential's since the kernel's filter was told.
    pub pointed: bool,
    /// Payloads that began like a ClientHello and did not parse.
    pub malformed: u64,
    /// No probe takes the environment of an exec: it is read here.
    pub environ_is_read: bool,
    /// Names of servers, by their fingerprint.
    servers: Recent<u64, String>,
    /// The agent's own number.
    pub own: u32,
    /// What was presented and waits to be told on which socket, by its write.
    presented: BTreeMap<u64, Vec<Waiting>>,
    /// Addresses at which a cluster had nothing, as far as it had told, when they were connected to.
    unknown: HashMap<IpAddr, Timestamp>,
    /// The cluster had not told everything.
    untold: bool,
}

/// The credentials in a file, and its place: shared by all who read it.
type Reads = Arc<(Vec<crate::model::Credential>, Place)>;

/// What was presented, but for where.
#[derive(Debug)]
struct Waiting {
    /// Fingerprint of the server name that the program gave the TLS object.
    server: Option<u64>,
    /// Fingerprint of the server's name in the head of the request.
    host: Option<u64>,
    time: Timestamp,
    who: Who,
    credential: crate::model::Credential,
    place: Place,
}

/// A packet leaves with the write, or not at all: no longer than this.
const ON_ITS_WAY: jiff::SignedDuration = jiff::SignedDuration::from_millis(250);
/// A cluster tells of a new object within this.
const TOLD_WITHIN: SignedDuration = SignedDuration::from_secs(10);
/// Addresses remembered for that.
const UNKNOWN: usize = 4096;
/// Server names remembered.
const SERVERS: usize = 16_384;

/// Reads remembered for their repeats.
const READS: usize = 16_384;

const SHELLS: [&str; 9] = [
    "sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "mksh", "busybox",
];

impl Joiner {
    pub fn new(attribution: Attribution, credentials: Credentials) -> Self {
        Self {
            attribution,
            credentials,
            reads: HashMap::new(),
            read_order: VecDeque::new(),
            learned: Vec::new(),
            ignored: Vec::new(),
            pointed: false,
            malformed: 0,
            environ_is_read: false,
            servers: Recent::new(SERVERS),
            own: 0,
            presented: BTreeMap::new(),
            unknown: HashMap::new(),
            untold: false,
        }
    }

    /// Events for what was presented and will not be told where any more. To be called after each
    /// batch, with the time until which everything has been read: what a busy agent has not read yet
    /// may say where.
    pub fn give_up(&mut self, read_until: Timestamp, events: &mut Vec<Event>) {
        while let Some(entry) = self.presented.first_entry() {
            let late = entry
                .get()
                .first()
                // A clock may step back: nothing waits for that.
                .is_none_or(|first| read_until.duration_since(first.time).abs() > ON_ITS_WAY);
            if !late {
                return;
            }
            for waiting in entry.remove() {
                let event = self.told(waiting, None);
                events.push(event);
            }
        }
    }

    /// The server name that the program gave its TLS object, where it was seen in a ClientHello.
    fn server(&mut self, waiting: &Waiting) -> Option<String> {
        self.server_of(waiting.server?)
    }

    /// The event of what was presented, and on which connection.
    fn told(&mut self, mut waiting: Waiting, connection: Option<u64>) -> Event {
        // It may have been named while it waited, and nobody renames it after this.
        if waiting.who.workload.partial {
            let now = self.attribution.workload(waiting.who.subject);
            if now.is_contained() && !now.is_unnamed() {
                waiting.who.workload = now;
            }
        }
        Event::Presented {
            server: self.server(&waiting),
            host: self.host(waiting.host),
            time: waiting.time,
            who: waiting.who,
            connection,
            credential: waiting.credential,
            place: waiting.place,
        }
    }

    fn destination(
        &mut self,
        time: Timestamp,
        address: IpAddr,
        port: u16,
        transport: Transport,
    ) -> Destination {
        let destination = Destination::unnamed(address, port, transport)
            .with_object(self.attribution.object_at(address));
        let unknown = destination.object.is_none() || destination.is_untold();
        if unknown
            && self.attribution.objects_are_told().is_some()
            && (self.unknown.len() < UNKNOWN || self.unknown.contains_key(&address))
        {
            self.untold |= destination.is_untold();
            self.unknown.insert(address, time);
        }
        destination
    }

    /// An event for what a cluster has told since of addresses that were connected to.
    pub fn objects(&mut self, time: Timestamp, events: &mut Vec<Event>) {
        if self.unknown.is_empty() || self.attribution.objects_are_told() != Some(true) {
            return;
        }
        let mut objects = BTreeMap::new();
        self.unknown.retain(|address, since| {
            if let Some(object) = self.attribution.object_at(*address) {
                objects.insert(*address, object);
                return false;
            }
            time.duration_since(*since).abs() < TOLD_WITHIN
        });
        if !objects.is_empty() || std::mem::take(&mut self.untold) {
            events.push(Event::Objects { time, objects });
        }
    }

    fn server_of(&mut self, fingerprint: u64) -> Option<String> {
        self.servers.get(&fingerprint).cloned()
    }

    /// The server's name in the head of a request.
    fn host(&mut self, fingerprint: Option<u64>) -> Option<String> {
        let name = self.server_of(fingerprint?);
        Some(name.unwrap_or_else(|| ANOTHER.to_owned()))
    }

    /// Remembers a name for when its fingerprint is told.
    fn note_server(&mut self, name: &str) {
        // A request may name it with the dot of the root.
        for said in [name, &format!("{name}.")] {
            let fingerprint = self.credentials.print_of(said);
            self.servers.insert(fingerprint, name.to_owned());
        }
    }

    /// Events for what already runs: its processes, their environments, the credential files that
    /// they have open, and their connections.
    pub fn adopt(&mut self, now: Timestamp) -> Vec<Event> {
        let mut events = Vec::new();
        let subjects = self.attribution.scan();
        for subject in &subjects {
            events.push(self.exec_event(now, *subject));
        }
        let mut connections = running::Connections::default();
        for subject in subjects {
            if subject.pid == self.own {
                continue;
            }
            for (credential, place) in self.credentials.in_running(subject.pid) {
                events.push(self.pick_up(now, subject, credential, place, 1, Output::default()));
            }
            self.follow(subject, &[]);
            // Only what is a credential's: the rest is no news, and is not touched.
            let open = running::open(subject.pid, |path| self.credentials.is_place(path));
            for (path, file) in open.files {
                let opened = Opened {
                    path: &path,
                    source: None,
                    file,
                    known: false,
                };
                let stamp = self.attribution.stamp(subject, now);
                self.file(
                    &stamp,
                    opened,
                    Manner::Opened,
                    1,
                    Output::default(),
                    &mut events,
                );
            }
            for (inode, to) in connections.of(subject.pid, &open.sockets) {
                events.push(Event::Connect {
                    time: now,
                    who: self.who(subject),
                    // No cookie is so large.
                    connection: inode | 1 << 63,
                    destination: self.destination(now, to.address, to.port, to.transport),
                    stdin: None,
                });
            }
        }
        events
    }

    /// Events for a batch of observations, in their order.
    pub fn join(&mut self, observations: &mut Vec<Observation>, events: &mut Vec<Event>) {
        let mut rest: VecDeque<Observation> = observations.drain(..).collect();
        while let Some(observation) = rest.pop_front() {
            if self.is_of_peer(&observation) {
                continue;
            }
            match observation {
                Observation::Exec {
                    stamp,
                    exe,
                    unlinked,
                    ..
                } => {
                    self.attribution.exec(&stamp, &exe, unlinked);
                    events.push(self.exec_event(stamp.time, stamp.subject));
                    if self.environ_is_read {
                        let subject = stamp.subject;
                        for (credential, place) in self.credentials.in_running(subject.pid) {
                            let event = self.pick_up(
                                stamp.time,
                                subject,
                                credential,
                                place,
                                1,
                                Output::default(),
                            );
                            events.push(event);
                        }
                        self.follow(subject, &[]);
                    }
                }
                Observation::Fork { stamp } => {
                    self.attribution.fork(&stamp);
                    events.push(Event::Fork {
                        time: stamp.time,
                        subject: stamp.subject,
                        parent: stamp.parent,
                    });
                }
                Observation::Exit { stamp } => {
                    self.attribution.exit(&stamp);
                    events.push(Event::Exit {
                        time: stamp.time,
                        subject: stamp.subject,
                    });
                }
                Observation::FileOpened {
                    stamp,
                    path,
                    source,
                    file,
                    known,
                    manner,
                    count,
                    output,
                } => {
                    let opened = Opened {
                        path: &path,
                        source: source.as_deref(),
                        file,
                        known,
                    };
                    self.file(&stamp, opened, manner, count, output, events);
                }
                Observation::Foreign {
                    stamp,
                    target,
                    look,
                } => {
                    self.attribution.ensure(&stamp);
                    let victim = self
                        .attribution
                        .target(stamp.subject, target)
                        .filter(|victim| *victim != stamp.subject);
                    let Some(victim) = victim else { continue };
                    if victim.pid == self.own {
                        // Whoever lists processes reads environments.
                        if look != Look::Environ {
                            events.push(self.tampered(&stamp, look));
                        }
                    } else {
                        events.push(Event::Foreign {
                            time: stamp.time,
                            who: self.who(stamp.subject),
                            victim: self.who(victim),
                            look,
                        });
                    }
                }
                Observation::Presented {
                    stamp,
                    write,
                    server,
                    host,
                    shown,
                } => {
                    self.attribution.ensure(&stamp);
                    let (mut credential, place) = self.credentials.presented(shown);
                    self.bring_home(&mut credential);
                    let waiting = Waiting {
                        server,
                        host,
                        time: stamp.time,
                        who: self.who(stamp.subject),
                        credential,
                        place,
                    };
                    self.presented.entry(write).or_default().push(waiting);
                }
                Observation::Clear {
                    time,
                    cookie,
                    host,
                    shown,
                } => {
                    let (mut credential, place) = self.credentials.presented(shown);
                    self.bring_home(&mut credential);
                    events.push(Event::Clear {
                        time,
                        connection: cookie,
                        host: self.host(host),
                        credential,
                        place,
                    });
                }
                Observation::Minted { .. } => {
                    rest.push_front(observation);
                    self.minted(&mut rest, events);
                }
                Observation::Host { time, cookie, name } => {
                    if let Some(name) = &name {
                        self.note_server(name);
                    }
                    events.push(Event::Payload {
                        time,
                        connection: cookie,
                        destination: name.map(|name| NamedBy {
                            server_name: Some(name),
                            ech: false,
                            host: true,
                        }),
                    });
                }
                Observation::Answer { time, resolved } => {
                    if let Some(Resolved { names, addresses }) = resolved {
                        for name in &names {
                            self.note_server(name);
                        }
                        events.push(Event::Resolved {
                            time,
                            names,
                            addresses,
                        });
                    }
                }
                Observation::Withdrawn { write } => {
                    self.presented.remove(&write);
                }
                Observation::Tied { write, cookie } => {
                    for waiting in self.presented.remove(&write).unwrap_or_default() {
                        let event = self.told(waiting, Some(cookie));
                        events.push(event);
                    }
                }
                Observation::Refused { cookie, .. } => {
                    events.push(Event::Refused { connection: cookie });
                }
                Observation::FileRepeated {
                    time,
                    subject,
                    device,
                    inode,
                    count,
                } => {
                    let known = self.reads.get(&(subject, device, inode)).cloned();
                    let Some(known) = known else { continue };
                    let (credentials, place) = &*known;
                    for credential in credentials {
                        let event = self.pick_up(
                            time,
                            subject,
                            credential.clone(),
                            place.clone(),
                            u64::from(count),
                            Output::default(),
                        );
                        events.push(event);
                    }
                }
                Observation::Variable { .. } => {
                    rest.push_front(observation);
                    self.variables(&mut rest, events);
                }
                Observation::Connected {
                    stamp,
                    cookie,
                    address,
                    port,
                    transport,
                    stdin,
                } => {
                    self.attribution.ensure(&stamp);
                    events.push(Event::Connect {
                        time: stamp.time,
                        who: self.who(stamp.subject),
                        connection: connection_id(cookie, transport, &stamp, port),
                        destination: self.destination(stamp.time, address, port, transport),
                        stdin,
                    });
                }
                Observation::Payload {
                    time,
                    cookie,
                    hello,
                    malformed,
                } => {
                    self.malformed += u64::from(malformed);
                    if let Some(name) = hello.as_ref().and_then(|hello| hello.server_name.clone()) {
                        self.note_server(&name);
                    }
                    events.push(Event::Payload {
                        time,
                        connection: cookie,
                        destination: hello.map(|hello| NamedBy {
                            server_name: hello.server_name,
                            ech: hello.ech,
                            host: false,
                        }),
                    });
                }
            }
        }
    }

    /// Whether another agent has read something, as is its duty.
    fn is_of_peer(&mut self, observation: &Observation) -> bool {
        match observation {
            Observation::FileOpened { stamp, .. } | Observation::Foreign { stamp, .. } => {
                self.attribution.ensure(stamp);
                self.attribution.is_agent(stamp.subject)
            }
            _ => false,
        }
    }

    /// A gap for a look into the agent's own memory: what it says since is not to be relied on.
    fn tampered(&self, stamp: &Stamp, look: Look) -> Event {
        let who = self.who(stamp.subject);
        let how = match look {
            Look::Trace => "traced the agent",
            Look::Environ | Look::Memory => "opened the memory of the agent",
        };
        Event::Gap {
            gap: Gap {
                kind: "agent-tampered".to_owned(),
                probe: None,
                detail: format!(
                    "{} ({}, uid {}) {how}",
                    who.workload.key(),
                    who.process.exe,
                    who.process.uid
                ),
                since: stamp.time,
                until: Some(stamp.time),
                count: 0,
                blind: true,
            },
        }
    }

    fn exec_event(&self, time: Timestamp, subject: Subject) -> Event {
        let entry = self.attribution.entry(subject);
        let exe = entry.map(|entry| Arc::clone(&entry.exe));
        let name = exe
            .as_deref()
            .and_then(|exe| exe.rsplit('/').next())
            .unwrap_or_default();
        Event::Exec {
            time,
            subject,
            parent: entry.and_then(|entry| entry.parent),
            boundary: entry.map_or_else(String::new, |entry| {
                format!("{} {}", entry.uid, entry.group.path)
            }),
            shell: SHELLS.contains(&name),
        }
    }

    fn file(
        &mut self,
        stamp: &Stamp,
        opened: Opened<'_>,
        manner: Manner,
        count: u32,
        output: Output,
        events: &mut Vec<Event>,
    ) {
        let Opened {
            path, source, file, ..
        } = opened;
        self.attribution.ensure(stamp);
        let subject = stamp.subject;
        if manner == Manner::Written {
            if self.credentials.written(path, source, file) {
                self.learned.push(file);
            }
            return;
        }
        if manner == Manner::Connected {
            let container = self
                .attribution
                .entry(subject)
                .and_then(|entry| entry.group.container.as_deref())
                .unwrap_or_default();
            if let Some((credential, place)) = self.credentials.at_socket(path, container) {
                let event = self.pick_up(
                    stamp.time,
                    subject,
                    credential,
                    place,
                    u64::from(count),
                    output,
                );
                events.push(event);
            }
            return;
        }
        // Below its own parent it is the parent's file still: the trail knows.
        if manner == Manner::Inherited && self.attribution.is_with_parent(subject) {
            return;
        }
        let container = self.container_of(subject);
        let view = View {
            pid: subject.pid,
            // On the host the path can be followed without anybody's help.
            peer: (!container.is_empty())
                .then(|| self.attribution.peer(subject))
                .flatten(),
            container: &container,
        };
        let Some(mut found) = self.credentials.in_file(opened, view) else {
            // What the probe knows as a credential's stays one, whatever it looks like now.
            if !opened.known {
                self.ignored.push(file);
            }
            return;
        };
        found.place.source = match manner {
            Manner::Received => Source::Socket,
            Manner::Inherited => Source::Inherited,
            Manner::Opened | Manner::Written | Manner::Connected => Source::File,
        };
        self.learned.push(file);
        let key = (subject, file.device, file.inode);
        let known = Arc::new((found.credentials.clone(), found.place.clone()));
        if self.reads.insert(key, known).is_none() {
            self.read_order.push_back(key);
            if self.read_order.len() > READS
                && let Some(oldest) = self.read_order.pop_front()
            {
                self.reads.remove(&oldest);
            }
        }
        for credential in found.credentials {
            let mut event = self.pick_up(
                stamp.time,
                subject,
                credential,
                found.place.clone(),
                u64::from(count),
                output,
            );
            if let Event::PickUp {
                volume_of,
                home,
                modified,
                ..
            } = &mut event
            {
                if let Some(uid) = &found.volume_of {
                    *home = self.attribution.of_pod(uid).map(Box::new);
                    *volume_of = Some(uid.clone());
                }
                *modified = found.modified;
            }
            events.push(event);
        }
    }

    /// Learns where the environment of a process says that credentials are.
    fn follow(&mut self, subject: Subject, values: &[u64]) {
        let container = self.container_of(subject);
        let found = self.credentials.follow(subject.pid, &container, values);
        let Some((files, is_new)) = found else { return };
        self.learned.extend(files);
        self.pointed |= is_new;
    }

    /// The container of a process; empty on the host.
    fn container_of(&self, subject: Subject) -> String {
        let entry = self.attribution.entry(subject);
        entry
            .and_then(|entry| entry.group.container.clone())
            .unwrap_or_default()
    }

    /// The variables of one exec belong together: an AWS key pair is in two or three of them.
    fn variables(&mut self, rest: &mut VecDeque<Observation>, events: &mut Vec<Event>) {
        let mut gathered: Vec<Variable> = Vec::new();
        let mut whose: Option<Stamp> = None;
        let same = |stamp: &Stamp, whose: &Option<Stamp>| {
            whose
                .as_ref()
                .is_none_or(|whose| whose.subject == stamp.subject)
        };
        while let Some(Observation::Variable { stamp, .. }) = rest.front()
            && same(stamp, &whose)
            && let Some(Observation::Variable {
                stamp,
                name,
                fingerprint,
                secret_len,
                prefix,
                dots,
                url,
            }) = rest.pop_front()
        {
            whose = Some(stamp);
            gathered.push(Variable {
                name,
                fingerprint,
                secret_len,
                prefix,
                dots,
                url,
            });
        }
        let Some(stamp) = whose else { return };
        self.attribution.ensure(&stamp);
        let container = self.container_of(stamp.subject);
        let values: Vec<u64> = gathered
            .iter()
            .filter_map(|variable| self.credentials.points(variable, &container))
            .collect();
        if !values.is_empty() {
            self.follow(stamp.subject, &values);
        }
        for (credential, place) in self.credentials.in_environment(&gathered) {
            let event = self.pick_up(
                stamp.time,
                stamp.subject,
                credential,
                place,
                1,
                Output::default(),
            );
            events.push(event);
        }
    }

    /// What is in one answer belongs together.
    fn minted(&mut self, rest: &mut VecDeque<Observation>, events: &mut Vec<Event>) {
        let mut answer = Vec::new();
        let mut of = None;
        while let Some(Observation::Minted {
            time,
            cookie,
            shown,
        }) = rest.front()
            && of.is_none_or(|of| of == (*time, *cookie))
        {
            of = Some((*time, *cookie));
            answer.push(*shown);
            rest.pop_front();
        }
        let Some((time, connection)) = of else { return };
        for (credential, place) in self.credentials.minted(&answer) {
            events.push(Event::Minted {
                time,
                connection,
                credential,
                place,
            });
        }
    }

    /// Events for workloads that have been named meanwhile.
    pub fn rename(&mut self, time: Timestamp, events: &mut Vec<Event>) {
        let renamed = self.attribution.renamed();
        events.extend(
            renamed
                .into_iter()
                .map(|Renamed { old, new }| Event::Renamed { time, old, new }),
        );
    }

    fn pick_up(
        &mut self,
        time: Timestamp,
        subject: Subject,
        mut credential: crate::model::Credential,
        place: Place,
        count: u64,
        output: Output,
    ) -> Event {
        let login = self.attribution.login(subject);
        let entry = self.attribution.entry(subject);
        let usual = entry.is_some_and(|entry| {
            self.credentials
                .catalog()
                .is_usual(&credential.class, &entry.exe)
        });
        let pod_uid = entry.and_then(|entry| entry.group.pod_uid.clone());
        let given = place.source != Source::File
            || usual
            || self.attribution.is_mounted(subject, &place.place);
        let untrusted = self.attribution.untrusted(subject);
        let home = self.bring_home(&mut credential).map(Box::new);
        Event::PickUp {
            time,
            who: self.who(subject),
            credential,
            count,
            stdout: output.pipe,
            stdout_of_parent: output.of_parent,
            usual: usual && place.source == Source::File,
            place,
            login,
            volume_of: None,
            home,
            pod_uid,
            modified: None,
            untrusted,
            given,
        }
    }

    /// Says what the pod belongs to that a credential was issued to; gives that workload.
    fn bring_home(&self, credential: &mut crate::model::Credential) -> Option<Workload> {
        let issued = credential.issued_to.as_mut()?;
        let home = self.attribution.of_pod(&issued.pod_uid)?;
        issued.workload = Some(home.name.clone());
        issued.kind = Some(home.kind);
        Some(home)
    }

    fn who(&self, subject: Subject) -> Who {
        Who {
            subject,
            workload: self.attribution.workload(subject),
            process: self.attribution.process(subject),
        }
    }
}

/// A TCP connection is its socket; a UDP socket sends to many places.
fn connection_id(cookie: u64, transport: Transport, stamp: &Stamp, port: u16) -> u64 {
    match transport {
        Transport::Tcp => cookie,
        Transport::Udp => {
            cookie ^ u64::from(port).rotate_left(40) ^ (stamp.time.as_microsecond() as u64) << 1
        }
    }
}

/// What takes the outcomes.
#[derive(Debug)]
pub struct Sinks {
    pub ledger: Option<Writer>,
    pub metrics: Arc<Metrics>,
    pub stream: Stream,
    /// Where events are recorded for a replay.
    pub record: Option<BufWriter<File>>,
}

/// Uses and mintings that wait for a name at most, and workloads without one that are remembered.
const HELD: usize = 4096;
/// What can be judged without a name waits for one no longer.
const NAMED_WITHIN: SignedDuration = SignedDuration::from_secs(5);
/// What cannot is told as doubtful after this: names are asked for about as long.
const IN_DOUBT: SignedDuration = SignedDuration::from_mins(11);

/// What is judged by who did it.
#[derive(Debug)]
enum Deed {
    Use(Box<Use>),
    Mint(Box<Mint>),
}

impl Deed {
    fn workload(&mut self) -> &mut Workload {
        match self {
            Self::Use(used) => &mut used.workload,
            Self::Mint(mint) => &mut mint.workload,
        }
    }

    fn time(&self) -> Timestamp {
        match self {
            Self::Use(used) => used.time,
            Self::Mint(mint) => mint.time,
        }
    }
}

/// The trail, the policy, and where their outcomes go.
#[derive(Debug)]
pub struct Judge {
    pub trail: Trail,
    pub policy: Policy,
    pub sinks: Sinks,
    /// Processes that talk to an authenticator, since they were last taken.
    pub asking: Vec<u32>,
    /// What workloads did that are going to be named in a moment.
    held: VecDeque<Deed>,
    /// What hangs on a name that was not told in a moment.
    doubtful: VecDeque<Deed>,
    /// Workloads that nobody knows a name of.
    nameless: HashSet<Workload>,
    /// The last gaps, for findings near them.
    gaps: VecDeque<Gap>,
    /// Whether now is the time of the events: in a replay it is not.
    pub live: bool,
}

/// Gaps that are remembered.
const GAPS: usize = 16;

impl Judge {
    pub fn new(policy: Policy, sinks: Sinks, live: bool) -> Self {
        Self {
            trail: Trail::new(),
            policy,
            sinks,
            asking: Vec::new(),
            held: VecDeque::new(),
            doubtful: VecDeque::new(),
            nameless: HashSet::new(),
            gaps: VecDeque::new(),
            live,
        }
    }

    /// Takes in events, and sends on what follows.
    pub fn take(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let mut outcomes = Vec::new();
        for event in events.drain(..) {
            if let Some(record) = &mut self.sinks.record {
                serde_json::to_writer(&mut *record, &event)?;
                record.write_all(b"\n")?;
            }
            if let Event::Tick { time } = &event {
                self.judge_held(*time);
            }
            self.trail.take(event, &mut outcomes);
            for outcome in outcomes.drain(..) {
                self.judge(outcome);
            }
        }
        if let Some(record) = &mut self.sinks.record {
            record.flush()?;
        }
        Ok(())
    }

    fn judge(&mut self, outcome: Outcome) {
        let (time, found) = match outcome {
            Outcome::Use(mut used) => {
                self.policy.name(&mut used.credential);
                self.sinks.metrics.used(&used);
                let time = used.time;
                self.sinks.write(Entry::Use(used.clone()));
                self.judge_when_named(Deed::Use(used));
                (time, Vec::new())
            }
            Outcome::Hop(mut hop) => {
                self.policy.name(&mut hop.credential);
                let (verdict, found) = self.policy.judge_hop(&hop);
                self.sinks.metrics.hop(&hop, verdict);
                let time = hop.time;
                // In clear, what comes back is seen anyway.
                let inside_tls = hop.destination.name_source == NameSource::Sni
                    || hop.evidence == Evidence::Presented && !hop.clear;
                if self.live && inside_tls && self.policy.is_authenticator(&hop.destination) {
                    self.asking.push(hop.process.pid);
                }
                if let Some(mint) = self.policy.proof(&hop) {
                    self.sinks.write(Entry::Mint(Box::new(mint)));
                }
                self.sinks.write(Entry::Hop(hop, verdict));
                (time, found)
            }
            Outcome::Foreign(mut read) => {
                self.policy.name(&mut read.credential);
                let found = self.policy.judge_foreign(&read);
                (read.time, found.into_iter().collect())
            }
            Outcome::Mint(mut mint) => {
                self.policy.name_mint(&mut mint);
                let time = mint.time;
                self.sinks.write(Entry::Mint(mint.clone()));
                self.judge_when_named(Deed::Mint(mint));
                (time, Vec::new())
            }
            Outcome::Renamed(both) => {
                self.rename(*both);
                return;
            }
            Outcome::Gap(gap) => {
                self.note_gap(&gap);
                let found = self.policy.judge_gap(&gap);
                self.tell(found.into_iter().collect());
                self.sinks.write(Entry::Gap(Box::new(gap)));
                return;
            }
        };
        self.tell(found);
        if self.live {
            let latency = Timestamp::now().duration_since(time).as_secs_f64();
            self.sinks.metrics.latency.observe(latency.max(0.0));
        }
    }

    fn tell(&mut self, found: Vec<Finding>) {
        for mut finding in found {
            self.sinks.metrics.found(&finding);
            if finding.gaps.is_empty() {
                let near = |gap: &&Gap| gap.touches(finding.time, finding.time);
                finding.gaps = self.gaps.iter().filter(near).cloned().collect();
            }
            let finding = self.sinks.stream.take(finding);
            self.sinks.write(Entry::Finding(Box::new(finding)));
        }
    }

    /// Remembers a gap, for the findings that it touches.
    fn note_gap(&mut self, gap: &Gap) {
        if gap.kind == NOT_COVERED {
            return;
        }
        if self.gaps.len() >= GAPS {
            self.gaps.pop_front();
        }
        self.gaps.push_back(gap.clone());
    }

    /// What was stored is given its name, and what waited for it is judged.
    fn rename(&mut self, [old, new]: [Workload; 2]) {
        if old == new {
            if self.nameless.len() >= HELD {
                self.nameless.clear();
            }
            self.nameless.insert(old.clone());
        } else {
            self.policy.rename(&old, &new);
            self.sinks.metrics.rename(&old, &new);
            self.sinks
                .write(Entry::Renamed(Box::new([old.clone(), new.clone()])));
        }
        for mut deed in take_of(&mut self.held, &old) {
            deed.workload().clone_from(&new);
            if new.partial && old != new {
                self.held.push_back(deed);
            } else {
                self.judge_deed(deed);
            }
        }
        for mut deed in take_of(&mut self.doubtful, &old) {
            deed.workload().clone_from(&new);
            self.judge_doer(deed);
        }
    }

    /// Whether somebody may is judged by his name, and that may come in a moment.
    fn judge_when_named(&mut self, mut deed: Deed) {
        let workload = deed.workload();
        if workload.partial && !self.nameless.contains(workload) && self.held.len() < HELD {
            self.held.push_back(deed);
        } else {
            self.judge_deed(deed);
        }
    }

    fn judge_deed(&mut self, deed: Deed) {
        if let Deed::Use(used) = &deed {
            let found = self.policy.judge_use(used);
            self.tell(found);
        }
        self.judge_doer(deed);
    }

    fn judge_doer(&mut self, deed: Deed) {
        match self.judged(&deed) {
            Judged::Fine => {}
            Judged::Breaks(found) => self.tell(vec![found]),
            Judged::Doubtful(_) => {
                self.doubtful.push_back(deed);
                if self.doubtful.len() > HELD {
                    self.tell_doubtful(Timestamp::MIN, 1);
                }
            }
        }
    }

    fn judged(&self, deed: &Deed) -> Judged {
        match deed {
            Deed::Use(used) => self.policy.judge_reader(used),
            Deed::Mint(mint) => self.policy.judge_mint(mint),
        }
    }

    /// Tells what was in doubt since before a time, and at least so many of it.
    fn tell_doubtful(&mut self, before: Timestamp, at_least: usize) {
        let mut told = 0;
        while let Some(deed) = self
            .doubtful
            .pop_front_if(|deed| told < at_least || deed.time() < before)
        {
            told += 1;
            match self.judged(&deed) {
                Judged::Fine => {}
                Judged::Breaks(found) | Judged::Doubtful(found) => self.tell(vec![found]),
            }
        }
    }

    /// Nothing comes any more: what has waited is judged as it is.
    pub fn finish(&mut self) {
        while let Some(deed) = self.held.pop_front() {
            self.judge_deed(deed);
        }
        self.tell_doubtful(Timestamp::MAX, 0);
        self.sinks.write(Entry::End);
    }

    /// Judges what has waited for a name for long enough.
    fn judge_held(&mut self, now: Timestamp) {
        // A recording may have any time.
        let before = |wait| now.checked_sub(wait).unwrap_or(now);
        let end = before(NAMED_WITHIN);
        while let Some(deed) = self.held.pop_front_if(|deed| deed.time() < end) {
            self.judge_deed(deed);
        }
        self.tell_doubtful(before(IN_DOUBT), 0);
    }

    /// Uses other expectations from now on.
    pub fn replace_policy(
        &mut self,
        document: Document,
        catalog: Arc<crate::credential::catalog::Catalog>,
    ) {
        self.policy.replace(document, catalog);
    }
}

impl Sinks {
    fn write(&self, entry: Entry) {
        if let Some(ledger) = &self.ledger {
            ledger.write(entry);
        }
    }
}

/// Takes out what a workload did.
fn take_of(deeds: &mut VecDeque<Deed>, workload: &Workload) -> VecDeque<Deed> {
    let (of_it, rest) = std::mem::take(deeds)
        .into_iter()
        .partition(|deed| match deed {
            Deed::Use(used) => used.workload == *workload,
            Deed::Mint(mint) => mint.workload == *workload,
        });
    *deeds = rest;
    of_it
}

/// A gap for events that a probe lost.
pub fn lost(
    probe: Probe,
    stage: &str,
    workload: Option<&str>,
    count: u64,
    since: Timestamp,
    until: Timestamp,
) -> Gap {
    let name = probe.name();
    Gap {
        kind: "lost-events".to_owned(),
        probe: Some(probe.name().to_owned()),
        detail: match stage {
            "ring" => match workload {
                Some(workload) => {
                    format!("the ring of the {name} probe was full for what {workload} did")
                }
                None => format!("the ring of the {name} probe was full"),
            },
            _ => format!("the {name} probe could not read what it saw"),
        },
        since,
        until: Some(until),
        count,
        blind: stage == "ring",
    }
}
