//! How the query API answers: a page of a list, or several lists of limited length.

use super::{
    error::ApiError,
    params::{LimitParam, PageParams},
    state::AppState,
};
use crate::ledger::{
    queries::RowList,
    reader::{LedgerReader, QueryError},
};
use axum::response::Json;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// The answer of a route.
pub type Answer<T> = Result<Json<T>, ApiError>;

/// Maximum rows of one answer.
const LIMIT_MAX: usize = 10_000;

/// Validates the requested number of rows.
pub fn rows_asked(limit: Option<usize>) -> Result<usize, ApiError> {
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
pub struct ListPage<T> {
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
pub struct BoundedAnswer<T> {
    #[serde(flatten)]
    answer: T,
    /// Number of uses and hops left out, none of them worse than those included.
    omitted: usize,
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

/// Runs a query on the ledger, outside the serving threads.
pub async fn run_query<T, F>(app: Arc<AppState>, question: F) -> Answer<T>
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
pub async fn list<T, F>(app: Arc<AppState>, cut: PageParams, question: F) -> Answer<ListPage<T>>
where
    T: RowList + Serialize + Send + 'static,
    F: FnOnce(&LedgerReader) -> Result<T, QueryError> + Send + 'static,
{
    let (offset, limit) = (cut.offset.unwrap_or_default(), rows_asked(cut.limit)?);
    run_query(app, move |reader| {
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
pub async fn ranked<T, F>(app: Arc<AppState>, cut: PageParams, question: F) -> Answer<ListPage<T>>
where
    T: RowList + Serialize + Send + 'static,
    F: FnOnce(&LedgerReader) -> Result<T, QueryError> + Send + 'static,
{
    let (offset, limit) = (cut.offset.unwrap_or_default(), rows_asked(cut.limit)?);
    run_query(app, move |reader| {
        let reader = reader.limited(offset, limit);
        let mut answer = question(&reader)?;
        let total = answer.rows().len() + reader.omitted();
        Ok(part(answer, total, offset, limit))
    })
    .await
}

/// Runs a query with several lists, each limited to the requested number of rows.
pub async fn bounded<T, F>(
    app: Arc<AppState>,
    limit: LimitParam,
    question: F,
) -> Answer<BoundedAnswer<T>>
where
    T: Serialize + Send + 'static,
    F: FnOnce(&LedgerReader) -> Result<T, QueryError> + Send + 'static,
{
    let limit = rows_asked(limit.limit)?;
    run_query(app, move |reader| {
        let reader = reader.limited(0, limit);
        let answer = question(&reader)?;
        let omitted = reader.omitted();
        Ok(BoundedAnswer { answer, omitted })
    })
    .await
}
