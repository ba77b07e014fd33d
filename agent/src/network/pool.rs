//! How many namespaces are kept ready: few while little happens, more while containers come faster
//! than they are made. Pure.
//!
//! Invariant: ready and ordered ones together are never more than [`MOST`].

use std::collections::{HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use super::link;

/// One costs about 200 KB of kernel memory.
const FEWEST: usize = 4;
pub(super) const MOST: usize = 64;

/// A namespace with its link, waiting for a container.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) address: Ipv4Addr,
    pub(super) netns: OwnedFd,
}

#[derive(Debug)]
pub(super) struct Pool {
    ready: VecDeque<Slot>,
    making: HashSet<Ipv4Addr>,
    target: usize,
    /// Making one has failed: without somebody who waits, none is tried before the next [`calm`](Self::calm).
    failing: bool,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self { ready: VecDeque::new(), making: HashSet::new(), target: FEWEST, failing: false }
    }

    /// How many to order while `waiting` containers wait for one.
    pub(super) fn short(&self, waiting: usize) -> usize {
        let wanted = if self.failing { waiting.min(MOST) } else { (self.target + waiting).min(MOST) };
        wanted.saturating_sub(self.ready.len() + self.making.len())
    }

    pub(super) fn ordered(&mut self, address: Ipv4Addr) {
        self.making.insert(address);
    }

    pub(super) fn made(&mut self, slot: Slot) {
        self.making.remove(&slot.address);
        self.failing = false;
        self.ready.push_back(slot);
    }

    pub(super) fn failed(&mut self, address: Ipv4Addr) {
        self.making.remove(&address);
        self.failing = true;
    }

    /// The one that has been ready longest. Where there is none, more are kept from now on.
    pub(super) fn take(&mut self) -> Option<Slot> {
        let slot = self.ready.pop_front();
        if slot.is_none() {
            self.target = (self.target * 2).min(MOST);
        }
        slot
    }

    pub(super) fn give_back(&mut self, slot: Slot) {
        self.ready.push_front(slot);
    }

    /// Nothing has happened for a while: keeps fewer, and hands out those that are too many.
    pub(super) fn calm(&mut self) -> Vec<Slot> {
        self.failing = false;
        self.target = (self.target / 2).max(FEWEST);
        let surplus = self.ready.len().saturating_sub(self.target);
        self.ready.drain(..surplus).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.making.is_empty()
    }

    pub(super) fn is_making(&self) -> bool {
        !self.making.is_empty()
    }

    /// Closes the namespaces that are ready.
    pub(super) fn clear(&mut self) {
        self.ready.clear();
    }

    /// The addresses of those that are ready.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.ready.iter().map(|slot| slot.address)
    }

    /// The links of those that are ready or being made.
    pub(super) fn links(&self) -> impl Iterator<Item = String> {
        self.ready.iter().map(|slot| slot.address).chain(self.making.iter().copied()).map(link::name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(pool: &mut Pool, waiting: usize) -> usize {
        let short = pool.short(waiting);
        for _ in 0..short {
            let address = Ipv4Addr::from(u32::try_from(pool.making.len() + pool.ready.len()).unwrap());
            pool.ordered(address);
            pool.made(Slot { address, netns: std::fs::File::open("/dev/null").unwrap().into() });
        }
        short
    }

    #[test]
    fn grows_with_demand_to_a_bound_and_shrinks_in_calm() {
        let mut pool = Pool::new();
        assert_eq!(fill(&mut pool, 0), FEWEST);
        assert_eq!(pool.short(0), 0);
        for _ in 0..8 {
            while pool.take().is_some() {}
            fill(&mut pool, 10);
            assert!(pool.ready.len() <= MOST);
        }
        assert_eq!(pool.ready.len(), MOST);
        let mut handed_out = 0;
        for _ in 0..8 {
            handed_out += pool.calm().len();
        }
        assert_eq!((pool.ready.len(), handed_out), (FEWEST, MOST - FEWEST));
    }

    #[test]
    fn after_a_failure_only_what_is_waited_for_is_made() {
        let mut pool = Pool::new();
        pool.ordered(Ipv4Addr::LOCALHOST);
        pool.failed(Ipv4Addr::LOCALHOST);
        assert_eq!((pool.short(0), pool.short(2)), (0, 2));
        assert!(pool.is_empty());
        pool.calm();
        assert_eq!(pool.short(0), FEWEST);
    }
}
