//! The agent: connects the stages and keeps them running.

use crate::{
    attribution::{
        Attribution,
        names::{NameProvider, NameResolver, cri::Cri},
    },
    cluster::{self, KubernetesClient},
    config::watch::{ConfigWatcher, LoadedConfig},
    config::{
        Config, base,
        settings::{RetentionLimits, TlsFiles},
    },
    credential::{
        Credentials,
        recover::{RecoveredFile, recover},
    },
    ledger::{LastShutdown, LedgerWriter, PreviousState},
    notices::NoticeGaps,
    pipeline::{Enricher, Evaluator, Sinks, lost_events_gap},
    report::{
        access::ApiToken,
        findings::{FindingStream, FindingsFormat},
        http::{self, AppState, ListenSecurity},
        lines::Delivery,
        metrics::Metrics,
    },
    sensor::{
        Sensor, SensorOptions, cgroup_root,
        decode::BootClock,
        doctor::{CAPABILITIES, excluded, has_capabilities, missed, unreported},
        exclude::{ExcludePattern, ExclusionRules},
        fields::VMLINUX,
        observation::Observation,
        remove_leftovers,
        selftest::{Heartbeat, self_test},
    },
};
use anyhow::{Context as _, anyhow};
use jiff::Timestamp;
use monitor_common::{
    fingerprint::FingerprintKey,
    record::{Probe, Stage},
};
use monitor_core::{
    catalog::Catalog,
    model::{self, Credential, Gap, NOT_COVERED},
    policy::Policy,
    trail::TrailEvent,
};
use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{BufWriter, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// Options of an agent: flags take precedence over the configuration, and the configuration over
/// defaults.
#[derive(Debug)]
pub struct AgentOptions {
    pub config: Option<PathBuf>,
    pub state_dir: PathBuf,
    pub listen: String,
    /// Another address, for metrics and health checks only.
    pub metrics_listen: Option<String>,
    pub findings: String,
    pub findings_format: FindingsFormat,
    /// Record events to this file, and keep no ledger.
    pub record: Option<PathBuf>,
}

/// Default state directory.
pub const STATE_DIR: &str = "/var/lib/keytrail";
/// Default configuration file, used if it exists.
pub const CONFIG: &str = "/etc/keytrail/config.yaml";
/// Default listen address.
pub const LISTEN: &str = "127.0.0.1:9477";

/// Maximum time that the pipeline waits for records.
const POLL_TIMEOUT: Duration = Duration::from_millis(200);

/// Maximum time to wait for the cluster's addresses at start; records accumulate in the rings
/// meanwhile.
const OBJECT_SYNC_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT. `config` is the configuration at start.
pub fn run(options: &AgentOptions, config: Config) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() && !has_capabilities() {
        return Err(anyhow!(
            "the probes need root, or {CAPABILITIES}; nothing can be observed without them"
        ));
    }
    let cluster = cluster::start(&config.settings.kubernetes, &options.state_dir)
        .context("cannot start the thread for the Kubernetes API")?;
    let policies = cluster.as_ref().map(|cluster| cluster.policies.clone());
    // First, so that changes during start are noticed.
    let mut watch = ConfigWatcher::new(options.config.clone(), policies);
    let LoadedConfig {
        config, catalog, ..
    } = watch.load()?;
    let metrics = Arc::new(Metrics::new()?);
    metrics.reload_success.set(1);
    let _lock = lock(&options.state_dir)?;
    let key = fingerprint_key(
        &options.state_dir,
        config.settings.fingerprint_key_file.as_deref(),
    )?;
    let (ledger, before) = if options.record.is_none() {
        let (writer, before) =
            LedgerWriter::open(&options.state_dir, config.settings.retention.clone())?;
        (Some(writer), before)
    } else {
        (None, PreviousState::default())
    };
    let mut stream =
        FindingStream::open(&options.findings, options.findings_format, Delivery::Lossy)
            .with_context(|| format!("cannot write findings to {}", options.findings))?;
    stream.restore(before.findings);
    let record = options
        .record
        .as_deref()
        .map(|path| {
            OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(path)
                .map(BufWriter::new)
                .with_context(|| format!("cannot write {}", path.display()))
        })
        .transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Before the probes, so that an address in use is reported at once.
    let base = options.config.as_deref().map_or(Path::new("."), base);
    let security = ListenSecurity {
        token: config
            .settings
            .token_file
            .as_ref()
            .map(|file| ApiToken::read(&base.join(file)))
            .transpose()?,
        tls: config.settings.tls.as_ref().map(|files| TlsFiles {
            certificate: base.join(&files.certificate),
            key: base.join(&files.key),
        }),
    };
    let listener = match options.record {
        None => Some(runtime.block_on(http::bind(&options.listen, &security))?),
        Some(_) => None,
    };
    let metrics_listener = match &options.metrics_listen {
        Some(listen) => Some(runtime.block_on(http::bind_anywhere(listen))?),
        None => None,
    };
    let ready = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let reload = Arc::new(AtomicBool::new(false));
    let names = name_providers(cluster)?;
    let parts = PipelineInputs {
        exclude: config.settings.inspect.exclude.clone(),
        names,
        watch,
        state_dir: options.state_dir.clone(),
        key,
        catalog: Arc::clone(&catalog),
        judge: Evaluator::new(
            Policy::new(config.expectations, catalog),
            Sinks {
                ledger,
                metrics: Arc::clone(&metrics),
                stream,
                record,
            },
            true,
        ),
        last: before.last,
        known: before.credentials,
        ready: Arc::clone(&ready),
        stop: Arc::clone(&stop),
        reload: Arc::clone(&reload),
    };
    let (ended, mut end) = tokio::sync::oneshot::channel();
    let pipeline = std::thread::Builder::new()
        .name("pipeline".to_owned())
        .spawn(move || {
            let result = pipeline(parts);
            // The receiver is gone only while the agent stops anyway.
            let _ = ended.send(());
            result
        })?;
    runtime.block_on(async {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
        let hanging_up = async {
            while hangup.recv().await.is_some() {
                reload.store(true, Ordering::Release);
            }
        };
        let app = Arc::new(AppState {
            metrics,
            state_dir: options.state_dir.clone(),
            ready,
            turns: Semaphore::new(http::CONCURRENT_QUERIES),
        });
        let serving_metrics = async {
            match metrics_listener {
                Some(listener) => http::serve_metrics(listener, Arc::clone(&app)).await,
                None => std::future::pending().await,
            }
        };
        let serving = async {
            match listener {
                Some(listener) => http::serve(listener, Arc::clone(&app), security).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            served = serving => served?,
            served = serving_metrics => served?,
            _ = terminate.recv() => tracing::info!("received SIGTERM, shutting down"),
            () = hanging_up => {}
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = &mut end => {}
        }
        anyhow::Ok(())
    })?;
    stop.store(true, Ordering::Release);
    pipeline
        .join()
        .map_err(|_| anyhow!("the pipeline thread panicked; this is a bug"))?
}

/// What the pipeline thread owns.
struct PipelineInputs {
    /// Programs to which no uprobe is attached.
    exclude: Vec<ExcludePattern>,
    names: NameResolver,
    watch: ConfigWatcher,
    state_dir: PathBuf,
    key: FingerprintKey,
    catalog: Arc<Catalog>,
    judge: Evaluator,
    last: Option<LastShutdown>,
    known: Vec<(Credential, Timestamp)>,
    ready: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    /// Set by SIGHUP: files were changed or moved.
    reload: Arc<AtomicBool>,
}

fn pipeline(parts: PipelineInputs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(observe(parts))
}

async fn observe(mut parts: PipelineInputs) -> anyhow::Result<()> {
    let started = Instant::now();
    let cgroup = cgroup_root();
    if cgroup.is_none() {
        tracing::warn!(
            "no cgroup v2 file system is mounted: connections and TLS server names are not observed"
        );
    }
    // Before the probes: the cgroups of the first records may be removed a moment later.
    let attribution = Attribution::new(cgroup.clone(), parts.names);
    let rules = parts.catalog.filter_rules([]);
    let mut sensor = Sensor::start(&SensorOptions {
        key: parts.key,
        rules: &rules,
        cgroup: cgroup.as_deref(),
        btf: Path::new(VMLINUX),
        exclusion: ExclusionRules::new(parts.exclude.clone(), Arc::clone(attribution.images())),
    })?;
    sensor.set_authenticators(&parts.judge.policy.minting_addresses())?;
    let now = Timestamp::now();
    let mut events = start_gaps(&sensor, &parts.exclude, parts.last, now);
    for program in sensor.attached() {
        parts.judge.sinks.metrics.set_probe_attached(
            program.probe.name(),
            &program.mechanism,
            program.error.is_none(),
        );
        if let Some(error) = &program.error {
            tracing::error!(probe = program.probe.name(), mechanism = program.mechanism, %error, "probe not attached");
        }
    }
    let mut observations: Vec<Observation> = Vec::new();
    let own = self_test(&mut sensor, &parts.state_dir, &mut observations)
        .await
        .context("self-test of the probes failed")?;
    attribution.await_objects(OBJECT_SYNC_TIMEOUT);
    let mut credentials = Credentials::new(Arc::clone(&parts.catalog), parts.key)
        .context("cannot allocate the buffer for secrets")?;
    for (credential, first_seen) in &parts.known {
        let mut named = credential.clone();
        // Names come from the expectations in force now.
        (named.name, named.owner) = (None, None);
        parts.judge.policy.apply_name(&mut named);
        parts
            .judge
            .sinks
            .metrics
            .restore_first_seen(&named, *first_seen);
    }
    let places: Vec<String> = parts
        .known
        .iter()
        .flat_map(|(credential, _)| &credential.sources)
        .filter(|place| place.source == model::Source::File)
        .map(|place| place.place.clone())
        .collect();
    let recovered = recover_in_background(Arc::clone(&parts.catalog), places)?;
    credentials.remember(parts.known.into_iter().map(|known| known.0).collect());
    let mut joiner = Enricher::new(attribution, credentials);
    joiner.environ_is_read = sensor.environ_is_read();
    joiner.own_pid = own;
    events.extend(joiner.scan_running(now));
    observations.retain(|observation| !belongs_to(observation, own));
    joiner.process(&mut observations, &mut events);
    // Nothing can prevent the start any more.
    if let Some(ledger) = &parts.judge.sinks.ledger {
        ledger.started();
    }
    parts.judge.process(&mut events)?;
    parts.ready.store(true, Ordering::Release);
    tracing::info!(milliseconds = started.elapsed().as_millis() as u64, "ready");
    clean_up_in_background()?;
    let mut notices = NoticeGaps::default();
    let mut counted = now;
    let mut second = Instant::now();
    let mut seconds = 0u64;
    let mut heartbeat = Heartbeat::new(&parts.state_dir, own);
    while !parts.stop.load(Ordering::Acquire) {
        // Records sent before this are read after it.
        let read_until = Timestamp::now();
        sensor
            .read_observations(POLL_TIMEOUT, &mut observations)
            .await?;
        heartbeat.remove_own(&mut observations);
        joiner.process(&mut observations, &mut events);
        let before_names = events.len();
        joiner.rename(Timestamp::now(), &mut events);
        if events.len() > before_names && !parts.exclude.is_empty() {
            sensor.reconsider_exclusion();
        }
        joiner.release_unmatched(read_until, &mut events);
        parts.judge.process(&mut events)?;
        for pid in parts.judge.authenticator_clients.drain(..) {
            sensor.inspect_answers(pid);
        }
        if std::mem::take(&mut joiner.places_changed) {
            sensor.set_rules(&joiner.credentials.rules())?;
        }
        for file in joiner.learned.drain(..) {
            sensor.learn(file)?;
        }
        for file in joiner.ignored.drain(..) {
            sensor.ignore(file)?;
        }
        for found in recovered.try_iter() {
            joiner.credentials.recovered(&found);
            sensor.learn(found.file)?;
        }
        if second.elapsed() < Duration::from_secs(1) {
            continue;
        }
        second = Instant::now();
        seconds += 1;
        sensor.begin_epoch()?;
        sensor.sweep_writes()?;
        sensor.close_answers()?;
        let now = Timestamp::now();
        collect_counters(
            &mut sensor,
            &mut joiner,
            &parts.judge,
            counted,
            now,
            &mut events,
        )?;
        counted = now;
        let gaps = notices.gaps(sensor.take_notices(), now);
        events.extend(gaps.into_iter().map(|gap| TrailEvent::Gap { gap }));
        joiner.add_object_names(now, &mut events);
        if let Some(since) = heartbeat.beat(&mut sensor)? {
            events.push(silent_probe_gap(since));
        }
        events.push(TrailEvent::Tick { time: now });
        if seconds.is_multiple_of(3) {
            sensor.sweep_reads(&mut observations)?;
            joiner.process(&mut observations, &mut events);
        }
        if seconds.is_multiple_of(2) {
            let missing = joiner.attribution.take_missing(now);
            events.extend(
                missing
                    .into_iter()
                    .map(|subject| TrailEvent::Exit { time: now, subject }),
            );
            joiner.attribution.evict_exited(now);
        }
        if seconds.is_multiple_of(10) {
            sensor.sweep_carried();
        }
        parts.judge.process(&mut events)?;
        let told = parts.reload.swap(false, Ordering::AcqRel);
        if told && let Err(error) = parts.judge.sinks.stream.reopen() {
            tracing::error!(%error, "cannot reopen the findings file; still writing to the old one");
        }
        let changed = if told {
            Some(parts.watch.reload())
        } else {
            parts.watch.take_changed()
        };
        if let Some(loaded) = changed {
            match loaded {
                Ok(LoadedConfig {
                    config,
                    catalog,
                    refused,
                }) => {
                    joiner.credentials.set_catalog(Arc::clone(&catalog));
                    if parts.exclude != config.settings.inspect.exclude {
                        parts.exclude.clone_from(&config.settings.inspect.exclude);
                        let images = Arc::clone(joiner.attribution.images());
                        sensor.exclude(ExclusionRules::new(parts.exclude.clone(), images));
                    }
                    sensor.set_rules(&joiner.credentials.rules())?;
                    parts.judge.replace_policy(config.expectations, catalog);
                    sensor.set_authenticators(&parts.judge.policy.minting_addresses())?;
                    let success = i64::from(refused == 0);
                    parts.judge.sinks.metrics.reload_success.set(success);
                    tracing::info!("configuration reloaded");
                    if parts.watch.needs_restart() {
                        tracing::warn!(
                            "agent settings changed as well: they take effect at the next start"
                        );
                    }
                }
                Err(error) => {
                    parts.judge.sinks.metrics.reload_success.set(0);
                    tracing::error!(
                        "changed configuration is invalid, the previous one stays in force: {error:#}"
                    );
                }
            }
        }
    }
    parts.judge.finish();
    Ok(())
}

/// The available name providers: the Kubernetes API, then container runtimes.
fn name_providers(cluster: Option<KubernetesClient>) -> anyhow::Result<NameResolver> {
    let api = cluster.map(|cluster| {
        (
            Box::new(cluster.names) as Box<dyn NameProvider>,
            cluster.addresses,
        )
    });
    let (api, addresses) = api.unzip();
    let runtimes = Cri::known_runtimes()
        .into_iter()
        .map(|runtime| Box::new(runtime) as Box<dyn NameProvider>);
    NameResolver::from(api.into_iter().chain(runtimes).collect(), addresses)
        .context("cannot start the thread that resolves workload names")
}

/// Whether an observation is about a process.
fn belongs_to(observation: &Observation, pid: u32) -> bool {
    match observation {
        Observation::Exec { stamp, .. }
        | Observation::FileOpened { stamp, .. }
        | Observation::Foreign { stamp, .. }
        | Observation::Variable { stamp, .. }
        | Observation::Connected { stamp, .. } => stamp.subject.pid == pid,
        _ => false,
    }
}

/// The gaps of this run that exist from its start.
fn start_gaps(
    sensor: &Sensor,
    exclude: &[ExcludePattern],
    last: Option<LastShutdown>,
    now: Timestamp,
) -> Vec<TrailEvent> {
    let booted = BootClock::now().at(0);
    // If the whole machine went down, the agent was not killed on its own.
    let killed = last.is_some_and(|last| !last.in_order && last.alive > booted);
    let gap = |kind: &str, probe: Option<&str>, detail: String, since, until| TrailEvent::Gap {
        gap: Gap {
            kind: kind.to_owned(),
            probe: probe.map(str::to_owned),
            detail,
            since,
            until,
            count: 0,
            blind: kind == "agent-down" && killed,
        },
    };
    let mut gaps = vec![match last {
        Some(last) => gap(
            "agent-down",
            None,
            format!(
                "the agent was not running{}: only what was still open afterwards is known",
                if killed { ", as it was killed or failed" } else { "" }
            ),
            last.alive.min(now),
            Some(now),
        ),
        None => gap(
            "started-before-agent",
            None,
            "nothing was observed before the agent first started; of running processes, environments, open files and open connections were scanned; what was read and closed before is unknown".to_owned(),
            booted,
            Some(now),
        ),
    }];
    for program in sensor.attached() {
        if let Some(error) = &program.error {
            let mut missing = gap(
                "probe-missing",
                Some(program.probe.name()),
                format!("{}: {error}", program.mechanism),
                now,
                None,
            );
            // A kernel that lacks one of several hooks has a declared gap; one that has none of
            // them is blind.
            let others = sensor.attached().iter();
            if let TrailEvent::Gap { gap } = &mut missing {
                gap.blind = !others
                    .filter(|other| other.probe == program.probe)
                    .any(|other| other.error.is_none());
            }
            gaps.push(missing);
        }
    }
    let mut standing = missed(sensor.attached());
    standing.extend(exclude.iter().map(excluded));
    standing.extend(sensor.mapping_error().map(unreported));
    for known in standing {
        gaps.push(gap(NOT_COVERED, None, known, now, None));
    }
    gaps
}

/// Recovers credential files known from earlier runs, while the agent is already running.
fn recover_in_background(
    catalog: Arc<Catalog>,
    places: Vec<String>,
) -> anyhow::Result<Receiver<RecoveredFile>> {
    let (send, recovered) = channel();
    std::thread::Builder::new()
        .name("recover-files".to_owned())
        .spawn(move || {
            let found = recover(&catalog, &places);
            tracing::debug!(files = found.len(), "credential files recovered");
            for file in found {
                // The receiver is dropped only when the agent stops.
                let _ = send.send(file);
            }
        })?;
    Ok(recovered)
}

/// Removes what a killed agent left behind. Leftovers cost nothing meanwhile.
fn clean_up_in_background() -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name("clean-up".to_owned())
        .spawn(|| {
            let removed = remove_leftovers();
            if removed > 0 {
                tracing::info!(
                    events = removed,
                    "deleted leftovers of previous agents from tracefs"
                );
            }
        })?;
    Ok(())
}

