//! A credential that a process holds.

use crate::model::{Credential, Source};
use std::sync::Arc;

/// Maximum credentials remembered per process.
const HOLDINGS_MAX: usize = 64;

/// A credential that a process holds.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    pub credential: Arc<Credential>,
    pub source: Source,
    pub usual: bool,
}

/// Adds a holding unless the credential is there already.
pub(super) fn add_holding(holdings: &mut Vec<Holding>, holding: &Holding) {
    let known = holdings
        .iter()
        .any(|known| known.credential.id == holding.credential.id);
    if !known && holdings.len() < HOLDINGS_MAX {
        holdings.push(holding.clone());
    }
}
