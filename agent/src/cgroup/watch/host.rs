//! When to look for hoards: what the host's memory says, and the search through the descriptors of all containers.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::descriptors::Descriptors;
use super::locks;
use super::tracker::Hoard;

/// Hoards are looked for so often; at once when a 64th of the host's memory went since the last look at that, and every
/// second while less than a quarter of it is left.
const TICK: Duration = Duration::from_secs(10);
const SCARCE_TICK: Duration = Duration::from_secs(1);
const SCARCE: u64 = 4;
const FALL: u64 = 64;
/// Open directories are looked at when the kernel's own memory has grown by this part of the host's.
const GROWTH: u64 = 16;
/// Nobody has as many open at once who does not mean to; the kernel keeps 33 MB for one at most (65,536 names).
const DIRECTORIES: usize = 64;

/// Between two searches there is a rest of so many times as long as one took, a minute at most; while memory falls or is
/// scarce, of once as long.
const REST: u32 = 10;
const LONGEST_REST: Duration = Duration::from_secs(60);

/// What the last looks saw.
#[derive(Debug)]
pub(super) struct Host {
    memory: Memory,
    /// KiB of the kernel's own that are no hoard.
    usual: u64,
    /// Hoards were looked for.
    searched: Instant,
    /// Memory falls, or is scarce.
    urgent: bool,
    search: Option<Search>,
    /// When the last search ended, and how long it took.
    last_search: Option<(Instant, Duration)>,
    /// KiB of the kernel's own when somebody's directories were found.
    blamed_at: Option<u64>,
}

/// Looks through descriptors, when the kernel's memory gives reason to.
#[derive(Debug)]
struct Search {
    thread: JoinHandle<Vec<(u64, Hoard)>>,
    begun: Instant,
    /// Also for directories.
    grown: bool,
}

/// Of the host, in KiB (`MemAvailable`, `MemTotal` and `SUnreclaim`, proc_meminfo(5)).
#[derive(Debug, Clone, Copy)]
struct Memory {
    available: u64,
    all: u64,
    kernel: u64,
}

impl Host {
    /// `None` when it does not say what memory it has.
    pub(super) fn new(now: Instant) -> Option<Self> {
        let memory = Memory::of_host()?;
        Some(Self {
            memory,
            usual: memory.kernel,
            searched: now,
            urgent: false,
            search: None,
            last_search: None,
            blamed_at: None,
        })
    }

    /// Those whom a search has found since, by the keys they were searched under.
    pub(super) fn found(&mut self) -> Vec<(u64, Hoard)> {
        let Some(search) = self.search.take_if(|search| search.thread.is_finished()) else {
            return Vec::new();
        };
        self.last_search = Some((Instant::now(), search.begun.elapsed()));
        // One that panicked has said so itself.
        let found = search.thread.join().unwrap_or_default();
        if search.grown && found.is_empty() {
            // It was none of them.
            self.usual = self.memory.kernel;
        }
        if found.iter().any(|(_, hoard)| *hoard == Hoard::Directories) {
            self.blamed_at = Some(self.memory.kernel);
        }
        found
    }

    /// Is it time to look for hoards?
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let Some(memory) = Memory::of_host() else { return false };
        let falls = self.memory.available.saturating_sub(memory.available) > memory.all / FALL;
        self.memory = memory;
        self.usual = self.usual.min(memory.kernel);
        let since = now.saturating_duration_since(self.searched);
        let scarce = memory.available < memory.all / SCARCE && since >= SCARCE_TICK;
        self.urgent = falls || scarce;
        let due = self.urgent || since >= TICK;
        if due {
            self.searched = now;
        }
        due
    }

    /// Whoever makes searches long is not to have one at all times.
    fn rests(&self, now: Instant) -> bool {
        let rest = if self.urgent { 1 } else { REST };
        self.last_search.is_some_and(|(end, took)| now < end + (rest * took).min(LONGEST_REST))
    }

    /// Begins a search through the descriptors of the containers, given by their keys and cgroups, where there is reason to
    /// and none goes on.
    pub(super) fn search(&mut self, containers: impl FnOnce() -> Vec<(u64, PathBuf)>) {
        let now = Instant::now();
        if self.search.is_some() || self.rests(now) {
            return;
        }
        if let Some(before) = self.blamed_at.take()
            && before.saturating_sub(self.memory.kernel) < self.memory.all / FALL
        {
            // Whoever was killed did not have it; the next one shall not be for the same, but for the next of it.
            self.usual = self.memory.kernel - self.memory.all / GROWTH + self.memory.all / FALL;
        }
        let grown = self.memory.kernel - self.usual > self.memory.all / GROWTH;
        // The check of the host tells of a kernel that does not say how many there are.
        if !(grown || locks::are_many().unwrap_or(false)) {
            return;
        }
        let containers = containers();
        let search = move || hoarders(containers, grown);
        match std::thread::Builder::new().name("descriptors".into()).spawn(search) {
            Ok(thread) => self.search = Some(Search { thread, begun: now, grown }),
            Err(error) => tracing::warn!(%error, "nobody looks for locks and directories"),
        }
    }
}

/// Those that hoard locks, and where the kernel's memory has `grown` the one with the most open directories.
/// Of such as make that hard it takes seconds.
fn hoarders(containers: Vec<(u64, PathBuf)>, grown: bool) -> Vec<(u64, Hoard)> {
    let mut hoarders = Vec::new();
    let mut most = (DIRECTORIES - 1, None);
    for (key, cgroup) in containers {
        // The cgroup of one that has ended meanwhile is gone.
        let Ok(found) = Descriptors::of(&cgroup, grown) else { continue };
        if let Some(hoard) = found.hoard() {
            hoarders.push((key, hoard));
        } else if grown && found.directories() > most.0 {
            most = (found.directories(), Some(key));
        }
    }
    hoarders.extend(most.1.map(|key| (key, Hoard::Directories)));
    hoarders
}

impl Memory {
    fn of_host() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let kib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        Some(Self { available: kib("MemAvailable:")?, all: kib("MemTotal:")?, kernel: kib("SUnreclaim:")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_search_is_followed_by_a_long_rest_unless_memory_is_short() {
        let now = Instant::now();
        let mut host = Host::new(now).unwrap();
        assert!(!host.rests(now));
        host.last_search = Some((now, Duration::from_secs(3)));
        assert!(host.rests(now + Duration::from_secs(29)) && !host.rests(now + Duration::from_secs(30)));
        host.last_search = Some((now, Duration::from_secs(30)));
        assert!(host.rests(now + LONGEST_REST / 2) && !host.rests(now + LONGEST_REST));
        host.last_search = Some((now, Duration::from_secs(3)));
        host.urgent = true;
        assert!(host.rests(now + Duration::from_secs(2)) && !host.rests(now + Duration::from_secs(3)));
    }
}
