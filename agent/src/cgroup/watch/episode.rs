//! When to speak of a trouble that shows by repeated signs: once it has lasted, and once only until it has
//! been quiet for a while. Pure.

use std::time::{Duration, Instant};

/// After so long without a sign it is over, and the next one is news.
const QUIET: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Episode {
    /// Speak when signs have followed each other for so long.
    lasting: Duration,
    /// Signs further apart than this do not follow each other.
    gap: Duration,
    /// The first of the signs that follow each other, and the last one.
    signs: Option<(Instant, Instant)>,
    told: bool,
}

impl Episode {
    /// To be told of at the first sign.
    pub(super) fn at_once() -> Self {
        Self::lasting(Duration::ZERO, Duration::ZERO)
    }

    pub(super) fn lasting(lasting: Duration, gap: Duration) -> Self {
        Self { lasting, gap, signs: None, told: false }
    }

    /// Takes a sign, and says whether this is the moment to speak.
    pub(super) fn sign(&mut self, now: Instant) -> bool {
        let since = self.signs.map(|(_, last)| now.saturating_duration_since(last));
        if since.is_some_and(|since| since >= QUIET) {
            self.told = false;
        }
        let first = match self.signs {
            Some((first, _)) if since.is_some_and(|since| since <= self.gap) => first,
            _ => now,
        };
        self.signs = Some((first, now));
        let due = !self.told && now.saturating_duration_since(first) >= self.lasting;
        self.told |= due;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(episode: &mut Episode, start: Instant, seconds: impl IntoIterator<Item = u64>) -> Vec<u64> {
        seconds.into_iter().filter(|second| episode.sign(start + Duration::from_secs(*second))).collect()
    }

    #[test]
    fn it_is_told_once_until_it_has_been_quiet() {
        let start = Instant::now();
        let mut episode = Episode::at_once();
        assert_eq!(told(&mut episode, start, [0, 1, 200, 499, 799, 800, 1101]), [0, 799, 1101]);
    }

    #[test]
    fn a_trouble_that_must_last_starts_anew_after_a_gap() {
        let start = Instant::now();
        let mut episode = Episode::lasting(Duration::from_secs(10), Duration::from_secs(3));
        assert_eq!(told(&mut episode, start, (0..9).chain(13..40)), [23]);
        assert_eq!(told(&mut episode, start, 400..420), [410]);
        let mut seldom = Episode::lasting(Duration::from_secs(10), Duration::from_secs(3));
        assert!(told(&mut seldom, start, (0..100).step_by(4)).is_empty());
    }
}
