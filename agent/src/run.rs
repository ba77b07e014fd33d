//! `mogok-agent run`: from what lies on the disk and runs on the host to a serving agent, and back to
//! nothing but the containers.
//!
//! Invariant: nothing is started and nobody is answered before everything that exists was found, and
//! leaving touches no container.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mogok_api::id::InstanceId;
use mogok_images::Store;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::cgroup::{CgroupError, Cgroups, Watcher};
use crate::config::{self, Config, HostSettings};
use crate::debris;
use crate::disk::Disks;
use crate::events::Events;
use crate::exec::Execs;
use crate::fail_point;
use crate::host::Facts;
use crate::instance::adopt::{self, Finding, Shims};
use crate::ledger::uids::UidRanges;
use crate::ledger::{Ledger, Record, atomic};
use crate::logs::Logs;
use crate::network::{Demand, Network, Saved, survey};
use crate::node::{self, Ground, Node, STARTS};
use crate::reconcile::desired::DesiredFile;
use crate::reconcile::{Reconciler, Wanted};
use crate::server::{Api, Server, UnixSocket};
use crate::shim::Spawner;
use crate::{shim, tls};

/// A child that a killed agent was just spawning holds its locks until it executes its program. Waiting for
/// that has another good: no shim that is not yet recognized as one is overlooked.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// With less there would be no room for containers beside the agent's own.
const FEWEST_DESCRIPTORS: u64 = 2 * config::OWN_DESCRIPTORS;

/// Keeps other agents away from a state directory; freed by the kernel with the process.
///
/// # Errors
/// When another agent has it.
pub fn lock(state_dir: &Path) -> Result<Flock<File>> {
    std::fs::create_dir_all(state_dir)
        .with_context(|| format!("cannot make the state directory {}", state_dir.display()))?;
    let path = state_dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // A fifo in its place is an error, not a wait for who reads it.
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let deadline = Instant::now() + LOCK_WAIT;
    let mut file = file;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((returned, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = returned,
            Err((_, Errno::EWOULDBLOCK)) => {
                bail!("another agent works on {}: stop it first", state_dir.display())
            }
            Err((_, error)) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
        std::thread::sleep(LOCK_AGAIN);
    }
}

/// The same for the name of the agent's cgroups.
fn lock_name(cgroups: &Cgroups) -> Result<Flock<File>, CgroupError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match cgroups.lock() {
            Err(CgroupError::InUse(_)) if Instant::now() < deadline => std::thread::sleep(LOCK_AGAIN),
            other => return other,
        }
    }
}

/// The settings that an earlier agent worked by.
fn kept_settings(path: &Path) -> Option<HostSettings> {
    serde_json::from_slice(&atomic::read(path).ok()?).ok()
}

/// Where there are containers, they are found by the names that the agent had before.
fn stay(before: &HostSettings, config: &Config) -> Result<()> {
    let named = |host: &HostSettings| (host.cgroup.clone(), host.cgroup_parent.clone());
    if named(before) == named(&config.host) || !debris::has_entries(&config.state_dir.join("instances")) {
        return Ok(());
    }
    let parent = before.cgroup_parent.as_ref().map(|parent| format!(" --cgroup-parent {parent}"));
    bail!(
        "the containers of {} are in another cgroup: start with --cgroup {}{}, or end them first (mogok-agent purge)",
        config.state_dir.display(),
        before.cgroup,
        parent.unwrap_or_default()
    )
}

/// What runs keeps its address and port: settings that have no room for them would end it.
fn reach_all(saved: &[Saved], host: &HostSettings, before: Option<&HostSettings>) -> Result<()> {
    let (first, last) = host.ports;
    let outside = |saved: &&Saved| {
        let port = saved.allocation.host_port;
        !host.pool.has(saved.allocation.address) || port.is_some_and(|port| !(first..=last).contains(&port))
    };
    let Some(one) = saved.iter().find(outside) else { return Ok(()) };
    let as_before = before.map_or(String::new(), |before| {
        format!(
            "start with --pool {} --port-range {}-{} as before, or ",
            before.pool, before.ports.0, before.ports.1
        )
    });
    bail!(
        "{} containers run outside of --pool {} and --port-range {first}-{last}, such as {}: {as_before}end them first (mogok-agent purge)",
        saved.iter().filter(outside).count(),
        host.pool,
        one.id
    )
}

