//! How much output is kept per second, and the count of what is not.

use std::time::{Duration, Instant};

/// In place of a rate: everything is kept that the disk takes.
pub(crate) const UNCAPPED: u64 = 0;
/// At least one line with its header is kept, however low the rate.
const BURST: u64 = 16 << 10;
/// Between two lines that tell what was dropped.
const NOTICE: Duration = Duration::from_secs(1);

/// Why output was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// More came than the rate.
    Rate,
    /// The log could not be written.
    Disk,
}

/// A bucket that holds a second's worth.
#[derive(Debug)]
pub(crate) struct Rate {
    bytes_per_second: u64,
    tokens: u64,
    refilled: Instant,
    /// By [`Reason`].
    dropped: [Dropped; 2],
    /// When the first of `dropped` was.
    since: Option<Instant>,
}

/// What was not kept since the last notice.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
}

impl Rate {
    pub(crate) fn new(bytes_per_second: u64, now: Instant) -> Self {
        let tokens = bytes_per_second.max(BURST);
        Self { bytes_per_second, tokens, refilled: now, dropped: Default::default(), since: None }
    }

    pub(crate) fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    /// May a record of this many bytes be kept?
    pub(crate) fn admit(&mut self, bytes: usize, now: Instant) -> bool {
        if self.bytes_per_second == UNCAPPED {
            return true;
        }
        self.refill(now);
        let bytes = bytes as u64;
        let admitted = self.tokens >= bytes;
        if admitted {
            self.tokens -= bytes;
        }
        admitted
    }

    /// Counts what was not kept.
    pub(crate) fn drop(&mut self, reason: Reason, lines: u64, bytes: u64, now: Instant) {
        let dropped = &mut self.dropped[reason as usize];
        dropped.lines += lines;
        dropped.bytes += bytes;
        self.since.get_or_insert(now);
    }

    /// When the next notice is to be written.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + NOTICE)
    }

    /// What to tell now, once.
    pub(crate) fn notice(
        &mut self,
        now: Instant,
        last: bool,
    ) -> impl Iterator<Item = (Reason, Dropped)> + use<> {
        let due = self.due().is_some_and(|due| last || due <= now);
        let dropped = if due {
            self.since = None;
            std::mem::take(&mut self.dropped)
        } else {
            Default::default()
        };
        [Reason::Rate, Reason::Disk]
            .into_iter()
            .zip(dropped)
            .filter(|(_, dropped)| *dropped != Dropped::default())
    }

    fn refill(&mut self, now: Instant) {
        // Records of one read have one time.
        if now == self.refilled {
            return;
        }
        let elapsed = now.saturating_duration_since(self.refilled).as_micros();
        let earned = elapsed * u128::from(self.bytes_per_second) / 1_000_000;
        // Time that earned nothing yet stays on the account.
        if earned > 0 {
            let earned = u64::try_from(earned).unwrap_or(u64::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(self.bytes_per_second.max(BURST));
            self.refilled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_kept_at_the_rate_and_counted() {
        let start = Instant::now();
        let mut rate = Rate::new(100_000, start);
        let mut kept = 0;
        for millisecond in 0..3000_u64 {
            let now = start + Duration::from_millis(millisecond);
            for _ in 0..10 {
                if rate.admit(1000, now) {
                    kept += 1000;
                } else {
                    rate.drop(Reason::Rate, 1, 1000, now);
                }
            }
        }
        assert!((300_000..=400_000).contains(&kept), "{kept}");
        let (reason, told) = rate.notice(start + Duration::from_secs(3), false).next().unwrap();
        assert_eq!((reason, told.bytes + kept), (Reason::Rate, 30_000_000));
        assert_eq!(rate.notice(start + Duration::from_secs(9), true).next(), None);
    }

    #[test]
    fn without_a_cap_everything_is_kept() {
        let start = Instant::now();
        let mut rate = Rate::new(UNCAPPED, start);
        assert!((0..1000).all(|_| rate.admit(1 << 30, start)));
    }

    #[test]
    fn a_notice_comes_once_a_second_or_at_the_end() {
        let start = Instant::now();
        let mut rate = Rate::new(1, start);
        rate.drop(Reason::Rate, 2, 20, start);
        rate.drop(Reason::Disk, 1, 10, start);
        assert_eq!(rate.notice(start, false).next(), None);
        assert_eq!(rate.due(), Some(start + NOTICE));
        let told: Vec<_> = rate.notice(start, true).collect();
        let dropped = |lines| Dropped { lines, bytes: lines * 10 };
        assert_eq!(told, [(Reason::Rate, dropped(2)), (Reason::Disk, dropped(1))]);
        assert_eq!(rate.due(), None);
    }
}
