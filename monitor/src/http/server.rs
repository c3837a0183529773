//! The HTTP server: listeners, metrics and health checks; queries are in `api`, the page in `page`.

use super::{
    access::{self, AccessGate, ApiToken},
    api,
    connection_limit::ConnectionLimit,
    page,
    state::AppState,
};
use crate::config::settings::TlsFiles;
use axum::{
    Router,
    extract::State,
    http::{Request, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use axum_server::{
    accept::{Accept, DefaultAcceptor},
    service::SendService,
    tls_rustls::RustlsAcceptor,
};
use hyper::body::Incoming;
use hyper_util::rt::TokioTimer;
use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};

/// Why the agent cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    #[error("`{0}` is not an address to listen on: write for example 127.0.0.1:9477")]
    Address(String),
    #[error(
        "{0} is not a loopback address: beyond it the API needs `tls` and `token_file` in the configuration; metrics and health checks alone are served by --metrics-listen"
    )]
    Public(SocketAddr),
    #[error(
        "cannot listen on {address}: {source}; is another agent running? --listen takes another address"
    )]
    Bind {
        address: SocketAddr,
        source: std::io::Error,
    },
}

/// How long a connection may take to send the head of a request, including the first, or be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How the API is protected.
#[derive(Debug, Default)]
pub struct ListenSecurity {
    pub tls: Option<TlsFiles>,
    pub token: Option<ApiToken>,
}

impl ListenSecurity {
    /// Whether it may be served to other machines.
    fn is_whole(&self) -> bool {
        self.tls.is_some() && self.token.is_some()
    }
}

/// Binds the address of `--listen`.
pub async fn bind(listen: &str, security: &ListenSecurity) -> Result<TcpListener, ListenError> {
    let address = parse(listen)?;
    if !address.ip().is_loopback() && !security.is_whole() {
        return Err(ListenError::Public(address));
    }
    bind_to(address).await
}

/// Binds the address of `--metrics-listen`.
pub async fn bind_anywhere(listen: &str) -> Result<TcpListener, ListenError> {
    bind_to(parse(listen)?).await
}

fn parse(listen: &str) -> Result<SocketAddr, ListenError> {
    listen
        .parse()
        .map_err(|_| ListenError::Address(listen.to_owned()))
}

async fn bind_to(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError::Bind { address, source })
}

/// Serves until the program ends.
pub async fn serve(
    listener: TcpListener,
    app: Arc<AppState>,
    security: ListenSecurity,
) -> anyhow::Result<()> {
    let gate = AccessGate::new(security.token, security.tls.is_none());
    let router = routes(&gate).with_state(app);
    match security.tls {
        None => serve_by(listener, DefaultAcceptor::new(), router).await?,
        Some(files) => {
            let tls = RustlsAcceptor::new(access::tls(&files)?);
            serve_by(listener, tls, router).await?;
        }
    }
    Ok(())
}

/// Serves a limited number of connections with timeouts: held-open connections must not use up the
/// descriptors needed to read files.
async fn serve_by<A>(listener: TcpListener, accept: A, router: Router) -> std::io::Result<()>
where
    A: Accept<TcpStream, Router> + Clone + Send + Sync + 'static,
    A::Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A::Service: SendService<Request<Incoming>> + Send,
    A::Future: Send + 'static,
{
    let mut server = axum_server::from_tcp(listener.into_std()?)?
        .acceptor(ConnectionLimit::new(accept))
        .http1_only()
        .first_request_timeout(HEAD_TIMEOUT);
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    server.serve(router.into_make_service()).await
}

fn routes(gate: &Arc<AccessGate>) -> Router<Arc<AppState>> {
    let question_gate = || middleware::from_fn_with_state(Arc::clone(gate), access::questions);
    let questions = api::routes().route_layer(question_gate());
    // With a token, everything except the page's own files requires it; without one, all requests
    // are local anyway.
    health()
        .route_layer(question_gate())
        .merge(page::routes())
        .nest(api::PREFIX, questions)
        .layer(middleware::from_fn_with_state(
            Arc::clone(gate),
            access::names,
        ))
}

/// Serves only metrics and health checks, which reveal nothing about credentials but numbers, until
/// the program ends.
pub async fn serve_metrics(listener: TcpListener, app: Arc<AppState>) -> std::io::Result<()> {
    serve_by(listener, DefaultAcceptor::new(), health().with_state(app)).await
}

fn health() -> Router<Arc<AppState>> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
}

async fn metrics(State(app): State<Arc<AppState>>) -> Response {
    match app.metrics.render() {
        Ok(text) => (
            [(
                header::CONTENT_TYPE,
                "text/plain; version=0.0.4; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Whether a restart would help.
async fn healthy(State(app): State<Arc<AppState>>) -> Response {
    health_answer("ok\n", &app.health.reasons_to_restart())
}

/// Whether answers are right.
async fn ready(State(app): State<Arc<AppState>>) -> Response {
    if !app.ready.load(Ordering::Acquire) {
        return health_answer("", &["not ready".to_owned()]);
    }
    health_answer("ready\n", &app.health.reasons_to_distrust())
}

/// 503 with one reason on each line, if there are any.
fn health_answer(fine: &'static str, reasons: &[String]) -> Response {
    if reasons.is_empty() {
        return fine.into_response();
    }
    let reasons: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, reasons).into_response()
}
