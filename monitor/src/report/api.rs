//! Questions: the CLI's answers as JSON, and the document that describes them.

use super::http::App;
use crate::{
    ledger::{
        chain::Chain,
        first::FirstUse,
        read::{
            About, BlastRadius, Event, Findings, HopRow, Hops, Inventory, Item, QueryError, Range,
            Reader, Timeline, UseRow, WhereAnswer, WhoAnswer, Workloads,
        },
    },
    model::{Finding, Severity, Workload},
    policy::rules,
    time,
};
use axum::{
    Router,
    extract::{FromRequestParts, Query, Request, State},
    http::{StatusCode, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Json, Response},
    routing::get,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};
use utoipa::{
    IntoParams, IntoResponses, Modify, OpenApi, ToSchema,
    openapi::{
        RefOr,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

/// Where the questions are; another version would be beside it.
pub const PREFIX: &str = "/api/v1";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Keytrail",
        description = "What was seen on one node: which credentials were used by whom, and where they went. Lists are the worst or the newest first, and every answer says in `gaps` what was not seen.",
    ),
    components(schemas(Problem)),
    modifiers(&Bearer),
    security((), ("token" = [])),
)]
struct Description;

/// The token of `token_file`, where there is one.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        document
            .components
            .get_or_insert_default()
            .add_security_scheme(
                "token",
                SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
            );
    }
}

fn described() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(credentials))
        .routes(routes!(workloads))
        .routes(routes!(hops))
        .routes(routes!(findings))
        .routes(routes!(timeline))
        .routes(routes!(who))
        .routes(routes!(where_to))
        .routes(routes!(chain))
        .routes(routes!(first_use))
        .routes(routes!(blast_radius))
}

/// The routes below [`PREFIX`].
pub fn routes() -> Router<Arc<App>> {
    let (router, described) = described().split_for_parts();
    let known = Arc::new(Parameters::of(&described));
    let document = document();
    router
        .route("/openapi.json", get(async move || Json(document)))
        .route_layer(middleware::from_fn_with_state(known, refuse_unknown))
}

/// The parameters that each question takes, by its path.
#[derive(Debug)]
struct Parameters(HashMap<String, BTreeSet<String>>);

impl Parameters {
    fn of(described: &utoipa::openapi::OpenApi) -> Self {
        let names = |item: &utoipa::openapi::PathItem| {
            let question = item.get.iter();
            question
                .flat_map(|question| question.parameters.iter().flatten())
                .filter_map(|parameter| match parameter {
                    RefOr::T(parameter) => Some(parameter.name.clone()),
                    RefOr::Ref(_) => None,
                })
                .collect()
        };
        let paths = described.paths.paths.iter();
        Self(
            paths
                .map(|(path, item)| (path.clone(), names(item)))
                .collect(),
        )
    }
}

/// Refuses a question with a parameter that it does not take: what it was to narrow would be answered whole.
async fn refuse_unknown(
    State(known): State<Arc<Parameters>>,
    request: Request,
    next: Next,
) -> Response {
    let none = BTreeSet::new();
    let known = known.0.get(request.uri().path()).unwrap_or(&none);
    let query = request.uri().query().unwrap_or_default();
    let unknown =
        url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| !known.contains(&**name));
    if let Some((name, _)) = unknown {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let there_are = match &known[..] {
            [] => "there are none".to_owned(),
            known => format!("there are {}", known.join(", ")),
        };
        let name = name.escape_debug();
        return problem(
            StatusCode::BAD_REQUEST,
            format!("no parameter `{name}`; {there_are}"),
        );
    }
    next.run(request).await
}

/// The description of every question and answer, by OpenAPI 3.1.
pub fn document() -> utoipa::openapi::OpenApi {
    let (_, paths) = described().split_for_parts();
    Description::openapi().nest(PREFIX, paths)
}

/// When.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct Within {
    /// From when on: RFC 3339, or how long ago, such as `2h` or `7d`.
    since: Option<String>,
    /// Until when, in the same forms.
    until: Option<String>,
}

impl Within {
    fn range(&self) -> Result<Range, Refusal> {
        let now = Timestamp::now();
        let moment = |text: &Option<String>| {
            text.as_deref()
                .map(|text| time::moment(text, now))
                .transpose()
                .map_err(Refusal::Parameter)
        };
        let range = Range {
            since: moment(&self.since)?,
            until: moment(&self.until)?,
        };
        if range.is_reversed() {
            return Err(Refusal::Parameter("`since` is after `until`".to_owned()));
        }
        Ok(range)
    }
}