/// Makes the node with the containers that live on in its network, and says what was found of each.
async fn node(config: Config, cgroups: Cgroups, spawner: Spawner, execs: Execs) -> Result<(Node, Found)> {
    let state_dir = config.state_dir.clone();
    let ledger = Ledger::open(&state_dir)?;
    let logs = Logs::open(&state_dir, ledger.clone()).context("cannot open the log journal")?;
    let ground = Arc::new(Ground {
        boot_id: shim::boot_id().context("cannot read the boot id")?,
        cgroups,
        watcher: Watcher::start().context("cannot watch containers")?,
        disks: Disks::open(&state_dir.join("disks")).context("cannot use disks")?,
        ledger,
    });
    let mut found = find_all(&ground)?;
    let saved = found.records.iter().filter_map(|(record, finding)| {
        let allocation = record.allocation.clone().filter(|_| matches!(finding, Finding::Alive(_)))?;
        Some(Saved { id: record.id(), demand: Demand::of(&record.spec), allocation })
    });
    let saved: Vec<_> = saved.collect();
    let settings = config::host_settings_file(&state_dir);
    let before = kept_settings(&settings);
    reach_all(&saved, &config.host, before.as_ref())?;
    // Before anything of it exists on the host, so that a purge knows where to look. Not when it is there already: a full
    // disk must not keep an agent from what runs.
    if before.as_ref() != Some(&config.host) {
        atomic::write_json(&settings, &config.host, atomic::Durability::PowerLoss)?;
    }
    let (network, lost) = Network::start_with(&config.host.network(&state_dir), saved)
        .await
        .context("cannot set the network up")?;
    fail_point!(NetworkUp);
    for &id in &lost {
        // Nobody reaches it, and it reaches nobody; unless it has just ended, of which its shim knows more: it is started anew
        // like one that crashed.
        tracing::error!(instance = %id, "killing a container that has lost its link");
        if let Err(error) = ground.cgroups.open(&id).kill() {
            tracing::error!(instance = %id, error = %crate::chain(&error), "cannot kill a container");
        }
    }
    let swept = network.sweep().await.context("cannot sweep the network")?;
    if swept > 0 {
        tracing::warn!(links = swept, "removed links that belong to no container");
    }
    fail_point!(Swept);
    let mut uids = UidRanges::new(config.uid_base, config.uid_ranges);
    for (record, finding) in &mut found.records {
        uids.restore(record.uid_base);
        if !matches!(finding, Finding::Alive(_)) || lost.contains(&record.id()) {
            // Its link went with the sweep, and its numbers are anybody's.
            record.allocation = None;
        }
    }
    let node = Node {
        facts: Facts::gather().context("cannot tell what this host is")?,
        id: node::node_id(&state_dir, config.node_id)?,
        network,
        store: Store::open(&config.store).context("cannot open the blob store")?,
        images: Store::open(&config.image_store).context("cannot open the image store")?,
        events: Events::default(),
        logs: Arc::new(logs),
        uids: Mutex::new(uids),
        starts: Semaphore::new(STARTS),
        arrivals: Notify::new(),
        execs,
        spawner,
        ground,
        config,
    };
    Ok((node, found))
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the agent cannot start.
pub async fn run(config: Config) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the agent must run as root");
    }
    raise_descriptors()?;
    let spawner = Spawner::start().context("cannot start the thread that executes shims")?;
    let _lock = lock(&config.state_dir)?;
    // Before anything of the host is changed: an agent that cannot work leaves it as it was.
    let cgroups = Cgroups::find_below(&config.host.cgroup, config.host.cgroup_parent.as_deref())
        .context("cannot use cgroups")?
        .with_disk(&config.state_dir);
    let name = match lock_name(&cgroups) {
        // Nobody has ever used it.
        Err(CgroupError::Lock { source, .. }) if source.kind() == ErrorKind::NotFound => None,
        name => Some(name?),
    };
    let before = kept_settings(&config::host_settings_file(&config.state_dir));
    if let Some(before) = &before {
        stay(before, &config)?;
    }
    let network = config.host.network(&config.state_dir);
    network.check().context("the network cannot be set up so")?;
    survey::pool(&network, before.is_some_and(|before| before.pool == config.host.pool)).await?;
    let execs = Execs::new(&config.shim)
        .with_context(|| format!("cannot make a sealed copy of {}", config.shim.display()))?;
    let wanted = Wanted::open(DesiredFile::new(&config.state_dir)).context(
        "the wanted set cannot be read: move desired.json and desired.log out of the state directory; containers go on until the control plane has sent the set anew",
    )?;
    let wanted = Arc::new(wanted);
    let socket = UnixSocket::bind(&config.socket, !config.allow_uids.is_empty()).await?;
    let tls = match &config.tls {
        Some(files) => Some((TlsAcceptor::from(tls::server_config(files)?), bind_tls(files.listen).await?)),
        None => None,
    };
    cgroups.prepare().context("cannot use cgroups")?;
    let _name = match name {
        Some(name) => name,
        None => lock_name(&cgroups)?,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (node, found) = node(config, cgroups, spawner, execs).await?;
    let node = Arc::new(node);
    let mut reconciler = Reconciler::new(node.clone(), wanted.clone());
    for (record, finding) in found.records {
        reconciler.adopt(record, finding);
    }
    reconciler.clear(found.debris).await;
    fail_point!(Adopted);

    let listener = socket.place()?;
    let server = Server::new(Arc::new(Api { node: node.clone(), wanted }));
    if let Some((acceptor, listener)) = tls {
        tokio::spawn(server.clone().serve_tls(listener, acceptor));
    }
    tokio::spawn(node.logs.clone().run());
    tokio::spawn(reconciler.run());
    tokio::spawn(server.serve_unix(listener, node.config.allow_uids.clone()));
    tracing::info!(node = %node.id, socket = %node.config.socket.display(), "agent is ready");

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(node = %node.id, "agent leaves, its containers stay");
    // Nobody finds an agent behind the path any more.
    let _ = std::fs::remove_file(&node.config.socket);
    Ok(())
}

