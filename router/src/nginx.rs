//! The configuration of the nginx in front: it ends TLS and HTTP/2, says honestly where a request
//! came from, and passes everything on as it comes, unbuffered.
//!
//! Invariant: only parsed values reach the text (addresses, a domain, paths and a user name of safe
//! characters), so that nothing can be injected into it.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::domain::BaseDomain;

mod template;

#[derive(Debug, thiserror::Error)]
pub enum NginxError {
    #[error(
        "invalid path {0:?}: nginx needs an absolute path of letters, digits and - _ . / without .. in it"
    )]
    Path(PathBuf),
    #[error("invalid user name {0:?}: use letters, digits, hyphens and underscores")]
    User(String),
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// An absolute path that needs no quoting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainPath(String);

impl PlainPath {
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl TryFrom<PathBuf> for PlainPath {
    type Error = NginxError;
    fn try_from(path: PathBuf) -> Result<Self, NginxError> {
        match path.to_str() {
            Some(text)
                if text.starts_with('/')
                    && text.len() <= 200
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
                    && !text.split('/').any(|part| part == "..") =>
            {
                Ok(Self(text.trim_end_matches('/').to_owned()))
            }
            _ => Err(NginxError::Path(path)),
        }
    }
}

impl fmt::Display for PlainPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A system user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserName(String);

impl FromStr for UserName {
    type Err = NginxError;
    fn from_str(text: &str) -> Result<Self, NginxError> {
        let valid = (1..=32).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !text.starts_with('-');
        valid.then(|| Self(text.to_owned())).ok_or_else(|| NginxError::User(text.chars().take(40).collect()))
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// HTTPS beside HTTP.
#[derive(Debug, Clone)]
pub struct Tls {
    pub listen: SocketAddr,
    pub certificate: PlainPath,
    pub key: PlainPath,
}

/// All that the configuration depends on; its `Display` is the file.
#[derive(Debug, Clone)]
pub struct NginxConfig {
    pub listen: SocketAddr,
    pub router: SocketAddr,
    pub control_plane: SocketAddr,
    pub base_domain: BaseDomain,
    pub state: PlainPath,
    pub tls: Option<Tls>,
    /// The workers' user; only for an nginx that is started as root.
    pub user: Option<UserName>,
}

impl NginxConfig {
    /// Makes the state directory and writes the file, atomically.
    ///
    /// # Errors
    /// [`NginxError::Write`] names what could not be written.
    pub fn write(&self, path: &Path) -> Result<(), NginxError> {
        let fail = |path: &Path, source| NginxError::Write { path: path.to_path_buf(), source };
        let state = self.state.as_path();
        fs::create_dir_all(state).map_err(|source| fail(state, source))?;
        let new = path.with_extension("new");
        fs::write(&new, self.to_string())
            .and_then(|()| fs::rename(&new, path))
            .map_err(|source| fail(path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_carry_syntax() {
        for good in ["/run/mogok", "/a/b.c_d-e/"] {
            assert!(PlainPath::try_from(PathBuf::from(good)).is_ok(), "{good}");
        }
        for bad in ["", "a", "/a b", "/a;b", "/a{", "/a\"", "/a'", "/a$b", "/a\nb", "/a/../b", "/ä", "/a#b"]
        {
            assert!(PlainPath::try_from(PathBuf::from(bad)).is_err(), "{bad}");
        }
        assert!("www-data".parse::<UserName>().is_ok());
        for bad in ["", "a b", "a;", "-a"] {
            assert!(bad.parse::<UserName>().is_err(), "{bad}");
        }
    }
}