/// Which part of a list.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct Cut {
    /// Rows at most; 10000 where nothing is said.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<usize>,
    /// Rows to leave out before them.
    offset: Option<usize>,
}

/// How much.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct Limit {
    /// Uses at most, and hops at most; 10000 of each where nothing is said.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<usize>,
}

/// Which credential.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct OfCredential {
    /// An id, the beginning of one, a name of the policy, a path, or `env:NAME`.
    credential: String,
}

/// Which workload.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct OfWorkload {
    /// `namespace/name`, a unit, a container, or an executable's path.
    workload: String,
}

/// After when.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct After {
    /// RFC 3339, or how long ago, such as `2h` or `7d`.
    after: String,
}

/// To where.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct To {
    /// `name:port`, a name, or an address; everywhere where nothing is said.
    destination: Option<String>,
}

/// About what.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct Of {
    /// An id, the beginning of one, a name of the policy, a path, or `env:NAME`.
    credential: Option<String>,
    /// `namespace/name`, a unit, a container, or an executable's path.
    workload: Option<String>,
}

impl Of {
    fn about(&self) -> About<'_> {
        About {
            credential: self.credential.as_deref(),
            workload: self.workload.as_deref(),
        }
    }
}

/// By which rule, and how bad.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct By {
    /// A rule's name, such as `unexpected-hop`.
    rule: Option<String>,
    /// `low`, `medium`, `high` or `critical`.
    severity: Option<Severity>,
}

/// Rows of one answer at most.
const MOST: usize = 10_000;

/// Rows that are wanted.
fn rows(limit: Option<usize>) -> Result<usize, Refusal> {
    let wanted = limit.unwrap_or(MOST);
    if (1..=MOST).contains(&wanted) {
        return Ok(wanted);
    }
    Err(Refusal::Parameter(format!(
        "`limit` is from 1 to {MOST}; `offset` gives what comes after"
    )))
}

/// A part of a list, and how much there is.
#[derive(Debug, Serialize, ToSchema)]
struct Part<T> {
    #[serde(flatten)]
    answer: T,
    /// Rows of the whole list.
    total: usize,
    /// What `offset` gives the next part, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_offset: Option<usize>,
}

/// An answer with several lists, each no longer than was asked for.
#[derive(Debug, Serialize, ToSchema)]
struct Bounded<T> {
    #[serde(flatten)]
    answer: T,
    /// Uses and hops that were left out, none of them worse than those that are there.
    omitted: usize,
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
    WhoAnswer, UseRow, uses;
    WhereAnswer, HopRow, hops;
}

/// A part of a list of so many rows, from `offset` on.
fn part<T>(answer: T, total: usize, offset: usize, limit: usize) -> Part<T> {
    let end = offset.saturating_add(limit);
    Part {
        answer,
        total,
        next_offset: (end < total).then_some(end),
    }
}

/// Why a request is not answered.
#[derive(Debug)]
enum Refusal {
    Parameter(String),
    Query(QueryError),
    Internal(String),
}

/// What a refusal says.
#[derive(Serialize, ToSchema)]
pub struct Problem {
    error: String,
}

/// A refusal with a status.
pub fn problem(status: StatusCode, error: impl Into<String>) -> Response {
    let error = error.into();
    (status, Json(Problem { error })).into_response()
}

/// The refusals that every question may have, for the document.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it describes what other types answer")]
enum Refused {
    /// A parameter is missing or wrong.
    #[response(status = 400)]
    Parameter(Problem),
    /// The token is missing or wrong.
    #[response(status = 401)]
    Token(Problem),
    /// Asked by another name than one of loopback, while there is no token.
    #[response(status = 403)]
    Name(Problem),
    /// Nothing is known by that name.
    #[response(status = 404)]
    Unknown(Problem),
    /// It is the beginning of several ids.
    #[response(status = 409)]
    Ambiguous(Problem),
    /// Too many questions; `Retry-After` says when to ask again.
    #[response(status = 429)]
    TooMany(Problem),
    /// The ledger cannot be read.
    #[response(status = 500)]
    Ledger(Problem),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Parameter(error) => problem(StatusCode::BAD_REQUEST, error),
            Self::Query(error @ (QueryError::NoCredential(_) | QueryError::NoWorkload(_))) => {
                problem(StatusCode::NOT_FOUND, error.to_string())
            }
            Self::Query(error @ QueryError::Ambiguous { .. }) => {
                problem(StatusCode::CONFLICT, error.to_string())
            }
            Self::Query(QueryError::Ledger(error)) => {
                problem(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            }
            Self::Internal(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, error),
        }
    }
}

