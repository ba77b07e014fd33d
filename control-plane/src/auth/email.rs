//! Email addresses as account names: checked for what can be an address at all, and in one normal form,
//! so that one address is one account.

use std::fmt;
use std::str::FromStr;

/// An address in lower case. Of RFC 5321 it takes what people have: a dot-atom, `@`, a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email(String);

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid email {0:?}: expected an address like dev@example.com")]
pub struct InvalidEmail(String);

impl Email {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Email {
    type Err = InvalidEmail;
    fn from_str(text: &str) -> Result<Self, InvalidEmail> {
        let invalid = || InvalidEmail(text.chars().take(80).collect());
        let trimmed = text.trim();
        let (local, domain) = trimmed.rsplit_once('@').ok_or_else(invalid)?;
        let atom = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~-".contains(&b))
        };
        let label = |part: &str| {
            (1..=63).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !part.starts_with('-')
                && !part.ends_with('-')
        };
        // 64 and 254 bytes: RFC 5321, sections 4.5.3.1.1 and 4.5.3.1.3.
        let valid = trimmed.len() <= 254
            && local.len() <= 64
            && local.split('.').all(atom)
            && domain.split('.').all(label);
        if !valid {
            return Err(invalid());
        }
        Ok(Self(trimmed.to_ascii_lowercase()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_and_normalised() {
        assert_eq!(" Dev@Example.COM ".parse::<Email>().unwrap().as_str(), "dev@example.com");
        assert!("a+b.c@localhost".parse::<Email>().is_ok());
        for bad in ["", "dev", "@example.com", "dev@", "a b@c.d", "a..b@c.d", "a@b..c", "a@b\n.c", "ä@b.c"] {
            assert!(bad.parse::<Email>().is_err(), "{bad:?}");
        }
        assert!(format!("{}@example.com", "a".repeat(65)).parse::<Email>().is_err());
    }
}
