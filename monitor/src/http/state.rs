//! State shared by the HTTP handlers.

use crate::{health::Health, metrics::Metrics};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};
use tokio::sync::Semaphore;

/// State shared by the handlers.
#[derive(Debug)]
pub struct AppState {
    pub metrics: Arc<Metrics>,
    pub state_dir: PathBuf,
    pub ready: Arc<AtomicBool>,
    pub health: Health,
    /// Limits concurrent queries: each reads a ledger that may be large.
    pub turns: Semaphore,
}

/// Maximum concurrent queries.
pub const CONCURRENT_QUERIES: usize = 4;
