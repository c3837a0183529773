//! Connections, and what is sent and received on them outside TLS.

pub mod connect;
pub mod hello;
pub mod ingress;
pub mod outcome;
pub mod owner;
pub mod plaintext;
pub mod response;
mod socket;
pub mod tcp;
pub mod unix;
