//! Which 65,536 host user ids belong to which container. Ranges are handed out round robin, so that
//! one just given back is the last to be used again and a stray file of its former owner has time to go.
//!
//! Invariant: no two holders have the same range, and none reaches outside the span.

use std::collections::BTreeSet;

/// User ids of one container.
pub const RANGE: u32 = 65_536;

/// No range is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {ranges} ranges of user ids from {base} on are taken: give the agent a larger --uid-ranges")]
pub struct NoUidRange {
    base: u32,
    ranges: u32,
}

/// The span and what of it is taken.
#[derive(Debug, Clone)]
pub struct UidRanges {
    base: u32,
    ranges: u32,
    next: u32,
    taken: BTreeSet<u32>,
}

impl UidRanges {
    /// A span of `ranges` ranges that starts at `base`; cut where user ids end.
    #[must_use]
    pub fn new(base: u32, ranges: u32) -> Self {
        let fitting = (u32::MAX - base) / RANGE;
        Self { base, ranges: ranges.min(fitting), next: 0, taken: BTreeSet::new() }
    }

    /// Marks a range that a container of the ledger holds already. One outside the span is left alone:
    /// it came from another configuration and can collide with nothing in this one.
    pub fn restore(&mut self, first: u32) {
        if let Some(offset) = first.checked_sub(self.base)
            && offset % RANGE == 0
            && offset / RANGE < self.ranges
        {
            self.taken.insert(offset / RANGE);
        }
    }

    /// Takes a range and returns its first id.
    ///
    /// # Errors
    /// [`NoUidRange`] when every one is taken.
    pub fn take(&mut self) -> Result<u32, NoUidRange> {
        let Self { base, ranges, .. } = *self;
        let free = (0..ranges).map(|i| (self.next + i) % ranges).find(|index| !self.taken.contains(index));
        let index = free.ok_or(NoUidRange { base, ranges })?;
        self.taken.insert(index);
        self.next = (index + 1) % ranges;
        Ok(base + index * RANGE)
    }

    /// Gives a range back.
    pub fn give(&mut self, first: u32) {
        if let Some(offset) = first.checked_sub(self.base) {
            self.taken.remove(&(offset / RANGE));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_just_given_back_is_used_last() {
        let mut uids = UidRanges::new(1 << 20, 3);
        let first = uids.take().unwrap();
        uids.give(first);
        assert_ne!(uids.take().unwrap(), first);
        assert_ne!(uids.take().unwrap(), first);
        assert_eq!(uids.take().unwrap(), first);
        assert!(uids.take().is_err());
    }

    proptest! {
        #[test]
        fn no_two_holders_share_a_user_id(steps in prop::collection::vec(any::<Option<prop::sample::Index>>(), 0..100)) {
            let mut uids = UidRanges::new(u32::MAX - 10 * RANGE, 100);
            let mut held: Vec<u32> = Vec::new();
            for step in steps {
                match step {
                    Some(which) if !held.is_empty() => uids.give(held.swap_remove(which.index(held.len()))),
                    _ => if let Ok(first) = uids.take() {
                        prop_assert!(first.checked_add(RANGE - 1).is_some());
                        prop_assert!(held.iter().all(|other| other.abs_diff(first) >= RANGE));
                        held.push(first);
                    } else {
                        prop_assert_eq!(held.len(), 10);
                    }
                }
            }
        }
    }
}
