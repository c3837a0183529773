//! The query API: the CLI's answers as JSON, and the OpenAPI document that describes them.

use super::{
    problem::{ErrorBody, problem},
    state::AppState,
};
use crate::ledger::{
    chain::Chain,
    first::FirstUse,
    read::{
        BlastRadius, Findings, Hops, Inventory, InventoryItem, LedgerReader, QueryError,
        QueryFilter, Timeline, TimelineEvent, WhereAnswer, WhoAnswer, Workloads,
    },
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
use monitor_core::{
    history::{HopRow, TimeRange, UseRow},
    model::{Finding, Severity, Workload},
    policy::rules,
    time,
};
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

/// Prefix of all routes; another version would be beside it.
pub const PREFIX: &str = "/api/v1";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Keytrail",
        description = "What was observed on one node: which workloads used which credentials, and where they went. Lists are ordered worst or newest first, and every answer lists in `gaps` what was not observed.",
    ),
    components(schemas(ErrorBody)),
    modifiers(&BearerScheme),
    security((), ("token" = [])),
)]
struct ApiDescription;

/// The token of `token_file`, if one is configured.
struct BearerScheme;

impl Modify for BearerScheme {
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

fn described() -> OpenApiRouter<Arc<AppState>> {
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
pub fn routes() -> Router<Arc<AppState>> {
    let (router, described) = described().split_for_parts();
    let known = Arc::new(ParameterNames::of(&described));
    let document = document();
    router
        .route("/openapi.json", get(async move || Json(document)))
        .route_layer(middleware::from_fn_with_state(known, refuse_unknown))
}

/// The parameters that each route accepts, by path.
#[derive(Debug)]
struct ParameterNames(HashMap<String, BTreeSet<String>>);

impl ParameterNames {
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

/// Rejects a request with an unknown parameter: ignoring it would return more than was asked for.
async fn refuse_unknown(
    State(known): State<Arc<ParameterNames>>,
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
            [] => "it takes none".to_owned(),
            known => format!("it takes {}", known.join(", ")),
        };
        let name = name.escape_debug();
        return problem(
            StatusCode::BAD_REQUEST,
            format!("no parameter `{name}`; {there_are}"),
        );
    }
    next.run(request).await
}

/// The OpenAPI 3.1 description of every route.
pub fn document() -> utoipa::openapi::OpenApi {
    let (_, paths) = described().split_for_parts();
    ApiDescription::openapi().nest(PREFIX, paths)
}

/// A time range.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct RangeParams {
    /// Start: RFC 3339, or a duration before now, such as `2h` or `7d`.
    since: Option<String>,
    /// End, in the same forms.
    until: Option<String>,
}

impl RangeParams {
    fn range(&self) -> Result<TimeRange, ApiError> {
        let now = Timestamp::now();
        let moment = |text: &Option<String>| {
            text.as_deref()
                .map(|text| time::moment(text, now))
                .transpose()
                .map_err(ApiError::Parameter)
        };
        let range = TimeRange {
            since: moment(&self.since)?,
            until: moment(&self.until)?,
        };
        if range.is_reversed() {
            return Err(ApiError::Parameter("`since` is after `until`".to_owned()));
        }
        Ok(range)
    }
}

/// A page of a list.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct PageParams {
    /// Maximum number of rows; 10000 by default.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<usize>,
    /// Number of rows to skip.
    offset: Option<usize>,
}

/// A limit.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct LimitParam {
    /// Maximum number of uses, and of hops; 10000 each by default.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<usize>,
}

/// A credential.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct CredentialParam {
    /// An id, a unique prefix of one, a policy name, a path, or `env:NAME`.
    credential: String,
}

/// A workload.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct WorkloadParam {
    /// `namespace/name`, a unit, a container, or an executable's path.
    workload: String,
}

/// A point in time.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct AfterParam {
    /// RFC 3339, or a duration before now, such as `2h` or `7d`.
    after: String,
}

/// A destination.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct DestinationParam {
    /// `name:port`, a name, or an address; any by default.
    destination: Option<String>,
}

