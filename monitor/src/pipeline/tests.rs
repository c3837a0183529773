//! Tests of the pipeline without a kernel: batches of observations in, effects and events out.

use super::{Batch, Evaluator, EventRecorder, Pipeline, SensorFacts, Sinks};
use crate::{
    attribution::{Attribution, names::NameResolver},
    config::{
        Config,
        settings::{FindingsFormat, RetentionLimits},
    },
    credential::Credentials,
    export::{findings::FindingStream, lines::Delivery},
    health::Health,
    ledger::{LedgerWriter, reader::LedgerReader},
    metrics::Metrics,
    observed::file::FileId,
    reader::{ReadFailure, ReadId, ReadResult, ReaderTasks},
    sensor::{
        observation::{
            Observation, ObservedConnection, ObservedOpen, ObservedPresentation, ObservedSecret,
            OpenKind, RecordOwner, StdoutPipe, TaskInfo,
        },
        report::{ProbeSilence, RingLoss, SensorReport, SilenceReason},
    },
};
use jiff::{SignedDuration, Timestamp};
use monitor_common::{fingerprint::FingerprintKey, record::Probe};
use monitor_core::{
    catalog::Catalog,
    history::TimeRange,
    model::{Gap, Subject, Transport, Workload},
    policy::Policy,
    trail::TrailEvent,
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

const KEY: FingerprintKey = FingerprintKey { k0: 1, k1: 2 };
const COOKIE: u64 = 7;
const WRITE: u64 = 40;

/// A pipeline that records its events.
struct TestPipeline {
    pipeline: Pipeline,
    reader: ReaderTasks,
    directory: tempfile::TempDir,
    time: Timestamp,
}

impl TestPipeline {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Arc::new(Catalog::new("", &[], &[]).expect("embedded"));
        let record = File::create(directory.path().join("record")).expect("a file");
        let findings = directory.path().join("findings");
        let sinks = Sinks {
            ledger: None,
            metrics: Arc::new(Metrics::new().expect("families")),
            stream: FindingStream::open(
                &findings.display().to_string(),
                FindingsFormat::Json,
                Delivery::Complete,
            )
            .expect("a stream"),
            record: Some(EventRecorder::start(Box::new(record)).expect("a thread")),
        };
        let policy = Policy::new(Config::default().expectations, Arc::clone(&catalog));
        let pipeline = Pipeline::new(
            Attribution::new(None, NameResolver::empty()),
            Credentials::new(catalog, KEY),
            Evaluator::new(policy, sinks, true),
            Vec::new(),
            SensorFacts {
                own_pid: 0,
                environ_is_read: false,
                own_network: None,
            },
        );
        Self {
            pipeline,
            reader: ReaderTasks::for_tests(KEY),
            directory,
            time: Timestamp::now(),
        }
    }

    /// Processes observations, and the answers to what the pipeline asks of the reader.
    fn process(&mut self, observations: Vec<Observation>) -> super::Effects {
        let mut whole = self.process_unanswered(observations);
        while !whole.reads.is_empty() {
            let reads = std::mem::take(&mut whole.reads);
            let answers = reads
                .into_iter()
                .map(|(id, request)| (id, self.reader.result(&request)))
                .collect();
            let more = self.answer(answers);
            whole.learn.extend(more.learn);
            whole.ignore.extend(more.ignore);
            whole.reads.extend(more.reads);
        }
        whole
    }

    /// Processes observations while the reader does not respond.
    fn process_unanswered(&mut self, observations: Vec<Observation>) -> super::Effects {
        self.process_batch(observations, Vec::new())
    }

    /// The reader answers what the pipeline asked.
    fn answer_reads(&mut self, effects: &super::Effects) {
        let reads = effects.reads.iter();
        let answers = reads
            .map(|(id, request)| (*id, self.reader.result(request)))
            .collect();
        self.answer(answers);
    }

    fn answer(&mut self, answers: Vec<(ReadId, ReadResult)>) -> super::Effects {
        self.process_batch(Vec::new(), answers)
    }

    fn process_batch(
        &mut self,
        observations: Vec<Observation>,
        answers: Vec<(ReadId, ReadResult)>,
    ) -> super::Effects {
        let mut batch = Batch {
            observations,
            answers,
            read_until: self.time,
        };
        let effects = self.pipeline.process(&mut batch, self.time);
        assert!(batch.observations.is_empty() && batch.answers.is_empty());
        effects
    }

    fn process_the_rest(&mut self) {
        while self.pipeline.has_more() {
            self.process_batch(Vec::new(), Vec::new());
        }
    }

    /// The events so far.
    fn events(&self) -> Vec<TrailEvent> {
        let recorder = self.pipeline.evaluator.sinks.record.as_ref();
        recorder.expect("a recording").flush();
        let text = fs::read_to_string(self.directory.path().join("record")).expect("a record");
        // It begins with its version.
        text.lines()
            .skip(1)
            .map(|line| serde_json::from_str(line).expect("an event"))
            .collect()
    }

    /// This process, as a probe reports it.
    fn task(&self) -> TaskInfo {
        let own = procfs::process::Process::myself().expect("this process");
        TaskInfo {
            time: self.time,
            subject: Subject {
                pid: std::process::id(),
                start: own.stat().expect("its start").starttime,
            },
            parent: None,
            cgroup: 0,
            uid: 0,
            loginuid: None,
            tty: false,
            comm: "test".to_owned(),
        }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(&path, text).expect("written");
        path
    }

    fn open(&self, path: &Path, known: bool) -> (FileId, Observation) {
        let file = FileId::for_tests(path);
        let open = ObservedOpen {
            task: self.task(),
            path: path.to_owned(),
            source: None,
            file,
            magic: 0,
            known,
            kind: OpenKind::Opened,
            count: 1,
            output: StdoutPipe::default(),
        };
        (file, Observation::FileOpened(open))
    }

    fn connect(&self) -> Observation {
        Observation::Connected(ObservedConnection {
            task: self.task(),
            cookie: COOKIE,
            address: [192, 0, 2, 1].into(),
            port: 443,
            transport: Transport::Tcp,
            stdin: None,
            network: 1,
        })
    }

    /// As [`connect`](Self::connect), by a user of a cgroup.
    fn connect_as(&self, cgroup: u64, uid: u32) -> Observation {
        let Observation::Connected(mut connection) = self.connect() else {
            panic!("not a connection");
        };
        (connection.task.cgroup, connection.task.uid) = (cgroup, uid);
        Observation::Connected(connection)
    }

    fn present(&self) -> Observation {
        Observation::Presented(ObservedPresentation {
            task: self.task(),
            write: WRITE,
            server: None,
            host: None,
            secret: ObservedSecret {
                fingerprint: 99,
                inner: None,
                secret_len: 40,
                header: 0,
                prefix: None,
                dots: 0,
                count: 1,
            },
        })
    }
}

