//! Environment variables.

use serde::{Deserialize, Serialize};

/// A variable that may hold a secret, reported by a probe or read from `/proc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedVariable {
    pub name: String,
    pub fingerprint: u64,
    /// Bytes of the secret.
    pub secret_len: u32,
    /// Index in the catalog's prefix table.
    pub prefix: Option<u32>,
    pub dots: u32,
    /// The secret is the password of a URL.
    pub url: bool,
}
