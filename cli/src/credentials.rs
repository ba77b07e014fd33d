//! The access tokens of this user, one per platform, in a file that only the user can read
//! (`$XDG_CONFIG_HOME/mogok/credentials.json`, mode 0600), replaced atomically.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Tokens by API URL.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Credentials {
    platforms: BTreeMap<String, Entry>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) email: String,
    pub(crate) token: String,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("email", &self.email).finish_non_exhaustive()
    }
}

/// The directory of this command's files.
pub(crate) fn config_dir() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .map(|dir| dir.join("mogok"))
        .context("neither HOME nor XDG_CONFIG_HOME is set: set HOME to your home directory")
}

impl Credentials {
    pub(crate) fn load() -> Result<Self> {
        Self::load_from(&config_dir()?.join("credentials.json"))
    }

    fn load_from(path: &Path) -> Result<Self> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("{} is damaged: remove it and run 'mogok login' again", path.display())
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    pub(crate) fn get(&self, api: &str) -> Option<&Entry> {
        self.platforms.get(api)
    }

    pub(crate) fn set(&mut self, api: &str, entry: Option<Entry>) -> Result<()> {
        match entry {
            Some(entry) => self.platforms.insert(api.to_owned(), entry),
            None => self.platforms.remove(api),
        };
        self.save_to(&config_dir()?.join("credentials.json"))
    }

    fn save_to(&self, path: &Path) -> Result<()> {
        let failed = || format!("cannot write {}", path.display());
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(failed)?;
        }
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .with_context(failed)?;
        file.write_all(&serde_json::to_vec_pretty(self)?).with_context(failed)?;
        fs::rename(&temporary, path).with_context(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn tokens_are_kept_per_platform_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mogok/credentials.json");
        let mut credentials = Credentials::default();
        credentials
            .platforms
            .insert("http://a".into(), Entry { email: "me@example.com".into(), token: "secret".into() });
        credentials.save_to(&path).unwrap();
        let read = Credentials::load_from(&path).unwrap();
        assert_eq!(read.get("http://a").unwrap().token, "secret");
        assert!(read.get("http://b").is_none());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_reported_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        fs::write(&path, "{").unwrap();
        let error = Credentials::load_from(&path).unwrap_err().to_string();
        assert!(error.contains("credentials.json") && error.contains("mogok login"), "{error}");
    }
}