/// The connections on which credentials were presented; `None` for an unknown one.
fn presented(events: &[TrailEvent]) -> Vec<Option<u64>> {
    let connection = |event: &TrailEvent| match event {
        TrailEvent::Presented(event) => Some(event.connection),
        _ => None,
    };
    events.iter().filter_map(connection).collect()
}

#[test]
fn a_credential_file_is_learned_and_picked_up() {
    let mut test = TestPipeline::new();
    let path = test.write(
        ".aws/credentials",
        "[default]\naws_access_key_id=AKIAFAKEFAKEFAKEFAKE\naws_secret_access_key=FAKE/secret\n",
    );
    let (file, open) = test.open(&path, false);
    let effects = test.process(vec![open]);
    assert_eq!((effects.learn, effects.ignore), (vec![file], vec![]));
    let picked_up = test.events().into_iter().find_map(|event| match event {
        TrailEvent::PickUp(event) => Some(event.credential.class.clone()),
        _ => None,
    });
    assert_eq!(picked_up.as_deref(), Some("aws-access-key"));
}

#[test]
fn a_file_without_a_credential_is_ignored_unless_it_held_one() {
    let mut test = TestPipeline::new();
    let path = test.write(".aws/credentials", "[default]\nregion=eu\n");
    let (file, open) = test.open(&path, false);
    let effects = test.process(vec![open]);
    assert_eq!((effects.learn, effects.ignore), (vec![], vec![file]));
    let (_, open) = test.open(&path, true);
    let effects = test.process(vec![open]);
    assert_eq!((effects.learn, effects.ignore), (vec![], vec![]));
}

