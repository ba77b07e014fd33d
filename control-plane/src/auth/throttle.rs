//! Slows down guessing: in [`WINDOW`] at most [`ATTEMPTS`] logins that do not succeed for an email from one place,
//! and [`ATTEMPTS_IN_ALL`] from all of them. So a stranger who guesses does not lock the owner out, who asks from
//! elsewhere, and many strangers get no further than a few hundred guesses an hour. Kept in memory, in a map of
//! bounded size; a success forgets the failures from its place, and gives its own attempt back to all places:
//! what others failed at stays counted.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const ATTEMPTS: u32 = 10;
const ATTEMPTS_IN_ALL: u32 = 200;
const WINDOW: Duration = Duration::from_secs(15 * 60);
/// What is remembered at once, about 2 MB.
const KEYS: usize = 20_000;

/// Whose attempts are counted: those for an email from one place, or from everywhere.
type Key = (String, Option<IpAddr>);

/// The network that one client may have all addresses of: a /64 of IPv6 (RFC 6177).
fn place(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    since: Instant,
    count: u32,
}

/// Counts attempts.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    failures: Mutex<HashMap<Key, Failures>>,
}

impl Throttle {
    /// Counts one attempt.
    ///
    /// # Errors
    /// The minutes to wait, when there were too many.
    pub(super) fn attempt(&self, email: &str, from: IpAddr) -> Result<(), u64> {
        self.attempt_at(email, from, Instant::now())
    }

    fn attempt_at(&self, email: &str, from: IpAddr, now: Instant) -> Result<(), u64> {
        // Those that are refused for their place do not use up what all places have together.
        self.count((email.to_owned(), Some(place(from))), ATTEMPTS, now)?;
        self.count((email.to_owned(), None), ATTEMPTS_IN_ALL, now)
    }

    fn count(&self, key: Key, limit: u32, now: Instant) -> Result<(), u64> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= KEYS && !failures.contains_key(&key) {
            failures.retain(|_, seen| now.duration_since(seen.since) < WINDOW);
            // Still full: somebody tries many emails. The one closest to its end makes room.
            if failures.len() >= KEYS {
                let oldest = failures.iter().min_by_key(|(_, seen)| seen.since).map(|(key, _)| key.clone());
                oldest.and_then(|key| failures.remove(&key));
            }
        }
        let seen = failures.entry(key).or_insert(Failures { since: now, count: 0 });
        let age = now.duration_since(seen.since);
        if age >= WINDOW {
            *seen = Failures { since: now, count: 0 };
        } else if seen.count >= limit {
            return Err((WINDOW - age).as_secs().div_ceil(60));
        }
        seen.count += 1;
        Ok(())
    }

    /// A login succeeded.
    pub(super) fn forget(&self, email: &str, from: IpAddr) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(&(email.to_owned(), Some(place(from))));
        if let Some(all) = failures.get_mut(&(email.to_owned(), None)) {
            all.count = all.count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    #[test]
    fn the_window_ends_and_a_success_resets_it() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        for _ in 0..ATTEMPTS {
            assert_eq!(throttle.attempt_at("a", from(1), start), Ok(()));
        }
        assert_eq!(throttle.attempt_at("a", from(1), start), Err(15));
        assert_eq!(throttle.attempt_at("b", from(1), start), Ok(()));
        assert_eq!(throttle.attempt_at("a", from(1), start + WINDOW), Ok(()));
        throttle.forget("a", from(1));
        for _ in 0..ATTEMPTS {
            assert_eq!(throttle.attempt_at("a", from(1), start + WINDOW), Ok(()));
        }
    }

    #[test]
    fn a_guesser_does_not_lock_the_owner_out_and_many_are_stopped_together() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        while throttle.attempt_at("a", from(0), start).is_ok() {}
        assert_eq!(throttle.attempt_at("a", from(1), start), Ok(()));
        let allowed = (2..1000).filter(|&n| throttle.attempt_at("a", from(n), start).is_ok()).count();
        assert_eq!(u32::try_from(allowed).unwrap(), ATTEMPTS_IN_ALL - ATTEMPTS - 1);
    }

    #[test]
    fn successes_lock_nobody_out_and_leave_the_failures_of_others_counted() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.attempt_at("a", from(0), start), Ok(()));
        for n in 0..2 * ATTEMPTS_IN_ALL {
            assert_eq!(throttle.attempt_at("a", from(1), start), Ok(()), "login {n}");
            throttle.forget("a", from(1));
        }
        let allowed = (2..1000).filter(|&n| throttle.attempt_at("a", from(n), start).is_ok()).count();
        assert_eq!(u32::try_from(allowed).unwrap(), ATTEMPTS_IN_ALL - 1);
    }

    #[test]
    fn one_ipv6_network_is_one_place_and_a_mapped_address_the_address() {
        let parsed = |text: &str| place(text.parse().unwrap());
        assert_eq!(parsed("2001:db8:1:2:3:4:5:6"), parsed("2001:db8:1:2::1"));
        assert_ne!(parsed("2001:db8:1:2::1"), parsed("2001:db8:1:3::1"));
        assert_eq!(parsed("::ffff:10.0.0.1"), from(1));
    }

    #[test]
    fn memory_is_bounded() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        for n in 0..KEYS / 2 + 50 {
            assert_eq!(throttle.attempt_at(&n.to_string(), from(1), start), Ok(()));
        }
        assert_eq!(throttle.failures.lock().unwrap().len(), KEYS);
    }
}
