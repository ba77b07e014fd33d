//! The root file system between mmdebstrap and the archive: what every image has is put in, and
//! what tells of the machine or the moment it was made is taken out.
//!
//! Paths are followed here: everything in the tree comes from the Debian archive, verified by apt,
//! or from the recipe.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::recipe::{Content, Recipe};

const APP_ID: u32 = 1000;

/// Removed where present; `*` stands for every name.
const REMOVED: &[&str] = &[
    // The mirrors and the machine.
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/*",
    "etc/hostname",
    "etc/resolv.conf",
    // Caches and lists that are made anew, and backups that hold the moment they were made.
    "var/cache/apt/*",
    "var/cache/debconf/*",
    "var/cache/ldconfig/*",
    "var/lib/apt/lists/*",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/available-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/statoverride-old",
    "var/log/*",
    "var/tmp/*",
    "tmp/*",
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    "etc/.pwd.lock",
];

#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("cannot {operation} {path} of the image")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

pub(super) struct Root<'a> {
    dir: &'a Path,
}

impl<'a> Root<'a> {
    pub(super) fn new(dir: &'a Path) -> Self {
        Self { dir }
    }

    /// Turns what mmdebstrap made into an image; returns its Debian packages with their versions.
    pub(super) fn make(&self, recipe: &Recipe) -> Result<BTreeMap<String, String>, RootError> {
        for pattern in REMOVED {
            self.remove(pattern)?;
        }
        // Present and empty: a container is no machine of its own (machine-id(5)).
        self.write("etc/machine-id", b"", false)?;
        self.add_user()?;
        for file in &recipe.files {
            match &file.content {
                Content::Directory => self.make_dir(&file.path)?,
                Content::File { bytes, executable } => self.write(&file.path, bytes, *executable)?,
                Content::Symlink { target } => {
                    let path = self.dir.join(&file.path);
                    symlink(target, &path).map_err(failed("make symlink", &path))?;
                }
            }
        }
        let release = format!("NAME={}\nSUITE={}\nRECIPE={}\n", recipe.name, recipe.suite, recipe.hash);
        self.write("etc/mogok-release", release.as_bytes(), false)?;
        self.packages()
    }

    /// The user that applications and builds run as, and its home.
    fn add_user(&self) -> Result<(), RootError> {
        for (file, line) in [
            ("etc/passwd", "app:x:1000:1000:app:/app:/bin/sh\n"),
            ("etc/group", "app:x:1000:\n"),
            // No password, ever; day 1 as the last change, because 0 would mean "change it now".
            ("etc/shadow", "app:!:1::::::\n"),
            ("etc/gshadow", "app:!::\n"),
        ] {
            let path = self.dir.join(file);
            fs::OpenOptions::new()
                .append(true)
                .open(&path)
                .and_then(|mut file| file.write_all(line.as_bytes()))
                .map_err(failed("append to", &path))?;
        }
        self.make_dir(Path::new("app"))?;
        let home = self.dir.join("app");
        chown(&home, Some(APP_ID), Some(APP_ID)).map_err(failed("set the owner of", &home))
    }

    fn packages(&self) -> Result<BTreeMap<String, String>, RootError> {
        let path = self.dir.join("var/lib/dpkg/status");
        let status = fs::read_to_string(&path).map_err(failed("read", &path))?;
        let field = |stanza: &str, name: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
        };
        Ok(status
            .split("\n\n")
            .filter_map(|stanza| Some((field(stanza, "Package:")?, field(stanza, "Version:")?)))
            .collect())
    }

    fn make_dir(&self, path: &Path) -> Result<(), RootError> {
        let path = self.dir.join(path);
        fs::create_dir_all(&path).map_err(failed("make directory", &path))
    }

    fn write(&self, path: impl AsRef<Path>, bytes: &[u8], executable: bool) -> Result<(), RootError> {
        let path = self.dir.join(path);
        let mode = if executable { 0o755 } else { 0o644 };
        fs::write(&path, bytes)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
            .map_err(failed("write", &path))
    }

    fn remove(&self, pattern: &str) -> Result<(), RootError> {
        let Some(dir) = pattern.strip_suffix("/*") else { return remove(&self.dir.join(pattern)) };
        let dir = self.dir.join(dir);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed("list", &dir)(e)),
        };
        for entry in entries {
            remove(&entry.map_err(failed("list", &dir))?.path())?;
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<(), RootError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => Err(e),
    };
    removed.map_err(failed("remove", path))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootError {
    move |source| RootError::Io { operation, path: path.to_owned(), source }
}
