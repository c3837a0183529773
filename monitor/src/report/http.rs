//! The HTTP side: metrics, health, and the CLI's answers as JSON.

use super::metrics::Metrics;
use crate::{
    ledger::read::{QueryError, Range, Reader},
    time,
};
use axum::{
    Router,
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Json, Response},
    routing::get,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use thiserror::Error;
use tokio::net::TcpListener;

/// Why the agent does not listen.
#[derive(Debug, Error)]
pub enum ListenError {
    #[error("`{0}` is no address to listen on: write for example 127.0.0.1:9477")]
    Address(String),
    #[error(
        "{0} is not a loopback address: beyond it the API needs TLS and a token, which this release does not have"
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

/// What the handlers share.
#[derive(Debug)]
pub struct App {
    pub metrics: Arc<Metrics>,
    pub state_dir: PathBuf,
    pub ready: Arc<AtomicBool>,
}

/// Binds the address of `--listen`.
pub async fn bind(listen: &str) -> Result<TcpListener, ListenError> {
    let address = parse(listen)?;
    if !address.ip().is_loopback() {
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
pub async fn serve(listener: TcpListener, app: Arc<App>) -> std::io::Result<()> {
    let api = Router::new()
        .route("/credentials", get(credentials))
        .route("/workloads", get(workloads))
        .route("/hops", get(hops))
        .route("/findings", get(findings))
        .route("/timeline", get(timeline))
        .route("/who", get(who))
        .route("/where", get(where_to))
        .route("/chain", get(chain))
        .route("/blast-radius", get(blast_radius));
    let router = health()
        .route("/", get(index))
        .nest("/api/v1", api)
        .layer(middleware::from_fn(only_local_names))
        .with_state(app);
    axum::serve(listener, router).await
}

/// Serves what says nothing of credentials but in numbers, until the program ends.
pub async fn serve_metrics(listener: TcpListener, app: Arc<App>) -> std::io::Result<()> {
    axum::serve(listener, health().with_state(app)).await
}

fn health() -> Router<Arc<App>> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
}

/// A page of another site can make a browser call a loopback address by a name of its own: such
/// names are refused.
async fn only_local_names(headers: HeaderMap, request: Request, next: Next) -> Response {
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
    let local = bare == "localhost"
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if !local {
        return (StatusCode::FORBIDDEN, "ask for a loopback address\n").into_response();
    }
    next.run(request).await
}

async fn index() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        "Keytrail\n\n/metrics\n/healthz\n/readyz\n/api/v1/credentials\n/api/v1/workloads\n/api/v1/hops\n/api/v1/findings\n/api/v1/timeline\n/api/v1/who?credential=…\n/api/v1/where?credential=…\n/api/v1/blast-radius?workload=…\n",
    )
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
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

async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.ready.load(Ordering::Acquire) {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}

/// The parameters of every question; each takes those that it knows.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Parameters {
    credential: Option<String>,
    workload: Option<String>,
    rule: Option<String>,
    since: Option<String>,
    until: Option<String>,
}

/// Why a request is not answered.
enum Refusal {
    Parameter(String),
    Query(QueryError),
    Internal(String),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: String,
        }
        let (status, error) = match self {
            Self::Parameter(error) => (StatusCode::BAD_REQUEST, error),
            Self::Query(error @ (QueryError::NoCredential(_) | QueryError::NoWorkload(_))) => {
                (StatusCode::NOT_FOUND, error.to_string())
            }
            Self::Query(error @ QueryError::Ambiguous { .. }) => {
                (StatusCode::CONFLICT, error.to_string())
            }
            Self::Query(QueryError::Ledger(error)) => {
                (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            }
            Self::Internal(error) => (StatusCode::INTERNAL_SERVER_ERROR, error),
        };
        (status, Json(Body { error })).into_response()
    }
}

impl Parameters {
    fn range(&self) -> Result<Range, Refusal> {
        let now = Timestamp::now();
        let moment = |text: &Option<String>| {
            text.as_deref()
                .map(|text| time::moment(text, now))
                .transpose()
                .map_err(Refusal::Parameter)
        };
        Ok(Range {
            since: moment(&self.since)?,
            until: moment(&self.until)?,
        })
    }

    fn needed(value: Option<&String>, name: &str) -> Result<String, Refusal> {
        value
            .cloned()
            .ok_or_else(|| Refusal::Parameter(format!("the parameter `{name}` is missing")))
    }
}

/// Asks the ledger, off the threads that serve.
async fn ask<T, F>(app: Arc<App>, question: F) -> Result<Json<T>, Refusal>
where
    T: Serialize + Send + 'static,
    F: FnOnce(&Reader) -> Result<T, QueryError> + Send + 'static,
{
    tokio::task::spawn_blocking(move || {
        let reader = Reader::open(&app.state_dir).map_err(QueryError::from)?;
        question(&reader)
    })
    .await
    .map_err(|error| Refusal::Internal(error.to_string()))?
    .map(Json)
    .map_err(Refusal::Query)
}

type Asked = Query<Parameters>;

async fn credentials(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Refusal> {
    ask(app, |reader| reader.inventory(Timestamp::now())).await
}

async fn workloads(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Refusal> {
    ask(app, Reader::workloads).await
}

async fn hops(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    let range = asked.range()?;
    ask(app, move |reader| reader.hops(range)).await
}

async fn findings(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    let range = asked.range()?;
    ask(app, move |reader| {
        reader.findings(asked.rule.as_deref(), range)
    })
    .await
}

async fn timeline(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    let range = asked.range()?;
    ask(app, move |reader| {
        reader.timeline(
            asked.credential.as_deref(),
            asked.workload.as_deref(),
            range,
        )
    })
    .await
}

async fn who(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    let range = asked.range()?;
    let credential = Parameters::needed(asked.credential.as_ref(), "credential")?;
    ask(app, move |reader| reader.who(&credential, range)).await
}

async fn where_to(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    let range = asked.range()?;
    let credential = Parameters::needed(asked.credential.as_ref(), "credential")?;
    ask(app, move |reader| reader.where_to(&credential, range)).await
}

async fn chain(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    let range = asked.range()?;
    let credential = Parameters::needed(asked.credential.as_ref(), "credential")?;
    ask(app, move |reader| reader.chain(&credential, range)).await
}

async fn blast_radius(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    let range = asked.range()?;
    let workload = Parameters::needed(asked.workload.as_ref(), "workload")?;
    ask(app, move |reader| reader.blast_radius(&workload, range)).await
}
