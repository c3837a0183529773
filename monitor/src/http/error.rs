//! Why the query API does not answer a request.

use super::problem::{ErrorBody, problem};
use crate::ledger::reader::QueryError;
use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use utoipa::IntoResponses;

/// Why a request is not answered.
#[derive(Debug)]
pub enum ApiError {
    Parameter(String),
    Query(QueryError),
    Internal(String),
}

/// The errors that every route may return, for the OpenAPI document.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it describes what other types answer")]
pub enum ErrorResponses {
    /// A parameter is missing or invalid.
    #[response(status = 400)]
    Parameter(ErrorBody),
    /// The bearer token is missing or invalid.
    #[response(status = 401)]
    Token(ErrorBody),
    /// The host name is not a loopback name, and the connection has no TLS.
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
