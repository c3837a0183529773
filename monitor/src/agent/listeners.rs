//! The addresses at which the agent answers, and its signals.

use super::{AgentOptions, Flags};
use crate::{
    config::{
        base,
        settings::{Settings, TlsFiles},
    },
    http::{
        access::{AccessError, ApiToken},
        server::{self, ListenSecurity},
        state::AppState,
    },
};
use std::{
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
    api: Option<TcpListener>,
    metrics: Option<TcpListener>,
    security: ListenSecurity,
}

impl Listeners {
    pub async fn bind(options: &AgentOptions, settings: &Settings) -> anyhow::Result<Self> {
        let base = options.config.as_deref().map_or(Path::new("."), base);
        let security = security(base, settings)?;
        let api = match options.record {
            None => Some(server::bind(&options.listen, &security).await?),
            Some(_) => None,
        };
        let metrics = match &options.metrics_listen {
            Some(listen) => Some(server::bind_anywhere(listen).await?),
            None => None,
        };
        Ok(Self {
            api,
            metrics,
            security,
        })
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
                Some(listener) => server::serve(listener, Arc::clone(&app), self.security).await,
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

/// Token and certificate; relative paths are relative to the configuration.
fn security(base: &Path, settings: &Settings) -> Result<ListenSecurity, AccessError> {
    let token = settings.token_file.as_ref();
    Ok(ListenSecurity {
        token: token
            .map(|file| ApiToken::read(&base.join(file)))
            .transpose()?,
        tls: settings.tls.as_ref().map(|files| TlsFiles {
            certificate: base.join(&files.certificate),
            key: base.join(&files.key),
        }),
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
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(
            directory.path().join("token"),
            "fake-token-of-thirty-two-characters\n",
        )
        .expect("written");
        let text = "token_file: token\ntls: { certificate: a.pem, key: /b.pem }\n";
        let security = security(directory.path(), &settings(text)).expect("readable");
        assert!(security.token.is_some());
        let tls = security.tls.expect("set");
        assert_eq!(tls.certificate, directory.path().join("a.pem"));
        assert_eq!(tls.key, Path::new("/b.pem"));
    }

    #[test]
    fn a_token_that_cannot_be_read_names_its_file() {
        let error = security(Path::new("/nonexistent"), &settings("token_file: token\n"))
            .map(|_| ())
            .expect_err("no such file");
        assert!(error.to_string().contains("/nonexistent/token"), "{error}");
    }
}
