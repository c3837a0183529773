//! Who may ask the agent: a token, a session of the page, or an account of the cluster.
//!
//! On loopback, health checks and metrics need no token, but metrics then do not say which
//! credentials there are. Everything else needs the token everywhere; on other addresses, metrics
//! too, and TLS.

pub mod certificate;
pub mod gate;
pub mod link;
pub mod token;
