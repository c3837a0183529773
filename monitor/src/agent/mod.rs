//! The agent: connects the stages and keeps them running.

mod background;
mod config_watcher;
mod observer;
mod replay;
mod start_gaps;
mod state_dir;

use crate::{
    attribution::names::{NameProvider, NameResolver, ObjectDirectory, cri::Cri},
    cluster::{self, KubernetesClient},
    config::{
        Config, base,
        settings::{FindingsFormat, TlsFiles},
    },
    export::{findings::FindingStream, lines::Delivery},
    http::{
        access::ApiToken,
        server::{self, ListenSecurity},
        state::{AppState, CONCURRENT_QUERIES},
    },
    ledger::{LedgerWriter, PreviousState},
    metrics::Metrics,
    pipeline::{Evaluator, Sinks},
    sensor::capabilities::{CAPABILITIES, has_capabilities},
};
use anyhow::{Context as _, anyhow};
use config_watcher::{ConfigWatcher, LoadedConfig};
use monitor_core::{
    policy::Policy,
    trail::{TrailEvent, recording::RECORDING_VERSION},
};
use observer::ObserverInputs;
pub use replay::replay;
use state_dir::{fingerprint_key, lock};
use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::Semaphore;

/// A recording begins with its version.
fn start_recording(file: File) -> std::io::Result<BufWriter<File>> {
    let mut out = BufWriter::new(file);
    serde_json::to_writer(
        &mut out,
        &TrailEvent::Recording {
            version: RECORDING_VERSION,
        },
    )?;
    out.write_all(b"\n")?;
    Ok(out)
}

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
                .and_then(start_recording)
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
        None => Some(runtime.block_on(server::bind(&options.listen, &security))?),
        Some(_) => None,
    };
    let metrics_listener = match &options.metrics_listen {
        Some(listen) => Some(runtime.block_on(server::bind_anywhere(listen))?),
        None => None,
    };
    let ready = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let reload = Arc::new(AtomicBool::new(false));
    let names = name_providers(cluster)?;
    let inputs = ObserverInputs {
        exclude: config.settings.inspect.exclude.clone(),
        names,
        watch,
        state_dir: options.state_dir.clone(),
        key,
        catalog: Arc::clone(&catalog),
        evaluator: Evaluator::new(
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
    let observer = std::thread::Builder::new()
        .name("pipeline".to_owned())
        .spawn(move || {
            let result = observer::run(inputs);
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
            turns: Semaphore::new(CONCURRENT_QUERIES),
        });
        let serving_metrics = async {
            match metrics_listener {
                Some(listener) => server::serve_metrics(listener, Arc::clone(&app)).await,
                None => std::future::pending().await,
            }
        };
        let serving = async {
            match listener {
                Some(listener) => server::serve(listener, Arc::clone(&app), security).await,
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
