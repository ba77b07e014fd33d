//! From the counters of one container to what is worth telling. Pure but for the time, which is handed in.

use std::time::{Duration, Instant};

use super::Attention;
use super::episode::Episode;

/// So long must a container be held back before it is told of, or stuck before it is ended.
const LASTING: Duration = Duration::from_secs(10);
/// A program that waits for room tries again within this.
const RETRY_GAP: Duration = Duration::from_secs(3);
/// The kernel tells of CPU pressure every two seconds while it lasts.
const PRESSURE_GAP: Duration = Duration::from_secs(8);

/// What the kernel keeps for a container and charges to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hoard {
    /// Memory of sockets: more than the limit.
    Sockets,
    /// Record locks of files: more than [`locks::MOST`](super::locks::MOST).
    Locks,
    /// Locks of files that all of the host have: whoever closes one looks through all of its locks.
    SharedLocks,
    /// More descriptors than can be searched, or more to read about them, while somebody has many locks or directories.
    Descriptors,
    /// Names of directories that it has open: the most of all, when the kernel's memory has grown.
    Directories,
}

/// What a container has run into since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Processes that the kernel has killed for want of memory.
    pub memory_kills: u64,
    /// How often it began to lose processes to that.
    pub memory_losses: u64,
    /// How often it became short of memory: above `memory.high`, and not only with page cache.
    pub memory_high: u64,
    /// How often it began to be held back by its CPU quota, 10 s at a stretch.
    pub throttled: u64,
    /// How often it ran into its limit of processes.
    pub process_limit: u64,
    /// It has too much of what the kernel charges to nobody.
    pub hoard: Option<Hoard>,
    /// Of a build: it has run into its limit of processes again and again, for 10 s at a stretch.
    pub stuck: bool,
}

/// CPU periods, and those in which the quota was used up (`cpu.stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Periods {
    pub(super) all: u64,
    pub(super) throttled: u64,
}

/// What memory a container uses (`memory.current`, `memory.stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) used: u64,
    /// Page cache, which the kernel can take back.
    pub(super) file: u64,
}

impl Memory {
    /// Does the program itself need (nearly) as much as `high`?
    pub(super) fn short(self, high: u64) -> bool {
        self.used.saturating_sub(self.file) >= high / 16 * 15
    }
}

#[derive(Debug)]
pub(super) struct Tracker {
    attention: Attention,
    memory_high: u64,
    report: Report,
    losses: Episode,
    short: Episode,
    throttled: Episode,
    at_process_limit: Episode,
    stuck: Episode,
    process_limit_hits: u64,
    periods: Option<(Instant, Periods)>,
}

impl Tracker {
    /// `process_limit_hits` of an earlier watcher are no news.
    pub(super) fn new(attention: Attention, memory_high: u64, process_limit_hits: u64) -> Self {
        Self {
            attention,
            memory_high,
            report: Report::default(),
            losses: Episode::at_once(),
            short: Episode::at_once(),
            throttled: Episode::lasting(LASTING, PRESSURE_GAP),
            at_process_limit: Episode::at_once(),
            stuck: Episode::lasting(LASTING, RETRY_GAP),
            process_limit_hits,
            periods: None,
        }
    }

    pub(super) fn report(&self) -> Report {
        self.report
    }

    pub(super) fn memory_kills(&mut self, now: Instant, count: u64) {
        if count > self.report.memory_kills && self.losses.sign(now) {
            self.report.memory_losses += 1;
        }
        self.report.memory_kills = count;
    }

    pub(super) fn memory(&mut self, now: Instant, memory: Memory) {
        if memory.short(self.memory_high) && self.short.sign(now) {
            self.report.memory_high += 1;
        }
    }

    pub(super) fn hoards(&mut self, hoard: Hoard) {
        self.report.hoard = self.report.hoard.or(Some(hoard));
    }

    pub(super) fn process_limit_hits(&mut self, now: Instant, hits: u64) {
        if hits <= self.process_limit_hits {
            return;
        }
        self.process_limit_hits = hits;
        if self.at_process_limit.sign(now) {
            self.report.process_limit += 1;
        }
        if self.attention == Attention::Build && self.stuck.sign(now) {
            self.report.stuck = true;
        }
    }

    /// After a sign of CPU pressure: was it the quota, or only the neighbours?
    pub(super) fn periods(&mut self, now: Instant, periods: Periods) {
        let before = self.periods.replace((now, periods));
        let Some((at, before)) = before.filter(|(at, _)| now.saturating_duration_since(*at) <= PRESSURE_GAP)
        else {
            return;
        };
        let all = periods.all.saturating_sub(before.all);
        let throttled = periods.throttled.saturating_sub(before.throttled);
        if now > at && all > 0 && throttled >= all / 2 && throttled > 0 && self.throttled.sign(now) {
            self.report.throttled += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIGH: u64 = 480 << 20;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn page_cache_alone_is_no_shortage() {
        let start = Instant::now();
        let mut tracker = Tracker::new(Attention::App, HIGH, 0);
        tracker.memory(start, Memory { used: HIGH, file: HIGH / 2 });
        assert_eq!(tracker.report(), Report::default());
        for second in 0..100 {
            tracker.memory(at(start, second), Memory { used: HIGH, file: 1 << 20 });
        }
        assert_eq!(tracker.report(), Report { memory_high: 1, ..Report::default() });
    }

    #[test]
    fn kills_are_counted_and_told_of_once() {
        let start = Instant::now();
        let mut tracker = Tracker::new(Attention::App, HIGH, 0);
        tracker.memory_kills(start, 0);
        assert_eq!(tracker.report(), Report::default());
        (1..50).for_each(|kill| tracker.memory_kills(at(start, kill), kill));
        assert_eq!(tracker.report(), Report { memory_kills: 49, memory_losses: 1, ..Report::default() });
    }

    #[test]
    fn a_build_that_hits_its_process_limit_for_ten_seconds_is_stuck_and_an_app_is_not() {
        let start = Instant::now();
        let run = |attention, step: usize| {
            let mut tracker = Tracker::new(attention, HIGH, 7);
            tracker.process_limit_hits(start, 7);
            assert_eq!(tracker.report(), Report::default());
            for second in (0..20).step_by(step) {
                tracker.process_limit_hits(at(start, second), 8 + second);
            }
            tracker.report()
        };
        let once = Report { process_limit: 1, ..Report::default() };
        assert_eq!(run(Attention::Build, 1), Report { stuck: true, ..once });
        assert_eq!(run(Attention::Build, 5), once);
        assert_eq!(run(Attention::App, 1), once);
    }

    #[test]
    fn only_pressure_that_comes_of_the_quota_counts() {
        let start = Instant::now();
        let run = |throttled_of_20: u64| {
            let mut tracker = Tracker::new(Attention::App, HIGH, 0);
            for step in 0..10 {
                let periods = Periods { all: 20 * step, throttled: throttled_of_20 * step };
                tracker.periods(at(start, 2 * step), periods);
            }
            tracker.report().throttled
        };
        assert_eq!((run(0), run(5), run(10), run(20)), (0, 0, 1, 1));
    }
}
