//! The names people give and read: apps, process types, instances, releases, config vars, digests.
//! Parsing is the only way to make one, so a value that exists is valid.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A name that breaks its rule; says which name and what the rule is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error(
        "invalid app name {0:?}: use 3 to 30 characters, lower-case letters, digits and hyphens, \
         starting with a letter and not ending with a hyphen"
    )]
    App(String),
    #[error("app name {0:?} is reserved by the platform: choose another name")]
    ReservedApp(String),
    #[error("invalid process type {0:?}: use 1 to 63 letters, digits, hyphens and underscores")]
    ProcessType(String),
    #[error("invalid process name {0:?}: expected TYPE.NUMBER, for example web.1")]
    Process(String),
    #[error("invalid release {0:?}: expected v1, v2, ...")]
    Release(String),
    #[error("invalid config var name {0:?}: use letters, digits and underscores, not starting with a digit")]
    ConfigVar(String),
    #[error("config var name {0:?} is reserved: names must not start with MOGOK_ or __")]
    ReservedConfigVar(String),
    #[error("invalid digest {0:?}: expected sha256: and 64 lower-case hexadecimal digits")]
    Digest(String),
    #[error("invalid image name {0:?}: use 1 to 63 lower-case letters, digits and hyphens")]
    Image(String),
}

/// What an error shows of a bad input: enough to recognise it, never a megabyte of it.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

macro_rules! string_name {
    ($(#[$doc:meta])* $name:ident, $example:literal, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, example = $example)]
        pub struct $name(String);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let parse: fn(&str) -> Result<(), InvalidName> = $parse;
                parse(text).map(|()| Self(text.to_owned()))
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

/// The schema of a type that travels as a string.
macro_rules! text_schema {
    ($name:ident, $example:literal) => {
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .examples([serde_json::json!($example)])
                    .into()
            }
        }
        impl ToSchema for $name {}
    };
}

/// Host labels that the platform itself answers, now or later.
const RESERVED_APPS: &[&str] = &[
    "www",
    "api",
    "portal",
    "git",
    "admin",
    "app",
    "apps",
    "mail",
    "smtp",
    "imap",
    "ftp",
    "ssh",
    "dns",
    "ns1",
    "ns2",
    "mogok",
    "status",
    "docs",
    "help",
    "support",
    "blog",
    "static",
    "assets",
    "cdn",
    "router",
    "node",
    "nodes",
    "agent",
    "registry",
    "metrics",
    "localhost",
    "internal",
    "root",
    "system",
];

string_name!(
    /// The name of an application: `^[a-z][a-z0-9-]{1,28}[a-z0-9]$`, none of the reserved names, no
    /// internationalized label (RFC 5890's `xn--`).
    AppName, "fugafuga", |text| {
        let bytes = text.as_bytes();
        let valid = (3..=30).contains(&bytes.len())
            && bytes[0].is_ascii_lowercase()
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
            && bytes[bytes.len() - 1] != b'-';
        if !valid {
            return Err(InvalidName::App(shown(text)));
        }
        // A label that browsers show as other letters than it has, so that it can pose as another app.
        if RESERVED_APPS.contains(&text) || text.starts_with("xn--") {
            return Err(InvalidName::ReservedApp(text.to_owned()));
        }
        Ok(())
    }
);

string_name!(
    /// The type of a process, as in a Procfile: `[A-Za-z0-9_-]{1,63}`.
    ProcessType, "web", |text| {
        let valid = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        valid.then_some(()).ok_or_else(|| InvalidName::ProcessType(shown(text)))
    }
);

impl ProcessType {
    /// The type that receives requests.
    #[must_use]
    pub fn web() -> Self {
        Self("web".to_owned())
    }

    #[must_use]
    pub fn is_web(&self) -> bool {
        self.0 == "web"
    }
}

string_name!(
    /// The name of a config var: `^[A-Za-z_][A-Za-z0-9_]*$`, at most 256 bytes, not starting `__` or `MOGOK_`.
    ConfigVar, "DATABASE_URL", |text| {
        let mut bytes = text.bytes();
        let valid = text.len() <= 256
            && bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !valid {
            return Err(InvalidName::ConfigVar(shown(text)));
        }
        if text.starts_with("__") || text.starts_with("MOGOK_") {
            return Err(InvalidName::ReservedConfigVar(shown(text)));
        }
        Ok(())
    }
);

string_name!(
    /// A content address: `sha256:` and 64 lower-case hexadecimal digits.
    Digest, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", |text| {
        let valid = text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        valid.then_some(()).ok_or_else(|| InvalidName::Digest(shown(text)))
    }
);

