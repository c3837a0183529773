//! Waiting for another thread, for a limited time: the thread drops what it was given as soon as it
//! has come so far, or has ended.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::Duration,
};

/// Dropped by who is waited for. With clones all of them are waited for.
#[derive(Clone, Debug)]
pub struct Done(#[expect(dead_code, reason = "it is dropped, not sent through")] Sender<()>);

/// The end that waits.
#[derive(Debug)]
pub struct Waiter(Receiver<()>);

/// A [`Done`], and who waits until it is dropped.
pub fn pair() -> (Done, Waiter) {
    let (done, waiter) = channel();
    (Done(done), Waiter(waiter))
}

impl Waiter {
    /// Waits no longer than `limit`; whether it is done by then.
    pub fn wait_for(&self, limit: Duration) -> bool {
        // Nothing is ever sent: it ends because the other end is dropped.
        self.0.recv_timeout(limit) != Err(RecvTimeoutError::Timeout)
    }

    /// Waits as long as it takes.
    pub fn wait(&self) {
        while self.0.recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clone_is_waited_for() {
        let (done, waiter) = pair();
        let other = done.clone();
        drop(done);
        assert!(!waiter.wait_for(Duration::from_millis(1)));
        std::thread::spawn(move || drop(other))
            .join()
            .expect("joined");
        assert!(waiter.wait_for(Duration::ZERO));
        waiter.wait();
    }
}
