//! What the reader is asked, and the observations that wait for its answers.
//!
//! Observations are enriched in order. One that needs an answer waits for it, and later ones wait
//! behind it, but only for a moment: then it is set aside and enriched when its answer comes, so
//! that a file system that does not respond delays nothing else.

mod answers;

use super::{
    Enricher,
    backlog::{WAITING_QUEUE_MAX, queued_since},
    resolvers::{View, is_dns},
    wait_budget::WaitBudget,
};
use crate::{
    credential::{CredentialFile, MountView, OpenedFile},
    observed::file::FileId,
    reader::{
        ReadFailure, ReadId,
        protocol::{EnvironmentAnswer, FileAnswer, ReadRequest},
    },
    sensor::observation::{Observation, ObservedOpen, OpenKind, TaskInfo},
};
use jiff::{SignedDuration, Timestamp};
use monitor_core::{
    model::{Source, Subject},
    trail::TrailEvent,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

/// Observations for which an empty queue keeps its memory.
const QUEUE_KEPT: usize = 4_096;
/// Events that are evaluated in a turn: each is much larger than its observation.
const EVENTS_MAX: usize = 1_024;
/// As [`EVENTS_MAX`], on the slowest machine.
const EVENTS_MIN: usize = 64;
/// A turn takes about this time, because the rings are read in between.
const TURN: SignedDuration = SignedDuration::from_millis(50);

/// A wait that makes what is in the queue late, through no fault of its owners. How often there can
/// be one is limited by [`WaitBudget`].
const LONG_WAIT: SignedDuration = SignedDuration::from_millis(100);

/// Attempts to find the files of an earlier run again, after the first.
const RECOVER_RETRIES: usize = 2;

/// The contents of a file, or why there are none.
type ContentsResult = Result<FileAnswer, ReadFailure>;

/// What an answer is for.
#[derive(Debug)]
enum ReadPurpose {
    /// Part of what the first observation of the queue waits for.
    Head,
    /// A file whose observation was set aside.
    LateFile(Box<LateFile>),
    /// The environment of a process, whose observation was set aside or does not wait.
    Environment(EnvironmentUse),
    /// What a process had before it was observed.
    Process {
        time: Timestamp,
        subject: Subject,
    },
    /// Whether the program of a process can be trusted.
    Trust {
        subject: Subject,
        request: ReadRequest,
    },
    /// What the environment of a process declares.
    Declarations {
        process: Subject,
        /// It is the first of its workload.
        is_first: bool,
    },
    /// How names are resolved.
    Resolvers {
        view: View,
    },
    Homes,
    /// Files at these places, and in volumes.
    Recovered {
        known: Vec<String>,
        attempts_left: usize,
    },
}

impl ReadPurpose {
    /// The process to which the answer belongs.
    fn subject(&self) -> Option<Subject> {
        match self {
            Self::LateFile(late) => Some(late.open.task.subject),
            Self::Environment(taken) => Some(taken.subject),
            Self::Process { subject, .. }
            | Self::Trust { subject, .. }
            | Self::Declarations {
                process: subject, ..
            } => Some(*subject),
            Self::Resolvers { view } => *view,
            Self::Head | Self::Homes | Self::Recovered { .. } => None,
        }
    }
}

/// A file whose contents come late.
#[derive(Debug)]
struct LateFile {
    open: ObservedOpen,
    source: Source,
    place: CredentialFile,
    since: Timestamp,
    /// It took too long, and the file was reported by its place.
    reported: bool,
}

/// What is taken from an environment.
#[derive(Clone, Debug)]
struct EnvironmentUse {
    time: Timestamp,
    subject: Subject,
    /// Whether its variables are picked up; places are always learned.
    pick_up: bool,
    /// Values of variables that are thereby followed.
    values: Vec<u64>,
}

/// What the first observation waits for.
#[derive(Debug)]
struct HeadReads {
    since: Timestamp,
    limit: SignedDuration,
    file: Option<HeadFile>,
    environment: Option<HeadEnvironment>,
    /// Requests about its program and its workload that have no answer yet.
    context: BTreeSet<ReadId>,
    subject: Subject,
}

#[derive(Debug)]
struct HeadFile {
    id: ReadId,
    source: Source,
    place: CredentialFile,
    contents: Option<ContentsResult>,
}

#[derive(Debug)]
struct HeadEnvironment {
    id: ReadId,
    taken: EnvironmentUse,
    answer: Option<Option<EnvironmentAnswer>>,
}

impl HeadReads {
    fn is_complete(&self) -> bool {
        self.context.is_empty()
            && self
                .file
                .as_ref()
                .is_none_or(|file| file.contents.is_some())
            && self
                .environment
                .as_ref()
                .is_none_or(|environment| environment.answer.is_some())
    }

    fn is_overdue(&self, now: Timestamp) -> bool {
        // The clock may have been set back.
        now.duration_since(self.since).abs() >= self.limit
    }
}

/// Outstanding requests, and the observations that wait.
#[derive(Debug, Default)]
pub(super) struct PendingReads {
    pub queue: VecDeque<Observation>,
    head: Option<HeadReads>,
    /// Until when the first observation last waited for an answer for [`LONG_WAIT`].
    pub resumed: Timestamp,
    next: u64,
    purposes: BTreeMap<ReadId, ReadPurpose>,
    /// Not submitted yet.
    requests: Vec<(ReadId, ReadRequest)>,
    /// Number of late files by device: others there are not waited for.
    late: HashMap<u32, usize>,
    budget: WaitBudget,
    /// The agent stops: nothing waits any more.
    ends: bool,
    /// Number of processes that are not examined yet.
    pub unexamined: usize,
}

impl PendingReads {
    fn request(&mut self, request: ReadRequest, purpose: ReadPurpose) -> ReadId {
        self.next += 1;
        let id = ReadId(self.next);
        self.purposes.insert(id, purpose);
        self.requests.push((id, request));
        id
    }

    /// Returns and clears the requests to submit.
    pub fn take_requests(&mut self) -> Vec<(ReadId, ReadRequest)> {
        std::mem::take(&mut self.requests)
    }

    /// Whether the first observation waits for an answer.
    pub fn is_waiting(&self) -> bool {
        self.head.is_some()
    }

    /// Requests what does not belong to an observation: home directories, and files that an earlier
    /// run knew.
    pub fn request_background(&mut self, known: Vec<String>) {
        self.request_host_facts();
        self.request_recovered(known, RECOVER_RETRIES);
    }

    fn request_recovered(&mut self, known: Vec<String>, attempts_left: usize) {
        let request = ReadRequest::Recover {
            known: known.clone(),
        };
        let purpose = ReadPurpose::Recovered {
            known,
            attempts_left,
        };
        self.request(request, purpose);
    }

    /// Requests the home directories of the host's users, and its resolvers, again.
    pub fn request_host_facts(&mut self) {
        let asked = |purpose: &ReadPurpose| matches!(purpose, ReadPurpose::Homes);
        if !self.purposes.values().any(asked) {
            self.request(ReadRequest::Homes, ReadPurpose::Homes);
            self.request_resolvers(None);
        }
    }

    /// Requests how names are resolved in a container, or on the host.
    pub fn request_resolvers(&mut self, view: View) -> ReadId {
        let request = ReadRequest::Resolvers { process: view };
        self.request(request, ReadPurpose::Resolvers { view })
    }

    /// Requests what a process had before it was observed.
    pub fn request_process(&mut self, time: Timestamp, subject: Subject) {
        self.unexamined += 1;
        let request = ReadRequest::Process { process: subject };
        self.request(request, ReadPurpose::Process { time, subject });
    }

    /// Requests what the environment of a process declares.
    pub fn request_declarations(&mut self, process: Subject, is_first: bool) -> ReadId {
        let request = ReadRequest::Environment { process };
        self.request(request, ReadPurpose::Declarations { process, is_first })
    }

    /// Requests the places that an environment names.
    pub fn request_places(&mut self, time: Timestamp, subject: Subject, values: Vec<u64>) {
        let taken = EnvironmentUse {
            time,
            subject,
            pick_up: false,
            values,
        };
        let request = ReadRequest::Environment { process: subject };
        self.request(request, ReadPurpose::Environment(taken));
    }

    /// The processes to which outstanding answers belong: they must stay known until then.
    pub fn subjects(&self) -> HashSet<Subject> {
        let subjects = self.purposes.values();
        subjects.filter_map(ReadPurpose::subject).collect()
    }

    /// Since when the first observation waits for an answer, or for its turn, if it does.
    pub fn waiting_since(&self) -> Option<Timestamp> {
        match &self.head {
            Some(head) => Some(head.since),
            None => queued_since(&self.queue),
        }
    }

    fn remember_late(&mut self, device: u32) {
        *self.late.entry(device).or_default() += 1;
    }

    fn forget_late(&mut self, device: u32) {
        if let Some(count) = self.late.get_mut(&device) {
            *count -= 1;
            if *count == 0 {
                self.late.remove(&device);
            }
        }
    }
}

impl Enricher {
    /// Enriches the observations in the queue, up to one that must wait, or until there are many
    /// events.
    pub fn advance(&mut self, now: Timestamp, events: &mut Vec<TrailEvent>) {
        let events_max = self.pace.within(TURN, EVENTS_MIN..=EVENTS_MAX);
        let mut enriched = 0;
        while let Some(observation) = self.reads.queue.pop_front() {
            if events.len() >= events_max {
                self.reads.queue.push_front(observation);
                self.pace.leave_rest(now, enriched);
                return;
            }
            enriched += 1;
            if self.reads.head.is_none() {
                if self.is_from_other_agent(&observation) {
                    continue;
                }
                self.reads.head = self.begin(now, &observation);
            }
            if let Some(head) = &self.reads.head
                && !head.is_complete()
                && !head.is_overdue(now)
                && self.reads.queue.len() < WAITING_QUEUE_MAX
                && !self.reads.ends
            {
                self.reads.queue.push_front(observation);
                return;
            }
            let head = self.reads.head.take();
            if let Some(head) = &head
                && now.duration_since(head.since).abs() >= LONG_WAIT
            {
                self.reads.resumed = now;
            }
            // Answers that come in time cost little.
            if let Some(head) = head.as_ref().filter(|head| !head.is_complete()) {
                let waited = now.duration_since(head.since);
                match &observation {
                    Observation::FileOpened(open) if head.file.is_some() => {
                        self.reads.budget.add(open.file.device, open.magic, waited);
                    }
                    _ => self.reads.budget.add_other(waited),
                }
            }
            let mut rest = std::mem::take(&mut self.reads.queue);
            self.enrich(observation, head, &mut rest, events);
            rest.append(&mut self.reads.queue);
            self.reads.queue = rest;
        }
        // Returns the memory of a burst.
        if self.reads.queue.capacity() > QUEUE_KEPT {
            self.reads.queue = VecDeque::new();
        }
    }

    /// From now on no observation waits, because no more answers will come.
    pub fn end_waiting(&mut self) {
        self.reads.ends = true;
    }

    /// Reports files whose contents have not come by their places.
    pub fn report_unread(&mut self, events: &mut Vec<TrailEvent>) {
        self.report_by_place(|_| true, events);
    }

    /// Requests what an observation needs; `None` if it can be enriched at once.
    fn begin(&mut self, now: Timestamp, observation: &Observation) -> Option<HeadReads> {
        let mut head = HeadReads {
            since: now,
            limit: self.reads.budget.other_limit(now),
            file: None,
            environment: None,
            context: BTreeSet::new(),
            subject: observation.task()?.subject,
        };
        let picks_up = match observation {
            Observation::FileOpened(open) => {
                self.attribution.ensure(&open.task);
                head.file = self.begin_file(open);
                if head.file.is_some() {
                    let FileId { device, .. } = open.file;
                    head.limit = self.reads.budget.limit(now, device, open.magic);
                }
                if self.reads.late.contains_key(&open.file.device) {
                    head.limit = SignedDuration::ZERO;
                }
                head.file.is_some() || open.kind == OpenKind::Connected
            }
            Observation::Variable(task, _) => {
                self.attribution.ensure(task);
                true
            }
            Observation::Connected(connection) if is_dns(connection) => {
                self.attribution.ensure(&connection.task);
                head.context.extend(self.request_resolvers(now, connection));
                false
            }
            Observation::Exec(exec) if self.sensor.environ_is_read => {
                // Its program may have to be examined as well.
                self.attribution.exec(&exec.task, &exec.exe, exec.unlinked);
                head.environment = Some(self.begin_environment(&exec.task));
                true
            }
            _ => false,
        };
        if picks_up {
            head.context.extend(self.request_trust(now, head.subject));
            head.context
                .extend(self.request_declarations(now, head.subject));
        }
        (!head.is_complete()).then_some(head)
    }

    fn begin_file(&mut self, open: &ObservedOpen) -> Option<HeadFile> {
        let subject = open.task.subject;
        let source = match open.kind {
            OpenKind::Opened => Source::File,
            OpenKind::Received => Source::Socket,
            // Below its own parent it is still the parent's file: the trail knows that.
            OpenKind::Inherited if self.attribution.matches_parent(subject) => return None,
            OpenKind::Inherited => Source::Inherited,
            OpenKind::Written | OpenKind::Connected => return None,
        };
        let opened = OpenedFile {
            path: &open.path,
            source: open.source.as_deref(),
            file: open.file,
            magic: open.magic,
        };
        let container = self.container_of(subject);
        let Some(place) = self.credentials.credential_file(opened, &container) else {
            self.not_a_credential(open);
            return None;
        };
        let view = MountView {
            pid: subject.pid,
            // On the host, the path can be opened without another process's help.
            peer: (!container.is_empty())
                .then(|| self.attribution.live_peer(subject))
                .flatten(),
            container: &container,
        };
        let check_mount = self
            .attribution
            .is_mounted(subject, place.shown())
            .is_none();
        let request = self
            .credentials
            .file_request(&place, opened, view, check_mount);
        let id = self
            .reads
            .request(ReadRequest::File(request), ReadPurpose::Head);
        Some(HeadFile {
            id,
            source,
            place,
            contents: None,
        })
    }

    fn begin_environment(&mut self, task: &TaskInfo) -> HeadEnvironment {
        let subject = task.subject;
        let request = ReadRequest::Environment { process: subject };
        HeadEnvironment {
            id: self.reads.request(request, ReadPurpose::Head),
            taken: EnvironmentUse {
                time: task.time,
                subject,
                pick_up: true,
                values: Vec::new(),
            },
            answer: None,
        }
    }

    /// Enriches one observation with what was read for it, and those of `rest` that belong to it.
    fn enrich(
        &mut self,
        observation: Observation,
        head: Option<HeadReads>,
        rest: &mut VecDeque<Observation>,
        events: &mut Vec<TrailEvent>,
    ) {
        let Some(head) = head else {
            return self.enrich_at_once(observation, rest, events);
        };
        // Without an answer in time, the program is trusted as far as it is known.
        match (observation, head.file) {
            (Observation::FileOpened(open), Some(file)) => {
                self.enrich_file(open, file, head.since, events);
            }
            (observation, _) => self.enrich_at_once(observation, rest, events),
        }
        if let Some(HeadEnvironment { id, taken, answer }) = head.environment {
            match answer {
                Some(answer) => self.take_environment(&taken, answer, events),
                None => {
                    let purpose = ReadPurpose::Environment(taken);
                    self.reads.purposes.insert(id, purpose);
                }
            }
        }
    }

    /// Enriches an opened file, or sets it aside until its contents come.
    fn enrich_file(
        &mut self,
        open: ObservedOpen,
        file: HeadFile,
        since: Timestamp,
        events: &mut Vec<TrailEvent>,
    ) {
        let HeadFile {
            id,
            source,
            place,
            contents,
        } = file;
        if let Some(contents) = contents {
            return self.file_read(&open, source, &place, contents, events);
        }
        self.reads.remember_late(open.file.device);
        let late = LateFile {
            open,
            source,
            place,
            since,
            reported: false,
        };
        let purpose = ReadPurpose::LateFile(Box::new(late));
        self.reads.purposes.insert(id, purpose);
    }
}
