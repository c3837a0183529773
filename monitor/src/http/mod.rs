//! The agent's HTTP server: metrics, health checks, the query API and the page. The only module that
//! uses HTTP.

pub mod access;
mod answers;
pub mod api;
mod connection_limit;
mod error;
mod page;
mod params;
mod problem;
pub mod server;
pub mod state;
