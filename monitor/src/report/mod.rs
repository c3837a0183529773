//! The agent's outputs: metrics, findings stream, HTTP API, tables. The only module that uses HTTP.

pub mod access;
pub mod api;
pub mod dot;
mod family;
mod few;
pub mod findings;
pub mod http;
pub mod lines;
pub mod metrics;
pub mod ocsf;
pub mod page;
pub mod table;
