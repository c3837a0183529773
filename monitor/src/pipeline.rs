//! From observations to outputs: attribution, credential, trail, policy, in one direction, with one
//! owner. The outputs go to the ledger, the metrics and the findings stream.

use crate::{
    attribution::{Attribution, names::WorkloadRename},
    credential::{Credentials, MountView, OpenedFile, SecretVariable},
    ledger::{LedgerEntry, LedgerWriter},
    report::{findings::FindingStream, metrics::Metrics},
    sensor::{
        dns::DnsAnswer,
        observation::{FileId, Observation, OpenKind, StdoutPipe, TaskInfo},
        running,
    },
};
use jiff::{SignedDuration, Timestamp};
use monitor_common::record::Probe;
use monitor_core::policy::expectation::Expectations;
use monitor_core::{
    model::{
        Destination, Evidence, Finding, Gap, Look, Mint, NOT_COVERED, NameSource, Place, Source,
        Subject, Transport, UNKNOWN_NAME, Use, Workload,
    },
    policy::{Policy, decision::Decision},
    recent::Recent,
    trail::{Actor, ConnectionName, Trail, TrailEvent, TrailOutput},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fs::File,
    io::{self, BufWriter, Write as _},
    net::IpAddr,
    sync::Arc,
};

/// Enriches observations to events for the trail.
#[derive(Debug)]
pub struct Enricher {
    pub attribution: Attribution,
    pub credentials: Credentials,
    /// The credentials of a file and process when they were last reported, for repeat counts that
    /// arrive later.
    reads: HashMap<(Subject, u32, u64), FileReads>,
    read_order: VecDeque<(Subject, u32, u64)>,
    /// Files whose opens must be reported, or ignored, regardless of their name.
    pub learned: Vec<FileId>,
    pub ignored: Vec<FileId>,
    /// Whether places of credentials were added since the kernel filter was updated.
    pub places_changed: bool,
    /// Number of payloads that began like a ClientHello and could not be parsed.
    pub malformed: u64,
    /// No probe reads the environment at exec: it is read here.
    pub environ_is_read: bool,
    /// Names of servers, by their fingerprint.
    servers: Recent<u64, String>,
    /// The agent's own pid.
    pub own_pid: u32,
    /// Credentials presented in a TLS write whose socket is not known yet, by write.
    presented: BTreeMap<u64, Vec<PendingPresentation>>,
    /// Addresses that had no cluster object, as far as known, when they were connected to.
    pending_addresses: HashMap<IpAddr, Timestamp>,
    /// Whether the cluster's objects were not completely listed at that time.
    pending_sync: bool,
}

/// The credentials in a file, and its place; shared by all its readers.
type FileReads = Arc<(Vec<monitor_core::model::Credential>, Place)>;

/// A presented credential whose destination is not known yet.
#[derive(Debug)]
struct PendingPresentation {
    /// Fingerprint of the server name that the program set on its TLS object.
    server: Option<u64>,
    /// Fingerprint of the server name in the head of the request.
    host: Option<u64>,
    time: Timestamp,
    actor: Actor,
    credential: monitor_core::model::Credential,
    place: Place,
}

/// A packet leaves together with the write, at most this much later, or not in the same task.
const SOCKET_MATCH_WINDOW: jiff::SignedDuration = jiff::SignedDuration::from_millis(250);
/// A cluster reports a new object within this time.
const OBJECT_NAME_WINDOW: SignedDuration = SignedDuration::from_secs(10);
/// Maximum number of such addresses.
const PENDING_ADDRESSES_MAX: usize = 4096;
/// Number of server names cached.
const SERVER_NAMES_CACHED: usize = 16_384;

/// Number of reads remembered for their repeats.
const READS_CACHED: usize = 16_384;

const SHELLS: [&str; 9] = [
    "sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "mksh", "busybox",
];

impl Enricher {
    pub fn new(attribution: Attribution, credentials: Credentials) -> Self {
        Self {
            attribution,
            credentials,
            reads: HashMap::new(),
            read_order: VecDeque::new(),
            learned: Vec::new(),
            ignored: Vec::new(),
            places_changed: false,
            malformed: 0,
            environ_is_read: false,
            servers: Recent::new(SERVER_NAMES_CACHED),
            own_pid: 0,
            presented: BTreeMap::new(),
            pending_addresses: HashMap::new(),
            pending_sync: false,
        }
    }

