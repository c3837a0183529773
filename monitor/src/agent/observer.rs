//! The thread that owns the sensor and the pipeline.

use super::{
    Flags,
    background::clean_up_in_background,
    config_watcher::{ConfigWatcher, LoadedConfig, watch_in_background},
    start_gaps::{RunTimes, standing_gaps, start_gaps},
    watchdog::Watchdog,
};
use crate::{
    attribution::{Attribution, names::NameResolver},
    config::{error::ConfigError, exclude::ExcludePattern},
    credential::Credentials,
    host,
    interval::Interval,
    ledger::LastShutdown,
    pipeline::{Batch, Evaluator, Pipeline, SensorFacts, Sinks},
    reader::{
        ReadId, ReadResult, ReaderLanes, mounts,
        protocol::{ReaderSetup, Views},
    },
    sensor::{
        Sensor, SensorOptions, canary::Canary, cgroup_root, cost::ShedNotice, effects::Effects,
        exclude::ExclusionRules, fields::VMLINUX, network, selftest::self_test,
    },
};
use anyhow::Context as _;
use jiff::Timestamp;
use monitor_common::fingerprint::FingerprintKey;
use monitor_core::{
    baseline::KnownUser,
    catalog::Catalog,
    model::{Credential, Source},
};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering, mpsc::Receiver},
    time::{Duration, Instant},
};
use tokio::sync::mpsc::UnboundedReceiver;

/// Maximum time that the pipeline waits for records.
const POLL_TIMEOUT: Duration = Duration::from_millis(200);
/// As [`POLL_TIMEOUT`], while an observation waits for a reader.
const WAITING_POLL_TIMEOUT: Duration = Duration::from_millis(20);
/// Maximum time until what was running before the agent is read; the rest follows.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum time to wait for the cluster's addresses at start; records accumulate in the rings
/// meanwhile.
const OBJECT_SYNC_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of the sensor's upkeep, the counters, and the timeouts of the trail and the policy.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which counts of repeated opens are collected.
const REPEATED_OPENS_INTERVAL: Duration = Duration::from_secs(3);

/// What the thread owns.
pub(super) struct ObserverInputs {
    /// Attach to programs and libraries.
    pub uprobes: bool,
    /// Programs to which no uprobe is attached.
    pub exclude: Vec<ExcludePattern>,
    /// What the probes may cost, as a share of the time of all processors.
    pub budget: f64,
    pub names: NameResolver,
    pub watch: ConfigWatcher,
    pub state_dir: PathBuf,
    pub key: FingerprintKey,
    pub catalog: Arc<Catalog>,
    pub evaluator: Evaluator,
    pub last: Option<LastShutdown>,
    pub known: Vec<(Credential, Timestamp)>,
    pub users: Vec<KnownUser>,
    pub names_of_addresses: Vec<(String, IpAddr)>,
    /// Resolvers to believe besides those that the host is configured with.
    pub resolvers: Vec<IpAddr>,
    pub flags: Flags,
}

/// Observes until `stop` is set.
pub(super) fn run(inputs: ObserverInputs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async { Observer::start(inputs).await?.observe().await })
}

/// The sensor, the pipeline, and what their loop needs.
struct Observer {
    sensor: Sensor,
    pipeline: Pipeline,
    canary: Canary,
    watchdog: Watchdog,
    readers: ReaderLanes,
    answers: UnboundedReceiver<(ReadId, ReadResult)>,
    /// All records sent before this time were read.
    read_until: Timestamp,
    changes: Receiver<Result<LoadedConfig, ConfigError>>,
    flags: Flags,
    batch: Batch,
}

