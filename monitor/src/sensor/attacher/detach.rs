//! Detaching, which waits for the CPUs.

use crate::{completion, sensor::uprobe::UprobeLink};
use std::time::{Duration, Instant};

/// Number of threads that detach at shutdown: each link waits tens of milliseconds for the CPUs.
const DETACH_THREADS: usize = 16;
/// Maximum time that shutdown waits for them; the kernel detaches the rest.
pub(super) const DETACH_TIMEOUT: Duration = Duration::from_secs(10);

/// Detaches everything at the end, for at most [`DETACH_TIMEOUT`].
pub(super) fn detach_all(mut links: Vec<UprobeLink>) {
    let began = Instant::now();
    let count = links.len();
    let each = count.div_ceil(DETACH_THREADS).max(1);
    let (done, waiter) = completion::completion();
    while !links.is_empty() {
        let some = links.split_off(links.len().saturating_sub(each));
        // The fields of a tuple are dropped in this order: the links first.
        drop_in_thread((some, done.clone()));
    }
    drop(done);
    let in_time = waiter.wait_timeout(DETACH_TIMEOUT);
    let milliseconds = began.elapsed().as_millis() as u64;
    if in_time {
        tracing::debug!(links = count, milliseconds, "all TLS probes detached");
    } else {
        tracing::warn!(
            links = count,
            milliseconds,
            "detaching timed out; the kernel completes it"
        );
    }
}

pub(super) fn detach(links: Vec<UprobeLink>) {
    if !links.is_empty() {
        drop_in_thread(links);
    }
}

/// Drops links in a separate thread, because detaching waits for the CPUs.
fn drop_in_thread(links: impl Send + 'static) {
    let thread = std::thread::Builder::new().name("detacher".to_owned());
    // If no thread can be started, they were dropped along with the closure.
    if let Err(error) = thread.spawn(move || drop(links)) {
        tracing::debug!(%error, "detached in the attacher's own thread");
    }
}
