//! The agent: puts the stages together and keeps them running.

use crate::{
    attribution::{
        Attribution,
        names::{Names, Source, cri::Cri},
    },
    cluster::{self, Cluster},
    credential::{
        Credentials,
        catalog::Catalog,
        recover::{Recovered, recover},
    },
    ledger::{Before, Last, Writer},
    model::{self, Credential, Gap, NOT_COVERED},
    notices::Notices,
    pipeline::{Joiner, Judge, Sinks, lost},
    policy::{
        Policy,
        document::{Document, Retention, Tls, base},
    },
    report::{
        access::Token,
        findings::{Format, Stream},
        http::{self, App, Security},
        lines::Delivery,
        metrics::Metrics,
    },
    sensor::{
        Options, Sensor, cgroup_root,
        decode::BootClock,
        doctor::{CAPABILITIES, excluded, has_capabilities, missed, unreported},
        exclude::{Exclude, Exclusion},
        fields::VMLINUX,
        observation::Observation,
        remove_leftovers,
        selftest::{Heartbeat, self_test},
    },
    trail::Event,
    watch::{Loaded, Watch},
};
use anyhow::{Context as _, anyhow};
use jiff::Timestamp;
use monitor_common::{
    fingerprint::Key,
    record::{Probe, Stage},
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

/// What an agent is started with, flags over configuration over defaults.
#[derive(Debug)]
pub struct Settings {
    pub config: Option<PathBuf>,
    pub state_dir: PathBuf,
    pub listen: String,
    /// Another address, with metrics and health checks only.
    pub metrics_listen: Option<String>,
    pub findings: String,
    pub findings_format: Format,
    /// Record events to this file, and keep no ledger.
    pub record: Option<PathBuf>,
}

/// Where state is kept by default.
pub const STATE_DIR: &str = "/var/lib/keytrail";
/// The configuration that is read where no other is named, if it exists.
pub const CONFIG: &str = "/etc/keytrail/config.yaml";
/// Where the agent listens by default.
pub const LISTEN: &str = "127.0.0.1:9477";

/// The longest that the pipeline waits without looking at the time.
const WAIT: Duration = Duration::from_millis(200);

/// A cluster that answers has told what it has at which address within this; meanwhile the rings fill.
const OBJECTS: Duration = Duration::from_secs(1);

/// The catalog of a configuration.
pub fn catalog(document: &Document, config: Option<&Path>) -> anyhow::Result<Arc<Catalog>> {
    let added = match &document.catalog {
        Some(path) => {
            let base = config.map_or(Path::new("."), base);
            let path = base.join(path);
            std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read the catalog {}", path.display()))?
        }
        None => String::new(),
    };
    let (files, variables) = document.places();
    Ok(Arc::new(Catalog::new(&added, &files, &variables)?))
}

/// Runs until it is told to stop. `document` is what `settings.config` said at start.
pub fn run(settings: &Settings, document: Document) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() && !has_capabilities() {
        return Err(anyhow!(
            "the probes need root, or {CAPABILITIES}; nothing can be seen without them"
        ));
    }
    let cluster = cluster::start(&document.kubernetes, &settings.state_dir)
        .context("no thread for the Kubernetes API")?;
    let policies = cluster.as_ref().map(|cluster| cluster.policies.clone());
    // Before anything else: what changes while the agent starts is seen.
    let mut watch = Watch::new(settings.config.clone(), policies);
    let Loaded {
        document, catalog, ..
    } = watch.load()?;
    let metrics = Arc::new(Metrics::new()?);
    metrics.reload_success.set(1);
    let _lock = lock(&settings.state_dir)?;
    let key = fingerprint_key(
        &settings.state_dir,
        document.fingerprint_key_file.as_deref(),
    )?;
    let (ledger, before) = if settings.record.is_none() {
        let (writer, before) = Writer::open(&settings.state_dir, document.retention.clone())?;
        (Some(writer), before)
    } else {
        (None, Before::default())
    };
    let mut stream = Stream::open(
        &settings.findings,
        settings.findings_format,
        Delivery::Lossy,
    )
    .with_context(|| format!("cannot write findings to {}", settings.findings))?;
    stream.remember(before.findings);
    let record = settings
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
    // Before the probes: an address in use is told at once.
    let base = settings.config.as_deref().map_or(Path::new("."), base);
    let security = Security {
        token: document
            .token_file
            .as_ref()
            .map(|file| Token::read(&base.join(file)))
            .transpose()?,
        tls: document.tls.as_ref().map(|files| Tls {
            certificate: base.join(&files.certificate),
            key: base.join(&files.key),
        }),
    };
    let listener = match settings.record {
        None => Some(runtime.block_on(http::bind(&settings.listen, &security))?),
        Some(_) => None,
    };
    let metrics_listener = match &settings.metrics_listen {
        Some(listen) => Some(runtime.block_on(http::bind_anywhere(listen))?),
        None => None,
    };
    let ready = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let reload = Arc::new(AtomicBool::new(false));
    let names = names(cluster)?;
    let parts = Parts {
        exclude: document.inspect.exclude.clone(),
        names,
        watch,
        state_dir: settings.state_dir.clone(),
        key,
        catalog: Arc::clone(&catalog),
        judge: Judge::new(
            Policy::new(document, catalog),
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
            // The other end is gone only when the agent stops anyway.
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
        let app = Arc::new(App {
            metrics,
            state_dir: settings.state_dir.clone(),
            ready,
            turns: Semaphore::new(http::TURNS),
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
        .map_err(|_| anyhow!("the pipeline ended in a panic; this is a bug"))?
}

/// What the thread of the pipeline owns.
struct Parts {
    /// What no uprobe is attached to.
    exclude: Vec<Exclude>,
    names: Names,
    watch: Watch,
    state_dir: PathBuf,
    key: Key,
    catalog: Arc<Catalog>,
    judge: Judge,
    last: Option<Last>,
    known: Vec<(Credential, Timestamp)>,
    ready: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    /// Somebody has changed or moved files, and says so by SIGHUP.
    reload: Arc<AtomicBool>,
}

fn pipeline(parts: Parts) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(observe(parts))
}

async fn observe(mut parts: Parts) -> anyhow::Result<()> {
    let started = Instant::now();
    let cgroup = cgroup_root();
    if cgroup.is_none() {
        tracing::warn!(
            "no cgroup v2 file system is mounted: connections and TLS server names are not seen"
        );
    }
    // Before the probes: of what they see first the group may be gone a moment later.
    let attribution = Attribution::new(cgroup.clone(), parts.names);
    let rules = parts.catalog.rules([]);
    let mut sensor = Sensor::start(&Options {
        key: parts.key,
        rules: &rules,
        cgroup: cgroup.as_deref(),
        btf: Path::new(VMLINUX),
        exclusion: Exclusion::new(parts.exclude.clone(), Arc::clone(attribution.images())),
    })?;
    sensor.set_authenticators(&parts.judge.policy.minting_addresses())?;
    let now = Timestamp::now();
    let mut events = start_gaps(&sensor, &parts.exclude, parts.last, now);
    for program in sensor.attached() {
        parts.judge.sinks.metrics.attached(
            program.probe.name(),
            &program.mechanism,
            program.error.is_none(),
        );
        if let Some(error) = &program.error {
            tracing::error!(probe = program.probe.name(), mechanism = program.mechanism, %error, "a probe is not attached");
        }
    }
    let mut observations: Vec<Observation> = Vec::new();
    let own = self_test(&mut sensor, &parts.state_dir, &mut observations)
        .await
        .context("the self-test of the probes failed")?;
    attribution.await_objects(OBJECTS);
    let mut credentials =
        Credentials::new(Arc::clone(&parts.catalog), parts.key).context("no buffer for secrets")?;
    for (credential, first_seen) in &parts.known {
        let mut named = credential.clone();
        // Names are those of the expectations that are in force now.
        (named.name, named.owner) = (None, None);
        parts.judge.policy.name(&mut named);
        parts.judge.sinks.metrics.known(&named, *first_seen);
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
    let mut joiner = Joiner::new(attribution, credentials);
    joiner.environ_is_read = sensor.environ_is_read();
    joiner.own = own;
    events.extend(joiner.adopt(now));
    observations.retain(|observation| !is_of(observation, own));
    joiner.join(&mut observations, &mut events);
    // Everything that can keep it from starting has gone well.
    if let Some(ledger) = &parts.judge.sinks.ledger {
        ledger.started();
    }
    parts.judge.take(&mut events)?;
    parts.ready.store(true, Ordering::Release);
    tracing::info!(milliseconds = started.elapsed().as_millis() as u64, "ready");
    clean_up_in_background()?;
    let mut notices = Notices::default();
    let mut counted = now;
    let mut second = Instant::now();
    let mut seconds = 0u64;
    let mut heartbeat = Heartbeat::new(&parts.state_dir, own);
    while !parts.stop.load(Ordering::Acquire) {
        // What was sent before this is read after it.
        let read_until = Timestamp::now();
        sensor.observe(WAIT, &mut observations).await?;
        heartbeat.take(&mut observations);
        joiner.join(&mut observations, &mut events);
        let before_names = events.len();
        joiner.rename(Timestamp::now(), &mut events);
        if events.len() > before_names && !parts.exclude.is_empty() {
            sensor.reconsider_exclusion();
        }
        joiner.give_up(read_until, &mut events);
        parts.judge.take(&mut events)?;
        for pid in parts.judge.asking.drain(..) {
            sensor.inspect_answers(pid);
        }
        if std::mem::take(&mut joiner.pointed) {
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
        count(
            &mut sensor,
            &mut joiner,
            &parts.judge,
            counted,
            now,
            &mut events,
        )?;
        counted = now;
        let gaps = notices.gaps(sensor.take_notices(), now);
        events.extend(gaps.into_iter().map(|gap| Event::Gap { gap }));
        joiner.objects(now, &mut events);
        if let Some(since) = heartbeat.beat(&mut sensor)? {
            events.push(silent(since));
        }
        events.push(Event::Tick { time: now });
        if seconds.is_multiple_of(3) {
            sensor.sweep_reads(&mut observations)?;
            joiner.join(&mut observations, &mut events);
        }
        if seconds.is_multiple_of(2) {
            let missing = joiner.attribution.missing(now);
            events.extend(
                missing
                    .into_iter()
                    .map(|subject| Event::Exit { time: now, subject }),
            );
            joiner.attribution.bury(now);
        }
        if seconds.is_multiple_of(10) {
            sensor.sweep_carried();
        }
        parts.judge.take(&mut events)?;
        let told = parts.reload.swap(false, Ordering::AcqRel);
        if told && let Err(error) = parts.judge.sinks.stream.reopen() {
            tracing::error!(%error, "the file of findings cannot be opened again; findings go where they went");
        }
        let changed = if told {
            Some(parts.watch.reload())
        } else {
            parts.watch.changed()
        };
        if let Some(loaded) = changed {
            match loaded {
                Ok(Loaded {
                    document,
                    catalog,
                    refused,
                }) => {
                    joiner.credentials.set_catalog(Arc::clone(&catalog));
                    if parts.exclude != document.inspect.exclude {
                        parts.exclude.clone_from(&document.inspect.exclude);
                        let images = Arc::clone(joiner.attribution.images());
                        sensor.exclude(Exclusion::new(parts.exclude.clone(), images));
                    }
                    sensor.set_rules(&joiner.credentials.rules())?;
                    parts.judge.replace_policy(document, catalog);
                    sensor.set_authenticators(&parts.judge.policy.minting_addresses())?;
                    let success = i64::from(refused == 0);
                    parts.judge.sinks.metrics.reload_success.set(success);
                    tracing::info!("configuration reloaded");
                    if parts.watch.needs_restart() {
                        tracing::warn!(
                            "settings of the agent have changed as well: they hold from its next start on"
                        );
                    }
                }
                Err(error) => {
                    parts.judge.sinks.metrics.reload_success.set(0);
                    tracing::error!(
                        "the configuration has changed and is wrong; the old one stays: {error:#}"
                    );
                }
            }
        }
    }
    parts.judge.finish();
    Ok(())
}

/// Whoever knows names here: the Kubernetes API, and then container runtimes.
fn names(cluster: Option<Cluster>) -> anyhow::Result<Names> {
    let api = cluster.map(|cluster| {
        (
            Box::new(cluster.names) as Box<dyn Source>,
            cluster.addresses,
        )
    });
    let (api, addresses) = api.unzip();
    let runtimes = Cri::all()
        .into_iter()
        .map(|runtime| Box::new(runtime) as Box<dyn Source>);
    Names::from(api.into_iter().chain(runtimes).collect(), addresses)
        .context("no thread for the names of workloads")
}

/// Whether an observation is of a process.
fn is_of(observation: &Observation, pid: u32) -> bool {
    match observation {
        Observation::Exec { stamp, .. }
        | Observation::FileOpened { stamp, .. }
        | Observation::Foreign { stamp, .. }
        | Observation::Variable { stamp, .. }
        | Observation::Connected { stamp, .. } => stamp.subject.pid == pid,
        _ => false,
    }
}

/// What this run cannot know from its start.
fn start_gaps(
    sensor: &Sensor,
    exclude: &[Exclude],
    last: Option<Last>,
    now: Timestamp,
) -> Vec<Event> {
    let booted = BootClock::now().at(0);
    // Of a machine that went down the agent was not the only one to end.
    let killed = last.is_some_and(|last| !last.in_order && last.alive > booted);
    let gap = |kind: &str, probe: Option<&str>, detail: String, since, until| Event::Gap {
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
                "the agent was not running{}: what happened meanwhile is unknown, but for what was still open after",
                if killed { ", as it was killed or failed" } else { "" }
            ),
            last.alive.min(now),
            Some(now),
        ),
        None => gap(
            "started-before-agent",
            None,
            "nothing was observed before the agent first started; of what ran already, environments, open files and open connections were taken in; what was read and closed before is unknown".to_owned(),
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
            // A kernel that lacks one hook of several is declared; one without any blinds.
            let others = sensor.attached().iter();
            if let Event::Gap { gap } = &mut missing {
                gap.blind = !others
                    .filter(|other| other.probe == program.probe)
                    .any(|other| other.error.is_none());
            }
            gaps.push(missing);
        }
    }
    let mut standing = missed(sensor.attached());
    standing.extend(exclude.iter().map(excluded));
    standing.extend(sensor.mappings_unreported().map(unreported));
    for known in standing {
        gaps.push(gap(NOT_COVERED, None, known, now, None));
    }
    gaps
}

/// Finds files again that were known before the start, while the agent goes on.
fn recover_in_background(
    catalog: Arc<Catalog>,
    places: Vec<String>,
) -> anyhow::Result<Receiver<Recovered>> {
    let (send, recovered) = channel();
    std::thread::Builder::new()
        .name("recover-files".to_owned())
        .spawn(move || {
            let found = recover(&catalog, &places);
            tracing::debug!(files = found.len(), "credential files recovered");
            for file in found {
                // The other end is dropped only when the agent ends.
                let _ = send.send(file);
            }
        })?;
    Ok(recovered)
}

/// Deletes what an agent left that was killed. It costs nothing meanwhile.
fn clean_up_in_background() -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name("clean-up".to_owned())
        .spawn(|| {
            let removed = remove_leftovers();
            if removed > 0 {
                tracing::info!(
                    events = removed,
                    "deleted what previous agents left in tracefs"
                );
            }
        })?;
    Ok(())
}

/// A gap for a file probe that has not reported the agent's own opens since a time.
fn silent(since: Timestamp) -> Event {
    Event::Gap {
        gap: Gap {
            kind: "probe-silent".to_owned(),
            probe: Some(Probe::File.name().to_owned()),
            detail: "the file probe did not report a file that the agent opened: it was detached, or is kept from reporting".to_owned(),
            since,
            until: None,
            count: 0,
            blind: true,
        },
    }
}

/// Counters of the probes and of the stages after them; what was lost since they were looked at
/// before, however long ago that is, becomes a gap.
fn count(
    sensor: &mut Sensor,
    joiner: &mut Joiner,
    judge: &Judge,
    before: Timestamp,
    now: Timestamp,
    events: &mut Vec<Event>,
) -> anyhow::Result<()> {
    let counters = sensor.counters()?;
    let metrics = &judge.sinks.metrics;
    // A clock may have been set back.
    let before = before.min(now);
    let mut told: HashMap<&str, u64> = HashMap::new();
    for (cgroup, probe, number) in sensor.take_losses() {
        let workload = joiner.attribution.group_name(cgroup);
        metrics.lost_by(probe, &workload, number);
        *told.entry(probe.name()).or_default() += number;
        events.push(Event::Gap {
            gap: lost(probe, "ring", Some(&workload), number, before, now),
        });
    }
    for probe in Probe::ALL {
        metrics.events(probe, Stage::Sent, counters.get(probe, Stage::Sent));
        let told_of = told.contains_key(probe.name());
        for (stage, name) in [(Stage::Ring, "ring"), (Stage::Read, "read")] {
            let mut grown = metrics.events(probe, stage, counters.get(probe, stage));
            if stage == Stage::Ring {
                // What a workload is known for is told already.
                grown = grown.saturating_sub(told.remove(probe.name()).unwrap_or_default());
            }
            if probe == Probe::Process && (grown > 0 || told_of) {
                joiner.attribution.lost();
            }
            if grown > 0 {
                events.push(Event::Gap {
                    gap: lost(probe, name, None, grown, before, now),
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
            "records of the probes could not be understood",
        ),
        (
            "hello",
            "parse",
            joiner.malformed,
            "first payloads looked like a ClientHello and were none",
        ),
        (
            "all",
            "stream",
            judge.sinks.stream.lost(),
            "findings could not be written to the stream",
        ),
        (
            "all",
            "ledger",
            unwritten,
            "records could not be written to the ledger",
        ),
    ] {
        let grown = metrics.lost(probe, stage, total);
        // A payload that is no ClientHello is nothing that was missed.
        if grown > 0 && stage != "parse" {
            events.push(Event::Gap {
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
    metrics.unattributed("process-gone", joiner.attribution.unattributed);
    for (reason, total) in joiner.attribution.unnamed() {
        metrics.unattributed(reason, total);
    }
    metrics.unattributed("file-unreadable", joiner.credentials.unreadable);
    metrics.unattributed("pointer-not-followed", joiner.credentials.unfollowed);
    metrics.unattributed("connection-unknown", judge.trail.unmatched);
    Ok(())
}

/// One state directory serves one agent; it is made where it is not there.
fn lock(state_dir: &Path) -> anyhow::Result<File> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .with_context(|| format!("cannot make the state directory {}", state_dir.display()))?;
    let path = state_dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot use the state directory {}", state_dir.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| crate::ledger::LedgerError::InUse(state_dir.join(crate::ledger::FILE)))?;
    Ok(file)
}

/// The key of the host, made at the first start, or the key of the fleet.
fn fingerprint_key(state_dir: &Path, fleet: Option<&Path>) -> anyhow::Result<Key> {
    let path = fleet.map_or_else(|| state_dir.join("fingerprint.key"), Path::to_owned);
    if fleet.is_none() && !path.exists() {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes).map_err(|error| anyhow!("no random bytes: {error}"))?;
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
        .ok_or_else(|| anyhow!("{} does not hold 32 hex digits", path.display()))?;
    Ok(Key::from_bytes(number.to_be_bytes()))
}

/// Passes a recording through the same trail and policy. Findings go to `stream`, and
/// to the ledger of `--state-dir` where one was given.
pub fn replay(
    file: &Path,
    document: Document,
    catalog: Arc<Catalog>,
    stream: Stream,
    state_dir: Option<&Path>,
) -> anyhow::Result<u64> {
    let text = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    // Not into the ledger of an agent that runs.
    let _lock = state_dir.map(lock).transpose()?;
    let ledger = match state_dir {
        Some(directory) => {
            // What is replayed may be old: nothing of it is dropped by age.
            let retention = Retention {
                max_age: jiff::SignedDuration::from_hours(24 * 36_500),
                ..document.retention.clone()
            };
            let writer = Writer::open(directory, retention)?.0;
            writer.started();
            Some(writer)
        }
        None => None,
    };
    let mut judge = Judge::new(
        Policy::new(document, catalog),
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
        let event: Event = serde_json::from_str(&line)
            .with_context(|| format!("{}: no event of a recording", place()))?;
        events.push(event);
        count += 1;
        judge.take(&mut events)?;
    }
    judge.finish();
    Ok(count)
}