impl Observer {
    /// Attaches the probes, and processes what is already running.
    async fn start(inputs: ObserverInputs) -> anyhow::Result<Self> {
        let started = Instant::now();
        let cgroup = cgroup_root();
        if cgroup.is_none() {
            tracing::warn!(
                "no cgroup v2 file system is mounted: connections and TLS server names are not observed"
            );
        }
        // Before the probes: the cgroups of the first records may be removed a moment later.
        let attribution = Attribution::new(cgroup.clone(), inputs.names);
        let images = Arc::clone(attribution.images());
        let mut sensor = Sensor::start(&SensorOptions {
            key: inputs.key,
            rules: &inputs.catalog.filter_rules([]),
            catalog: &inputs.catalog,
            cgroup: cgroup.as_deref(),
            btf: Path::new(VMLINUX),
            uprobes: inputs.uprobes,
            exclusion: ExclusionRules::new(inputs.exclude.clone(), images),
            budget: Some(inputs.budget),
            readers: ReaderSetup {
                catalog: Some(inputs.catalog.sources().clone()),
                key: [inputs.key.k0, inputs.key.k1],
                mounts_at_start: mounts().collect(),
                host: host::process(),
                views: Views::All,
            },
        })?;
        let now = Timestamp::now();
        let standing = standing_gaps(&sensor, inputs.uprobes, &inputs.exclude);
        let gaps = start_gaps(sensor.attached(), standing, inputs.last, RunTimes::at(now));
        report_attached(&sensor, &inputs.evaluator);
        sensor.apply(Effects {
            authenticators: Some(inputs.evaluator.authenticators()),
            ..Effects::default()
        })?;
        let mut batch = Batch::empty(now);
        let own = self_test(&mut sensor, &inputs.state_dir, &mut batch.observations)
            .await
            .context("self-test of the probes failed")?;
        attribution.await_objects(OBJECT_SYNC_TIMEOUT);
        let credentials = Credentials::new(Arc::clone(&inputs.catalog), inputs.key);
        let reload = Arc::clone(&inputs.flags.reload);
        let changes = watch_in_background(inputs.watch, reload)
            .context("cannot start the thread that watches the configuration")?;
        let (readers, answers) = ReaderLanes::start(sensor.readers())
            .context("cannot start the threads that ask readers")?;
        let facts = SensorFacts {
            own_pid: own.pid,
            environ_is_read: sensor.environ_is_read(),
            own_network: network::own_cookie(),
        };
        let mut pipeline = Pipeline::new(
            attribution,
            credentials,
            inputs.evaluator,
            inputs.exclude,
            facts,
        );
        let known = file_places(&inputs.known);
        pipeline.set_resolvers(inputs.resolvers);
        pipeline.restore(inputs.known, &inputs.users);
        pipeline.restore_names(inputs.names_of_addresses, now);
        let effects = pipeline.start(gaps, known, now);
        // What the agent itself did during the self-test.
        batch
            .observations
            .retain(|observation| observation.task().is_none_or(|task| task.subject != own));
        let canary = Canary::start(&inputs.state_dir, own, inputs.key, sensor.attached())
            .context("cannot start the thread that tests the probes")?;
        let mut observer = Self {
            sensor,
            pipeline,
            canary,
            watchdog: Watchdog::new(inputs.flags.health.clone()),
            readers,
            answers,
            read_until: now,
            changes,
            flags: inputs.flags,
            batch,
        };
        observer.apply(effects)?;
        observer.catch_up().await?;
        observer.process()?;
        observer.flags.ready.store(true, Ordering::Release);
        tracing::info!(milliseconds = started.elapsed().as_millis() as u64, "ready");
        clean_up_in_background()?;
        Ok(observer)
    }

    async fn observe(mut self) -> anyhow::Result<()> {
        let mut tick = Interval::new(TICK_INTERVAL);
        let mut opens = Interval::new(REPEATED_OPENS_INTERVAL);
        while !self.flags.stop.load(Ordering::Acquire) {
            if let Some(gap) = self.watchdog.beat() {
                self.pipeline.add_gap(gap);
            }
            // Records sent before this are read after it.
            self.batch.read_until = Timestamp::now();
            self.read().await?;
            let observations = &mut self.batch.observations;
            let ticks = tick.is_due();
            if ticks {
                self.sensor.take_repeated_presentations(observations);
            }
            if opens.is_due() {
                self.sensor.take_repeated_opens(observations);
            }
            self.canary.remove_own(observations);
            self.process()?;
            if ticks {
                self.tick()?;
            }
        }
        self.take_answers()?;
        self.pipeline.finish(Timestamp::now());
        Ok(())
    }

    /// Reads observations. Answers of readers that arrive meanwhile are processed at once, so that
    /// the observations that wait for them do not wait for more.
    async fn read(&mut self) -> anyhow::Result<()> {
        let limit = if self.pipeline.has_more() {
            Duration::ZERO
        } else if self.pipeline.is_waiting() {
            WAITING_POLL_TIMEOUT
        } else {
            POLL_TIMEOUT
        };
        let mut delayed = Vec::new();
        {
            let read = self
                .sensor
                .read_observations(limit, &mut self.batch.observations);
            tokio::pin!(read);
            loop {
                tokio::select! {
                    done = &mut read => {
                        done?;
                        break;
                    }
                    Some(answer) = self.answers.recv() => {
                        let mut batch = Batch::of_answer(answer, self.read_until);
                        let mut effects = self.pipeline.process(&mut batch, Timestamp::now());
                        self.readers.submit(std::mem::take(&mut effects.reads));
                        delayed.push(effects);
                    }
                }
            }
        }
        self.read_until = self.batch.read_until;
        for effects in delayed {
            self.apply(effects)?;
        }
        self.collect_answers();
        Ok(())
    }

