//! State shared by the HTTP handlers.

use crate::{health::Health, metrics::Metrics};
use hyper::body::Bytes;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// State shared by the handlers.
#[derive(Debug)]
pub struct AppState {
    pub metrics: Arc<Metrics>,
    pub redacted: RedactedMetrics,
    pub state_dir: PathBuf,
    pub ready: Arc<AtomicBool>,
    pub health: Health,
    /// Limits concurrent queries: each reads a ledger that may be large.
    pub turns: Semaphore,
}

/// How long the text of metrics for anonymous callers is used.
const REDACTED_LIFETIME: Duration = Duration::from_millis(250);

/// The text of metrics for anonymous callers, of whom there may be many: it is made a few times per
/// second at most, and all responses share it.
#[derive(Debug, Default)]
pub struct RedactedMetrics(Mutex<Option<(Instant, Bytes)>>);

impl RedactedMetrics {
    pub fn render(&self, metrics: &Metrics) -> Result<Bytes, prometheus::Error> {
        // The text is replaced as a whole: a panic elsewhere cannot leave it half-written.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, text)) = &*last
            && made.elapsed() < REDACTED_LIFETIME
        {
            return Ok(text.clone());
        }
        let text = Bytes::from(metrics.render_redacted()?);
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

/// Maximum concurrent queries.
pub const CONCURRENT_QUERIES: usize = 4;
