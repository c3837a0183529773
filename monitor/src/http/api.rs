//! The query API: the CLI's answers as JSON, and the OpenAPI document that describes them.

use super::{
    answers::{Answer, BoundedAnswer, ListPage, bounded, list, ranked, rows_asked, run_query},
    error::{ApiError, ErrorResponses},
    params::{
        AfterParam, CredentialParam, DestinationParam, FilterParams, LimitParam, PageParams,
        QueryParams, RangeParams, RuleParams, WorkloadParam,
    },
    problem::{ErrorBody, problem},
    state::AppState,
};
use crate::ledger::{
    queries::{
        blast_radius::BlastRadius, chain::Chain, findings::Findings, first_use::FirstUse,
        hops::Hops, inventory::Inventory, timeline::Timeline, where_to::WhereAnswer,
        who::WhoAnswer, workloads::Workloads,
    },
    reader::LedgerReader,
};
use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{Json, Response},
    routing::get,
};
use jiff::Timestamp;
use monitor_core::{policy::rules, time};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};
use utoipa::{
    Modify, OpenApi,
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
    security(("token" = [])),
)]
struct ApiDescription;

/// The agent's token, or a session of its page.
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

type Ours = State<Arc<AppState>>;

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
    let rows_shown = cut
        .offset
        .unwrap_or_default()
        .saturating_add(rows_asked(cut.limit)?);
    list(app, cut, move |reader| {
        let mut found = reader.findings(of.about(), by.rule.as_deref(), by.severity, range)?;
        found.mark_gaps(rows_shown);
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
    run_query(app, move |reader| reader.first_use(&of.credential, after)).await
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
