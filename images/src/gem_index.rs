//! The gem index: gems and their static index, made from Debian's own packages, for a platform
//! without a gem server. Bundler uses it as a mirror (`BUNDLE_MIRROR__ALL=http://HOST:PORT`), so a
//! Gemfile keeps its `source "https://rubygems.org"`. It holds one version of each gem.
//!
//! The scripts that know Debian's and RubyGems' layouts run inside a root of their own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha256};

use crate::bootstrap::{self, BootstrapError};
use crate::mirror::{MirrorError, Mirrors};

/// The suite of the images: compiled gems are tied to its Ruby.
const SUITE: &str = "trixie";
/// The suite before it, for pure Ruby gems that it alone has.
const OLDER_SUITE: &str = "bookworm";
const PACKAGES: &str = include_str!("../gem-index/packages");
const SCRIPTS: [(&str, &str); 3] = [
    ("fetch-sources", include_str!("../gem-index/fetch-sources")),
    ("repack.rb", include_str!("../gem-index/repack.rb")),
    ("static_index.rb", include_str!("../gem-index/static_index.rb")),
];
/// Holds the hash of all of the above, in an index that is complete.
const KEY: &str = ".key";

/// Why there is no index.
#[derive(Debug, thiserror::Error)]
pub enum GemIndexError {
    #[error("cannot {operation} {path}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot run chroot")]
    Chroot(#[source] io::Error),
    #[error("{script} failed in {root}; its messages are above")]
    Script { script: &'static str, root: PathBuf },
    #[error("{path} exists and is no gem index: choose another --out or remove it")]
    Foreign { path: PathBuf },
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
}

/// Makes the index in `out`, unless the one there is of this version already (`Ok(false)`).
///
/// `work` holds the root the gems come from, about 1.5 GB; it is reused where it exists.
pub fn build(out: &Path, work: &Path) -> Result<bool, GemIndexError> {
    let key = key();
    if fs::read_to_string(out.join(KEY)).is_ok_and(|present| present == key) {
        return Ok(false);
    }
    if out.exists() && !out.join("versions").exists() {
        return Err(GemIndexError::Foreign { path: out.to_owned() });
    }
    let root = work.join("root");
    let ready = work.join("ready");
    if !fs::read_to_string(&ready).is_ok_and(|present| present == PACKAGES) {
        remove_dir(&root)?;
        fs::create_dir_all(work).map_err(failed("make directory", work))?;
        let sources = Mirrors::of_this_machine()?.sources(SUITE, &["deb", "deb-src"]);
        let packages: Vec<&str> = PACKAGES.lines().filter(|line| !line.starts_with('#')).collect();
        // Lists and sources stay: `fetch-sources` needs them.
        bootstrap::mmdebstrap(SUITE, &packages, &sources, &root, &["--skip=cleanup/apt"])?;
        fs::write(&ready, PACKAGES).map_err(failed("write", &ready))?;
    }
    let scripts = root.join("gem-index");
    fs::create_dir_all(&scripts).map_err(failed("make directory", &scripts))?;
    for (name, text) in SCRIPTS {
        let path = scripts.join(name);
        fs::write(&path, text).map_err(failed("write", &path))?;
    }
    let older = scripts.join("older.list");
    fs::write(&older, Mirrors::of_this_machine()?.sources(OLDER_SUITE, &["deb"]))
        .map_err(failed("write", &older))?;
    let fetch = ["sh", "/gem-index/fetch-sources", "/gem-index/sources", "/gem-index/older.list"];
    run(&root, "fetch-sources", &fetch)?;
    let repack = ["ruby", "/gem-index/repack.rb", "/gem-index/out", "/gem-index/sources"];
    run(&root, "repack.rb", &repack)?;

    let made = scripts.join("out");
    let marker = made.join(KEY);
    fs::write(&marker, key).map_err(failed("write", &marker))?;
    // Beside the old one, so that a reader finds the old index or the new one.
    let fresh = out.with_extension("new");
    let old = out.with_extension("old");
    remove_dir(&fresh)?;
    remove_dir(&old)?;
    copy_tree(&made, &fresh)?;
    if out.exists() {
        fs::rename(out, &old).map_err(failed("rename", out))?;
    }
    fs::rename(&fresh, out).map_err(failed("rename an index to", out))?;
    remove_dir(&old)?;
    Ok(true)
}

fn run(root: &Path, script: &'static str, command: &[&str]) -> Result<(), GemIndexError> {
    let status = Command::new("chroot")
        .arg(root)
        .args(command)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .env("HOME", "/root")
        .env("SOURCE_DATE_EPOCH", bootstrap::EPOCH.to_string())
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .map_err(GemIndexError::Chroot)?;
    status.success().then_some(()).ok_or_else(|| GemIndexError::Script { script, root: root.to_owned() })
}

fn key() -> String {
    let mut hash = Sha256::new();
    hash.update(SUITE);
    hash.update(PACKAGES);
    for (name, text) in SCRIPTS {
        hash.update(name);
        hash.update(text);
    }
    format!("{}\n", hex::encode(hash.finalize()))
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), GemIndexError> {
    fs::create_dir_all(to).map_err(failed("make directory", to))?;
    for entry in fs::read_dir(from).map_err(failed("list", from))? {
        let entry = entry.map_err(failed("list", from))?;
        let target = to.join(entry.file_name());
        if entry.file_type().map_err(failed("look at", from))?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).map_err(failed("copy to", &target))?;
        }
    }
    Ok(())
}

fn remove_dir(path: &Path) -> Result<(), GemIndexError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GemIndexError {
    move |source| GemIndexError::Io { operation, path: path.to_owned(), source }
}