/// Filters.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct FilterParams {
    /// An id, a unique prefix of one, a policy name, a path, or `env:NAME`.
    credential: Option<String>,
    /// `namespace/name`, a unit, a container, or an executable's path.
    workload: Option<String>,
}

impl FilterParams {
    fn about(&self) -> QueryFilter<'_> {
        QueryFilter {
            credential: self.credential.as_deref(),
            workload: self.workload.as_deref(),
        }
    }
}

/// Filters for findings.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct RuleParams {
    /// A rule's name, such as `unexpected-hop`.
    rule: Option<String>,
    /// `low`, `medium`, `high` or `critical`.
    severity: Option<Severity>,
}

/// Maximum rows of one answer.
const LIMIT_MAX: usize = 10_000;

/// Validates the requested number of rows.
fn rows(limit: Option<usize>) -> Result<usize, ApiError> {
    let wanted = limit.unwrap_or(LIMIT_MAX);
    if (1..=LIMIT_MAX).contains(&wanted) {
        return Ok(wanted);
    }
    Err(ApiError::Parameter(format!(
        "`limit` must be between 1 and {LIMIT_MAX}; use `offset` for the next page"
    )))
}

/// A page of a list, and the size of the whole list.
#[derive(Debug, Serialize, ToSchema)]
struct ListPage<T> {
    #[serde(flatten)]
    answer: T,
    /// Rows of the whole list.
    total: usize,
    /// The `offset` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_offset: Option<usize>,
}

/// An answer with several lists, each limited to the requested number of rows.
#[derive(Debug, Serialize, ToSchema)]
struct BoundedAnswer<T> {
    #[serde(flatten)]
    answer: T,
    /// Number of uses and hops left out, none of them worse than those included.
    omitted: usize,
}

/// An answer that is a list.
trait ListAnswer: Serialize + Send + 'static {
    type Row;
    fn rows(&mut self) -> &mut Vec<Self::Row>;
}

macro_rules! lists {
    ($($answer:ty, $row:ty, $field:ident;)+) => {$(
        impl ListAnswer for $answer {
            type Row = $row;
            fn rows(&mut self) -> &mut Vec<$row> {
                &mut self.$field
            }
        }
    )+};
}
lists! {
    Inventory, InventoryItem, credentials;
    Workloads, Workload, workloads;
    Hops, HopRow, hops;
    Findings, Finding, findings;
    Timeline, TimelineEvent, events;
    WhoAnswer, UseRow, uses;
    WhereAnswer, HopRow, hops;
}

/// A page of a list that starts at `offset`.
fn part<T>(answer: T, total: usize, offset: usize, limit: usize) -> ListPage<T> {
    let end = offset.saturating_add(limit);
    ListPage {
        answer,
        total,
        next_offset: (end < total).then_some(end),
    }
}

/// Why a request is not answered.
#[derive(Debug)]
enum ApiError {
    Parameter(String),
    Query(QueryError),
    Internal(String),
}

/// The errors that every route may return, for the OpenAPI document.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it describes what other types answer")]
enum ErrorResponses {
    /// A parameter is missing or invalid.
    #[response(status = 400)]
    Parameter(ErrorBody),
    /// The bearer token is missing or invalid.
    #[response(status = 401)]
    Token(ErrorBody),
    /// The host name is not a loopback name, and no token is configured.
    #[response(status = 403)]
    Name(ErrorBody),
    /// Nothing is known by that name.
    #[response(status = 404)]
    Unknown(ErrorBody),
    /// The prefix matches several ids.
    #[response(status = 409)]
    Ambiguous(ErrorBody),
    /// Too many requests; `Retry-After` says when to retry.
    #[response(status = 429)]
    TooMany(ErrorBody),
    /// The ledger cannot be read.
    #[response(status = 500)]
    Ledger(ErrorBody),
}

impl IntoResponse for ApiError {
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

/// Query parameters; unknown ones are left to another extractor.
struct QueryParams<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryParams<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(asked)| Self(asked))
            .map_err(|error| ApiError::Parameter(error.body_text()))
    }
}