#[test]
fn a_presentation_gets_the_connection_of_its_write() {
    let mut test = TestPipeline::new();
    let batch = vec![test.connect(), test.present()];
    test.process(batch);
    assert!(
        presented(&test.events()).is_empty(),
        "its socket may follow"
    );
    test.process(vec![Observation::WriteSent {
        owner: RecordOwner::UNKNOWN,
        write: WRITE,
        cookie: COOKIE,
    }]);
    assert_eq!(presented(&test.events()), [Some(COOKIE)]);
    // What the probes counted afterwards was on the same connection.
    let Observation::Presented(mut again) = test.present() else {
        panic!("not a presentation");
    };
    again.secret.count = 60;
    test.process(vec![Observation::Presented(again)]);
    let counts: Vec<(Option<u64>, u64)> = test
        .events()
        .iter()
        .filter_map(|event| match event {
            TrailEvent::Presented(event) => Some((event.connection, event.count)),
            _ => None,
        })
        .collect();
    assert_eq!(counts.last(), Some(&(Some(COOKIE), 60)));
}

#[test]
fn a_presentation_without_a_socket_is_reported_after_a_while() {
    let mut test = TestPipeline::new();
    let batch = vec![test.present()];
    test.process(batch);
    test.time += SignedDuration::from_millis(251);
    test.process(Vec::new());
    assert_eq!(presented(&test.events()), [None]);
}

#[test]
fn a_write_that_the_library_rejected_presents_nothing() {
    let mut test = TestPipeline::new();
    let batch = vec![
        test.present(),
        Observation::WriteRejected {
            owner: RecordOwner::UNKNOWN,
            write: WRITE,
        },
    ];
    test.process(batch);
    test.time += SignedDuration::from_secs(1);
    test.process(Vec::new());
    assert!(presented(&test.events()).is_empty());
}

#[test]
fn losses_become_gaps_once_and_are_counted_per_workload() {
    let mut test = TestPipeline::new();
    let mut report = SensorReport {
        undecoded: 2,
        losses: vec![RingLoss {
            owner: RecordOwner { cgroup: 5, user: 0 },
            probe: Probe::Environ,
            count: 412,
        }],
        ..SensorReport::default()
    };
    let gaps = |test: &TestPipeline| -> Vec<(String, u64)> {
        let events = test.events().into_iter();
        events
            .filter_map(|event| match event {
                TrailEvent::Gap { gap } => Some((gap.detail, gap.count)),
                _ => None,
            })
            .collect()
    };
    let time = test.time;
    let tick = |test: &mut TestPipeline, report: SensorReport| {
        test.pipeline.tick(report, time);
    };
    let losses = report.losses.clone();
    tick(
        &mut test,
        SensorReport {
            losses,
            undecoded: 2,
            ..SensorReport::default()
        },
    );
    let found = gaps(&test);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0]
            .0
            .starts_with("environ ring buffer overflowed: records of ")
    );
    assert_eq!(found[0].1, 412);
    assert_eq!(found[1].1, 2);
    report.losses.clear();
    tick(&mut test, report);
    assert_eq!(gaps(&test), found, "no new losses, no new gaps");
    let metrics = test.pipeline.sinks_mut().metrics.render().expect("text");
    let counted = metrics.lines().find(|line| {
        line.starts_with("keytrail_workload_events_lost_total{probe=\"environ\"")
            && line.ends_with(" 412")
    });
    assert!(counted.is_some(), "{metrics}");
}