/// Parameters of a question; others are left to who knows them.
struct Asked<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(asked)| Self(asked))
            .map_err(|error| Refusal::Parameter(error.body_text()))
    }
}

/// Asks the ledger, off the threads that serve.
async fn ask<T, F>(app: Arc<App>, question: F) -> Answer<T>
where
    T: Serialize + Send + 'static,
    F: FnOnce(Reader) -> Result<T, QueryError> + Send + 'static,
{
    let _turn = app
        .turns
        .acquire()
        .await
        .map_err(|error| Refusal::Internal(error.to_string()))?;
    let app = Arc::clone(&app);
    tokio::task::spawn_blocking(move || {
        question(Reader::open(&app.state_dir).map_err(QueryError::from)?)
    })
    .await
    .map_err(|error| Refusal::Internal(error.to_string()))?
    .map(Json)
    .map_err(Refusal::Query)
}

/// Asks for a list, and gives the part of it that is wanted.
async fn list<T, F>(app: Arc<App>, cut: Cut, question: F) -> Answer<Part<T>>
where
    T: List,
    F: FnOnce(&Reader) -> Result<T, QueryError> + Send + 'static,
{
    let (offset, limit) = (cut.offset.unwrap_or_default(), rows(cut.limit)?);
    ask(app, move |reader| {
        let mut answer = question(&reader)?;
        let rows = answer.rows();
        let total = rows.len();
        rows.drain(..offset.min(total));
        rows.truncate(limit);
        Ok(part(answer, total, offset, limit))
    })
    .await
}

/// The same for uses and hops, of which no more is read than is wanted.
async fn ranked<T, F>(app: Arc<App>, cut: Cut, question: F) -> Answer<Part<T>>
where
    T: List,
    F: FnOnce(&Reader) -> Result<T, QueryError> + Send + 'static,
{
    let (offset, limit) = (cut.offset.unwrap_or_default(), rows(cut.limit)?);
    ask(app, move |reader| {
        let reader = reader.limited(offset, limit);
        let mut answer = question(&reader)?;
        let total = answer.rows().len() + reader.omitted();
        Ok(part(answer, total, offset, limit))
    })
    .await
}

/// Asks for several lists, each no longer than is wanted.
async fn bounded<T, F>(app: Arc<App>, limit: Limit, question: F) -> Answer<Bounded<T>>
where
    T: Serialize + Send + 'static,
    F: FnOnce(&Reader) -> Result<T, QueryError> + Send + 'static,
{
    let limit = rows(limit.limit)?;
    ask(app, move |reader| {
        let reader = reader.limited(0, limit);
        let answer = question(&reader)?;
        let omitted = reader.omitted();
        Ok(Bounded { answer, omitted })
    })
    .await
}

type Ours = State<Arc<App>>;
type Answer<T> = Result<Json<T>, Refusal>;

/// Every credential: class, role, lifetime, age, expiry, owner, workloads, last use
#[utoipa::path(get, path = "/credentials", params(Cut),
    responses((status = OK, description = "The answer.", body = Part<Inventory>), Refused))]
async fn credentials(State(app): Ours, Asked(cut): Asked<Cut>) -> Answer<Part<Inventory>> {
    list(app, cut, |reader| reader.inventory(Timestamp::now())).await
}

/// Every workload
#[utoipa::path(get, path = "/workloads", params(Cut),
    responses((status = OK, description = "The answer.", body = Part<Workloads>), Refused))]
async fn workloads(State(app): Ours, Asked(cut): Asked<Cut>) -> Answer<Part<Workloads>> {
    list(app, cut, Reader::workloads).await
}

/// Every hop, or those of a credential, by a workload, to a destination
#[utoipa::path(get, path = "/hops", params(Of, To, Within, Cut),
    responses((status = OK, description = "The answer.", body = Part<Hops>), Refused))]
async fn hops(
    State(app): Ours,
    Asked(of): Asked<Of>,
    Asked(to): Asked<To>,
    Asked(within): Asked<Within>,
    Asked(cut): Asked<Cut>,
) -> Answer<Part<Hops>> {
    let range = within.range()?;
    ranked(app, cut, move |reader| {
        reader.hops(of.about(), to.destination.as_deref(), range)
    })
    .await
}

