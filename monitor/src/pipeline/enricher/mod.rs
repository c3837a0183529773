//! Enriches observations to events for the trail: the workload of the process, the credential in
//! the file, the name of the destination. One module per family of observations.

mod backlog;
mod connection;
mod declarations;
mod environment;
mod file;
mod networks;
mod pace;
mod presented;
mod process;
mod reads;
mod resolvers;
mod running;
mod wait_budget;

use super::SensorFacts;
use crate::{
    attribution::{Attribution, names::WorkloadRename},
    credential::Credentials,
    observed::file::FileId,
    reader::{ReadId, ReadResult, protocol::ReadRequest},
    sensor::observation::{
        Observation, ObservedForeignRead, ObservedOpen, OpenFileKey, RecordOwner, StdoutPipe,
    },
};
use backlog::Dropped;
pub use backlog::DroppedOfGroup;
use connection::PendingObjects;
use declarations::DeclarationReads;
use file::{FileReads, READS_CACHED};
use hashlink::LruCache;
use jiff::{SignedDuration, Timestamp};
use monitor_common::map::PRESENTATIONS_MAX;
use monitor_core::{
    counted_lru::CountedLru,
    fair_cache::{FairCache, Tenant},
    model::{Credential, Place, Source, Subject, Workload},
    trail::{Actor, PickUp, TrailEvent},
};
use pace::Pace;
use presented::PendingPresentation;
use reads::PendingReads;
use resolvers::Resolvers;
use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

/// Number of server names cached.
const SERVER_NAMES_CACHED: usize = 8_192;
/// Number of writes whose socket is remembered: those of which the probes count repeats.
const SENT_WRITES_CACHED: usize = PRESENTATIONS_MAX as usize;
/// Interval between evictions of exited processes.
const EVICTION_INTERVAL: SignedDuration = SignedDuration::from_secs(2);

/// What the kernel filter lacks, since it was last updated.
#[derive(Debug, Default)]
pub struct WantedFiles {
    /// Files whose opens must be reported, or ignored, regardless of their name.
    pub learn: Vec<FileId>,
    pub ignore: Vec<FileId>,
    /// Whether places of credentials were added.
    pub places_changed: bool,
}

/// Enriches observations to events for the trail.
#[derive(Debug)]
pub struct Enricher {
    pub(super) attribution: Attribution,
    pub(super) credentials: Credentials,
    sensor: SensorFacts,
    /// The credentials of a file and process when they were last reported, for repeat counts that
    /// arrive later.
    repeated: CountedLru<OpenFileKey, Arc<FileReads>>,
    reads: PendingReads,
    declarations: DeclarationReads,
    resolvers: Resolvers,
    pace: Pace,
    wanted: WantedFiles,
    /// Number of payloads that began like a ClientHello and could not be parsed.
    pub(super) malformed: u64,
    /// Names of servers, by their fingerprint.
    servers: FairCache<u64, String>,
    /// Credentials presented in a TLS write whose socket is not known yet, by write.
    presented: BTreeMap<u64, Vec<PendingPresentation>>,
    /// The socket of each of the last writes: the probes count repeats, and report them later.
    sent_writes: LruCache<u64, u64>,
    pending_objects: PendingObjects,
    /// When exited processes were last evicted.
    evicted: Timestamp,
    /// Observations that were dropped because there were too many, since they were last taken.
    dropped: Dropped,
}

impl Enricher {
    pub fn new(
        mut attribution: Attribution,
        credentials: Credentials,
        sensor: SensorFacts,
    ) -> Self {
        attribution.set_marks(credentials.marks().clone());
        attribution.set_catalog(Arc::clone(credentials.catalog()));
        Self {
            attribution,
            credentials,
            sensor,
            repeated: CountedLru::new(READS_CACHED),
            reads: PendingReads::default(),
            declarations: DeclarationReads::default(),
            resolvers: Resolvers::new(sensor.own_network),
            pace: Pace::default(),
            wanted: WantedFiles::default(),
            malformed: 0,
            servers: FairCache::new(SERVER_NAMES_CACHED),
            presented: BTreeMap::new(),
            sent_writes: LruCache::new(SENT_WRITES_CACHED),
            pending_objects: PendingObjects::default(),
            evicted: Timestamp::UNIX_EPOCH,
            dropped: Dropped::new(),
        }
    }

