//! The second disk of a machine: the test programs, at the paths where cargo has put them, and the init that
//! runs them. Made anew at every run; a few seconds' worth of copying. A third one is empty, for swap.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::LONGEST_PROGRAM;
use super::programs::{CRATES, Programs};
use crate::program::run;

/// Bytes that the tests themselves may write to it: images for their containers.
const ROOM: &str = "1G";
/// Bytes of a third disk, for swap.
const SWAP: u64 = 256 << 20;

/// The disks of a run.
#[derive(Debug, Clone)]
pub(super) struct Disks {
    pub(super) tests: PathBuf,
    pub(super) swap: PathBuf,
}

/// Makes `work/tests.img` and `work/swap.img`.
pub(super) fn make(workspace: &Path, work: &Path, programs: &Programs) -> Result<Disks> {
    let stage = work.join("stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    let put = |path: &Path| -> Result<()> {
        let inside =
            path.strip_prefix(workspace).context("the target directory is outside of the workspace")?;
        let to = stage.join(inside);
        // A program that is run more than once.
        if to.exists() {
            return Ok(());
        }
        fs::create_dir_all(to.parent().context("no parent")?)?;
        fs::hard_link(path, &to).with_context(|| format!("cannot stage {}", path.display()))
    };
    for program in &programs.tests {
        put(&program.path)?;
    }
    for program in &programs.started {
        put(program)?;
    }
    // The old shim, without which a test says that it had to skip.
    if programs.old_shim.is_file() {
        put(&programs.old_shim)?;
    }
    // Where the tests keep what they make once.
    fs::create_dir_all(stage.join("target/tmp"))?;
    for of in CRATES {
        let tests = workspace.join(of).join("tests");
        fs::create_dir_all(stage.join(of))?;
        run("cp", &["-r", &tests.to_string_lossy(), &stage.join(of).to_string_lossy()])?;
    }
    fs::copy(workspace.join("tests/vm/init"), stage.join("init"))?;
    let list: String = programs
        .tests
        .iter()
        .map(|program| format!("{}\t{}\n", program.name, program.command().join("\t")))
        .collect();
    fs::write(stage.join("programs"), list)?;
    let settings =
        format!("WORKSPACE='{}'\nSECONDS_EACH={}\n", workspace.display(), LONGEST_PROGRAM.as_secs());
    fs::write(stage.join("settings"), settings)?;

    let image = work.join("tests.img");
    let _ = fs::remove_file(&image);
    run(
        "mke2fs",
        &["-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-m", "0", "-d"]
            .into_iter()
            .chain([&*stage.to_string_lossy(), &*image.to_string_lossy(), ROOM])
            .collect::<Vec<_>>(),
    )?;
    fs::remove_dir_all(&stage)?;
    let swap = work.join("swap.img");
    fs::File::create(&swap)?.set_len(SWAP)?;
    Ok(Disks { tests: image, swap })
}
