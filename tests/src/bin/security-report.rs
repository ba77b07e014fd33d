//! `make security-report`: prints what holds in containers of ours and of the peers, writes it down, and fails
//! when something does not hold in ours.

use anyhow::{Result, ensure};
use mogok_tests::security;

fn main() -> Result<()> {
    if let Some(reason) = security::missing() {
        anyhow::bail!("cannot look into containers: {reason}");
    }
    let mut columns = security::ours()?;
    columns.extend(security::peers()?);
    security::print(&columns);
    security::write(&columns)?;
    let holes: Vec<String> = columns
        .iter()
        .filter(|column| column.ours)
        .flat_map(|column| column.holes().into_iter().map(|hole| format!("{}: {hole:?}", column.name)))
        .collect();
    ensure!(holes.is_empty(), "{} checks do not hold:\n{}", holes.len(), holes.join("\n"));
    Ok(())
}