    /// Converts a batch of observations to events, in order, as far as the answers of the reader
    /// allow, and until there are many events.
    pub fn process(
        &mut self,
        observations: &mut Vec<Observation>,
        answers: Vec<(ReadId, ReadResult)>,
        now: Timestamp,
        events: &mut Vec<TrailEvent>,
    ) {
        if self.reads.queue.is_empty() {
            // Without a copy: there may be tens of thousands.
            self.reads.queue = std::mem::take(observations).into();
        } else {
            self.reads.queue.extend(observations.drain(..));
        }
        for (id, result) in answers {
            self.take_answer(id, result, now, events);
        }
        self.pace.begin_turn(now);
        self.drop_excess(now);
        self.advance(now, events);
    }

    /// Converts an observation that needs nothing from the reader, or has it, and those of `rest`
    /// that belong to it.
    fn enrich_at_once(
        &mut self,
        observation: Observation,
        rest: &mut VecDeque<Observation>,
        events: &mut Vec<TrailEvent>,
    ) {
        match observation {
            Observation::Exec(exec) => self.exec(&exec, events),
            Observation::Fork(task) => self.fork(&task, events),
            Observation::Exit(task) => self.exit(&task, events),
            Observation::FileOpened(open) => self.file_opened(&open, events),
            Observation::FileRepeated(opens) => self.file_repeated(opens, events),
            Observation::Variable(task, variable) => self.variables(&task, variable, rest, events),
            Observation::Connected(connection) => self.connected(&connection, events),
            Observation::Running(connection) => self.running_connection(&connection, events),
            Observation::Refused { cookie, .. } => {
                events.push(TrailEvent::Refused { connection: cookie });
            }
            Observation::Payload(owner, payload) => self.first_payload(owner, payload, events),
            Observation::PlaintextHost(host) => self.plaintext_host(host, events),
            Observation::DnsResponse(owner, time, answer) => {
                self.dns_response(owner, time, answer, events);
            }
            Observation::Presented(presentation) => self.presented_in_tls(presentation, events),
            Observation::Plaintext(secret) => self.presented_in_plaintext(secret, events),
            Observation::Minted(secret) => self.minted(secret, rest, events),
            Observation::WriteRejected { write, .. } => self.write_rejected(write),
            Observation::WriteSent { write, cookie, .. } => self.write_sent(write, cookie, events),
            Observation::ForeignRead(read) => self.foreign_read(&read, events),
        }
    }

    /// Whether another agent has read something, as it is supposed to.
    fn is_from_other_agent(&mut self, observation: &Observation) -> bool {
        match observation {
            Observation::FileOpened(ObservedOpen { task, .. })
            | Observation::ForeignRead(ObservedForeignRead { task, .. }) => {
                self.attribution.ensure(task);
                self.attribution.is_agent(task.subject)
            }
            _ => false,
        }
    }

    /// Emits events for workloads that were named since the last call; returns whether there are
    /// any.
    pub fn rename(&mut self, time: Timestamp, events: &mut Vec<TrailEvent>) -> bool {
        let before = events.len();
        let renamed = self.attribution.take_renames();
        events.extend(
            renamed
                .into_iter()
                .map(|WorkloadRename { old, new }| TrailEvent::Renamed { time, old, new }),
        );
        events.len() > before
    }