#[test]
fn a_silent_probe_is_a_blind_gap() {
    let mut test = TestPipeline::new();
    let report = SensorReport {
        silences: vec![ProbeSilence {
            probe: Probe::File,
            mechanisms: vec!["lsm/file_open".to_owned()],
            reason: SilenceReason::Silent,
            since: test.time,
            until: None,
            was_heard: true,
        }],
        ..SensorReport::default()
    };
    test.pipeline.tick(report, test.time);
    let blind = test.events().into_iter().any(
        |event| matches!(event, TrailEvent::Gap { gap } if gap.kind == "probe-silent" && gap.blind),
    );
    assert!(blind);
}

#[test]
fn a_reload_updates_the_kernel_filter_and_the_authenticators() {
    let mut test = TestPipeline::new();
    let catalog = Arc::new(Catalog::new("", &[], &[]).expect("embedded"));
    let effects = test
        .pipeline
        .reload(Config::default().expectations, catalog, Vec::new());
    assert!(effects.rules.is_some() && effects.authenticators.is_some());
    assert!(effects.exclusion.is_none(), "the exclusions are unchanged");
}

#[test]
fn an_exited_process_is_forgotten_by_every_stage_at_once() {
    let mut test = TestPipeline::new();
    let task = TaskInfo {
        subject: Subject {
            // Above the kernel's limit, so that no real process has it.
            pid: 0x7000_0001,
            start: 1,
        },
        ..test.task()
    };
    test.process(vec![Observation::Fork(task.clone())]);
    test.process(vec![Observation::Exit(task.clone())]);
    let gone = |test: &TestPipeline| {
        let events = test.events();
        events.iter().any(
            |event| matches!(event, TrailEvent::Gone { subjects } if subjects == &[task.subject]),
        )
    };
    assert!(!gone(&test));
    test.time += SignedDuration::from_secs(11);
    test.pipeline.tick(SensorReport::default(), test.time);
    assert!(gone(&test), "{:?}", test.events());
    assert!(
        test.pipeline
            .enricher
            .attribution
            .entry(task.subject)
            .is_none()
    );
}

/// The credential file of the tests below, as opened by this process.
fn open_credentials(test: &TestPipeline) -> Observation {
    let path = test.write(".netrc", "machine a login b password FAKE-secret\n");
    test.open(&path, false).1
}

fn picked_up(events: &[TrailEvent]) -> usize {
    events
        .iter()
        .filter(|event| matches!(event, TrailEvent::PickUp(_)))
        .count()
}

fn connected(events: &[TrailEvent]) -> usize {
    events
        .iter()
        .filter(|event| matches!(event, TrailEvent::Connect { .. }))
        .count()
}

#[test]
fn a_connection_after_a_read_waits_for_the_reader() {
    let mut test = TestPipeline::new();
    let batch = vec![open_credentials(&test), test.connect()];
    let effects = test.process_unanswered(batch);
    assert!(test.pipeline.is_waiting());
    assert_eq!(connected(&test.events()), 0, "it would precede the pick-up");
    test.answer_reads(&effects);
    let events = test.events();
    let position = |is: fn(&TrailEvent) -> bool| events.iter().position(is);
    let pick_up = position(|event| matches!(event, TrailEvent::PickUp(_)));
    let connect = position(|event| matches!(event, TrailEvent::Connect { .. }));
    assert!(pick_up.is_some() && pick_up < connect, "{events:?}");
}

#[test]
fn a_reader_that_does_not_respond_delays_others_for_a_moment_only() {
    let mut test = TestPipeline::new();
    let batch = vec![open_credentials(&test), test.connect()];
    let effects = test.process_unanswered(batch);
    test.time += SignedDuration::from_millis(501);
    test.process_unanswered(Vec::new());
    let events = test.events();
    assert_eq!((connected(&events), picked_up(&events)), (1, 0));
    // Others on that file system are not waited for.
    let batch = vec![open_credentials(&test), test.connect()];
    test.process_unanswered(batch);
    assert_eq!(connected(&test.events()), 2);
    // What comes late is not lost.
    test.answer_reads(&effects);
    assert_eq!(picked_up(&test.events()), 1);
}