    /// Emits events for presented credentials whose socket will not become known any more. Called
    /// after each batch with the time up to which all records were read: unread records may still
    /// tell the socket.
    pub fn release_unmatched(&mut self, read_until: Timestamp, events: &mut Vec<TrailEvent>) {
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
            for waiting in entry.remove() {
                let event = self.presented_event(waiting, None);
                events.push(event);
            }
        }
    }

    /// The server name that the program set on its TLS object, if it was seen in a ClientHello.
    fn server_name(&mut self, waiting: &PendingPresentation) -> Option<String> {
        self.server_by_fingerprint(waiting.server?)
    }

    /// The event of a presented credential on a connection.
    fn presented_event(
        &mut self,
        mut waiting: PendingPresentation,
        connection: Option<u64>,
    ) -> TrailEvent {
        // It may have been named while it was waiting, and will not be renamed afterwards.
        if waiting.actor.workload.partial {
            let now = self.attribution.workload(waiting.actor.subject);
            if now.is_contained() && !now.is_unnamed() {
                waiting.actor.workload = now;
            }
        }
        TrailEvent::Presented {
            server: self.server_name(&waiting),
            host: self.request_host(waiting.host),
            time: waiting.time,
            who: waiting.actor,
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
        let unknown = destination.object.is_none() || destination.is_object_pending();
        if unknown
            && self.attribution.objects_synced().is_some()
            && (self.pending_addresses.len() < PENDING_ADDRESSES_MAX
                || self.pending_addresses.contains_key(&address))
        {
            self.pending_sync |= destination.is_object_pending();
            self.pending_addresses.insert(address, time);
        }
        destination
    }

    /// Emits an event with cluster objects that became known for addresses connected to earlier.
    pub fn add_object_names(&mut self, time: Timestamp, events: &mut Vec<TrailEvent>) {
        if self.pending_addresses.is_empty() || self.attribution.objects_synced() != Some(true) {
            return;
        }
        let mut objects = BTreeMap::new();
        self.pending_addresses.retain(|address, since| {
            if let Some(object) = self.attribution.object_at(*address) {
                objects.insert(*address, object);
                return false;
            }
            time.duration_since(*since).abs() < OBJECT_NAME_WINDOW
        });
        if !objects.is_empty() || std::mem::take(&mut self.pending_sync) {
            events.push(TrailEvent::Objects { time, objects });
        }
    }

    fn server_by_fingerprint(&mut self, fingerprint: u64) -> Option<String> {
        self.servers.get(&fingerprint).cloned()
    }

    /// The server name in the head of a request.
    fn request_host(&mut self, fingerprint: Option<u64>) -> Option<String> {
        let name = self.server_by_fingerprint(fingerprint?);
        Some(name.unwrap_or_else(|| UNKNOWN_NAME.to_owned()))
    }

    /// Remembers a name, to recognise its fingerprint later.
    fn remember_server(&mut self, name: &str) {
        // A request may contain the name with the trailing dot of the root.
        for said in [name, &format!("{name}.")] {
            let fingerprint = self.credentials.print_of(said);
            self.servers.insert(fingerprint, name.to_owned());
        }
    }

    /// Events for what is already running: processes, their environments, their open credential
    /// files, and their connections.
    pub fn scan_running(&mut self, now: Timestamp) -> Vec<TrailEvent> {
        let mut events = Vec::new();
        let subjects = self.attribution.scan();
        for subject in &subjects {
            events.push(self.exec_event(now, *subject));
        }
        let mut connections = running::RunningConnections::default();
        for subject in subjects {
            if subject.pid == self.own_pid {
                continue;
            }
            for (credential, place) in self.credentials.in_running(subject.pid) {
                events.push(self.pick_up(
                    now,
                    subject,
                    credential,
                    place,
                    1,
                    StdoutPipe::default(),
                ));
            }
            self.follow(subject, &[]);
            // Only files at places of credentials; others are not accessed.
            let open = running::open_files(subject.pid, |path| self.credentials.is_place(path));
            for (path, file) in open.files {
                let opened = OpenedFile {
                    path: &path,
                    source: None,
                    file,
                    known: false,
                };
                let stamp = self.attribution.task_info(subject, now);
                self.file(
                    &stamp,
                    opened,
                    OpenKind::Opened,
                    1,
                    StdoutPipe::default(),
                    &mut events,
                );
            }
            for (inode, to) in connections.outgoing_of(subject.pid, &open.sockets) {
                events.push(TrailEvent::Connect {
                    time: now,
                    who: self.actor(subject),
                    // No cookie is that large.
                    connection: inode | 1 << 63,
                    destination: self.destination(now, to.address, to.port, to.transport),
                    stdin: None,
                });
            }
        }
        events
    }

    /// Converts a batch of observations to events, in order.
    pub fn process(&mut self, observations: &mut Vec<Observation>, events: &mut Vec<TrailEvent>) {
        let mut rest: VecDeque<Observation> = observations.drain(..).collect();
        while let Some(observation) = rest.pop_front() {
            if self.is_from_other_agent(&observation) {
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
                                StdoutPipe::default(),
                            );
                            events.push(event);
                        }
                        self.follow(subject, &[]);
                    }
                }
                Observation::Fork { stamp } => {
                    self.attribution.fork(&stamp);
                    events.push(TrailEvent::Fork {
                        time: stamp.time,
                        subject: stamp.subject,
                        parent: stamp.parent,
                    });
                }
                Observation::Exit { stamp } => {
                    self.attribution.exit(&stamp);
                    events.push(TrailEvent::Exit {
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
                    let opened = OpenedFile {
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
                        .resolve_target(stamp.subject, target)
                        .filter(|victim| *victim != stamp.subject);
                    let Some(victim) = victim else { continue };
                    if victim.pid == self.own_pid {
                        // Listing processes reads environments.
                        if look != Look::Environ {
                            events.push(self.tampering_gap(&stamp, look));
                        }
                    } else {
                        events.push(TrailEvent::Foreign {
                            time: stamp.time,
                            who: self.actor(stamp.subject),
                            victim: self.actor(victim),
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
                    self.resolve_issued_to(&mut credential);
                    let waiting = PendingPresentation {
                        server,
                        host,
                        time: stamp.time,
                        actor: self.actor(stamp.subject),
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
                    self.resolve_issued_to(&mut credential);
                    events.push(TrailEvent::Clear {
                        time,
                        connection: cookie,
                        host: self.request_host(host),
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
                        self.remember_server(name);
                    }
                    events.push(TrailEvent::Payload {
                        time,
                        connection: cookie,
                        destination: name.map(|name| ConnectionName {
                            server_name: Some(name),
                            ech: false,
                            host: true,
                        }),
                    });
                }
                Observation::Answer { time, resolved } => {
                    if let Some(DnsAnswer { names, addresses }) = resolved {
                        for name in &names {
                            self.remember_server(name);
                        }
                        events.push(TrailEvent::Resolved {
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
                        let event = self.presented_event(waiting, Some(cookie));
                        events.push(event);
                    }
                }
                Observation::Refused { cookie, .. } => {
                    events.push(TrailEvent::Refused { connection: cookie });
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
                            StdoutPipe::default(),
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
                    events.push(TrailEvent::Connect {
                        time: stamp.time,
                        who: self.actor(stamp.subject),
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
                        self.remember_server(&name);
                    }
                    events.push(TrailEvent::Payload {
                        time,
                        connection: cookie,
                        destination: hello.map(|hello| ConnectionName {
                            server_name: hello.server_name,
                            ech: hello.ech,
                            host: false,
                        }),
                    });
                }
            }
        }
    }

    /// Whether another agent has read something, as it is supposed to.
    fn is_from_other_agent(&mut self, observation: &Observation) -> bool {
        match observation {
            Observation::FileOpened { stamp, .. } | Observation::Foreign { stamp, .. } => {
                self.attribution.ensure(stamp);
                self.attribution.is_agent(stamp.subject)
            }
            _ => false,
        }
    }

    /// A gap for a read of the agent's own memory: its later reports cannot be relied on.
    fn tampering_gap(&self, stamp: &TaskInfo, look: Look) -> TrailEvent {
        let who = self.actor(stamp.subject);
        let how = match look {
            Look::Trace => "traced the agent",
            Look::Environ | Look::Memory => "opened the memory of the agent",
        };
        TrailEvent::Gap {
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

    fn exec_event(&self, time: Timestamp, subject: Subject) -> TrailEvent {
        let entry = self.attribution.entry(subject);
        let exe = entry.map(|entry| Arc::clone(&entry.exe));
        let name = exe
            .as_deref()
            .and_then(|exe| exe.rsplit('/').next())
            .unwrap_or_default();
        TrailEvent::Exec {
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
        stamp: &TaskInfo,
        opened: OpenedFile<'_>,
        manner: OpenKind,
        count: u32,
        output: StdoutPipe,
        events: &mut Vec<TrailEvent>,
    ) {
        let OpenedFile {
            path, source, file, ..
        } = opened;
        self.attribution.ensure(stamp);
        let subject = stamp.subject;
        if manner == OpenKind::Written {
            if self.credentials.written(path, source, file) {
                self.learned.push(file);
            }
            return;
        }
        if manner == OpenKind::Connected {
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
        // Below its own parent it is still the parent's file: the trail knows that.
        if manner == OpenKind::Inherited && self.attribution.matches_parent(subject) {
            return;
        }
        let container = self.container_of(subject);
        let view = MountView {
            pid: subject.pid,
            // On the host, the path can be opened without another process's help.
            peer: (!container.is_empty())
                .then(|| self.attribution.live_peer(subject))
                .flatten(),
            container: &container,
        };
        let Some(mut found) = self.credentials.in_file(opened, view) else {
            // What the probe recognised as a credential's file remains one, whatever it contains
            // now.
            if !opened.known {
                self.ignored.push(file);
            }
            return;
        };
        found.place.source = match manner {
            OpenKind::Received => Source::Socket,
            OpenKind::Inherited => Source::Inherited,
            OpenKind::Opened | OpenKind::Written | OpenKind::Connected => Source::File,
        };
        self.learned.push(file);
        let key = (subject, file.device, file.inode);
        let known = Arc::new((found.credentials.clone(), found.place.clone()));
        if self.reads.insert(key, known).is_none() {
            self.read_order.push_back(key);
            if self.read_order.len() > READS_CACHED
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
            if let TrailEvent::PickUp {
                volume_of,
                home,
                modified,
                ..
            } = &mut event
            {
                if let Some(uid) = &found.volume_of {
                    *home = self.attribution.pod_workload(uid).map(Box::new);
                    *volume_of = Some(uid.clone());
                }
                *modified = found.modified;
            }
            events.push(event);
        }
    }

    /// Learns the places of credentials that a process's environment names.
    fn follow(&mut self, subject: Subject, values: &[u64]) {
        let container = self.container_of(subject);
        let found = self.credentials.follow(subject.pid, &container, values);
        let Some((files, is_new)) = found else { return };
        self.learned.extend(files);
        self.places_changed |= is_new;
    }

    /// The container of a process; empty on the host.
    fn container_of(&self, subject: Subject) -> String {
        let entry = self.attribution.entry(subject);
        entry
            .and_then(|entry| entry.group.container.clone())
            .unwrap_or_default()
    }

    /// The variables of one exec belong together: an AWS key pair consists of two or three of them.
    fn variables(&mut self, rest: &mut VecDeque<Observation>, events: &mut Vec<TrailEvent>) {
        let mut gathered: Vec<SecretVariable> = Vec::new();
        let mut whose: Option<TaskInfo> = None;
        let same = |stamp: &TaskInfo, whose: &Option<TaskInfo>| {
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
            gathered.push(SecretVariable {
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
                StdoutPipe::default(),
            );
            events.push(event);
        }
    }

    /// All credentials of one response belong together.
    fn minted(&mut self, rest: &mut VecDeque<Observation>, events: &mut Vec<TrailEvent>) {
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
            events.push(TrailEvent::Minted {
                time,
                connection,
                credential,
                place,
            });
        }
    }

    /// Emits events for workloads that were named since the last call.
    pub fn rename(&mut self, time: Timestamp, events: &mut Vec<TrailEvent>) {
        let renamed = self.attribution.take_renames();
        events.extend(
            renamed
                .into_iter()
                .map(|WorkloadRename { old, new }| TrailEvent::Renamed { time, old, new }),
        );
    }

    fn pick_up(
        &mut self,
        time: Timestamp,
        subject: Subject,
        mut credential: monitor_core::model::Credential,
        place: Place,
        count: u64,
        output: StdoutPipe,
    ) -> TrailEvent {
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
        let untrusted = self.attribution.distrust_reason(subject);
        let home = self.resolve_issued_to(&mut credential).map(Box::new);
        TrailEvent::PickUp {
            time,
            who: self.actor(subject),
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

    /// Adds the owner of the pod to which a credential was issued; returns that workload.
    fn resolve_issued_to(
        &self,
        credential: &mut monitor_core::model::Credential,
    ) -> Option<Workload> {
        let issued = credential.issued_to.as_mut()?;
        let home = self.attribution.pod_workload(&issued.pod_uid)?;
        issued.workload = Some(home.name.clone());
        issued.kind = Some(home.kind);
        Some(home)
    }

    fn actor(&self, subject: Subject) -> Actor {
        Actor {
            subject,
            workload: self.attribution.workload(subject),
            process: self.attribution.process(subject),
        }
    }
}

/// A TCP connection is identified by its socket; a UDP socket sends to several destinations.
fn connection_id(cookie: u64, transport: Transport, stamp: &TaskInfo, port: u16) -> u64 {
    match transport {
        Transport::Tcp => cookie,
        Transport::Udp => {
            cookie ^ u64::from(port).rotate_left(40) ^ (stamp.time.as_microsecond() as u64) << 1
        }
    }
}

/// The receivers of the pipeline's output.
#[derive(Debug)]
pub struct Sinks {
    pub ledger: Option<LedgerWriter>,
    pub metrics: Arc<Metrics>,
    pub stream: FindingStream,
    /// The recording for a replay.
    pub record: Option<BufWriter<File>>,
}

/// Maximum uses and mints waiting for a name, and workloads remembered as unnamed.
const DEFERRED_MAX: usize = 4096;
/// How long to wait for a name where a decision is possible without one.
const NAME_TIMEOUT: SignedDuration = SignedDuration::from_secs(5);
/// How long to wait where it is not: about as long as names are queried. Then the finding is raised
/// with a note.
const PENDING_TIMEOUT: SignedDuration = SignedDuration::from_mins(11);

/// A decision that depends on the actor's name.
#[derive(Debug)]
enum DeferredDecision {
    Use(Box<Use>),
    Mint(Box<Mint>),
}

impl DeferredDecision {
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

/// Runs the trail and the policy, and distributes their outputs.
#[derive(Debug)]
pub struct Evaluator {
    pub trail: Trail,
    pub policy: Policy,
    pub sinks: Sinks,
    /// Processes that talk to an authenticator, since this was last drained.
    pub authenticator_clients: Vec<u32>,
    /// Decisions waiting for a workload that is likely to be named soon.
    deferred: VecDeque<DeferredDecision>,
    /// Decisions waiting for a name that did not arrive soon.
    pending: VecDeque<DeferredDecision>,
    /// Workloads for which no name exists.
    unnamed: HashSet<Workload>,
    /// Recent gaps, to attach to findings near them.
    gaps: VecDeque<Gap>,
    /// Whether events happen now rather than in a replay.
    pub live: bool,
}

/// Maximum gaps remembered.
const RECENT_GAPS_MAX: usize = 16;

impl Evaluator {
    pub fn new(policy: Policy, sinks: Sinks, live: bool) -> Self {
        Self {
            trail: Trail::new(),
            policy,
            sinks,
            authenticator_clients: Vec::new(),
            deferred: VecDeque::new(),
            pending: VecDeque::new(),
            unnamed: HashSet::new(),
            gaps: VecDeque::new(),
            live,
        }
    }

    /// Processes events, and distributes the outputs.
    pub fn process(&mut self, events: &mut Vec<TrailEvent>) -> io::Result<()> {
        let mut outcomes = Vec::new();
        for event in events.drain(..) {
            if let Some(record) = &mut self.sinks.record {
                serde_json::to_writer(&mut *record, &event)?;
                record.write_all(b"\n")?;
            }
            if let TrailEvent::Tick { time } = &event {
                self.release_deferred(*time);
            }
            self.trail.process(event, &mut outcomes);
            for outcome in outcomes.drain(..) {
                self.evaluate(outcome);
            }
        }
        if let Some(record) = &mut self.sinks.record {
            record.flush()?;
        }
        Ok(())
    }

    fn evaluate(&mut self, outcome: TrailOutput) {
        let (time, found) = match outcome {
            TrailOutput::Use(mut used) => {
                self.policy.apply_name(&mut used.credential);
                self.sinks.metrics.count_use(&used);
                let time = used.time;
                self.sinks.write(LedgerEntry::Use(used.clone()));
                self.decide_when_named(DeferredDecision::Use(used));
                (time, Vec::new())
            }
            TrailOutput::Hop(mut hop) => {
                self.policy.apply_name(&mut hop.credential);
                let (verdict, found) = self.policy.judge_hop(&hop);
                self.sinks.metrics.count_hop(&hop, verdict);
                let time = hop.time;
                // A plaintext response is observed anyway.
                let inside_tls = hop.destination.name_source == NameSource::Sni
                    || hop.evidence == Evidence::Presented && !hop.clear;
                if self.live && inside_tls && self.policy.is_authenticator(&hop.destination) {
                    self.authenticator_clients.push(hop.process.pid);
                }
                if let Some(mint) = self.policy.proof_of_identity(&hop) {
                    self.sinks.write(LedgerEntry::Mint(Box::new(mint)));
                }
                self.sinks.write(LedgerEntry::Hop(hop, verdict));
                (time, found)
            }
            TrailOutput::Foreign(mut read) => {
                self.policy.apply_name(&mut read.credential);
                let found = self.policy.judge_foreign(&read);
                (read.time, found.into_iter().collect())
            }
            TrailOutput::Mint(mut mint) => {
                self.policy.apply_mint_names(&mut mint);
                let time = mint.time;
                self.sinks.write(LedgerEntry::Mint(mint.clone()));
                self.decide_when_named(DeferredDecision::Mint(mint));
                (time, Vec::new())
            }
            TrailOutput::Renamed(both) => {
                self.rename(*both);
                return;
            }
            TrailOutput::Gap(gap) => {
                self.note_gap(&gap);
                let found = self.policy.judge_gap(&gap);
                self.raise(found.into_iter().collect());
                self.sinks.write(LedgerEntry::Gap(Box::new(gap)));
                return;
            }
        };
        self.raise(found);
        if self.live {
            let latency = Timestamp::now().duration_since(time).as_secs_f64();
            self.sinks.metrics.latency.observe(latency.max(0.0));
        }
    }

    fn raise(&mut self, found: Vec<Finding>) {
        for mut finding in found {
            self.sinks.metrics.count_finding(&finding);
            if finding.gaps.is_empty() {
                let near = |gap: &&Gap| gap.touches(finding.time, finding.time);
                finding.gaps = self.gaps.iter().filter(near).cloned().collect();
            }
            let finding = self.sinks.stream.record(finding);
            self.sinks.write(LedgerEntry::Finding(Box::new(finding)));
        }
    }

    /// Remembers a gap, for the findings that it touches.
    fn note_gap(&mut self, gap: &Gap) {
        if gap.kind == NOT_COVERED {
            return;
        }
        if self.gaps.len() >= RECENT_GAPS_MAX {
            self.gaps.pop_front();
        }
        self.gaps.push_back(gap.clone());
    }

    /// Renames a workload in what was stored, and decides what waited for the name.
    fn rename(&mut self, [old, new]: [Workload; 2]) {
        if old == new {
            if self.unnamed.len() >= DEFERRED_MAX {
                self.unnamed.clear();
            }
            self.unnamed.insert(old.clone());
        } else {
            self.policy.rename(&old, &new);
            self.sinks.metrics.rename(&old, &new);
            self.sinks
                .write(LedgerEntry::Renamed(Box::new([old.clone(), new.clone()])));
        }
        for mut deed in take_deferred_of(&mut self.deferred, &old) {
            deed.workload().clone_from(&new);
            if new.partial && old != new {
                self.deferred.push_back(deed);
            } else {
                self.decide(deed);
            }
        }
        for mut deed in take_deferred_of(&mut self.pending, &old) {
            deed.workload().clone_from(&new);
            self.decide_actor(deed);
        }
    }

    /// A reader is judged by name, and the name may arrive soon.
    fn decide_when_named(&mut self, mut deed: DeferredDecision) {
        let workload = deed.workload();
        if workload.partial
            && !self.unnamed.contains(workload)
            && self.deferred.len() < DEFERRED_MAX
        {
            self.deferred.push_back(deed);
        } else {
            self.decide(deed);
        }
    }

    fn decide(&mut self, deed: DeferredDecision) {
        if let DeferredDecision::Use(used) = &deed {
            let found = self.policy.judge_use(used);
            self.raise(found);
        }
        self.decide_actor(deed);
    }

    fn decide_actor(&mut self, deed: DeferredDecision) {
        match self.decision(&deed) {
            Decision::Allowed => {}
            Decision::Violation(found) => self.raise(vec![found]),
            Decision::Pending(_) => {
                self.pending.push_back(deed);
                if self.pending.len() > DEFERRED_MAX {
                    self.raise_pending(Timestamp::MIN, 1);
                }
            }
        }
    }

    fn decision(&mut self, deed: &DeferredDecision) -> Decision {
        match deed {
            DeferredDecision::Use(used) => self.policy.judge_reader(used),
            DeferredDecision::Mint(mint) => self.policy.judge_mint(mint),
        }
    }

    /// Raises pending findings from before a time, and at least `at_least` of them.
    fn raise_pending(&mut self, before: Timestamp, at_least: usize) {
        let mut told = 0;
        while let Some(deed) = self
            .pending
            .pop_front_if(|deed| told < at_least || deed.time() < before)
        {
            told += 1;
            match self.decision(&deed) {
                Decision::Allowed => {}
                Decision::Violation(found) | Decision::Pending(found) => self.raise(vec![found]),
            }
        }
    }

    /// No more input will come: decides everything that is waiting.
    pub fn finish(&mut self) {
        while let Some(deed) = self.deferred.pop_front() {
            self.decide(deed);
        }
        self.raise_pending(Timestamp::MAX, 0);
        self.sinks.write(LedgerEntry::End);
    }

    /// Decides what has waited long enough for a name.
    fn release_deferred(&mut self, now: Timestamp) {
        // A recording may contain any time.
        let before = |wait| now.checked_sub(wait).unwrap_or(now);
        let end = before(NAME_TIMEOUT);
        while let Some(deed) = self.deferred.pop_front_if(|deed| deed.time() < end) {
            self.decide(deed);
        }
        self.raise_pending(before(PENDING_TIMEOUT), 0);
    }

    /// Replaces the expectations.
    pub fn replace_policy(
        &mut self,
        expectations: Expectations,
        catalog: Arc<monitor_core::catalog::Catalog>,
    ) {
        self.policy.replace(expectations, catalog);
    }
}

impl Sinks {
    fn write(&self, entry: LedgerEntry) {
        if let Some(ledger) = &self.ledger {
            ledger.write(entry);
        }
    }
}

/// Removes and returns the decisions about a workload.
fn take_deferred_of(
    deeds: &mut VecDeque<DeferredDecision>,
    workload: &Workload,
) -> VecDeque<DeferredDecision> {
    let (of_it, rest) = std::mem::take(deeds)
        .into_iter()
        .partition(|deed| match deed {
            DeferredDecision::Use(used) => used.workload == *workload,
            DeferredDecision::Mint(mint) => mint.workload == *workload,
        });
    *deeds = rest;
    of_it
}

/// A gap for events that a probe lost.
pub fn lost_events_gap(
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
                    format!("{name} ring buffer overflowed: records of {workload} lost")
                }
                None => format!("{name} ring buffer overflowed"),
            },
            _ => format!("the {name} probe could not read some of its data"),
        },
        since,
        until: Some(until),
        count,
        blind: stage == "ring",
    }
}
