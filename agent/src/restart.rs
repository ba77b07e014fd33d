//! When a container that ended by itself is started again: at once, then after 10 s, 20 s, 40 s ...
//! at most 5 min, jittered so that a node's crashed containers do not return in step. A run of
//! 5 min without an end forgives what was before.
//!
//! Invariant: the delay depends on nothing but the kept count, so it goes on over an agent restart.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A run of this length is stable: the count starts afresh.
pub const STABLE: Duration = Duration::from_secs(300);
const FIRST: Duration = Duration::from_secs(10);
/// No wait is longer.
pub const LONGEST: Duration = Duration::from_secs(300);

/// How often the program ended since its last stable run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    ended: u32,
}

impl Backoff {
    /// Counts one end after a run of `ran` and says how long to wait. `jitter` is in `0.0..1.0`;
    /// the delay varies by a tenth to either side and never exceeds 5 min.
    pub fn ended(&mut self, ran: Duration, jitter: f64) -> Duration {
        if ran >= STABLE {
            self.ended = 0;
        }
        let delay = match self.ended {
            0 => Duration::ZERO,
            n => FIRST.saturating_mul(1_u32.checked_shl(n - 1).unwrap_or(u32::MAX)).min(LONGEST),
        };
        self.ended = self.ended.saturating_add(1).min(30);
        delay.mul_f64(0.9 + 0.2 * jitter.clamp(0.0, 1.0)).min(LONGEST)
    }
}

/// A number in `0.0..1.0` that differs from process to process and from call to call.
#[must_use]
pub fn jitter() -> f64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let bits = RandomState::new().build_hasher().finish() >> 32;
    f64::from(u32::try_from(bits).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_the_rest_doubles_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let delays: Vec<u64> = (0..9).map(|_| backoff.ended(Duration::from_secs(1), 0.5).as_secs()).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn a_stable_run_resets_it() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.ended(Duration::from_secs(1), 0.0);
        }
        assert_eq!(backoff.ended(STABLE, 0.9), Duration::ZERO);
        assert_eq!(backoff.ended(Duration::from_secs(299), 0.5), Duration::from_secs(10));
    }

    proptest! {
        #[test]
        fn no_delay_exceeds_the_cap_and_none_shrinks_without_a_stable_run(
            runs in prop::collection::vec(0_u64..300, 1..80), jitter in 0.0_f64..1.0,
        ) {
            let mut backoff = Backoff::default();
            let mut last = Duration::ZERO;
            for ran in runs {
                let delay = backoff.ended(Duration::from_secs(ran), jitter);
                prop_assert!(delay <= LONGEST && delay >= last);
                last = delay;
            }
        }
    }
}