/// A gap for a file probe that has stopped reporting the agent's own opens.
fn silent_probe_gap(since: Timestamp) -> TrailEvent {
    TrailEvent::Gap {
        gap: Gap {
            kind: "probe-silent".to_owned(),
            probe: Some(Probe::File.name().to_owned()),
            detail: "the file probe did not report a file that the agent opened: it was detached, or is being suppressed".to_owned(),
            since,
            until: None,
            count: 0,
            blind: true,
        },
    }
}

/// Collects the counters of all probes and stages; losses since the last call become a gap.
fn collect_counters(
    sensor: &mut Sensor,
    joiner: &mut Enricher,
    judge: &Evaluator,
    before: Timestamp,
    now: Timestamp,
    events: &mut Vec<TrailEvent>,
) -> anyhow::Result<()> {
    let counters = sensor.counters()?;
    let metrics = &judge.sinks.metrics;
    // The clock may have been set back.
    let before = before.min(now);
    let mut told: HashMap<&str, u64> = HashMap::new();
    for (cgroup, probe, number) in sensor.take_losses() {
        let workload = joiner.attribution.group_name(cgroup);
        metrics.count_workload_loss(probe, &workload, number);
        *told.entry(probe.name()).or_default() += number;
        events.push(TrailEvent::Gap {
            gap: lost_events_gap(probe, "ring", Some(&workload), number, before, now),
        });
    }
    for probe in Probe::ALL {
        metrics.set_events(probe, Stage::Sent, counters.get(probe, Stage::Sent));
        let told_of = told.contains_key(probe.name());
        for (stage, name) in [(Stage::Ring, "ring"), (Stage::Read, "read")] {
            let mut grown = metrics.set_events(probe, stage, counters.get(probe, stage));
            if stage == Stage::Ring {
                // Losses attributed to a workload are reported already.
                grown = grown.saturating_sub(told.remove(probe.name()).unwrap_or_default());
            }
            if probe == Probe::Process && (grown > 0 || told_of) {
                joiner.attribution.note_lost_records();
            }
            if grown > 0 {
                events.push(TrailEvent::Gap {
                    gap: lost_events_gap(probe, name, None, grown, before, now),
                });
            }
        }
    }
    let ledger = judge.sinks.ledger.as_ref();
    let unwritten = ledger.map_or(0, |ledger| ledger.lost.load(Ordering::Relaxed));
    for (probe, stage, total, what) in [
        (
            "all",
            "decode",
            sensor.undecoded,
            "probe records could not be decoded",
        ),
        (
            "hello",
            "parse",
            joiner.malformed,
            "first payloads looked like a ClientHello but could not be parsed",
        ),
        (
            "all",
            "stream",
            judge.sinks.stream.lost(),
            "findings could not be written to the findings stream",
        ),
        (
            "all",
            "ledger",
            unwritten,
            "records could not be written to the ledger",
        ),
    ] {
        let grown = metrics.count_lost(probe, stage, total);
        // A payload that is not a ClientHello is not a loss.
        if grown > 0 && stage != "parse" {
            events.push(TrailEvent::Gap {
                gap: Gap {
                    kind: "lost-events".to_owned(),
                    probe: None,
                    detail: what.to_owned(),
                    since: before,
                    until: Some(now),
                    count: grown,
                    blind: false,
                },
            });
        }
    }
    metrics.count_unattributed("process-gone", joiner.attribution.unattributed);
    for (reason, total) in joiner.attribution.take_unnamed() {
        metrics.count_unattributed(reason, total);
    }
    metrics.count_unattributed("file-unreadable", joiner.credentials.unreadable);
    metrics.count_unattributed("pointer-not-followed", joiner.credentials.unfollowed);
    metrics.count_unattributed("connection-unknown", judge.trail.unmatched);
    Ok(())
}

