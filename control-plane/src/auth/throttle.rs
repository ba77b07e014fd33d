//! Slows down guessing: at most [`ATTEMPTS`] logins per email in [`WINDOW`] that do not succeed. Kept in
//! memory, in a map of bounded size; a success forgets the email's failures.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const ATTEMPTS: u32 = 10;
const WINDOW: Duration = Duration::from_secs(15 * 60);
/// Emails that are remembered at once, about 1 MB.
const EMAILS: usize = 10_000;

#[derive(Debug, Clone, Copy)]
struct Failures {
    since: Instant,
    count: u32,
}

/// Counts attempts by email.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    failures: Mutex<HashMap<String, Failures>>,
}

impl Throttle {
    /// Counts one attempt.
    ///
    /// # Errors
    /// The minutes to wait, when there were too many.
    pub(super) fn attempt(&self, email: &str) -> Result<(), u64> {
        self.attempt_at(email, Instant::now())
    }

    fn attempt_at(&self, email: &str, now: Instant) -> Result<(), u64> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= EMAILS && !failures.contains_key(email) {
            failures.retain(|_, seen| now.duration_since(seen.since) < WINDOW);
            // Still full: somebody tries many emails. The one closest to its end makes room.
            if failures.len() >= EMAILS {
                let oldest =
                    failures.iter().min_by_key(|(_, seen)| seen.since).map(|(email, _)| email.clone());
                oldest.and_then(|email| failures.remove(&email));
            }
        }
        let seen = failures.entry(email.to_owned()).or_insert(Failures { since: now, count: 0 });
        let age = now.duration_since(seen.since);
        if age >= WINDOW {
            *seen = Failures { since: now, count: 0 };
        } else if seen.count >= ATTEMPTS {
            return Err((WINDOW - age).as_secs().div_ceil(60));
        }
        seen.count += 1;
        Ok(())
    }

    /// A login succeeded.
    pub(super) fn forget(&self, email: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(email);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_ends_and_a_success_resets_it() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        for _ in 0..ATTEMPTS {
            assert_eq!(throttle.attempt_at("a", start), Ok(()));
        }
        assert_eq!(throttle.attempt_at("a", start), Err(15));
        assert_eq!(throttle.attempt_at("b", start), Ok(()));
        assert_eq!(throttle.attempt_at("a", start + WINDOW), Ok(()));
        throttle.forget("a");
        for _ in 0..ATTEMPTS {
            assert_eq!(throttle.attempt_at("a", start), Ok(()));
        }
    }

    #[test]
    fn memory_is_bounded() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        for n in 0..EMAILS + 50 {
            assert_eq!(throttle.attempt_at(&n.to_string(), start), Ok(()));
        }
        assert_eq!(throttle.failures.lock().unwrap().len(), EMAILS);
    }
}
