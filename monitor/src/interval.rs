//! Work that is due at a regular interval.

use std::time::{Duration, Instant};

/// Tells when work is due.
#[derive(Debug)]
pub struct Interval {
    period: Duration,
    last: Instant,
}

impl Interval {
    /// It is first due one period from now.
    pub fn new(period: Duration) -> Self {
        Self {
            period,
            last: Instant::now(),
        }
    }

    /// Whether it is due; if so, it is next due one period from now.
    pub fn is_due(&mut self) -> bool {
        let due = self.last.elapsed() >= self.period;
        if due {
            self.last = Instant::now();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_once_per_period() {
        let mut interval = Interval::new(Duration::from_secs(3600));
        assert!(!interval.is_due());
        interval.period = Duration::ZERO;
        assert!(interval.is_due());
    }
}
