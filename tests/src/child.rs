//! Processes of a scenario that end with it.

use std::process::Child;

/// A process that is killed when dropped.
#[derive(Debug)]
pub struct KilledChild(pub Child);

impl Drop for KilledChild {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
