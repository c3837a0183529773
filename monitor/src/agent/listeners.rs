//! The addresses at which the agent answers, and its signals.

use super::{AgentOptions, Flags};
use crate::{
    cluster::{self, reviews::TokenReviews},
    config::{
        base,
        settings::{AccessMode, Settings, TlsFiles},
    },
    host,
    http::{
        access::{
            certificate,
            gate::{AccessGate, ListenerGate},
            link::ApiPlace,
            token::{TokenError, TokenPlace},
        },
        server::{self, ProtectedListener},
        state::AppState,
    },
    private_file::random_hex,
};
use anyhow::Context as _;
use axum_server::tls_rustls::RustlsConfig;
use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::Ordering},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

/// The listeners of the agent. A recording has no API.
pub(super) struct Listeners {
    api: Option<ProtectedListener>,
    metrics: Option<ProtectedListener>,
}

impl Listeners {
    pub async fn bind(
        options: &AgentOptions,
        settings: &Settings,
        reviews: Option<TokenReviews>,
    ) -> anyhow::Result<Self> {
        let api = match options.record {
            None => Some(server::bind(&options.listen).await?),
            Some(_) => None,
        };
        let metrics = match &options.metrics_listen {
            Some(listen) => Some(server::bind(listen).await?),
            None => None,
        };
        let base = options.config.as_deref().map_or(Path::new("."), base);
        let open = settings.access == AccessMode::Open;
        // A configured token was required by 0.1 as well.
        let api_open = open && settings.token_file.is_none();
        if open {
            tracing::warn!(
                "`access: open` lets every user of this host read the API, and everyone in the network the metrics; the next version does not have it"
            );
        }
        let place = token_place(base, &options.state_dir, settings)?;
        let instance = random_hex::<16>().context("cannot get random bytes")?;
        let gate = AccessGate::new(place.open()?, reviews, (*instance).clone());
        let access = Arc::new(gate);
        let tls = tls_files(base, settings);
        let protect = Protection {
            access,
            state_dir: &options.state_dir,
            tls,
        };
        let api = api.map(|listener| {
            let network = is_network(&listener)?;
            let encrypt = network || protect.tls.is_some();
            protect.listener(listener, encrypt, api_open && !network)
        });
        let api = api.transpose()?;
        if let Some(api) = &api {
            let place = ApiPlace {
                url: url(api)?,
                token_file: std::path::absolute(&place.path)?,
                instance: (*instance).clone(),
            };
            place
                .write(&options.state_dir)
                .with_context(|| format!("cannot write to {}", options.state_dir.display()))?;
        }
        let metrics = metrics.map(|listener| {
            let encrypt = is_network(&listener)? && !open;
            protect.listener(listener, encrypt, open)
        });
        let metrics = metrics.transpose()?;
        Ok(Self { api, metrics })
    }

    /// Answers until SIGTERM, SIGINT, or the end of the pipeline.
    pub async fn serve(
        self,
        app: AppState,
        flags: &Flags,
        mut end: oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let hanging_up = async {
            while hangup.recv().await.is_some() {
                flags.reload.store(true, Ordering::Release);
                flags.reopen.store(true, Ordering::Release);
            }
        };
        let app = Arc::new(app);
        let serving_metrics = async {
            match self.metrics {
                Some(listener) => server::serve_metrics(listener, Arc::clone(&app)).await,
                None => std::future::pending().await,
            }
        };
        let serving = async {
            match self.api {
                Some(listener) => server::serve(listener, Arc::clone(&app)).await,
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
        Ok(())
    }
}

/// What the listeners have in common.
struct Protection<'a> {
    access: Arc<AccessGate>,
    state_dir: &'a Path,
    /// The configured certificate.
    tls: Option<TlsFiles>,
}

impl Protection<'_> {
    fn listener(
        &self,
        listener: TcpListener,
        encrypt: bool,
        open: bool,
    ) -> anyhow::Result<ProtectedListener> {
        let network = is_network(&listener)?;
        let tls = match &self.tls {
            _ if !encrypt => None,
            Some(files) => Some(certificate::load_and_follow(files)?),
            None => Some(self.own_certificate(listener.local_addr()?)?),
        };
        let gate = ListenerGate {
            access: Arc::clone(&self.access),
            network,
            open,
            encrypted: tls.is_some(),
        };
        Ok(ProtectedListener {
            listener,
            gate,
            tls,
        })
    }

    fn own_certificate(&self, address: SocketAddr) -> anyhow::Result<RustlsConfig> {
        let mut names = vec![
            "localhost".to_owned(),
            host::name(),
            address.ip().to_string(),
        ];
        names.extend(cluster::node_name());
        names.dedup();
        Ok(certificate::load(&certificate::own(
            self.state_dir,
            names,
        )?)?)
    }
}

/// Whether other machines can reach it.
fn is_network(listener: &TcpListener) -> std::io::Result<bool> {
    Ok(!listener.local_addr()?.ip().is_loopback())
}

/// The address of the page for a browser on this host.
fn url(api: &ProtectedListener) -> std::io::Result<String> {
    let address = api.listener.local_addr()?;
    let scheme = if api.tls.is_some() { "https" } else { "http" };
    Ok(if address.ip().is_unspecified() {
        format!("{scheme}://{}:{}", host::name(), address.port())
    } else {
        format!("{scheme}://{address}")
    })
}

/// Where the token is; a relative path is relative to the configuration.
fn token_place(
    base: &Path,
    state_dir: &Path,
    settings: &Settings,
) -> Result<TokenPlace, TokenError> {
    let file = settings.token_file.as_ref().map(|file| base.join(file));
    TokenPlace::new(state_dir, file, settings.token_group.as_deref())
}

fn tls_files(base: &Path, settings: &Settings) -> Option<TlsFiles> {
    settings.tls.as_ref().map(|files| TlsFiles {
        certificate: base.join(&files.certificate),
        key: base.join(&files.key),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn settings(text: &str) -> Settings {
        let config = Config::parse(Path::new("config.yaml"), text);
        config.expect("valid").settings
    }

    #[test]
    fn files_are_found_beside_the_configuration() {
        let base = Path::new("/etc/keytrail");
        let text = "token_file: token\ntls: { certificate: a.pem, key: /b.pem }\n";
        let place = token_place(base, Path::new("/state"), &settings(text)).expect("valid");
        assert_eq!(place.path, base.join("token"));
        let tls = tls_files(base, &settings(text)).expect("set");
        assert_eq!(tls.certificate, base.join("a.pem"));
        assert_eq!(tls.key, Path::new("/b.pem"));
        let place = token_place(base, Path::new("/state"), &settings("")).expect("valid");
        assert_eq!(place.path, Path::new("/state/token"));
    }
}
