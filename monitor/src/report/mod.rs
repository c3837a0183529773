//! What leaves the agent: metrics, the stream of findings, the HTTP API, tables for people. The
//! only module that knows HTTP.

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
