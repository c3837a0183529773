//! The HTTP server: listeners, metrics and health checks; queries are in `api`, the page in `page`.

use super::{
    access::gate::{self, ListenerGate, MetricsDetail},
    api,
    connection_limit::ConnectionLimit,
    page,
    state::AppState,
};
use axum::{
    Extension, Router,
    extract::{ConnectInfo, DefaultBodyLimit, State},
    http::{Request, StatusCode, header},
    middleware::{self, AddExtension},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use axum_server::{
    accept::Accept,
    service::SendService,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use hyper::body::{Bytes, Incoming};
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
        "cannot listen on {address}: {source}; is another agent running? --listen takes another address"
    )]
    Bind {
        address: SocketAddr,
        source: std::io::Error,
    },
}

/// How long a connection may take to send the head of a request, including the first, or be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// An address with the rules that apply there.
#[derive(Debug)]
pub struct ProtectedListener {
    pub listener: TcpListener,
    pub gate: ListenerGate,
    pub tls: Option<RustlsConfig>,
}

/// Binds an address of `--listen` or `--metrics-listen`.
pub async fn bind(listen: &str) -> Result<TcpListener, ListenError> {
    let address: SocketAddr = listen
        .parse()
        .map_err(|_| ListenError::Address(listen.to_owned()))?;
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError::Bind { address, source })
}

/// Serves everything until the program ends.
pub async fn serve(listener: ProtectedListener, app: Arc<AppState>) -> std::io::Result<()> {
    let router = routes(&listener.gate).with_state(app);
    serve_router(listener, router).await
}

/// Serves only metrics and health checks until the program ends.
pub async fn serve_metrics(listener: ProtectedListener, app: Arc<AppState>) -> std::io::Result<()> {
    let router = health()
        .merge(metrics_route(&listener.gate))
        .with_state(app);
    serve_router(listener, router).await
}

async fn serve_router(listener: ProtectedListener, router: Router) -> std::io::Result<()> {
    let limit = ConnectionLimit::new();
    let ProtectedListener { listener, tls, .. } = listener;
    match tls {
        None => serve_by(listener, limit, router).await,
        Some(tls) => {
            let tls = RustlsAcceptor::new(tls).acceptor(limit);
            serve_by(listener, tls, router).await
        }
    }
}

/// A router that knows the address of the other side.
type ServiceOfConnection = AddExtension<Router, ConnectInfo<SocketAddr>>;

/// Serves a limited number of connections with timeouts: held-open connections must not use up the
/// descriptors needed to read files.
async fn serve_by<A>(listener: TcpListener, accept: A, router: Router) -> std::io::Result<()>
where
    A: Accept<TcpStream, ServiceOfConnection> + Clone + Send + Sync + 'static,
    A::Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A::Service: SendService<Request<Incoming>> + Send,
    A::Future: Send + 'static,
{
    let mut server = axum_server::from_tcp(listener.into_std()?)?
        .acceptor(accept)
        .http1_only()
        .first_request_timeout(HEAD_TIMEOUT);
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    server.serve(service).await
}

fn routes(gate: &ListenerGate) -> Router<Arc<AppState>> {
    let question_gate = middleware::from_fn_with_state(gate.clone(), gate::questions);
    let exchange = post(gate::exchange)
        .layer(DefaultBodyLimit::max(gate::CODE_LEN_MAX))
        .with_state(gate.clone());
    let router = metrics_route(gate)
        .merge(page::routes())
        .route("/session", exchange)
        .nest(api::PREFIX, api::routes().route_layer(question_gate));
    let names = middleware::from_fn_with_state(gate.clone(), gate::names);
    health().merge(router.layer(names))
}

fn metrics_route(gate: &ListenerGate) -> Router<Arc<AppState>> {
    let detail = middleware::from_fn_with_state(gate.clone(), gate::metrics);
    Router::new().route("/metrics", get(metrics).route_layer(detail))
}

/// Health checks are open to everyone, by whatever name: they must work when nothing else does.
fn health() -> Router<Arc<AppState>> {
    Router::new()
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
}

async fn metrics(
    State(app): State<Arc<AppState>>,
    Extension(detail): Extension<MetricsDetail>,
) -> Response {
    let text = match detail {
        MetricsDetail::Full => app.metrics.render().map(Bytes::from),
        MetricsDetail::Redacted => app.redacted.render(&app.metrics),
    };
    match text {
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
