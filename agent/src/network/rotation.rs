//! Numbers (addresses, ports) handed out in turn, so that a freed one comes back as late as possible:
//! whoever still holds the old one in a table or a connection has the longest time to notice.

use std::collections::HashSet;

/// A closed range and which of it is taken. Invariant: what is taken is never handed out.
#[derive(Debug)]
pub(super) struct Rotation {
    first: u32,
    last: u32,
    next: u32,
    taken: HashSet<u32>,
}

impl Rotation {
    /// Begins at `next`, wherever that lies.
    pub(super) fn new(first: u32, last: u32, next: u32) -> Self {
        let next = if (first..=last).contains(&next) { next } else { first };
        Self { first, last, next, taken: HashSet::new() }
    }

    /// Where the next search begins.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// The next number that is free and, as far as the caller knows, usable. At most one round.
    pub(super) fn take(&mut self, usable: impl Fn(u32) -> bool) -> Option<u32> {
        let mut candidate = self.next;
        for _ in self.first..=self.last {
            let after = if candidate == self.last { self.first } else { candidate + 1 };
            if !self.taken.contains(&candidate) && usable(candidate) {
                self.taken.insert(candidate);
                self.next = after;
                return Some(candidate);
            }
            candidate = after;
        }
        None
    }

    /// Takes this very number. False when it is taken or out of range.
    pub(super) fn reserve(&mut self, number: u32) -> bool {
        (self.first..=self.last).contains(&number) && self.taken.insert(number)
    }

    pub(super) fn release(&mut self, number: u32) {
        self.taken.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_freed_number_comes_back_last() {
        let mut ports = Rotation::new(1, 3, 0);
        assert_eq!(ports.take(|_| true), Some(1));
        ports.release(1);
        assert_eq!(ports.take(|_| true), Some(2));
        assert_eq!(ports.take(|_| true), Some(3));
        assert_eq!(ports.take(|_| true), Some(1));
        assert_eq!(ports.take(|_| true), None);
    }

    #[test]
    fn unusable_and_reserved_numbers_are_skipped() {
        let mut ports = Rotation::new(1, 4, 2);
        assert!(ports.reserve(2) && !ports.reserve(2) && !ports.reserve(5));
        assert_eq!(ports.take(|port| port != 3), Some(4));
        assert_eq!(ports.take(|port| port != 3), Some(1));
        assert_eq!(ports.take(|port| port != 3), None);
    }

    proptest! {
        #[test]
        fn no_number_is_held_twice(steps in prop::collection::vec(0u32..12, 0..200)) {
            let mut rotation = Rotation::new(10, 17, 12);
            let mut held: Vec<u32> = Vec::new();
            for step in steps {
                if step < 8 {
                    match rotation.take(|_| true) {
                        Some(number) => {
                            prop_assert!(!held.contains(&number) && (10..=17).contains(&number));
                            held.push(number);
                        }
                        None => prop_assert_eq!(held.len(), 8),
                    }
                } else if !held.is_empty() {
                    rotation.release(held.remove(step as usize % held.len()));
                }
            }
        }
    }
}
