//! The HTTP side: metrics, health, and the CLI's answers as JSON.

use super::{
    access::{self, Gate, Token},
    metrics::Metrics,
    page,
};
use crate::{
    ledger::read::{
        About, Event, Findings, HopRow, Hops, Inventory, Item, QueryError, Range, Reader, Timeline,
        Workloads,
    },
    model::{Finding, Workload},
    policy::document::Tls,
    time,
};
use axum::{
    Router,
    extract::{Query, State},
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Json, Response},
    routing::get,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use thiserror::Error;
use tokio::{net::TcpListener, sync::Semaphore};

/// Why the agent does not listen.
#[derive(Debug, Error)]
pub enum ListenError {
    #[error("`{0}` is no address to listen on: write for example 127.0.0.1:9477")]
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

/// What the handlers share.
#[derive(Debug)]
pub struct App {
    pub metrics: Arc<Metrics>,
    pub state_dir: PathBuf,
    pub ready: Arc<AtomicBool>,
    /// Questions that are answered at a time: each reads a ledger that may be large.
    pub turns: Semaphore,
}

/// Questions that are answered at a time.
pub const TURNS: usize = 4;

/// How the API is protected.
#[derive(Debug, Default)]
pub struct Security {
    pub tls: Option<Tls>,
    pub token: Option<Token>,
}

impl Security {
    /// Whether it may be served to other machines.
    fn is_whole(&self) -> bool {
        self.tls.is_some() && self.token.is_some()
    }
}

/// Binds the address of `--listen`.
pub async fn bind(listen: &str, security: &Security) -> Result<TcpListener, ListenError> {
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
pub async fn serve(listener: TcpListener, app: Arc<App>, security: Security) -> anyhow::Result<()> {
    let gate = Gate::new(security.token, security.tls.is_none());
    let router = routes(&gate).with_state(app);
    match security.tls {
        None => axum::serve(listener, router).await?,
        Some(files) => {
            let tls = access::tls(&files)?;
            axum_server::from_tcp_rustls(listener.into_std()?, tls)?
                .serve(router.into_make_service())
                .await?;
        }
    }
    Ok(())
}

fn routes(gate: &Arc<Gate>) -> Router<Arc<App>> {
    let asked = || middleware::from_fn_with_state(Arc::clone(gate), access::questions);
    let api = Router::new()
        .route("/credentials", get(credentials))
        .route("/workloads", get(workloads))
        .route("/hops", get(hops))
        .route("/findings", get(findings))
        .route("/timeline", get(timeline))
        .route("/who", get(who))
        .route("/where", get(where_to))
        .route("/chain", get(chain))
        .route("/first-use", get(first_use))
        .route("/blast-radius", get(blast_radius))
        .route_layer(asked());
    // With a token everything but the page's own files asks for it; without one they are local anyway.
    health()
        .route_layer(asked())
        .merge(page::routes())
        .nest("/api/v1", api)
        .layer(middleware::from_fn_with_state(
            Arc::clone(gate),
            access::names,
        ))
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
    destination: Option<String>,
    rule: Option<String>,
    after: Option<String>,
    /// Rows of a list, and how many to leave out before them.
    limit: Option<usize>,
    offset: Option<usize>,
    since: Option<String>,
    until: Option<String>,
}

/// Rows of a list where nobody says how many, and at most.
const LIMIT: usize = 1000;
const MOST: usize = 10_000;

/// A part of a list, and how much there is.
#[derive(Debug, Serialize)]
struct Part<T> {
    #[serde(flatten)]
    answer: T,
    total: usize,
    /// What `offset` gives the next part, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_offset: Option<usize>,
}

/// An answer that is a list.
trait List: Serialize + Send + 'static {
    type Row;
    fn rows(&mut self) -> &mut Vec<Self::Row>;
}

macro_rules! lists {
    ($($answer:ty, $row:ty, $field:ident;)+) => {$(
        impl List for $answer {
            type Row = $row;
            fn rows(&mut self) -> &mut Vec<$row> {
                &mut self.$field
            }
        }
    )+};
}
lists! {
    Inventory, Item, credentials;
    Workloads, Workload, workloads;
    Hops, HopRow, hops;
    Findings, Finding, findings;
    Timeline, Event, events;
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

    /// The part of a list that is asked for.
    fn part<T: List>(&self, mut answer: T) -> Part<T> {
        let limit = self.limit.unwrap_or(LIMIT).min(MOST);
        let offset = self.offset.unwrap_or_default();
        let rows = answer.rows();
        let total = rows.len();
        rows.drain(..offset.min(total));
        rows.truncate(limit);
        let end = offset.saturating_add(limit);
        Part {
            answer,
            total,
            next_offset: (end < total).then_some(end),
        }
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
    let _turn = app
        .turns
        .acquire()
        .await
        .map_err(|error| Refusal::Internal(error.to_string()))?;
    let app = Arc::clone(&app);
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

async fn credentials(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    ask(app, move |reader| {
        Ok(asked.part(reader.inventory(Timestamp::now())?))
    })
    .await
}

async fn workloads(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    ask(app, move |reader| Ok(asked.part(reader.workloads()?))).await
}

async fn hops(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    let range = asked.range()?;
    ask(app, move |reader| {
        let hops = match &asked.destination {
            Some(destination) => reader.hops_to(destination, range)?,
            None => reader.hops(range)?,
        };
        Ok(asked.part(hops))
    })
    .await
}

async fn findings(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    let range = asked.range()?;
    ask(app, move |reader| {
        let about = About {
            rule: asked.rule.as_deref(),
            credential: asked.credential.as_deref(),
            workload: asked.workload.as_deref(),
        };
        Ok(asked.part(reader.findings(about, range)?))
    })
    .await
}

async fn timeline(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    let range = asked.range()?;
    ask(app, move |reader| {
        let answer = reader.timeline(
            asked.credential.as_deref(),
            asked.workload.as_deref(),
            range,
        )?;
        let limit = asked.limit.or(Some(MOST));
        Ok(Parameters { limit, ..asked }.part(answer))
    })
    .await
}

async fn first_use(
    State(app): State<Arc<App>>,
    Query(asked): Asked,
) -> Result<impl IntoResponse, Refusal> {
    let credential = Parameters::needed(asked.credential.as_ref(), "credential")?;
    let after = Parameters::needed(asked.after.as_ref(), "after")?;
    let after = time::moment(&after, Timestamp::now()).map_err(Refusal::Parameter)?;
    ask(app, move |reader| reader.first_use(&credential, after)).await
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
