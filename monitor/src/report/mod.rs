//! The agent's outputs: metrics, findings stream, HTTP API, tables. The only module that uses HTTP.

pub mod access;
pub mod api;
mod connection_limit;
pub mod dot;
mod family;
pub mod findings;
pub mod http;
pub mod lines;
pub mod metrics;
pub mod ocsf;
pub mod page;
mod problem;
pub mod state;
pub mod table;
