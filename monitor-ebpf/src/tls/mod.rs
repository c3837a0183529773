//! Plaintext that programs pass to TLS libraries, or get from them.

pub mod expected;
pub mod pending;
pub mod read;
pub mod write;
