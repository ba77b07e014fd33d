//! `mogok-agent purge`: stops and removes everything that an agent of this state directory ever made
//! on the host. Done again, it does nothing. Images and packages are in the store, which it leaves.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cgroup::Cgroups;
use crate::config::{self, HostSettings};
use crate::disk::Disks;
use crate::ledger::Ledger;
use crate::network::Network;
use crate::run;
use crate::shim::{self, Process};

/// What tells the agent's cgroup, table and pool.
const REMEDY: &str =
    "start the agent once with the options it had, which writes it anew, stop it, and purge again";

/// # Errors
/// When an agent still works on the directory, or something cannot be removed.
pub async fn purge(state_dir: &Path) -> Result<()> {
    if !state_dir.exists() {
        return Ok(());
    }
    let _lock = run::lock(state_dir)?;
    let settings = config::host_settings_file(state_dir);
    if settings.exists() {
        let bytes =
            std::fs::read(&settings).with_context(|| format!("cannot read {}", settings.display()))?;
        let host: HostSettings = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is not what an agent wrote: {REMEDY}", settings.display()))?;
        purge_host(state_dir, &host).await?;
    } else if ["instances", "disks"].iter().any(|dir| has_entries(&state_dir.join(dir))) {
        // Its containers may run, and their records are all that leads to them.
        bail!("{} is missing, and there are instances: {REMEDY}", settings.display());
    }
    for entry in std::fs::read_dir(state_dir)? {
        let path = entry?.path();
        // The lock is held by this process, so that no agent starts in the middle. The id stays: whoever
        // comes back here is the same node to the control plane.
        if path == settings || path.file_name().is_some_and(|name| name == "lock" || name == "node-id") {
            continue;
        }
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    // Last: should one of the others stay, it is purged by this again.
    if settings.exists() {
        std::fs::remove_file(&settings).with_context(|| format!("cannot remove {}", settings.display()))?;
    }
    Ok(())
}

fn has_entries(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

async fn purge_host(state_dir: &Path, host: &HostSettings) -> Result<()> {
    let ledger = Ledger::open(state_dir)?;
    for (pid, name) in shim::shims_below(ledger.instances())? {
        let Ok(Some(process)) = Process::open(pid, None) else { continue };
        // Asked again, now that the pidfd holds whatever it is.
        if shim::name_of(pid, ledger.instances()) == Some(name) {
            process.kill().with_context(|| format!("cannot kill shim {pid}"))?;
            tokio::time::timeout(std::time::Duration::from_secs(10), process.ended())
                .await
                .with_context(|| format!("shim {pid} does not end"))?;
        }
    }
    let cgroups = Cgroups::detect_below(&host.cgroup, host.cgroup_parent.as_deref())?;
    let _name = cgroups.lock()?;
    let disks = Disks::open(&state_dir.join("disks"))?;
    let network = Network::start(&host.network(state_dir)).await?;
    let ids: BTreeSet<_> = ledger.list()?.into_iter().chain(cgroups.list()?).chain(disks.list()?).collect();
    for id in ids {
        let cgroup = cgroups.open(&id);
        tokio::task::spawn_blocking(move || cgroup.remove())
            .await?
            .with_context(|| format!("cannot remove the cgroup of {id}"))?;
        disks.remove(&id).with_context(|| format!("cannot remove the disk of {id}"))?;
    }
    network.stop().await;
    cgroups.remove_root();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_of_instances_are_not_removed_without_what_leads_to_their_containers() {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("instances/x/record.json");
        std::fs::create_dir_all(record.parent().unwrap()).unwrap();
        std::fs::write(&record, "{}").unwrap();
        let refused = format!("{:#}", purge(dir.path()).await.unwrap_err());
        assert!(refused.contains("host.json is missing") && refused.contains(REMEDY), "{refused}");
        std::fs::write(dir.path().join("host.json"), "{").unwrap();
        let refused = format!("{:#}", purge(dir.path()).await.unwrap_err());
        assert!(refused.contains("host.json is not what") && refused.contains(REMEDY), "{refused}");
        assert!(record.exists());
        // Nothing of an agent's.
        std::fs::remove_dir_all(dir.path().join("instances")).unwrap();
        std::fs::remove_file(dir.path().join("host.json")).unwrap();
        purge(dir.path()).await.unwrap();
    }
}