    /// Processes what was running before the agent, as far as it can be read in time; the rest
    /// follows.
    async fn catch_up(&mut self) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + CATCH_UP_TIMEOUT;
        loop {
            let until = if self.pipeline.has_more() {
                tokio::time::Instant::now()
            } else if self.pipeline.unexamined() > 0 || self.pipeline.is_waiting() {
                deadline
            } else {
                return Ok(());
            };
            match tokio::time::timeout_at(until, self.answers.recv()).await {
                Ok(Some(answer)) => self.batch.answers.push(answer),
                Err(_) if until < deadline => {}
                Ok(None) | Err(_) => break,
            }
            self.process()?;
        }
        let processes = self.pipeline.unexamined();
        tracing::info!(processes, "still reading what was running before the agent");
        Ok(())
    }

    /// Processes the answers that have arrived.
    fn take_answers(&mut self) -> anyhow::Result<()> {
        self.collect_answers();
        self.process()
    }

    fn collect_answers(&mut self) {
        while let Ok(answer) = self.answers.try_recv() {
            self.batch.answers.push(answer);
        }
    }

    fn process(&mut self) -> anyhow::Result<()> {
        let effects = self.pipeline.process(&mut self.batch, Timestamp::now());
        self.apply(effects)
    }

    fn apply(&mut self, mut effects: Effects) -> anyhow::Result<()> {
        let reads = std::mem::take(&mut effects.reads);
        // First the probes: what readers open meanwhile is compared with what these know.
        self.sensor.apply(effects)?;
        self.readers.submit(reads);
        Ok(())
    }

    /// Does what is due every second.
    fn tick(&mut self) -> anyhow::Result<()> {
        // What is here is not late, however long this thread was busy.
        self.take_answers()?;
        self.sensor.maintain()?;
        let mut report = self.sensor.take_report()?;
        if !report.shed.is_empty() {
            report.silences = self.canary.expect(self.sensor.running());
        }
        let silences = self.canary.beat(&report.losses);
        report.silences.extend(silences);
        self.watchdog.note_silences(&report.silences);
        let now = Timestamp::now();
        for gap in self.watchdog.stalled_threads(now) {
            self.pipeline.add_gap(gap);
        }
        let shed = report.shed.clone();
        let effects = self.pipeline.tick(report, now);
        // After the ends of silences, which count as heard.
        report_switched(&self.sensor, &shed, self.pipeline.sinks_mut());
        self.apply(effects)?;
        self.reload_if_changed()
    }

    fn reload_if_changed(&mut self) -> anyhow::Result<()> {
        if self.flags.reopen.swap(false, Ordering::AcqRel) {
            self.pipeline.sinks_mut().stream.reopen();
        }
        match self.changes.try_recv() {
            Err(_) => Ok(()),
            Ok(Ok(loaded)) => self.apply_config(loaded),
            Ok(Err(error)) => {
                self.pipeline.sinks_mut().metrics.reload_success.set(0);
                tracing::error!(
                    "changed configuration is invalid, the previous one stays in force: {error:#}"
                );
                Ok(())
            }
        }
    }

    fn apply_config(&mut self, loaded: LoadedConfig) -> anyhow::Result<()> {
        let LoadedConfig {
            config,
            catalog,
            refused,
            needs_restart,
        } = loaded;
        let exclude = config.settings.inspect.exclude;
        let effects = self.pipeline.reload(config.expectations, catalog, exclude);
        self.apply(effects)?;
        let success = i64::from(refused == 0);
        self.pipeline
            .sinks_mut()
            .metrics
            .reload_success
            .set(success);
        tracing::info!("configuration reloaded");
        if needs_restart {
            tracing::warn!("agent settings changed as well: they take effect at the next start");
        }
        Ok(())
    }
}

/// Reports which probes are attached, by metric and, for those that are not, by log.
fn report_attached(sensor: &Sensor, evaluator: &Evaluator) {
    for program in sensor.attached() {
        evaluator.metrics().probes.set_probe_attached(
            program.probe.name(),
            &program.mechanism,
            program.error.is_none(),
        );
        if let Some(error) = &program.error {
            tracing::error!(probe = program.probe.name(), mechanism = program.mechanism, %error, "probe not attached");
        }
    }
}

/// Reports the attached probes that were turned off or on.
fn report_switched(sensor: &Sensor, shed: &[ShedNotice], sinks: &Sinks) {
    for line in sensor.attached().iter().filter(|line| line.error.is_none()) {
        if shed.iter().any(|notice| notice.unit.stops(line.program)) {
            let running = !sensor.is_shed(line);
            let probes = &sinks.metrics.probes;
            probes.set_probe_attached(line.probe.name(), &line.mechanism, running);
        }
    }
}

/// The files in which credentials were found by previous runs.
fn file_places(known: &[(Credential, Timestamp)]) -> Vec<String> {
    known
        .iter()
        .flat_map(|(credential, _)| &credential.sources)
        .filter(|place| place.source == Source::File)
        .map(|place| place.place.clone())
        .collect()
}
