//! The thread that owns the sensor and the pipeline.

use super::{
    Flags,
    background::{clean_up_in_background, recover_in_background},
    config_watcher::{ConfigWatcher, LoadedConfig},
    start_gaps::{RunTimes, standing_gaps, start_gaps},
};
use crate::{
    attribution::{Attribution, names::NameResolver},
    config::exclude::ExcludePattern,
    credential::{Credentials, recover::RecoveredFile},
    interval::Interval,
    ledger::LastShutdown,
    pipeline::{Batch, Evaluator, Pipeline, SensorFacts},
    sensor::{
        Sensor, SensorOptions, cgroup_root,
        effects::Effects,
        exclude::ExclusionRules,
        fields::VMLINUX,
        selftest::{Heartbeat, self_test},
    },
};
use anyhow::Context as _;
use jiff::Timestamp;
use monitor_common::fingerprint::FingerprintKey;
use monitor_core::{
    catalog::Catalog,
    model::{Credential, Source},
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering, mpsc::Receiver},
    time::{Duration, Instant},
};

/// Maximum time that the pipeline waits for records.
const POLL_TIMEOUT: Duration = Duration::from_millis(200);
/// Maximum time to wait for the cluster's addresses at start; records accumulate in the rings
/// meanwhile.
const OBJECT_SYNC_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of the sensor's upkeep, the counters, and the timeouts of the trail and the policy.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which counts of repeated opens are collected.
const REPEATED_OPENS_INTERVAL: Duration = Duration::from_secs(3);

/// What the thread owns.
pub(super) struct ObserverInputs {
    /// Programs to which no uprobe is attached.
    pub exclude: Vec<ExcludePattern>,
    pub names: NameResolver,
    pub watch: ConfigWatcher,
    pub state_dir: PathBuf,
    pub key: FingerprintKey,
    pub catalog: Arc<Catalog>,
    pub evaluator: Evaluator,
    pub last: Option<LastShutdown>,
    pub known: Vec<(Credential, Timestamp)>,
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
    heartbeat: Heartbeat,
    recovered: Receiver<RecoveredFile>,
    watch: ConfigWatcher,
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
            cgroup: cgroup.as_deref(),
            btf: Path::new(VMLINUX),
            exclusion: ExclusionRules::new(inputs.exclude.clone(), images),
        })?;
        let now = Timestamp::now();
        let standing = standing_gaps(&sensor, &inputs.exclude);
        let gaps = start_gaps(sensor.attached(), standing, inputs.last, RunTimes::at(now));
        report_attached(&sensor, &inputs.evaluator);
        sensor.apply(Effects {
            authenticators: Some(inputs.evaluator.authenticators()),
            ..Effects::default()
        })?;
        let mut batch = Batch {
            observations: Vec::new(),
            read_until: now,
        };
        let own_pid = self_test(&mut sensor, &inputs.state_dir, &mut batch.observations)
            .await
            .context("self-test of the probes failed")?;
        attribution.await_objects(OBJECT_SYNC_TIMEOUT);
        let credentials = Credentials::new(Arc::clone(&inputs.catalog), inputs.key)
            .context("cannot allocate the buffer for secrets")?;
        let recovered =
            recover_in_background(Arc::clone(&inputs.catalog), file_places(&inputs.known))?;
        let facts = SensorFacts {
            own_pid,
            environ_is_read: sensor.environ_is_read(),
        };
        let mut pipeline = Pipeline::new(
            attribution,
            credentials,
            inputs.evaluator,
            inputs.exclude,
            facts,
        );
        pipeline.restore(inputs.known);
        pipeline.start(gaps, now)?;
        // What the agent itself did during the self-test.
        batch.observations.retain(|observation| {
            observation
                .task()
                .is_none_or(|task| task.subject.pid != own_pid)
        });
        let mut observer = Self {
            sensor,
            pipeline,
            heartbeat: Heartbeat::new(&inputs.state_dir, own_pid),
            recovered,
            watch: inputs.watch,
            flags: inputs.flags,
            batch,
        };
        observer.process()?;
        observer.flags.ready.store(true, Ordering::Release);
        tracing::info!(milliseconds = started.elapsed().as_millis() as u64, "ready");
        clean_up_in_background()?;
        Ok(observer)
    }

    async fn observe(mut self) -> anyhow::Result<()> {
        let mut tick = Interval::new(TICK_INTERVAL);
        let mut repeated_opens = Interval::new(REPEATED_OPENS_INTERVAL);
        while !self.flags.stop.load(Ordering::Acquire) {
            // Records sent before this are read after it.
            self.batch.read_until = Timestamp::now();
            let observations = &mut self.batch.observations;
            self.sensor
                .read_observations(POLL_TIMEOUT, observations)
                .await?;
            if repeated_opens.is_due() {
                self.sensor.take_repeated_opens(observations);
            }
            self.heartbeat.remove_own(observations);
            self.process()?;
            for found in self.recovered.try_iter() {
                self.sensor.apply(self.pipeline.add_recovered(&found))?;
            }
            if tick.is_due() {
                self.tick()?;
            }
        }
        self.pipeline.finish();
        Ok(())
    }

    fn process(&mut self) -> anyhow::Result<()> {
        let effects = self.pipeline.process(&mut self.batch, Timestamp::now())?;
        Ok(self.sensor.apply(effects)?)
    }

    /// Does what is due every second.
    fn tick(&mut self) -> anyhow::Result<()> {
        self.sensor.maintain()?;
        let mut report = self.sensor.take_report()?;
        report.silent_since = self.heartbeat.beat(&mut self.sensor)?;
        let effects = self.pipeline.tick(report, Timestamp::now())?;
        self.sensor.apply(effects)?;
        self.reload_if_changed()
    }

    fn reload_if_changed(&mut self) -> anyhow::Result<()> {
        let requested = self.flags.reload.swap(false, Ordering::AcqRel);
        if requested && let Err(error) = self.pipeline.sinks_mut().stream.reopen() {
            tracing::error!(%error, "cannot reopen the findings file; still writing to the old one");
        }
        let changed = if requested {
            Some(self.watch.reload())
        } else {
            self.watch.take_changed()
        };
        match changed {
            None => Ok(()),
            Some(Ok(loaded)) => self.apply_config(loaded),
            Some(Err(error)) => {
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
        } = loaded;
        let exclude = config.settings.inspect.exclude;
        let effects = self.pipeline.reload(config.expectations, catalog, exclude);
        self.sensor.apply(effects)?;
        let success = i64::from(refused == 0);
        self.pipeline
            .sinks_mut()
            .metrics
            .reload_success
            .set(success);
        tracing::info!("configuration reloaded");
        if self.watch.needs_restart() {
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

/// The files in which credentials were found by previous runs.
fn file_places(known: &[(Credential, Timestamp)]) -> Vec<String> {
    known
        .iter()
        .flat_map(|(credential, _)| &credential.sources)
        .filter(|place| place.source == Source::File)
        .map(|place| place.place.clone())
        .collect()
}
