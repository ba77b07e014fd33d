//! `mogok-agent purge`: stops and removes everything that an agent of this state directory ever made
//! on the host. Done again, it does nothing. Images and packages are in the store, which it leaves.
//!
//! Invariant: nothing is removed that an agent does not make, whatever directory it is given.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use mogok_api::id::NodeId;

use crate::cgroup::Cgroups;
use crate::config::{self, HostSettings};
use crate::debris::{self, has_entries};
use crate::disk::Disks;
use crate::ledger::Ledger;
use crate::network::Network;
use crate::run;
use crate::shim::{self, Process};

/// What tells the agent's cgroup, table and pool.
const REMEDY: &str =
    "start the agent once with the options it had, which writes it anew, stop it, and purge again";

/// What an agent makes in its state directory, beside what stays: the lock and the node's id.
const OURS: [&str; 12] = [
    "instances",
    "gone",
    "disks",
    "journal",
    "desired.json",
    "desired.log",
    "desired.new",
    "desired.ballast",
    "network-rotation.json",
    "network-rotation.new",
    "host.new",
    "node-id.new",
];
const STAYS: [&str; 2] = ["lock", "node-id"];

/// # Errors
/// When the directory is none of an agent's, an agent still works on it, or something cannot be removed.
pub async fn purge(state_dir: &Path) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can remove what an agent made: purge as root");
    }
    if !state_dir.exists() {
        tracing::warn!(dir = %state_dir.display(), "there is no such directory, so nothing to purge");
        return Ok(());
    }
    if std::fs::read_dir(state_dir)
        .with_context(|| format!("cannot read {}", state_dir.display()))?
        .next()
        .is_none()
    {
        return Ok(());
    }
    if !is_an_agents(state_dir) {
        bail!(
            "{} is not the state directory of an agent: it has neither its host.json nor its node-id",
            state_dir.display()
        );
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
    // The lock is held by this process, so that no agent starts in the middle. The id stays: whoever comes back
    // here is the same node to the control plane.
    for path in OURS.map(|name| state_dir.join(name)) {
        debris::remove(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    // Last: should one of the others stay, it is purged by this again.
    if settings.exists() {
        std::fs::remove_file(&settings).with_context(|| format!("cannot remove {}", settings.display()))?;
    }
    for entry in std::fs::read_dir(state_dir)? {
        let name = entry?.file_name();
        if !STAYS.iter().any(|stays| name == *stays) {
            tracing::warn!(?name, dir = %state_dir.display(), "left what is not an agent's");
        }
    }
    Ok(())
}

/// Names such as `journal` mean nothing by themselves. What was purged before has the node's id, or nothing but the lock.
fn is_an_agents(state_dir: &Path) -> bool {
    let has = |name: &str| state_dir.join(name).exists();
    let id = std::fs::read_to_string(state_dir.join("node-id"));
    let known = id.is_ok_and(|id| id.trim().parse::<NodeId>().is_ok());
    let only_the_lock = || {
        std::fs::read_dir(state_dir)
            .is_ok_and(|mut all| all.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lock")))
    };
    known
        || config::host_settings_file(state_dir).exists()
        || (has("lock") && (has("instances") || only_the_lock()))
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
        std::fs::write(dir.path().join("lock"), "").unwrap();
        std::fs::write(&record, "{}").unwrap();
        let refused = format!("{:#}", purge(dir.path()).await.unwrap_err());
        assert!(refused.contains("host.json is missing") && refused.contains(REMEDY), "{refused}");
        std::fs::write(dir.path().join("host.json"), "{").unwrap();
        let refused = format!("{:#}", purge(dir.path()).await.unwrap_err());
        assert!(refused.contains("host.json is not what") && refused.contains(REMEDY), "{refused}");
        assert!(record.exists());
        // Nothing that leads to a container.
        std::fs::remove_dir_all(dir.path().join("instances")).unwrap();
        std::fs::remove_file(dir.path().join("host.json")).unwrap();
        purge(dir.path()).await.unwrap();
        purge(dir.path()).await.unwrap();
    }

    #[tokio::test]
    async fn what_no_agent_makes_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        // Where the state directory of an agent is one of several.
        let precious = dir.path().join("control-plane/mogok.db");
        std::fs::create_dir_all(precious.parent().unwrap()).unwrap();
        std::fs::write(&precious, "accounts").unwrap();
        std::fs::create_dir_all(dir.path().join("agent/instances/x")).unwrap();
        let refused = format!("{:#}", purge(dir.path()).await.unwrap_err());
        assert!(refused.contains("is not the state directory of an agent"), "{refused}");
        // Of the same name as what an agent makes.
        std::fs::create_dir(dir.path().join("journal")).unwrap();
        std::fs::write(dir.path().join("node-id"), "").unwrap();
        assert!(purge(dir.path()).await.is_err());
        assert!(dir.path().join("journal").exists());
        // Beside what an agent makes.
        std::fs::write(dir.path().join("node-id"), NodeId::new().to_string()).unwrap();
        purge(dir.path()).await.unwrap();
        assert!(!dir.path().join("journal").exists() && dir.path().join("node-id").exists());
        assert!(precious.exists() && dir.path().join("agent/instances/x").exists());
    }
}