#[test]
fn the_workload_of_a_late_file_is_known_after_its_process_exited() {
    let mut test = TestPipeline::new();
    let open = open_credentials(&test);
    let effects = test.process_unanswered(vec![open]);
    let exit = Observation::Exit(test.task());
    test.time += SignedDuration::from_secs(1);
    test.process_unanswered(vec![exit]);
    let workload = test
        .pipeline
        .enricher
        .attribution
        .workload(test.task().subject);
    // Long after exited processes are forgotten.
    test.time += SignedDuration::from_secs(30);
    test.pipeline.tick(SensorReport::default(), test.time);
    let is_gone = |event: &TrailEvent| matches!(event, TrailEvent::Gone { .. });
    assert!(!test.events().iter().any(is_gone));
    test.answer_reads(&effects);
    let events = test.events();
    let actors: Vec<&Workload> = events
        .iter()
        .filter_map(|event| match event {
            TrailEvent::PickUp(event) => Some(&event.actor.workload),
            _ => None,
        })
        .collect();
    // By its place when it took too long, and by its key when that came.
    assert_eq!(actors, [&workload; 2]);
    test.time += SignedDuration::from_secs(3);
    test.pipeline.tick(SensorReport::default(), test.time);
    assert!(test.events().iter().any(is_gone));
}

#[test]
fn what_waits_when_the_agent_stops_is_not_lost() {
    let mut test = TestPipeline::new();
    let batch = vec![
        open_credentials(&test),
        test.connect(),
        open_credentials(&test),
        test.connect(),
    ];
    test.process_unanswered(batch);
    test.pipeline.finish(test.time);
    let events = test.events();
    // By its place, because its contents are not known.
    assert_eq!((connected(&events), picked_up(&events)), (2, 2));
}

#[test]
fn a_long_queue_does_not_wait_and_ticks_do_not_overtake_it() {
    let mut test = TestPipeline::new();
    let open = open_credentials(&test);
    test.process_unanswered(vec![open]);
    let since = test.time;
    test.time += SignedDuration::from_millis(10);
    test.pipeline.tick(SensorReport::default(), test.time);
    let ticks = |test: &TestPipeline| {
        let events = test.events();
        let ticks = events.into_iter().filter_map(|event| match event {
            TrailEvent::Tick { time } => Some(time),
            _ => None,
        });
        ticks.collect::<Vec<_>>()
    };
    assert_eq!(ticks(&test), [since]);
    let many = 40_000;
    let batch = (0..many).map(|_| test.connect()).collect();
    test.process_unanswered(batch);
    assert!(!test.pipeline.is_waiting() && test.pipeline.has_more());
    let queued = test.time;
    test.time += SignedDuration::from_millis(10);
    test.pipeline.tick(SensorReport::default(), test.time);
    assert_eq!(ticks(&test).last(), Some(&queued));
    test.process_the_rest();
    // The recording has lost some of them, as its thread was busy.
    assert!(connected(&test.events()) > many / 4);
    test.pipeline.tick(SensorReport::default(), test.time);
    assert_eq!(ticks(&test).last(), Some(&test.time));
}

#[test]
fn a_flood_loses_its_own_observations_and_those_of_others_are_in_time() {
    let mut test = TestPipeline::new();
    let flood = (0..10_000).map(|_| test.connect_as(7, 65_534));
    let batch = flood.chain((0..5).map(|_| test.connect_as(8, 0))).collect();
    // It was busy with something else.
    test.time += SignedDuration::from_secs(1);
    test.process_unanswered(batch);
    test.process_the_rest();
    let dropped = 10_005 - connected(&test.events());
    assert_eq!(dropped, 10_005 - 4_096);
    test.pipeline.tick(SensorReport::default(), test.time);
    let gaps: Vec<Gap> = test
        .events()
        .into_iter()
        .filter_map(|event| match event {
            TrailEvent::Gap { gap } => Some(gap),
            _ => None,
        })
        .collect();
    let [gap] = &gaps[..] else {
        panic!("{gaps:?}");
    };
    assert_eq!((gap.count, gap.blind), (dropped as u64, true));
    let text = "lost: they came faster than they can be evaluated";
    assert!(gap.detail.ends_with(text), "{}", gap.detail);
}