impl Digest {
    /// The 64 hexadecimal digits, for file names.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

string_name!(
    /// The name of a base image (its recipe): 1 to 63 lower-case letters, digits and hyphens.
    ImageName, "ruby", |text| {
        let valid = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-');
        valid.then_some(()).ok_or_else(|| InvalidName::Image(shown(text)))
    }
);

/// One process of an app as people name it: `web.1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProcessName {
    pub kind: ProcessType,
    pub index: u32,
}

text_schema!(ProcessName, "web.1");

impl fmt::Display for ProcessName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.kind, self.index))
    }
}

impl FromStr for ProcessName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName::Process(shown(text));
        let (kind, index) = text.rsplit_once('.').ok_or_else(invalid)?;
        let kind = kind.parse().map_err(|_| invalid())?;
        let index: u32 = index.parse().map_err(|_| invalid())?;
        Ok(Self { kind, index })
    }
}

impl TryFrom<String> for ProcessName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<ProcessName> for String {
    fn from(name: ProcessName) -> String {
        name.to_string()
    }
}

/// The number of a release within its app: `v1`, `v2`, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReleaseNumber(NonZeroU32);

text_schema!(ReleaseNumber, "v12");

impl ReleaseNumber {
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }

    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for ReleaseNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("v{}", self.0))
    }
}

impl FromStr for ReleaseNumber {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName::Release(shown(text));
        let number = text.strip_prefix('v').unwrap_or(text);
        if number.starts_with('+') {
            return Err(invalid());
        }
        number.parse().ok().and_then(Self::new).ok_or_else(invalid)
    }
}

impl TryFrom<String> for ReleaseNumber {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<ReleaseNumber> for String {
    fn from(number: ReleaseNumber) -> String {
        number.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn app_names_follow_the_rule() {
        for good in ["abc", "fugafuga", "a-1", "a23456789012345678901234567890"] {
            assert!(good.parse::<AppName>().is_ok(), "{good}");
        }
        for bad in
            ["", "ab", "1abc", "-abc", "abc-", "Abc", "a_b", "a.b", "a234567890123456789012345678901", "añb"]
        {
            assert!(matches!(bad.parse::<AppName>(), Err(InvalidName::App(_))), "{bad}");
        }
        for reserved in ["portal", "xn--pypal-4ve"] {
            assert!(matches!(reserved.parse::<AppName>(), Err(InvalidName::ReservedApp(_))), "{reserved}");
        }
    }

    #[test]
    fn config_vars_keep_the_platforms_names_free() {
        for good in ["A", "_x", "DATABASE_URL", "a1"] {
            assert!(good.parse::<ConfigVar>().is_ok(), "{good}");
        }
        for bad in ["", "1A", "A-B", "A=B", "__x", "MOGOK_APP", "A\0"] {
            assert!(bad.parse::<ConfigVar>().is_err(), "{bad}");
        }
    }

    #[test]
    fn releases_count_from_one() {
        assert_eq!("v3".parse::<ReleaseNumber>().unwrap().get(), 3);
        assert_eq!("3".parse::<ReleaseNumber>().unwrap().to_string(), "v3");
        for bad in ["v0", "v", "v-1", "v+1", "vv1", "v99999999999"] {
            assert!(bad.parse::<ReleaseNumber>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_parsed_name_prints_as_it_was_read(text in "[ -~]{0,40}") {
            if let Ok(name) = text.parse::<AppName>() { prop_assert_eq!(name.to_string(), text.clone()); }
            if let Ok(name) = text.parse::<Digest>() { prop_assert_eq!(name.to_string(), text.clone()); }
            if let Ok(name) = text.parse::<ProcessName>() {
                prop_assert_eq!(name.to_string().parse::<ProcessName>().unwrap(), name);
            }
        }
    }
}
