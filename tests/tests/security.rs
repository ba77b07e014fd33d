//! Every check of the probe holds in every kind of container that the platform makes.

use anyhow::{Result, ensure};
use mogok_tests::security;

#[test]
fn nothing_gets_out_of_any_kind_of_container() -> Result<()> {
    if let Some(reason) = security::missing() {
        eprintln!("SKIP: {reason}");
        return Ok(());
    }
    for column in security::ours()? {
        let holes = column.holes();
        ensure!(holes.is_empty(), "{}: {holes:#?}", column.name);
        // Less means that a part of the checks was not run.
        ensure!(column.findings.len() > 280, "{}: only {} checks", column.name, column.findings.len());
    }
    Ok(())
}