async fn bind_tls(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Every container takes some descriptors, so the soft limit becomes the hard one.
fn raise_descriptors() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot ask for the limit of open files")?;
    if hard < FEWEST_DESCRIPTORS {
        bail!(
            "the limit of open files is {hard}: an agent needs {FEWEST_DESCRIPTORS} for itself and few containers, {} for each of more; set LimitNOFILE of its service or ulimit -n",
            config::DESCRIPTORS_EACH
        );
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")
}

/// What an earlier agent left: its records with what became of each container, and the ids of what no
/// record tells of, each with the shims that run under it.
struct Found {
    records: Vec<(Record, Finding)>,
    debris: Vec<(InstanceId, Vec<i32>)>,
}

/// Finds every container of an earlier agent's. Nothing is changed yet.
fn find_all(ground: &Ground) -> Result<Found> {
    let mut shims = Shims::new();
    for (pid, name) in shim::shims_below(ground.ledger.instances()).context("cannot list processes")? {
        if let Ok(id) = name.parse() {
            shims.entry(id).or_default().push(pid);
        }
    }
    let mut records = Vec::new();
    let mut debris = BTreeSet::new();
    for id in ground.ledger.list()? {
        match ground.ledger.load(id) {
            Ok(record) if record.id() != id => {
                tracing::error!(instance = %id, record = %record.id(), "a record is another container's, what has its name is removed");
                debris.insert(id);
            }
            Ok(record) => {
                let finding = adopt::examine(ground, &record, &shims)
                    .with_context(|| format!("cannot tell whether {id} runs"))?;
                records.push((record, finding));
            }
            Err(error) => {
                tracing::error!(instance = %id, error = %crate::chain(&error), "a record is not readable, its container is removed");
                debris.insert(id);
            }
        }
    }
    fail_point!(LedgerRead);
    debris.extend(ground.cgroups.list()?);
    debris.extend(ground.disks.list()?);
    debris.extend(shims.keys());
    for (record, _) in &records {
        debris.remove(&record.id());
    }
    let debris = debris.into_iter().map(|id| (id, shims.remove(&id).unwrap_or_default())).collect();
    fail_point!(Examined);
    Ok(Found { records, debris })
}