/// Locks the state directory, which belongs to one agent; creates it if needed.
fn lock(state_dir: &Path) -> anyhow::Result<File> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .with_context(|| format!("cannot create the state directory {}", state_dir.display()))?;
    let path = state_dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot use the state directory {}", state_dir.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| crate::ledger::LedgerError::InUse(state_dir.join(crate::ledger::FILE_NAME)))?;
    Ok(file)
}

/// The fleet's fingerprint key, or the host's own, which is created at the first start.
fn fingerprint_key(state_dir: &Path, fleet: Option<&Path>) -> anyhow::Result<FingerprintKey> {
    let path = fleet.map_or_else(|| state_dir.join("fingerprint.key"), Path::to_owned);
    if fleet.is_none() && !path.exists() {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes).map_err(|error| anyhow!("cannot get random bytes: {error}"))?;
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{text}"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read the fingerprint key {}", path.display()))?;
    let text = text.trim();
    let number = u128::from_str_radix(text, 16)
        .ok()
        .filter(|_| text.len() == 32)
        .ok_or_else(|| anyhow!("{} does not contain 32 hex digits", path.display()))?;
    Ok(FingerprintKey::from_bytes(number.to_be_bytes()))
}

/// Replays a recording through the same trail and policy. Findings go to `stream`, and to a ledger
/// in the given state directory, if any.
pub fn replay(
    file: &Path,
    config: Config,
    catalog: Arc<Catalog>,
    stream: FindingStream,
    state_dir: Option<&Path>,
) -> anyhow::Result<u64> {
    let text = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    // Fails if an agent uses the ledger.
    let _lock = state_dir.map(lock).transpose()?;
    let ledger = match state_dir {
        Some(directory) => {
            // A recording may be old: nothing is dropped by age.
            let retention = RetentionLimits {
                max_age: jiff::SignedDuration::from_hours(24 * 36_500),
                ..config.settings.retention.clone()
            };
            let writer = LedgerWriter::open(directory, retention)?.0;
            writer.started();
            Some(writer)
        }
        None => None,
    };
    let mut judge = Evaluator::new(
        Policy::new(config.expectations, catalog),
        Sinks {
            ledger,
            metrics: Arc::new(Metrics::new()?),
            stream,
            record: None,
        },
        false,
    );
    let mut count = 0;
    let mut events = Vec::new();
    for (number, line) in std::io::BufRead::lines(std::io::BufReader::new(text)).enumerate() {
        let place = || format!("{}:{}", file.display(), number + 1);
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        let event: TrailEvent = serde_json::from_str(&line)
            .with_context(|| format!("{}: not an event of a recording", place()))?;
        events.push(event);
        count += 1;
        judge.process(&mut events)?;
    }
    judge.finish();
    Ok(count)
}
