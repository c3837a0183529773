//! Pipes through which a credential may have left the process that picked it up.

use super::holding::{Holding, add_holding};
use hashlink::LruCache;

/// Maximum number of pipes remembered that carried a credential; the oldest are evicted first.
const PIPES_MAX: usize = 4096;

/// The credentials of each pipe, by inode number. The first ones added are evicted first.
#[derive(Debug)]
pub(super) struct RememberedPipes(LruCache<u64, Vec<Holding>>);

impl Default for RememberedPipes {
    fn default() -> Self {
        Self(LruCache::new(PIPES_MAX))
    }
}

impl RememberedPipes {
    pub fn add(&mut self, pipe: u64, holding: &Holding) {
        // `peek_mut`: another credential does not make a pipe newer.
        match self.0.peek_mut(&pipe) {
            Some(holdings) => add_holding(holdings, holding),
            None => {
                self.0.insert(pipe, vec![holding.clone()]);
            }
        }
    }

    pub fn holdings(&self, pipe: u64) -> Option<&[Holding]> {
        self.0.peek(&pipe).map(Vec::as_slice)
    }
}
