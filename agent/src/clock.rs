//! Moments that no change of the wall clock moves: the time since this boot of the host, suspensions
//! included (`CLOCK_BOOTTIME`, clock_gettime(2)). What the ledger measures waits and runs by; the wall
//! clock's times beside them are for people.
//!
//! Invariant: a moment of another boot is never compared with one of this.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// A moment of one boot of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    boot_id: String,
    uptime_ms: u64,
}

impl Moment {
    #[must_use]
    pub fn now(boot_id: &str) -> Self {
        Self { boot_id: boot_id.to_owned(), uptime_ms: millis(uptime()) }
    }

    /// The moment that lies `later` behind this one.
    #[must_use]
    pub fn after(&self, later: Duration) -> Self {
        Self { boot_id: self.boot_id.clone(), uptime_ms: self.uptime_ms.saturating_add(millis(later)) }
    }

    /// How long ago it was; `None` when it was in another boot than `now`.
    #[must_use]
    pub fn passed(&self, now: &Self) -> Option<Duration> {
        let same = self.boot_id == now.boot_id;
        same.then(|| Duration::from_millis(now.uptime_ms.saturating_sub(self.uptime_ms)))
    }

    /// How long until it is; `None` when it is in another boot than `now`.
    #[must_use]
    pub fn left(&self, now: &Self) -> Option<Duration> {
        now.passed(self)
    }
}

/// How long ago a process of this boot started, from its start time in clock ticks since boot
/// (field 22 of `/proc/PID/stat`, proc_pid_stat(5)).
#[must_use]
pub fn age(start_time: u64) -> Duration {
    // 100 on every Linux of the last decades (time(7)); asked for all the same.
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|hz| u64::try_from(hz).ok());
    let hz = ticks.filter(|hz| *hz > 0).unwrap_or(100);
    uptime().saturating_sub(Duration::from_millis(start_time.saturating_mul(1000) / hz))
}

fn uptime() -> Duration {
    // The clock is there since Linux 2.6.39, and the call has no other error.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_two_boots_have_nothing_between_them() {
        let early = Moment { boot_id: "a".into(), uptime_ms: 1000 };
        let late = early.after(Duration::from_secs(5));
        assert_eq!(early.passed(&late), Some(Duration::from_secs(5)));
        assert_eq!(late.passed(&early), Some(Duration::ZERO));
        assert_eq!(late.left(&early), Some(Duration::from_secs(5)));
        let other = Moment { boot_id: "b".into(), ..late };
        assert_eq!((early.passed(&other), other.left(&early)), (None, None));
    }

    #[test]
    fn this_process_started_a_moment_ago() {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let start = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap();
        assert!(age(start.parse().unwrap()) < Duration::from_secs(3600));
        assert!(uptime() > Duration::ZERO);
    }
}
