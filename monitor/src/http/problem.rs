//! Error responses.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

/// The body of an error.
#[derive(Serialize, ToSchema)]
pub struct ErrorBody {
    error: String,
}

/// An error with a status.
pub fn problem(status: StatusCode, error: impl Into<String>) -> Response {
    let error = error.into();
    (status, Json(ErrorBody { error })).into_response()
}
