//! What the reader is asked, and the observations that wait for its answers.
//!
//! Observations are enriched in order. One that needs an answer waits for it, and later ones wait
//! behind it, but only for a moment: then it is set aside and enriched when its answer comes, so
//! that a file system that does not respond delays nothing else.

use super::Enricher;
use crate::{
    credential::{CredentialFile, MountView, OpenedFile},
    observed::file_system::is_remote,
    reader::{
        ReadFailure, ReadId, ReadResult,
        protocol::{EnvironmentAnswer, FileAnswer, ReadAnswer, ReadRequest},
    },
    sensor::observation::{Observation, ObservedOpen, OpenKind, TaskInfo},
};
use jiff::{SignedDuration, Timestamp};
use monitor_core::{
    model::{Source, Subject},
    trail::TrailEvent,
};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// How long later observations wait for a local file.
const LOCAL_WAIT: SignedDuration = SignedDuration::from_millis(500);
/// How long they wait for a file on a file system that may not respond.
const REMOTE_WAIT: SignedDuration = SignedDuration::from_millis(100);

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
    Homes,
    Recovered,
}

/// A file whose contents come late.
#[derive(Debug)]
struct LateFile {
    open: ObservedOpen,
    source: Source,
    place: CredentialFile,
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
    /// Requests about the trust in its program that have no answer yet.
    trust: BTreeMap<ReadId, ReadRequest>,
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
        self.trust.is_empty()
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
    next: u64,
    purposes: BTreeMap<ReadId, ReadPurpose>,
    /// Not submitted yet.
    requests: Vec<(ReadId, ReadRequest)>,
    /// Number of late files by device: others there are not waited for.
    late: HashMap<u32, usize>,
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
        self.request(ReadRequest::Homes, ReadPurpose::Homes);
        self.request(ReadRequest::Recover { known }, ReadPurpose::Recovered);
    }

    /// Requests the home directories of the host's users again.
    pub fn request_homes(&mut self) {
        let asked = |purpose: &ReadPurpose| matches!(purpose, ReadPurpose::Homes);
        if !self.purposes.values().any(asked) {
            self.request(ReadRequest::Homes, ReadPurpose::Homes);
        }
    }

    /// Requests what a process had before it was observed.
    pub fn request_process(&mut self, time: Timestamp, subject: Subject) {
        self.unexamined += 1;
        let request = ReadRequest::Process { process: subject };
        self.request(request, ReadPurpose::Process { time, subject });
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
    /// Takes the answer to a request.
    pub(super) fn take_answer(
        &mut self,
        id: ReadId,
        result: ReadResult,
        events: &mut Vec<TrailEvent>,
    ) {
        match self.reads.purposes.remove(&id) {
            Some(ReadPurpose::Head) => self.take_head_answer(id, result),
            Some(ReadPurpose::LateFile(late)) => {
                let LateFile {
                    open,
                    source,
                    place,
                } = *late;
                self.reads.forget_late(open.file.device);
                self.file_read(&open, source, &place, contents(result), events);
            }
            Some(ReadPurpose::Environment(taken)) => {
                self.take_environment(&taken, environment(result), events);
            }
            Some(ReadPurpose::Process { time, subject }) => {
                self.reads.unexamined -= 1;
                if let Ok(ReadAnswer::Process(answer)) = result {
                    self.take_process(time, subject, answer, events);
                }
            }
            Some(ReadPurpose::Homes) => {
                if let Ok(ReadAnswer::Homes(homes)) = result {
                    self.attribution.set_homes(homes);
                }
            }
            Some(ReadPurpose::Recovered) => {
                if let Ok(ReadAnswer::Recovered(files)) = result {
                    self.take_recovered(files);
                }
            }
            // It was given up.
            None => {}
        }
    }

    fn take_head_answer(&mut self, id: ReadId, result: ReadResult) {
        let Some(head) = &mut self.reads.head else {
            return;
        };
        if let Some(file) = head.file.as_mut().filter(|file| file.id == id) {
            file.contents = Some(contents(result));
        } else if let Some(asked) = head.environment.as_mut().filter(|asked| asked.id == id) {
            asked.answer = Some(environment(result));
        } else if let Some(request) = head.trust.remove(&id) {
            let subject = head.subject;
            if let Ok(ReadAnswer::Fact(Some(fact))) = result {
                self.attribution.set_trust(subject, &request, fact);
            }
        }
    }

    /// Enriches the observations in the queue, up to one that must wait.
    pub(super) fn advance(&mut self, now: Timestamp, events: &mut Vec<TrailEvent>) {
        while let Some(observation) = self.reads.queue.pop_front() {
            if self.reads.head.is_none() {
                if self.is_from_other_agent(&observation) {
                    continue;
                }
                self.reads.head = self.begin(now, &observation);
            }
            if let Some(head) = &self.reads.head
                && !head.is_complete()
                && !head.is_overdue(now)
            {
                self.reads.queue.push_front(observation);
                return;
            }
            let head = self.reads.head.take();
            let mut rest = std::mem::take(&mut self.reads.queue);
            self.enrich(observation, head, &mut rest, events);
            rest.append(&mut self.reads.queue);
            self.reads.queue = rest;
        }
    }

    /// Requests what an observation needs; `None` if it can be enriched at once.
    fn begin(&mut self, now: Timestamp, observation: &Observation) -> Option<HeadReads> {
        let mut head = HeadReads {
            since: now,
            limit: LOCAL_WAIT,
            file: None,
            environment: None,
            trust: BTreeMap::new(),
            subject: observation.task()?.subject,
        };
        let picks_up = match observation {
            Observation::FileOpened(open) => {
                self.attribution.ensure(&open.task);
                head.file = self.begin_file(open);
                if is_remote(open.magic) {
                    head.limit = REMOTE_WAIT;
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
            Observation::Exec(exec) if self.sensor.environ_is_read => {
                head.environment = Some(self.begin_environment(&exec.task));
                false
            }
            _ => false,
        };
        if picks_up && let Some(request) = self.attribution.trust_request(head.subject) {
            let id = self.reads.request(request.clone(), ReadPurpose::Head);
            head.trust.insert(id, request);
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
        for id in head.trust.keys() {
            self.reads.purposes.remove(id);
        }
        match (observation, head.file) {
            (Observation::FileOpened(open), Some(file)) => self.enrich_file(open, file, events),
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
    fn enrich_file(&mut self, open: ObservedOpen, file: HeadFile, events: &mut Vec<TrailEvent>) {
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
        };
        let purpose = ReadPurpose::LateFile(Box::new(late));
        self.reads.purposes.insert(id, purpose);
    }

    fn take_environment(
        &mut self,
        taken: &EnvironmentUse,
        answer: Option<EnvironmentAnswer>,
        events: &mut Vec<TrailEvent>,
    ) {
        let EnvironmentAnswer { variables, places } = answer.unwrap_or_default();
        let EnvironmentUse { time, subject, .. } = *taken;
        if taken.pick_up {
            let found = self.credentials.in_environment(&variables);
            self.pick_up_variables(time, subject, found, events);
        }
        self.learn_places(subject, &taken.values, places);
    }
}

fn contents(result: ReadResult) -> ContentsResult {
    match result? {
        ReadAnswer::File(answer) => Ok(answer),
        _ => Err(ReadFailure::Unreadable),
    }
}

fn environment(result: ReadResult) -> Option<EnvironmentAnswer> {
    match result {
        Ok(ReadAnswer::Environment(answer)) => Some(answer),
        _ => None,
    }
}
