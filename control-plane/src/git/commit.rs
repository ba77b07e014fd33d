//! The two names of a commit: its hash, and the reference a developer gives (branch, tag or hash). Both
//! are parsed before git sees them, so that neither can be an option or a search expression.

use std::fmt;
use std::str::FromStr;

/// The full hash of a commit: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Commit(String);

/// A text that is no full hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid commit {0:?}: expected 40 lower-case hexadecimal digits")]
pub struct InvalidCommit(String);

impl Commit {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first seven digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..7]
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Commit {
    type Err = InvalidCommit;
    fn from_str(text: &str) -> Result<Self, InvalidCommit> {
        let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if digits && matches!(text.len(), 40 | 64) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidCommit(text.chars().take(80).collect()))
    }
}

/// A branch, a tag or a (shortened) hash, by the rules of git-check-ref-format(1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference(String);

/// A text that can name no commit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid reference {0:?}: use the name of a branch or tag, or the hash of a commit")]
pub struct InvalidReference(String);

impl Reference {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Could it be a hash, of at least four digits?
    pub(super) fn is_hash(&self) -> bool {
        (4..=64).contains(&self.0.len()) && self.0.bytes().all(|b| b.is_ascii_hexdigit())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;
    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
        let valid = text.len() <= 200
            && !text.starts_with('-')
            && !text.ends_with('.')
            && !text.contains("..")
            && !text.contains("@{")
            && text != "@"
            && text.split('/').all(part)
            && !text.chars().any(|c| c.is_control() || " ~^:?*[\\".contains(c));
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidReference(text.chars().take(80).collect())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_names_and_no_expressions() {
        for good in ["master", "feature/x-1", "v1.2", "4f2a91c", "ümlaut"] {
            assert!(good.parse::<Reference>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-x",
            "--upload-pack=x",
            "a..b",
            "HEAD^",
            "a~1",
            "a:b",
            ":/fix",
            "a@{1}",
            "@",
            "a b",
            "a/",
            "/a",
            "a//b",
            ".a",
            "a/.b",
            "x.lock",
            "a\nb",
            "a*",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn commits_are_full_hashes() {
        assert_eq!("a".repeat(40).parse::<Commit>().unwrap().short(), "aaaaaaa");
        for bad in ["", "abc", &"A".repeat(40), &"g".repeat(40), &"a".repeat(41)] {
            assert!(bad.parse::<Commit>().is_err(), "{bad}");
        }
    }
}
