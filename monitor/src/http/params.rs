//! The parameters of the query API.

use super::error::ApiError;
use crate::ledger::queries::QueryFilter;
use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use jiff::Timestamp;
use monitor_core::{history::TimeRange, model::Severity, time};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;

/// Query parameters; unknown ones are left to another extractor.
pub struct QueryParams<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryParams<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(parameters)| Self(parameters))
            .map_err(|error| ApiError::Parameter(error.body_text()))
    }
}

/// A time range.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct RangeParams {
    /// Start: RFC 3339, or a duration before now, such as `2h` or `7d`.
    pub since: Option<String>,
    /// End, in the same forms.
    pub until: Option<String>,
}

impl RangeParams {
    pub fn range(&self) -> Result<TimeRange, ApiError> {
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
pub struct PageParams {
    /// Maximum number of rows; 10000 by default.
    #[param(minimum = 1, maximum = 10000)]
    pub limit: Option<usize>,
    /// Number of rows to skip.
    pub offset: Option<usize>,
}

/// A limit.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct LimitParam {
    /// Maximum number of uses, and of hops; 10000 each by default.
    #[param(minimum = 1, maximum = 10000)]
    pub limit: Option<usize>,
}

/// A credential.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CredentialParam {
    /// An id, a unique prefix of one, a policy name, a path, or `env:NAME`.
    pub credential: String,
}

/// A workload.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WorkloadParam {
    /// `namespace/name`, a unit, a container, or an executable's path.
    pub workload: String,
}

/// A point in time.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AfterParam {
    /// RFC 3339, or a duration before now, such as `2h` or `7d`.
    pub after: String,
}

/// A destination.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct DestinationParam {
    /// `name:port`, a name, or an address; any by default.
    pub destination: Option<String>,
}

/// Filters.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct FilterParams {
    /// An id, a unique prefix of one, a policy name, a path, or `env:NAME`.
    pub credential: Option<String>,
    /// `namespace/name`, a unit, a container, or an executable's path.
    pub workload: Option<String>,
}

impl FilterParams {
    pub fn about(&self) -> QueryFilter<'_> {
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
pub struct RuleParams {
    /// A rule's name, such as `unexpected-hop`.
    pub rule: Option<String>,
    /// `low`, `medium`, `high` or `critical`.
    pub severity: Option<Severity>,
}
