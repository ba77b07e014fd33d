//! Waiting before the next attempt: 0.2 s doubling to 5 s, each shortened at random by up to a half,
//! so that many who wait for the same thing do not come back in the same instant.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);

/// How often it failed in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It worked.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits longer than the last time.
    pub(super) async fn wait(&mut self) {
        let longest = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let mut byte = [0];
        // Without randomness it waits the longest.
        let part = getrandom::fill(&mut byte).map_or(0.0, |()| f64::from(byte[0]) / 512.0);
        tokio::time::sleep(longest.mul_f64(1.0 - part)).await;
    }
}