#[test]
fn what_the_reader_works_for_is_not_dropped() {
    let mut test = TestPipeline::new();
    let Observation::FileOpened(mut open) = open_credentials(&test) else {
        panic!("not a file");
    };
    (open.task.cgroup, open.task.uid) = (7, 1);
    let effects = test.process_unanswered(vec![Observation::FileOpened(open)]);
    // So many users that none has a share.
    let flood = (2..40_000).map(|uid| test.connect_as(7, uid)).collect();
    test.process_unanswered(flood);
    assert!(test.pipeline.is_waiting());
    test.answer_reads(&effects);
    assert_eq!(picked_up(&test.events()), 1);
}

#[test]
fn a_reader_whose_cgroup_is_gone_is_judged_at_once() {
    let mut test = TestPipeline::new();
    let Observation::FileOpened(mut open) = open_credentials(&test) else {
        panic!("not a file");
    };
    let text = format!(
        "credentials: [ {{ name: treasure, match: {{ file: {} }}, readers: [ {{ namespace: payments }} ] }} ]",
        open.path.display()
    );
    let config = Config::parse(Path::new("test"), &text).expect("a configuration");
    let catalog = Arc::new(Catalog::new("", &[], &[]).expect("embedded"));
    test.pipeline
        .reload(config.expectations, catalog, Vec::new());
    // No such process exists: its cgroup can be found no other way.
    open.task.subject = Subject {
        pid: u32::MAX,
        start: 1,
    };
    open.task.cgroup = 7;
    test.process(vec![Observation::FileOpened(open)]);
    // Its end writes what was found.
    drop(test.pipeline);
    let found = fs::read_to_string(test.directory.path().join("findings")).expect("findings");
    assert!(
        found.contains("unexpected-reader") && found.contains("cgroup-7"),
        "{found}"
    );
}

#[test]
fn a_file_that_the_reader_cannot_read_is_known_by_its_place() {
    let mut test = TestPipeline::new();
    let batch = vec![open_credentials(&test)];
    let effects = test.process_unanswered(batch);
    let answers = effects
        .reads
        .iter()
        .map(|(id, _)| (*id, Err(ReadFailure::Replaced)))
        .collect();
    test.answer(answers);
    let ids: Vec<String> = test
        .events()
        .into_iter()
        .filter_map(|event| match event {
            TrailEvent::PickUp(event) => Some(event.credential.id.0.clone()),
            _ => None,
        })
        .collect();
    assert!(ids.len() == 1 && ids[0].starts_with("loc-"), "{ids:?}");
}

#[test]
fn failures_of_the_reader_become_gaps() {
    let mut test = TestPipeline::new();
    let report = SensorReport {
        reader_failures: vec![(ReadFailure::TimedOut, 3), (ReadFailure::Unreadable, 9)],
        ..SensorReport::default()
    };
    test.pipeline.tick(report, test.time);
    let gaps: Vec<(String, u64)> = test
        .events()
        .into_iter()
        .filter_map(|event| match event {
            TrailEvent::Gap { gap } => Some((gap.kind, gap.count)),
            _ => None,
        })
        .collect();
    assert_eq!(gaps, [("unread".to_owned(), 3)]);
}

/// Otherwise an agent that is killed a moment after its start hides a time without any.
#[test]
fn the_gaps_of_a_start_are_stored_once_it_counts() {
    let mut test = TestPipeline::new();
    let directory = test.directory.path();
    let (ledger, _) = LedgerWriter::open(directory, RetentionLimits::default(), Health::default())
        .expect("opens");
    test.pipeline.evaluator.sinks.ledger = Some(ledger);
    let down = Gap {
        kind: "agent-down".to_owned(),
        probe: None,
        detail: "the agent was not running".to_owned(),
        since: test.time - SignedDuration::from_secs(9),
        until: Some(test.time),
        count: 0,
        blind: false,
    };
    let gaps = vec![TrailEvent::Gap { gap: down }];
    test.pipeline.start(gaps, Vec::new(), test.time);
    let reader = LedgerReader::open(test.directory.path()).expect("opens");
    let stored = reader.gaps(TimeRange::default()).expect("read");
    assert_eq!(stored.len(), 1, "{stored:?}");
}