/// Runs a query on the ledger, outside the serving threads.
async fn ask<T, F>(app: Arc<AppState>, question: F) -> Answer<T>
where
    T: Serialize + Send + 'static,
    F: FnOnce(LedgerReader) -> Result<T, QueryError> + Send + 'static,
{
    let _turn = app
        .turns
        .acquire()
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?;
    let app = Arc::clone(&app);
    tokio::task::spawn_blocking(move || {
        question(LedgerReader::open(&app.state_dir).map_err(QueryError::from)?)
    })
    .await
    .map_err(|error| ApiError::Internal(error.to_string()))?
    .map(Json)
    .map_err(ApiError::Query)
}

/// Runs a query for a list, and returns the requested page.
async fn list<T, F>(app: Arc<AppState>, cut: PageParams, question: F) -> Answer<ListPage<T>>
where
    T: ListAnswer,
    F: FnOnce(&LedgerReader) -> Result<T, QueryError> + Send + 'static,
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

/// As [`list`], for uses and hops: only the requested rows are read.
async fn ranked<T, F>(app: Arc<AppState>, cut: PageParams, question: F) -> Answer<ListPage<T>>
where
    T: ListAnswer,
    F: FnOnce(&LedgerReader) -> Result<T, QueryError> + Send + 'static,
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

/// Runs a query with several lists, each limited to the requested number of rows.
async fn bounded<T, F>(
    app: Arc<AppState>,
    limit: LimitParam,
    question: F,
) -> Answer<BoundedAnswer<T>>
where
    T: Serialize + Send + 'static,
    F: FnOnce(&LedgerReader) -> Result<T, QueryError> + Send + 'static,
{
    let limit = rows(limit.limit)?;
    ask(app, move |reader| {
        let reader = reader.limited(0, limit);
        let answer = question(&reader)?;
        let omitted = reader.omitted();
        Ok(BoundedAnswer { answer, omitted })
    })
    .await
}

type Ours = State<Arc<AppState>>;
type Answer<T> = Result<Json<T>, ApiError>;

/// Every credential: class, role, lifetime, age, expiry, owner, workloads, last use
#[utoipa::path(get, path = "/credentials", params(PageParams),
    responses((status = OK, description = "The answer.", body = ListPage<Inventory>), ErrorResponses))]
async fn credentials(
    State(app): Ours,
    QueryParams(cut): QueryParams<PageParams>,
) -> Answer<ListPage<Inventory>> {
    list(app, cut, |reader| reader.inventory(Timestamp::now())).await
}

/// Every workload
#[utoipa::path(get, path = "/workloads", params(PageParams),
    responses((status = OK, description = "The answer.", body = ListPage<Workloads>), ErrorResponses))]
async fn workloads(
    State(app): Ours,
    QueryParams(cut): QueryParams<PageParams>,
) -> Answer<ListPage<Workloads>> {
    list(app, cut, LedgerReader::workloads).await
}

/// Every hop, optionally of a credential, by a workload, to a destination
#[utoipa::path(get, path = "/hops", params(FilterParams, DestinationParam, RangeParams, PageParams),
    responses((status = OK, description = "The answer.", body = ListPage<Hops>), ErrorResponses))]
async fn hops(
    State(app): Ours,
    QueryParams(of): QueryParams<FilterParams>,
    QueryParams(to): QueryParams<DestinationParam>,
    QueryParams(within): QueryParams<RangeParams>,
    QueryParams(cut): QueryParams<PageParams>,
) -> Answer<ListPage<Hops>> {
    let range = within.range()?;
    ranked(app, cut, move |reader| {
        reader.hops(of.about(), to.destination.as_deref(), range)
    })
    .await
}

/// Violations of expectations and rules
#[utoipa::path(get, path = "/findings", params(RuleParams, FilterParams, RangeParams, PageParams),
    responses((status = OK, description = "The answer.", body = ListPage<Findings>), ErrorResponses))]
