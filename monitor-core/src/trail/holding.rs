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

/// Adds a holding unless the credential is there already; returns whether there was room.
pub(super) fn add_holding(holdings: &mut Vec<Holding>, holding: &Holding) -> bool {
    let known = holdings
        .iter()
        .any(|known| known.credential.id == holding.credential.id);
    let has_room = holdings.len() < HOLDINGS_MAX;
    if !known && has_room {
        holdings.push(holding.clone());
    }
    known || has_room
}
