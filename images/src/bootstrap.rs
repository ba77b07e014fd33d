//! Makes an image of a recipe: mmdebstrap lays the Debian packages out, [`Root`] makes the result
//! ours (user, recipe files, nothing of this machine or of this moment in it), and it is packed.
//!
//! The same recipe against the same state of the Debian archive gives the same digest.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mogok_api::name::Digest;

use crate::mirror::{MirrorError, Mirrors};
use crate::pack::{PackError, pack};
use crate::recipe::Recipe;
use crate::store::{ImageRecord, Store, StoreError};
use crate::unpack::UnpackLimits;

mod root;

use root::Root;
pub use root::RootError;

/// Nothing in an image is dated later (14 November 2023): a fixed date is the reproducible one.
pub const EPOCH: u64 = 1_700_000_000;
const ZSTD_LEVEL: i32 = 10;
/// Of a packed image.
const IMAGE_BYTES_MAX: u64 = 4 << 30;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("mmdebstrap is not installed: apt-get install mmdebstrap")]
    NoMmdebstrap,
    #[error("images are made as root: run this command with sudo")]
    NotRoot,
    #[error("cannot run {program}")]
    Run { program: &'static str, source: io::Error },
    #[error("mmdebstrap failed for suite {suite}; its messages are above")]
    Mmdebstrap { suite: String },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The outcome of [`build`].
#[derive(Debug)]
pub struct Built {
    pub digest: Digest,
    pub tree: PathBuf,
    /// The image of an unchanged recipe was there already.
    pub reused: bool,
}

/// Builds the image of a recipe into a store, or, with `if_missing`, returns the one that is there
/// if it was made by this very recipe.
pub fn build(recipe: &Recipe, store: &Store, if_missing: bool) -> Result<Built, BootstrapError> {
    if if_missing && let Some(built) = present(recipe, store)? {
        return Ok(built);
    }
    let mirrors = Mirrors::of_this_machine()?;
    let workshop = store.workshop()?;
    let dir = workshop.path().join("root");
    let sources = mirrors.sources(&recipe.suite, &["deb"]);
    let exclude: Vec<_> = recipe.exclude.iter().map(|p| format!("--dpkgopt=path-exclude={p}")).collect();
    mmdebstrap(&recipe.suite, &recipe.packages, &sources, &dir, &exclude)?;
    let packages = Root::new(&dir).make(recipe)?;

    let path = workshop.path().join("image.tar.zst");
    let failed = |source| BootstrapError::Write { path: path.clone(), source };
    let mut file = File::options().create_new(true).read(true).write(true).open(&path).map_err(failed)?;
    pack(&dir, EPOCH, ZSTD_LEVEL, &file)?;
    file.rewind().map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let digest = store.put(file, IMAGE_BYTES_MAX)?;
    drop(workshop);

    // The tree first: a name never stands for an image that cannot be unpacked.
    let tree = store.tree(&digest, &UnpackLimits::image())?;
    let record = ImageRecord { recipe: recipe.hash.clone(), digest: digest.clone(), bytes, packages };
    store.set_image(&recipe.name, &digest, &record)?;
    Ok(Built { tree, digest, reused: false })
}

fn present(recipe: &Recipe, store: &Store) -> Result<Option<Built>, StoreError> {
    let Some(record) = store.image_record(&recipe.name)? else { return Ok(None) };
    if record.recipe != recipe.hash || store.image_digest(&recipe.name)?.as_ref() != Some(&record.digest) {
        return Ok(None);
    }
    match store.image(&recipe.name) {
        Ok(Some((digest, tree))) => Ok(Some(Built { digest, tree, reused: true })),
        Ok(None) | Err(StoreError::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Runs mmdebstrap for a minimal system with `packages` into the new directory `dir`.
///
/// `sources` are lines of a sources.list; `options` are further options. Its progress goes to stderr.
pub(crate) fn mmdebstrap(
    suite: &str,
    packages: &[impl AsRef<str>],
    sources: &str,
    dir: &Path,
    options: &[impl AsRef<str>],
) -> Result<(), BootstrapError> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err(BootstrapError::NotRoot);
    }
    let list = dir.with_extension("list");
    fs::write(&list, sources).map_err(|source| BootstrapError::Write { path: list.clone(), source })?;
    let packages: Vec<&str> = packages.iter().map(AsRef::as_ref).collect();
    let status = Command::new("mmdebstrap")
        .args(["--variant=minbase", "--mode=root", "--format=directory"])
        .arg(format!("--include={}", packages.join(",")))
        .args(options.iter().map(AsRef::as_ref))
        .arg(suite)
        .arg(dir)
        .arg(&list)
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string())
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        // stdout is for our own result.
        .stdout(io::stderr())
        .status()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => BootstrapError::NoMmdebstrap,
            _ => BootstrapError::Run { program: "mmdebstrap", source },
        })?;
    if !status.success() {
        return Err(BootstrapError::Mmdebstrap { suite: suite.to_owned() });
    }
    Ok(())
}
