//! The agent: connects the stages and keeps them running.

mod background;
mod config_watcher;
mod listeners;
mod observer;
mod recording;
mod replay;
mod start_gaps;
mod state_dir;
mod watchdog;

use crate::{
    attribution::names::{NameProvider, NameResolver, ObjectDirectory, cri::Cri},
    cluster::{self, KubernetesClient},
    config::{Config, settings::FindingsFormat},
    export::{findings::FindingStream, lines::Delivery},
    health::Health,
    http::state::{AppState, CONCURRENT_QUERIES, RedactedMetrics},
    ledger::{LedgerWriter, PreviousState},
    metrics::Metrics,
    pipeline::{Evaluator, Sinks},
    sensor::capabilities::{CAPABILITIES, has_capabilities},
};
use anyhow::{Context as _, anyhow};
use config_watcher::{ConfigWatcher, LoadedConfig};
use listeners::Listeners;
use monitor_core::policy::Policy;
use observer::ObserverInputs;
pub use replay::replay;
use state_dir::{fingerprint_key, lock};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
    /// Attach to programs and libraries.
    pub uprobes: bool,
    /// Record events to this file, and keep no ledger.
    pub record: Option<PathBuf>,
}

/// Default state directory.
pub const STATE_DIR: &str = "/var/lib/keytrail";
/// Default configuration file, used if it exists.
pub const CONFIG: &str = "/etc/keytrail/config.yaml";
/// Default listen address.
pub const LISTEN: &str = "127.0.0.1:9477";

/// What the threads tell each other.
#[derive(Clone, Debug, Default)]
struct Flags {
    /// The probes are attached, and what was running is processed.
    ready: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    /// SIGHUP was received: load the configuration again, and open the findings file again.
    reload: Arc<AtomicBool>,
    reopen: Arc<AtomicBool>,
    health: Health,
}

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
    let reviews = cluster.as_ref().map(|cluster| cluster.reviews.clone());
    // First, so that changes during start are noticed.
    let mut watch = ConfigWatcher::new(options.config.clone(), policies);
    let LoadedConfig {
        config, catalog, ..
    } = watch.load()?;
    let flags = Flags::default();
    let metrics = Arc::new(Metrics::new()?);
    metrics.reload_success.set(1);
    let _lock = lock(&options.state_dir)?;
    let key = fingerprint_key(
        &options.state_dir,
        config.settings.fingerprint_key_file.as_deref(),
    )?;
    let (ledger, before) = match options.record {
        None => {
            let retention = config.settings.retention.clone();
            let (writer, before) =
                LedgerWriter::open(&options.state_dir, retention, flags.health.clone())?;
            (Some(writer), before)
        }
        Some(_) => (None, PreviousState::default()),
    };
    let mut stream =
        FindingStream::open(&options.findings, options.findings_format, Delivery::Lossy)
            .with_context(|| format!("cannot write findings to {}", options.findings))?;
    stream.restore(before.findings);
    let sinks = Sinks {
        ledger,
        metrics: Arc::clone(&metrics),
        stream,
        record: options
            .record
            .as_deref()
            .map(recording::create)
            .transpose()?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Before the probes, so that an address in use is reported at once.
    let listeners = runtime.block_on(Listeners::bind(options, &config.settings, reviews))?;
    let inputs = ObserverInputs {
        uprobes: options.uprobes,
        exclude: config.settings.inspect.exclude.clone(),
        budget: config.settings.inspect.budget.share(),
        names: name_providers(cluster)?,
        watch,
        state_dir: options.state_dir.clone(),
        key,
        catalog: Arc::clone(&catalog),
        evaluator: Evaluator::new(Policy::new(config.expectations, catalog), sinks, true),
        last: before.last,
        known: before.credentials,
        users: before.users,
        names_of_addresses: before.names,
        resolvers: config.settings.resolvers,
        flags: flags.clone(),
    };
    let (ended, end) = tokio::sync::oneshot::channel();
    let observer = std::thread::Builder::new()
        .name("pipeline".to_owned())
        .spawn(move || {
            let result = observer::run(inputs);
            // The receiver is gone only while the agent stops anyway.
            let _ = ended.send(());
            result
        })?;
    let app = AppState {
        metrics,
        redacted: RedactedMetrics::default(),
        state_dir: options.state_dir.clone(),
        ready: Arc::clone(&flags.ready),
        health: flags.health.clone(),
        turns: Semaphore::new(CONCURRENT_QUERIES),
    };
    runtime.block_on(listeners.serve(app, &flags, end))?;
    flags.stop.store(true, Ordering::Release);
    observer
        .join()
        .map_err(|_| anyhow!("the pipeline thread panicked; this is a bug"))?
}

/// The available name providers: the Kubernetes API, then container runtimes.
fn name_providers(cluster: Option<KubernetesClient>) -> anyhow::Result<NameResolver> {
    let api = cluster.map(|cluster| {
        (
            Box::new(cluster.names) as Box<dyn NameProvider>,
            Box::new(cluster.addresses) as Box<dyn ObjectDirectory>,
        )
    });
    let (api, addresses) = api.unzip();
    let runtimes = Cri::known_runtimes()
        .into_iter()
        .map(|runtime| Box::new(runtime) as Box<dyn NameProvider>);
    NameResolver::from(api.into_iter().chain(runtimes).collect(), addresses)
        .context("cannot start the thread that resolves workload names")
}
