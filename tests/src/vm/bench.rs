//! The container benchmark in a virtual machine, for peers that the host need not have: on a unified cgroup v2 tree, beside
//! `crun` and `runc`. QEMU emulates, so times mean nothing; ours over a peer's does, roughly.
//!
//! Invariant: what is reported is what the benchmark said to its end; else it is an error.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::programs::Programs;
use super::verdict::Reading;
use super::{base, disk, on_machine};
use crate::bench::{self, Row};

/// Tells the benchmark, in its environment, where it runs.
pub const HERE: &str = "MOGOK_IN_MACHINE";
/// Packages of the peers.
const PEERS: [&str; 2] = ["crun", "runc"];
/// The benchmark.
const NAME: &str = "container";
/// Before each row that it tells.
const ROW: &str = "row ";

/// Runs the benchmark on a suite's machine; prints its table and writes it to `target/bench/container-vm.json`.
///
/// # Errors
/// When the machine cannot be made, or the benchmark fails there.
pub fn write(assets: &Path, suite: &str) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let programs = Programs::benchmark(workspace, NAME, &format!("{HERE}=1"))?;
    let work = workspace.join("target/vm/bench");
    fs::create_dir_all(&work)?;
    let disks = disk::make(workspace, &work, &programs)?;
    let base = base(workspace, assets, suite, &PEERS)?;
    let reading = on_machine(suite, &base, &disks, &work.join(suite), &programs)?;
    bench::report(&format!("{NAME}-vm"), &rows(&reading)?)
}

/// In the machine: hands the rows out.
///
/// # Errors
/// When a row is no JSON.
pub fn tell(rows: &[Row]) -> Result<()> {
    for row in rows {
        println!("{ROW}{}", serde_json::to_string(row)?);
    }
    Ok(())
}

fn rows(reading: &Reading) -> Result<Vec<Row>> {
    let section = reading.sections.get(NAME).context("the machine did not run the benchmark")?;
    if section.status != Some(0) {
        bail!("the benchmark ended with status {:?}:\n{}", section.status, section.text);
    }
    let said = section.text.lines().filter_map(|line| line.strip_prefix(ROW));
    let rows = said.map(serde_json::from_str).collect::<Result<Vec<Row>, _>>()?;
    ensure!(!rows.is_empty(), "the benchmark told no figures:\n{}", section.text);
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_out_as_they_went_in_and_only_of_a_good_end() {
        let row = Row::against("x", "ms", 1.0, "crun", 4.0, 1.0);
        let line = format!("{ROW}{}", serde_json::to_string(&row).unwrap());
        let of = |said: &str| {
            let mut reading = Reading::default();
            reading.read(&format!("@@ begin {NAME}\n{said}\n"));
            rows(&reading)
        };
        assert_eq!(of(&format!("noise\n{line}\n@@ end {NAME} 0")).unwrap(), [row]);
        for bad in [format!("{line}\n@@ end {NAME} 1"), line, format!("noise\n@@ end {NAME} 0")] {
            assert!(of(&bad).is_err(), "{bad}");
        }
        assert!(rows(&Reading::default()).is_err());
    }
}
