//! The versions of the protocol, and which of them two sides have in common.
//!
//! | version | what is new in it |
//! |---|---|
//! | 1 | |
//! | 2 | a shim tells the oldest version it understands; it refuses a request that it does not know, where it hung up before; a program can join its sandbox (`mogok-shim exec`) |
//!
//! Invariant: a number is never given to two meanings, and [`Versions::OURS`] is all that this code understands.

use std::fmt;

#[cfg(all(feature = "protocol-1", not(debug_assertions)))]
compile_error!(
    "the old protocol is for tests: build without the feature `protocol-1`, or in the dev profile"
);

/// From this version on a program can join the container of a shim.
pub const JOINABLE: u32 = 2;

/// Versions that a side understands, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    pub oldest: u32,
    pub newest: u32,
}

impl Versions {
    /// Those of this code.
    pub const OURS: Self = Self { oldest: 1, newest: if cfg!(feature = "protocol-1") { 1 } else { 2 } };

    /// The newest version that both understand.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { oldest, newest } if oldest == newest => write!(f, "version {newest}"),
            Self { oldest, newest } => write!(f, "versions {oldest} to {newest}"),
        }
    }
}

/// Before a shim told it, there was one version.
pub(super) fn first() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sides_speak_the_newest_that_both_understand() {
        let versions = |oldest, newest| Versions { oldest, newest };
        for (one, other, common) in [
            ((1, 2), (1, 2), Some(2)),
            ((1, 2), (1, 1), Some(1)),
            ((1, 4), (2, 3), Some(3)),
            ((1, 2), (2, 9), Some(2)),
            ((1, 2), (3, 9), None),
            // Nonsense is understood by nobody.
            ((1, 2), (2, 1), None),
        ] {
            let (one, other) = (versions(one.0, one.1), versions(other.0, other.1));
            assert_eq!(one.common(other), common, "{one}, {other}");
            assert_eq!(other.common(one), common, "{other}, {one}");
        }
    }
}
