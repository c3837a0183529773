//! Waiting for another thread, with a timeout: the thread drops its completion once it has reached
//! a point, or when it ends.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::Duration,
};

/// Dropped by the thread that is waited for. If it is cloned, all clones are waited for.
#[derive(Clone, Debug)]
pub struct Completion(#[expect(dead_code, reason = "it is dropped, not sent through")] Sender<()>);

/// The waiting side.
#[derive(Debug)]
pub struct CompletionWaiter(Receiver<()>);

/// A [`Completion`], and the waiter for its drop.
pub fn completion() -> (Completion, CompletionWaiter) {
    let (done, waiter) = channel();
    (Completion(done), CompletionWaiter(waiter))
}

impl CompletionWaiter {
    /// Waits at most `limit`; returns whether it was completed.
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        // Nothing is ever sent: it ends because the other side is dropped.
        self.0.recv_timeout(limit) != Err(RecvTimeoutError::Timeout)
    }

    /// Waits without a timeout.
    pub fn wait(&self) {
        while self.0.recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clone_is_waited_for() {
        let (done, waiter) = completion();
        let other = done.clone();
        drop(done);
        assert!(!waiter.wait_timeout(Duration::from_millis(1)));
        std::thread::spawn(move || drop(other))
            .join()
            .expect("joined");
        assert!(waiter.wait_timeout(Duration::ZERO));
        waiter.wait();
    }
}