    /// Evicts exited processes if it is due, and tells the trail, after exits that the
    /// probes did not report.
    pub fn evict_exited(&mut self, now: Timestamp, events: &mut Vec<TrailEvent>) {
        // The clock may have been set back.
        if now.duration_since(self.evicted).abs() < EVICTION_INTERVAL {
            return;
        }
        self.evicted = now;
        let missing = self.attribution.take_missing(now);
        events.extend(
            missing
                .into_iter()
                .map(|subject| TrailEvent::Exit { time: now, subject }),
        );
        let subjects = self.attribution.evict_exited(now, &self.reads.subjects());
        if !subjects.is_empty() {
            events.push(TrailEvent::Gone { subjects });
        }
    }

    /// Returns and clears the requests to the reader.
    pub fn take_read_requests(&mut self) -> Vec<(ReadId, ReadRequest)> {
        self.reads.take_requests()
    }

    /// Whether an observation waits for the reader.
    pub fn is_waiting(&self) -> bool {
        self.reads.is_waiting()
    }

    /// Whether an observation can be converted at once.
    pub fn has_more(&self) -> bool {
        !self.reads.queue.is_empty() && !self.reads.is_waiting()
    }

    /// Until when all observations are enriched, except those that are set aside.
    pub fn enriched_until(&self, now: Timestamp) -> Timestamp {
        self.reads
            .waiting_since()
            .map_or(now, |since| since.min(now))
    }

    /// Number of running processes that are not examined yet.
    pub fn unexamined(&self) -> usize {
        self.reads.unexamined
    }

    /// Requests what does not belong to an observation. `known` are the places of an earlier run.
    pub fn request_background(&mut self, known: Vec<String>) {
        self.reads.request_background(known);
    }

    /// What was forgotten for lack of room, by table, since the start.
    pub fn forgotten(&self) -> [(&'static str, u64); 5] {
        let [known, homes] = self.credentials.forgotten();
        [
            known,
            homes,
            ("file_reads", self.repeated.evicted()),
            ("server_names", self.servers.evicted()),
            ("dns_questions", self.resolvers.forgotten()),
        ]
    }

    /// Requests the home directories and the resolvers of the host again.
    pub fn request_host_facts(&mut self) {
        self.reads.request_host_facts();
    }

    /// Resolvers to believe besides those that the host and its containers are configured with.
    pub fn set_resolvers(&mut self, configured: Vec<IpAddr>) {
        self.resolvers.set_configured(configured);
    }

    /// Returns and clears what the kernel filter lacks.
    pub fn take_wanted(&mut self) -> WantedFiles {
        std::mem::take(&mut self.wanted)
    }

    fn pick_up(
        &mut self,
        time: Timestamp,
        subject: Subject,
        mut credential: Arc<Credential>,
        place: Place,
        count: u64,
        output: StdoutPipe,
    ) -> PickUp {
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
            || self.attribution.is_mounted(subject, &place.place) == Some(true);
        let untrusted = self.attribution.distrust_reason(time, subject);
        let home = self.resolve_issued_to(&mut credential).map(Box::new);
        PickUp {
            time,
            actor: self.actor(subject),
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
            in_mounted_home: false,
        }
    }

    /// Adds the owner of the pod to which a credential was issued; returns that workload.
    fn resolve_issued_to(&self, credential: &mut Arc<Credential>) -> Option<Workload> {
        let issued = credential.issued_to.as_ref()?;
        let home = self.attribution.pod_workload(&issued.pod_uid)?;
        let issued = Arc::make_mut(credential).issued_to.as_mut()?;
        issued.workload = Some(home.name.clone());
        issued.kind = Some(home.kind);
        Some(home)
    }

    /// The container of a process; empty on the host.
    fn container_of(&self, subject: Subject) -> String {
        let entry = self.attribution.entry(subject);
        entry
            .and_then(|entry| entry.group.container.clone())
            .unwrap_or_default()
    }

    /// Whose share of bounded tables an owner of sockets uses.
    fn tenant_of(&mut self, owner: RecordOwner) -> Tenant {
        self.attribution.tenant_of_cgroup(owner.cgroup, owner.user)
    }

    fn actor(&mut self, subject: Subject) -> Actor {
        Actor {
            subject,
            workload: self.attribution.workload(subject),
            process: self.attribution.process(subject),
        }
    }
}
