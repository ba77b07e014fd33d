//! `mogok-image`: makes images of recipes and the gem index, and looks after a store.
//!
//! Results go to stdout, one line each; progress and errors to stderr. Exit status: 0 done,
//! 1 failed, 2 usage.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use mogok_images::recipe::Recipe;
use mogok_images::{Digest, ImageName, Store, UnpackLimits, bootstrap, gem_index};

/// Base images and packages of mogok.
#[derive(Debug, Parser)]
#[command(name = "mogok-image", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the image of a recipe with mmdebstrap (as root; packages come from this machine's apt sources)
    Build {
        /// Directory with a recipe.toml
        recipe: PathBuf,
        #[command(flatten)]
        store: StoreArg,
        /// Do nothing when the image was made by this very recipe
        #[arg(long)]
        if_missing: bool,
    },
    /// List the images of a store
    List {
        #[command(flatten)]
        store: StoreArg,
        #[arg(long)]
        json: bool,
    },
    /// Show an image: digest, size, tree, and Debian packages with their versions
    Inspect {
        name: ImageName,
        #[command(flatten)]
        store: StoreArg,
    },
    /// Remove an image's name (its blob goes with the next collection)
    Remove {
        name: ImageName,
        #[command(flatten)]
        store: StoreArg,
    },
    /// Remove blobs and trees that no image name and no --keep holds
    ///
    /// An agent and a control plane collect their own stores: they know which packages are in use.
    /// This is for stores that hold images only.
    Collect {
        #[command(flatten)]
        store: StoreArg,
        /// Keep this digest (sha256:...); may be repeated
        #[arg(long, value_name = "DIGEST")]
        keep: Vec<Digest>,
        /// Keep what is younger
        #[arg(long, default_value_t = 24, value_name = "HOURS")]
        min_age: u64,
    },
    /// Make a static gem index of Debian's packages, for BUNDLE_MIRROR__ALL (as root, about 2 minutes)
    GemIndex {
        /// Directory of the index; an index of this version that is there is left as it is
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Directory for the root the gems come from, kept for the next time [default: a temporary one]
        #[arg(long, value_name = "DIR")]
        work: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct StoreArg {
    /// Directory of the store
    #[arg(long, value_name = "DIR", env = "MOGOK_STORE")]
    store: PathBuf,
}

impl StoreArg {
    fn open(&self) -> anyhow::Result<Store> {
        Ok(Store::open(std::path::absolute(&self.store)?)?)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mogok-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Build { recipe, store, if_missing } => build(&recipe, &store.open()?, if_missing),
        Command::List { store, json } => list(&store.open()?, json),
        Command::Inspect { name, store } => inspect(&name, &store.open()?),
        Command::Remove { name, store } => {
            if !store.open()?.remove_image(&name)? {
                bail!("there is no image {name} in {}", store.store.display());
            }
            Ok(())
        }
        Command::Collect { store, keep, min_age } => {
            let keep: BTreeSet<Digest> = keep.into_iter().collect();
            let collected =
                store.open()?.collect(&keep, Duration::from_secs(min_age.saturating_mul(3600)))?;
            writeln!(
                io::stdout(),
                "{} blobs ({}), {} trees",
                collected.blobs,
                megabytes(collected.bytes),
                collected.trees
            )?;
            Ok(())
        }
        Command::GemIndex { out, work } => make_gem_index(&out, work.as_deref()),
    }
}

fn build(recipe: &Path, store: &Store, if_missing: bool) -> anyhow::Result<()> {
    let started = Instant::now();
    let recipe = Recipe::read(recipe)?;
    let built = bootstrap::build(&recipe, store, if_missing)
        .with_context(|| format!("image {} was not made", recipe.name))?;
    let how = if built.reused { "reused" } else { "built" };
    eprintln!(
        "image {} {how} in {:.1} s: {}",
        recipe.name,
        started.elapsed().as_secs_f64(),
        built.tree.display()
    );
    writeln!(io::stdout(), "{}", built.digest)?;
    Ok(())
}

fn list(store: &Store, json: bool) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for (name, digest) in store.images()? {
        let bytes = store.open_blob(&digest)?.metadata()?.len();
        rows.push(serde_json::json!({ "name": name, "digest": digest, "bytes": bytes }));
        if !json {
            writeln!(io::stdout(), "{name:<20} {digest} {:>10}", megabytes(bytes))?;
        }
    }
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(())
}

fn inspect(name: &ImageName, store: &Store) -> anyhow::Result<()> {
    let Some(digest) = store.image_digest(name)? else {
        bail!("there is no image {name} in {}: make it with `mogok-image build`", store.root().display());
    };
    writeln!(io::stdout(), "name:    {name}")?;
    writeln!(io::stdout(), "digest:  {digest}")?;
    writeln!(io::stdout(), "packed:  {}", megabytes(store.open_blob(&digest)?.metadata()?.len()))?;
    writeln!(io::stdout(), "tree:    {}", store.tree_path(&digest, &UnpackLimits::image()).display())?;
    if let Some(record) = store.image_record(name)? {
        writeln!(io::stdout(), "recipe:  {}", record.recipe)?;
        for (package, version) in &record.packages {
            writeln!(io::stdout(), "package: {package} {version}")?;
        }
    }
    Ok(())
}

fn make_gem_index(out: &Path, work: Option<&Path>) -> anyhow::Result<()> {
    let started = Instant::now();
    let out = std::path::absolute(out)?;
    let temporary;
    let work = match work {
        Some(work) => std::path::absolute(work)?,
        None => {
            temporary = tempfile::Builder::new().prefix("mogok-gem-index-").tempdir()?;
            temporary.path().to_owned()
        }
    };
    let how = if gem_index::build(&out, &work)? { "built" } else { "reused" };
    eprintln!("gem index {how} in {:.1} s", started.elapsed().as_secs_f64());
    writeln!(io::stdout(), "{}", out.display())?;
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
