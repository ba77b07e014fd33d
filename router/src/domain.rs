//! Base domains and host names: parsed once, so that what reaches the table or nginx's
//! configuration is made of letters, digits, hyphens and dots only.

use std::fmt;
use std::str::FromStr;

/// The longest name that DNS can hold, in its text form (RFC 1035, section 2.3.4).
pub const MAX_NAME: usize = 253;

/// A domain that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid base domain {0:?}: use lower-case labels of letters, digits and hyphens joined by dots, \
     for example mogok.example"
)]
pub struct InvalidDomain(String);

/// The domain below which every app has its host: `mogok.example`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseDomain(String);

impl BaseDomain {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BaseDomain {
    type Err = InvalidDomain;
    fn from_str(text: &str) -> Result<Self, InvalidDomain> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // Room is kept for the label of an app (30) and its dot.
        if text.len() <= MAX_NAME - 31 && text.split('.').all(label) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidDomain(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for BaseDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A `Host` value split into name and port (RFC 9110, section 7.2). `None` when it is anything but
/// `name[:port]` of safe characters: no user info, no path, no spaces, no empty name.
#[must_use]
pub fn split_host(host: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let (name, port) = if host.first() == Some(&b'[') {
        let end = host.iter().position(|b| *b == b']')?;
        (&host[..=end], &host[end + 1..])
    } else {
        let end = host.iter().position(|b| *b == b':').unwrap_or(host.len());
        (&host[..end], &host[end..])
    };
    let port = match port {
        [] => None,
        [b':', digits @ ..] if (1..=5).contains(&digits.len()) => {
            let number = digits.iter().try_fold(0_u32, |number, digit| {
                digit.is_ascii_digit().then(|| number * 10 + u32::from(digit - b'0'))
            })?;
            Some(u16::try_from(number).ok()?)
        }
        _ => return None,
    };
    let valid = match name {
        [b'[', inside @ .., b']'] => {
            (2..=45).contains(&inside.len())
                && inside.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
        }
        [] | [b'.', ..] => false,
        // One final dot is allowed, as in `example.com.`
        _ => {
            name.len() <= MAX_NAME + 1
                && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
                && !name.windows(2).any(|pair| pair == b"..")
        }
    };
    valid.then_some((name, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_domain_cannot_carry_syntax() {
        for good in ["localhost", "mogok.localhost", "a-b.example"] {
            assert!(good.parse::<BaseDomain>().is_ok(), "{good}");
        }
        for bad in ["", ".", "a..b", "A.b", "a b", "a;b", "a{", "-a", "a-", "a\nb", "*.a", "a.", "ä"] {
            assert!(bad.parse::<BaseDomain>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_split_or_are_refused() {
        assert_eq!(split_host(b"a.b:80"), Some((&b"a.b"[..], Some(80))));
        assert_eq!(split_host(b"[::1]:80"), Some((&b"[::1]"[..], Some(80))));
        assert_eq!(split_host(b"a.b."), Some((&b"a.b."[..], None)));
        for bad in [
            "", ":80", "a:", "a:x", "a:99999", "a:123456", "a@b", "a/b", "a b", "[::1", "[]", "a..b", ".a",
            "a,b", "a:1:2",
        ] {
            assert_eq!(split_host(bad.as_bytes()), None, "{bad}");
        }
    }
}