/// What breaks an expectation or a rule
#[utoipa::path(get, path = "/findings", params(By, Of, Within, Cut),
    responses((status = OK, description = "The answer.", body = Part<Findings>), Refused))]
async fn findings(
    State(app): Ours,
    Asked(by): Asked<By>,
    Asked(of): Asked<Of>,
    Asked(within): Asked<Within>,
    Asked(cut): Asked<Cut>,
) -> Answer<Part<Findings>> {
    let range = within.range()?;
    if let Some(rule) = &by.rule {
        rules::known(rule).map_err(Refusal::Parameter)?;
    }
    let shown = cut
        .offset
        .unwrap_or_default()
        .saturating_add(rows(cut.limit)?);
    list(app, cut, move |reader| {
        let mut found = reader.findings(of.about(), by.rule.as_deref(), by.severity, range)?;
        found.mark_gaps(shown);
        Ok(found)
    })
    .await
}

/// What happened, oldest first
#[utoipa::path(get, path = "/timeline", params(Of, Within, Cut),
    responses((status = OK, description = "The answer.", body = Part<Timeline>), Refused))]
async fn timeline(
    State(app): Ours,
    Asked(of): Asked<Of>,
    Asked(within): Asked<Within>,
    Asked(cut): Asked<Cut>,
) -> Answer<Part<Timeline>> {
    let range = within.range()?;
    list(app, cut, move |reader| {
        reader.timeline(of.credential.as_deref(), of.workload.as_deref(), range)
    })
    .await
}

/// Who used a credential, when, and how it is known
#[utoipa::path(get, path = "/who", params(OfCredential, Within, Cut),
    responses((status = OK, description = "The answer.", body = Part<WhoAnswer>), Refused))]
async fn who(
    State(app): Ours,
    Asked(of): Asked<OfCredential>,
    Asked(within): Asked<Within>,
    Asked(cut): Asked<Cut>,
) -> Answer<Part<WhoAnswer>> {
    let range = within.range()?;
    ranked(app, cut, move |reader| reader.who(&of.credential, range)).await
}

/// Where a credential went
#[utoipa::path(get, path = "/where", params(OfCredential, Within, Cut),
    responses((status = OK, description = "The answer.", body = Part<WhereAnswer>), Refused))]
async fn where_to(
    State(app): Ours,
    Asked(of): Asked<OfCredential>,
    Asked(within): Asked<Within>,
    Asked(cut): Asked<Cut>,
) -> Answer<Part<WhereAnswer>> {
    let range = within.range()?;
    ranked(app, cut, move |reader| {
        reader.where_to(&of.credential, range)
    })
    .await
}

/// What a credential was minted from, what was minted with it, and where all of that went
#[utoipa::path(get, path = "/chain", params(OfCredential, Within, Limit),
    responses((status = OK, description = "The answer.", body = Bounded<Chain>), Refused))]
async fn chain(
    State(app): Ours,
    Asked(of): Asked<OfCredential>,
    Asked(within): Asked<Within>,
    Asked(limit): Asked<Limit>,
) -> Answer<Bounded<Chain>> {
    let range = within.range()?;
    bounded(app, limit, move |reader| {
        reader.chain(&of.credential, range)
    })
    .await
}

/// Who was new to a credential after a time, and where it was newly taken
#[utoipa::path(get, path = "/first-use", params(OfCredential, After),
    responses((status = OK, description = "The answer.", body = FirstUse), Refused))]
async fn first_use(
    State(app): Ours,
    Asked(of): Asked<OfCredential>,
    Asked(after): Asked<After>,
) -> Answer<FirstUse> {
    let after = time::moment(&after.after, Timestamp::now()).map_err(Refusal::Parameter)?;
    ask(app, move |reader| reader.first_use(&of.credential, after)).await
}

/// Which credentials a workload held, and where it took them
#[utoipa::path(get, path = "/blast-radius", params(OfWorkload, Within, Limit),
    responses((status = OK, description = "The answer.", body = Bounded<BlastRadius>), Refused))]
async fn blast_radius(
    State(app): Ours,
    Asked(of): Asked<OfWorkload>,
    Asked(within): Asked<Within>,
    Asked(limit): Asked<Limit>,
) -> Answer<Bounded<BlastRadius>> {
    let range = within.range()?;
    bounded(app, limit, move |reader| {
        reader.blast_radius(&of.workload, range)
    })
    .await
}