async fn findings(
    State(app): Ours,
    QueryParams(by): QueryParams<RuleParams>,
    QueryParams(of): QueryParams<FilterParams>,
    QueryParams(within): QueryParams<RangeParams>,
    QueryParams(cut): QueryParams<PageParams>,
) -> Answer<ListPage<Findings>> {
    let range = within.range()?;
    if let Some(rule) = &by.rule {
        rules::check_rule_name(rule).map_err(ApiError::Parameter)?;
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
#[utoipa::path(get, path = "/timeline", params(FilterParams, RangeParams, PageParams),
    responses((status = OK, description = "The answer.", body = ListPage<Timeline>), ErrorResponses))]
async fn timeline(
    State(app): Ours,
    QueryParams(of): QueryParams<FilterParams>,
    QueryParams(within): QueryParams<RangeParams>,
    QueryParams(cut): QueryParams<PageParams>,
) -> Answer<ListPage<Timeline>> {
    let range = within.range()?;
    list(app, cut, move |reader| {
        reader.timeline(of.credential.as_deref(), of.workload.as_deref(), range)
    })
    .await
}

/// Which workloads used a credential, when, and how it is known
#[utoipa::path(get, path = "/who", params(CredentialParam, RangeParams, PageParams),
    responses((status = OK, description = "The answer.", body = ListPage<WhoAnswer>), ErrorResponses))]
async fn who(
    State(app): Ours,
    QueryParams(of): QueryParams<CredentialParam>,
    QueryParams(within): QueryParams<RangeParams>,
    QueryParams(cut): QueryParams<PageParams>,
) -> Answer<ListPage<WhoAnswer>> {
    let range = within.range()?;
    ranked(app, cut, move |reader| reader.who(&of.credential, range)).await
}

/// Where a credential went
#[utoipa::path(get, path = "/where", params(CredentialParam, RangeParams, PageParams),
    responses((status = OK, description = "The answer.", body = ListPage<WhereAnswer>), ErrorResponses))]
async fn where_to(
    State(app): Ours,
    QueryParams(of): QueryParams<CredentialParam>,
    QueryParams(within): QueryParams<RangeParams>,
    QueryParams(cut): QueryParams<PageParams>,
) -> Answer<ListPage<WhereAnswer>> {
    let range = within.range()?;
    ranked(app, cut, move |reader| {
        reader.where_to(&of.credential, range)
    })
    .await
}

/// What a credential was minted from, what was minted with it, and where all of that went
#[utoipa::path(get, path = "/chain", params(CredentialParam, RangeParams, LimitParam),
    responses((status = OK, description = "The answer.", body = BoundedAnswer<Chain>), ErrorResponses))]
async fn chain(
    State(app): Ours,
    QueryParams(of): QueryParams<CredentialParam>,
    QueryParams(within): QueryParams<RangeParams>,
    QueryParams(limit): QueryParams<LimitParam>,
) -> Answer<BoundedAnswer<Chain>> {
    let range = within.range()?;
    bounded(app, limit, move |reader| {
        reader.chain(&of.credential, range)
    })
    .await
}

/// Which workloads first used a credential after a time, and at which new destinations
#[utoipa::path(get, path = "/first-use", params(CredentialParam, AfterParam),
    responses((status = OK, description = "The answer.", body = FirstUse), ErrorResponses))]
async fn first_use(
    State(app): Ours,
    QueryParams(of): QueryParams<CredentialParam>,
    QueryParams(after): QueryParams<AfterParam>,
) -> Answer<FirstUse> {
    let after = time::moment(&after.after, Timestamp::now()).map_err(ApiError::Parameter)?;
    ask(app, move |reader| reader.first_use(&of.credential, after)).await
}

/// Which credentials a workload held, and where it presented them
#[utoipa::path(get, path = "/blast-radius", params(WorkloadParam, RangeParams, LimitParam),
    responses((status = OK, description = "The answer.", body = BoundedAnswer<BlastRadius>), ErrorResponses))]
async fn blast_radius(
    State(app): Ours,
    QueryParams(of): QueryParams<WorkloadParam>,
    QueryParams(within): QueryParams<RangeParams>,
    QueryParams(limit): QueryParams<LimitParam>,
) -> Answer<BoundedAnswer<BlastRadius>> {
    let range = within.range()?;
    bounded(app, limit, move |reader| {
        reader.blast_radius(&of.workload, range)
    })
    .await
}
