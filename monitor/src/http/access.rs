//! Access control: loopback without a token; beyond it TLS and a token; and a rate limit for
//! everyone.

use super::problem::problem;
use crate::config::settings::TlsFiles;
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

/// Why the API cannot be protected as configured.
#[derive(Debug, Error)]
pub enum AccessError {
    #[error("cannot read the token file {path}: {source}")]
    TokenFile {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "the token in {0} is shorter than {TOKEN_LEN_MIN} characters: make one with `openssl rand -hex 32`"
    )]
    ShortToken(PathBuf),
    #[error("the certificate {path} cannot be used: {reason}")]
    Certificate { path: PathBuf, reason: String },
}

/// Minimum number of characters of a token.
const TOKEN_LEN_MIN: usize = 16;
/// Requests per second, and burst size.
const REQUESTS_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).expect("it is not zero");
const BURST: NonZeroU32 = NonZeroU32::new(100).expect("it is not zero");
/// How often the certificate files are reloaded: renewing them needs no restart.
const CERTIFICATE_RELOAD_INTERVAL: Duration = Duration::from_secs(60);

/// The token that a request must present.
#[derive(Debug)]
pub struct ApiToken(Zeroizing<String>);

impl ApiToken {
    pub fn read(path: &Path) -> Result<Self, AccessError> {
        let text = fs::read_to_string(path).map_err(|source| AccessError::TokenFile {
            path: path.to_owned(),
            source,
        })?;
        let text = Zeroizing::new(text);
        let token = text.trim();
        if token.len() < TOKEN_LEN_MIN {
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

/// Checks applied to every request.
#[derive(Debug)]
pub struct AccessGate {
    token: Option<ApiToken>,
    /// Only loopback host names are accepted.
    local: bool,
    rate: DefaultDirectRateLimiter,
}

impl AccessGate {
    pub fn new(token: Option<ApiToken>, local: bool) -> Arc<Self> {
        Arc::new(Self {
            token,
            local,
            rate: RateLimiter::direct(Quota::per_second(REQUESTS_PER_SECOND).allow_burst(BURST)),
        })
    }
}

/// Another site's page can make a browser send requests to loopback under a name of its own: such
/// names are rejected.
pub async fn names(
    State(gate): State<Arc<AccessGate>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    if gate.local && !is_local(&headers) {
        return problem(
            StatusCode::FORBIDDEN,
            "use a loopback host name, or configure `token_file`",
        );
    }
    next.run(request).await
}

/// Protects answers about credentials: checks the token and the rate limit.
pub async fn questions(
    State(gate): State<Arc<AccessGate>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    // Failed attempts count too.
    if gate.rate.check().is_err() {
        let again = [(header::RETRY_AFTER, "1")];
        let refused = problem(StatusCode::TOO_MANY_REQUESTS, "too many requests");
        return (again, refused).into_response();
    }
    if let Some(token) = &gate.token
        && !token.is_in(&headers)
    {
        let how = [(header::WWW_AUTHENTICATE, "Bearer")];
        let refused = problem(StatusCode::UNAUTHORIZED, "missing or invalid bearer token");
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

/// Loads TLS from the configured files, and reloads them regularly.
pub fn tls(files: &TlsFiles) -> Result<RustlsConfig, AccessError> {
    let config = RustlsConfig::from_config(load(files)?);
    let (renewed, files) = (config.clone(), files.clone());
    tokio::spawn(async move {
        let mut every = tokio::time::interval(CERTIFICATE_RELOAD_INTERVAL);
        loop {
            every.tick().await;
            match load(&files) {
                Ok(config) => renewed.reload_from_config(config),
                Err(error) => tracing::warn!(%error, "the previous certificate stays in use"),
            }
        }
    });
    Ok(config)
}

fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, AccessError> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |reason: String| AccessError::Certificate { path, reason }
    };
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(&files.certificate)
            .and_then(Iterator::collect)
            .map_err(|error| wrong(&files.certificate)(error.to_string()))?;
    // The parser's error may quote the file: for a key only the fact that it is invalid is
    // reported.
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|_| wrong(&files.key)("it contains no private key in PEM".to_owned()))?;
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
