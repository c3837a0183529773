//! Pipes through which a credential may have left the process that picked it up.

use super::holding::{Holding, add_holding};
use crate::fair_cache::{FairCache, Tenant};

/// Maximum credentials remembered that were carried by pipes; the oldest pipes of whoever has the most
/// are evicted first.
const PIPES_MAX: usize = 4096;

/// The credentials of each pipe, by inode number.
#[derive(Debug)]
pub(super) struct RememberedPipes(FairCache<u64, Vec<Holding>>);

impl Default for RememberedPipes {
    fn default() -> Self {
        Self(FairCache::new(PIPES_MAX))
    }
}

impl RememberedPipes {
    /// Adds a credential to a pipe; returns whether there was room.
    pub fn add(&mut self, tenant: &Tenant, pipe: u64, holding: &Holding) -> bool {
        let holdings = self.0.get_or_insert_with(tenant, &pipe, Vec::new);
        let added = add_holding(holdings, holding);
        let len = holdings.len();
        self.0.resize(&pipe, len);
        added
    }

    /// Pipes that were forgotten for lack of room.
    pub fn evicted(&self) -> u64 {
        self.0.evicted()
    }

    pub fn holdings(&self, pipe: u64) -> Option<&[Holding]> {
        self.0.peek(&pipe).map(Vec::as_slice)
    }
}
