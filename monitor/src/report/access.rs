//! Who may ask: loopback without more, beyond it TLS and a token, and nobody more often than the node can bear.

use super::api::problem;
use crate::policy::document::Tls;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use axum_server::tls_rustls::RustlsConfig;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use std::{
    fs,
    net::IpAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::Zeroizing;

/// Why the API is not protected as it is to be.
#[derive(Debug, Error)]
pub enum AccessError {
    #[error("cannot read the token file {path}: {source}")]
    TokenFile {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "the token in {0} is shorter than {LEAST} characters: make one with `openssl rand -hex 32`"
    )]
    ShortToken(PathBuf),
    #[error("the certificate {path} cannot be used: {reason}")]
    Certificate { path: PathBuf, reason: String },
}

/// Characters of a token.
const LEAST: usize = 16;
/// Questions a second, and at once.
const RATE: NonZeroU32 = NonZeroU32::new(50).expect("it is not zero");
const BURST: NonZeroU32 = NonZeroU32::new(100).expect("it is not zero");
/// How often the files of the certificate are read again: whoever renews them does not restart the agent.
const RENEWED: Duration = Duration::from_secs(60);

/// The token that a question has to bring.
#[derive(Debug)]
pub struct Token(Zeroizing<String>);

impl Token {
    pub fn read(path: &Path) -> Result<Self, AccessError> {
        let text = fs::read_to_string(path).map_err(|source| AccessError::TokenFile {
            path: path.to_owned(),
            source,
        })?;
        let text = Zeroizing::new(text);
        let token = text.trim();
        if token.len() < LEAST {
            return Err(AccessError::ShortToken(path.to_owned()));
        }
        Ok(Self(Zeroizing::new(token.to_owned())))
    }

    fn is_in(&self, headers: &HeaderMap) -> bool {
        headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .is_some_and(|(_, token)| bool::from(token.trim().as_bytes().ct_eq(self.0.as_bytes())))
    }
}

/// What stands before every answer.
#[derive(Debug)]
pub struct Gate {
    token: Option<Token>,
    /// Only names of loopback are answered.
    local: bool,
    rate: DefaultDirectRateLimiter,
}

impl Gate {
    pub fn new(token: Option<Token>, local: bool) -> Arc<Self> {
        Arc::new(Self {
            token,
            local,
            rate: RateLimiter::direct(Quota::per_second(RATE).allow_burst(BURST)),
        })
    }
}

/// A page of another site can make a browser call a loopback address by a name of its own: such
/// names are refused.
pub async fn names(
    State(gate): State<Arc<Gate>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    if gate.local && !is_local(&headers) {
        return problem(StatusCode::FORBIDDEN, "ask for a loopback address");
    }
    next.run(request).await
}

/// What says something of credentials is told to those who may know, and not too often.
pub async fn questions(
    State(gate): State<Arc<Gate>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    // Guesses count as well.
    if gate.rate.check().is_err() {
        let again = [(header::RETRY_AFTER, "1")];
        let refused = problem(StatusCode::TOO_MANY_REQUESTS, "too many questions");
        return (again, refused).into_response();
    }
    if let Some(token) = &gate.token
        && !token.is_in(&headers)
    {
        let how = [(header::WWW_AUTHENTICATE, "Bearer")];
        let refused = problem(StatusCode::UNAUTHORIZED, "bring the token");
        return (how, refused).into_response();
    }
    next.run(request).await
}

fn is_local(headers: &HeaderMap) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) {
            name
        } else {
            host
        }
    });
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost"
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// TLS by the files of a configuration, which are read again now and then.
pub fn tls(files: &Tls) -> Result<RustlsConfig, AccessError> {
    let config = RustlsConfig::from_config(load(files)?);
    let (renewed, files) = (config.clone(), files.clone());
    tokio::spawn(async move {
        let mut every = tokio::time::interval(RENEWED);
        loop {
            every.tick().await;
            match load(&files) {
                Ok(config) => renewed.reload_from_config(config),
                Err(error) => tracing::warn!(%error, "the certificate before stays in use"),
            }
        }
    });
    Ok(config)
}

fn load(files: &Tls) -> Result<Arc<ServerConfig>, AccessError> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |reason: String| AccessError::Certificate { path, reason }
    };
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(&files.certificate)
            .and_then(Iterator::collect)
            .map_err(|error| wrong(&files.certificate)(error.to_string()))?;
    // The error of a parser may quote: of a key only that it is none is said.
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|_| wrong(&files.key)("it holds no private key in PEM".to_owned()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(certificates, key)
        })
        .map_err(|error| wrong(&files.certificate)(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
