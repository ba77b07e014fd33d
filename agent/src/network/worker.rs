//! The thread that decides about the node's network: it alone hands out numbers and changes the table.
//! What waits in its queue goes to the kernel as one transaction. Namespaces are made (`maker.rs`) and
//! links removed (`remover.rs`) by other threads, so that nobody waits for a removal.
//!
//! Invariant: an answer is given only after the table says the same.

use std::collections::{HashSet, VecDeque};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use mogok_api::id::InstanceId;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::lease::Leases;
use super::link::{self, Links};
use super::maker::{self, Made};
use super::nfnetlink::Nfnetlink;
use super::pool::{MOST, Pool, Slot};
use super::ruleset::{Entry, PROBE, Ruleset};
use super::{
    Allocation, Attachment, Demand, Egress, NetworkConfig, NetworkError, Saved, feature, nft, reach, remover,
    sysctl,
};

mod change;

use change::Change;

/// Between two looks at the table and the gateway, and after a namespace that could not be made.
const LOOK: Duration = Duration::from_secs(1);
/// Routes, and all of the gateway, are looked at so much less often.
const LOOKS_AT_ROUTES: u32 = 30;
/// Requests of one transaction.
const BATCH: usize = 64;

type Reply<T> = oneshot::Sender<Result<T, NetworkError>>;

#[derive(Debug)]
pub(super) enum Command {
    Attach { id: InstanceId, demand: Demand, reply: Reply<Attachment> },
    Restore { saved: Saved, reply: Reply<()> },
    Detach { id: InstanceId, reply: Reply<()> },
    Sweep { reply: Reply<usize> },
    Stop { reply: Reply<()> },
}

/// Starts the thread; it ends with [`Command::Stop`] or when the last sender is gone.
pub(super) fn spawn(
    config: NetworkConfig,
    resolvers: Vec<Ipv4Addr>,
    saved: Vec<Saved>,
    queue: mpsc::Receiver<Command>,
    started: Reply<Vec<InstanceId>>,
) -> Result<(), NetworkError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(NetworkError::Thread)?;
    std::thread::Builder::new()
        .name("network".into())
        .spawn(move || {
            runtime.block_on(async move {
                match Worker::start(config, resolvers, saved).await {
                    Ok((worker, lost)) => {
                        // Nobody waits: nobody will ask either.
                        if started.send(Ok(lost)).is_ok() {
                            worker.serve(queue).await;
                        }
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            });
        })
        .map(drop)
        .map_err(NetworkError::Thread)
}

/// A container that waits for a namespace or for a number.
#[derive(Debug)]
struct Waiting {
    id: InstanceId,
    demand: Demand,
    reply: Reply<Attachment>,
}

#[derive(Debug)]
struct Worker {
    config: NetworkConfig,
    rules: Ruleset,
    nfnetlink: Nfnetlink,
    leases: Leases,
    links: Links,
    pool: Pool,
    orders: mpsc::Sender<Ipv4Addr>,
    made: mpsc::Receiver<Made>,
    waiting: VecDeque<Waiting>,
    /// Out of the table, their links not yet removed: their numbers are still taken.
    dying: Vec<Allocation>,
    /// The part of them that the remover has.
    removing: Vec<Allocation>,
    /// A removal failed: not again before the next look.
    removal_fails: bool,
    remover: mpsc::Sender<Vec<String>>,
    removed: mpsc::Receiver<remover::Removed>,
    /// A maker could not return home: namespaces cannot be made any more.
    astray: bool,
    /// Since the routes were looked at.
    looks: u32,
}

/// What woke the worker.
enum Woken {
    Commands,
    Made(Made),
    Removed(remover::Removed),
    Look,
}

impl Worker {
    async fn start(
        config: NetworkConfig,
        resolvers: Vec<Ipv4Addr>,
        saved: Vec<Saved>,
    ) -> Result<(Self, Vec<InstanceId>), NetworkError> {
        let rules = Ruleset::new(&config, resolvers);
        let nfnetlink = Nfnetlink::open()?;
        let links = Links::open()?;
        // Those that an earlier agent was about to remove.
        links.remove_all(&[], rules.dead_group()).await?;
        let existing = links.in_group(rules.group()).await?;
        let leases = Leases::open(&config, existing.iter().filter_map(|name| link::address(name)))?;
        links.prepare_host(config.pool, rules.group()).await?;
        let turn = maker::Turn::default();
        let (orders, made) = maker::spawn(config.pool.gateway(), rules.group(), MOST, turn.clone())?;
        let (remover, removed) = remover::spawn(rules.dead_group(), turn)?;
        let mut worker = Self {
            config,
            rules,
            nfnetlink,
            leases,
            links,
            pool: Pool::new(),
            orders,
            made,
            waiting: VecDeque::new(),
            dying: Vec::new(),
            removing: Vec::new(),
            removal_fails: false,
            remover,
            removed,
            astray: false,
            looks: 0,
        };
        let mut lost = Vec::new();
        for saved in saved {
            let id = saved.id;
            match worker.adopt(saved) {
                Ok(_) => {}
                Err(error @ (NetworkError::LinkGone { .. } | NetworkError::Conflict { .. })) => {
                    tracing::warn!(instance = %id, %error, "network of a container is lost");
                    lost.push(id);
                }
                // What cannot be asked for is not lost.
                Err(error) => return Err(error),
            }
        }
        if let Err(error) = worker.rebuild("make the table").await {
            return Err(feature::missing().await.unwrap_or(error));
        }
        // It turns links on, so the rules come first.
        if let Err(error) = worker.look_after_routes().await {
            tracing::error!(%error, "a container cannot be reached");
        }
        // Only now: there must be no moment in which the host forwards and nothing is refused.
        if worker.config.egress == Egress::Internet {
            sysctl::enable_forwarding()?;
        }
        let granted = worker.config.build_grants.iter().map(|grant| *grant.ip());
        let granted = granted.chain(worker.rules.resolvers().iter().copied());
        reach::tell_unreachable("the node's settings", granted);
        Ok((worker, lost))
    }

    async fn serve(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut commands = Vec::with_capacity(BATCH);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Nothing has happened since the last look.
        let mut quiet = true;
        while !self.astray {
            self.order();
            self.bury();
            let woken = tokio::select! {
                count = queue.recv_many(&mut commands, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    Woken::Commands
                }
                Some(made) = self.made.recv() => Woken::Made(made),
                Some(removed) = self.removed.recv() => Woken::Removed(removed),
                _ = looks.tick() => Woken::Look,
            };
            quiet &= matches!(woken, Woken::Look);
            let mut changes = Vec::new();
            match woken {
                Woken::Commands => {
                    for command in commands.drain(..) {
                        match command {
                            Command::Attach { id, demand, reply } => {
                                self.waiting.push_back(Waiting { id, demand, reply });
                            }
                            Command::Restore { saved, reply } => self.restore(saved, reply, &mut changes),
                            Command::Detach { id, reply } => self.detach(id, reply, &mut changes),
                            // An asker that has gone away leaves its answer unread; what was done stays done.
                            Command::Sweep { reply } => {
                                // Or it would take links of containers that are just being detached.
                                self.apply(std::mem::take(&mut changes)).await;
                                drop(reply.send(self.sweep().await));
                            }
                            Command::Stop { reply } => {
                                queue.close();
                                self.apply(changes).await;
                                let _ = reply.send(self.stop().await);
                                return;
                            }
                        }
                    }
                }
                Woken::Made((address, Ok(netns))) => self.pool.made(Slot { address, netns }),
                Woken::Made((address, Err(error))) => self.not_made(address, error),
                Woken::Removed(removed) => self.buried(removed),
                Woken::Look => {
                    self.removal_fails = false;
                    if std::mem::replace(&mut quiet, true) {
                        self.dying.extend(self.pool.calm().into_iter().map(|slot| unused(slot.address)));
                    }
                    self.look_after_table().await;
                    if let Err(error) = self.look_after_gateway().await {
                        tracing::error!(%error, "the gateway's address and the routes are not looked after");
                    }
                }
            }
            self.attach(&mut changes);
            self.apply(changes).await;
            if let Err(error) = self.leases.save() {
                tracing::warn!(%error, "numbers may come back early after a restart");
            }
        }
        tracing::error!("a thread cannot return to the host's namespace, the network ends");
    }

    /// Has namespaces made where there are too few.
    fn order(&mut self) {
        for _ in 0..self.pool.short(self.waiting.len()) {
            let Some(address) = self.leases.take_address() else { break };
            if self.orders.try_send(address).is_err() {
                self.leases.release_address(address);
                break;
            }
            self.pool.ordered(address);
        }
        // Whoever waits for an address must be sure that one may come.
        if self.pool.is_empty()
            && !self.numbers_may_come()
            && let Some(waiting) = self.waiting.pop_front()
        {
            let _ = waiting.reply.send(Err(NetworkError::NoAddress(self.config.pool)));
        }
    }

    fn numbers_may_come(&self) -> bool {
        !self.removing.is_empty() || (!self.dying.is_empty() && !self.removal_fails)
    }

    fn not_made(&mut self, address: Ipv4Addr, error: NetworkError) {
        self.astray = matches!(error, NetworkError::NamespaceLost(_));
        self.pool.failed(address);
        self.dying.push(unused(address));
        match self.waiting.pop_front() {
            Some(waiting) => drop(waiting.reply.send(Err(error))),
            None => tracing::warn!(%error, "no namespace made ahead"),
        }
    }

    /// Gives those who wait what there is.
    fn attach(&mut self, changes: &mut Vec<Change>) {
        while let Some(Waiting { id, demand, reply }) = self.waiting.pop_front() {
            if reply.is_closed() {
                continue;
            }
            if self.leases.holds(&id) {
                let _ = reply.send(Err(NetworkError::AlreadyAttached(id)));
                continue;
            }
            let Some(slot) = self.pool.take() else {
                self.waiting.push_front(Waiting { id, demand, reply });
                return;
            };
            let gateway = self.config.pool.gateway();
            // A port that someone listens on would be taken away from them by the rules.
            let free = |port| TcpListener::bind((gateway, port)).is_ok();
            let host_port = if demand.listens { self.leases.take_port(free) } else { None };
            if demand.listens && host_port.is_none() {
                self.pool.give_back(slot);
                if self.numbers_may_come() {
                    self.waiting.push_front(Waiting { id, demand, reply });
                    return;
                }
                let (first, last) = self.config.ports;
                let _ = reply.send(Err(NetworkError::NoPort { first, last }));
                continue;
            }
            reach::tell_unreachable("an instance's spec", demand.grants.iter().map(|grant| *grant.ip()));
            let Slot { address, netns } = slot;
            let allocation = Allocation { address, host_port, link: link::name(address) };
            let entry = Entry::new(allocation, demand);
            self.leases.hold(id, entry.clone());
            changes.push(Change::Attach { id, entry, netns, reply });
        }
    }

    fn adopt(&mut self, saved: Saved) -> Result<Option<Entry>, NetworkError> {
        let link = &saved.allocation.link;
        if link::index(link)?.is_none() {
            return Err(NetworkError::LinkGone { id: saved.id, link: link.clone() });
        }
        self.leases.adopt(saved)
    }

    fn restore(&mut self, saved: Saved, reply: Reply<()>, changes: &mut Vec<Change>) {
        let id = saved.id;
        match self.adopt(saved) {
            Ok(Some(entry)) => changes.push(Change::Restore { id, entry, reply }),
            Ok(None) => drop(reply.send(Ok(()))),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn detach(&mut self, id: InstanceId, reply: Reply<()>, changes: &mut Vec<Change>) {
        self.waiting.retain(|waiting| waiting.id != id);
        match self.leases.forget(&id) {
            Some(entry) => changes.push(Change::Detach { id, entry, reply: Some(reply) }),
            None => drop(reply.send(Ok(()))),
        }
    }

    /// Gives the remover what there is, when it has nothing.
    fn bury(&mut self) {
        if self.dying.is_empty() || !self.removing.is_empty() || self.removal_fails {
            return;
        }
        let names = self.dying.iter().map(|allocation| allocation.link.clone()).collect();
        if self.remover.try_send(names).is_ok() {
            self.removing = std::mem::take(&mut self.dying);
        }
    }

    fn buried(&mut self, removed: remover::Removed) {
        let batch = std::mem::take(&mut self.removing);
        match removed {
            Ok(()) => batch.iter().for_each(|allocation| self.leases.release(allocation)),
            Err(error) => {
                tracing::warn!(%error, links = batch.len(), "links not removed, trying again");
                self.removal_fails = true;
                self.dying.extend(batch);
            }
        }
    }

    async fn sweep(&mut self) -> Result<usize, NetworkError> {
        let known: HashSet<String> = self
            .leases
            .entries()
            .map(|entry| entry.allocation.link.clone())
            .chain(self.pool.links())
            .chain(self.dying.iter().chain(&self.removing).map(|allocation| allocation.link.clone()))
            .collect();
        let mut strays = self.links.in_group(self.rules.group()).await?;
        strays.retain(|name| !known.contains(name));
        self.links.remove_all(&strays, self.rules.dead_group()).await?;
        for address in strays.iter().filter_map(|name| link::address(name)) {
            self.leases.release_address(address);
        }
        self.leases.release_gone(|address| !matches!(link::index(&link::name(address)), Ok(None)));
        Ok(strays.len())
    }

    async fn stop(&mut self) -> Result<(), NetworkError> {
        self.waiting.clear();
        // What is being made would come after all has gone.
        while self.pool.is_making() {
            match self.made.recv().await {
                Some((address, Ok(netns))) => self.pool.made(Slot { address, netns }),
                Some((address, Err(_))) => self.pool.failed(address),
                None => break,
            }
        }
        self.pool.clear();
        // Links first: without the table they would be unguarded. The first error is told, the rest
        // is tried all the same.
        let links = match self.links.in_group(self.rules.group()).await {
            Ok(names) => self.links.remove_all(&names, self.rules.dead_group()).await,
            Err(error) => Err(error),
        };
        let table = nft::apply("remove the table", &self.rules.none()).await;
        let host = self.links.clear_host(self.rules.group()).await;
        links.and(table).and(host)
    }

    async fn rebuild(&self, operation: &'static str) -> Result<(), NetworkError> {
        nft::apply(operation, &self.rules.whole(self.leases.entries())).await
    }

    /// Without its address nobody reaches a container, nor with it one whose route is gone.
    async fn look_after_gateway(&mut self) -> Result<(), NetworkError> {
        let gateway = self.config.pool.gateway();
        // A list of all addresses would have the kernel go through all links. Where any address may be bound
        // (`net.ipv4.ip_nonlocal_bind`), it takes until the next look at all of it.
        let bound = UdpSocket::bind((gateway, 0));
        let gone = bound.is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable);
        if gone {
            tracing::warn!(%gateway, "the gateway's address is gone, making it anew");
        }
        self.looks += 1;
        if !gone && self.looks < LOOKS_AT_ROUTES {
            return Ok(());
        }
        self.looks = 0;
        self.links.prepare_host(self.config.pool, self.rules.group()).await?;
        let held = self.leases.entries().map(|entry| entry.allocation.address);
        if self.links.lead_to(held.chain(self.pool.addresses())).await? {
            return Ok(());
        }
        self.look_after_routes().await
    }

    async fn look_after_routes(&self) -> Result<(), NetworkError> {
        let restored = self.links.restore_routes(self.rules.group(), self.config.pool).await?;
        if restored > 0 {
            tracing::warn!(restored, "routes to containers were gone");
        }
        Ok(())
    }

    /// `nft flush ruleset`, or a restart of the host's firewall, would leave containers unguarded.
    async fn look_after_table(&mut self) {
        if let Err(error) = self.nfnetlink.probe(self.rules.table(), PROBE) {
            tracing::warn!(%error, "table is gone, making it anew");
            if let Err(error) = self.rebuild("make the table anew").await {
                tracing::error!(%error, "table not made anew");
            }
        }
    }
}

/// What a namespace holds that no container got.
fn unused(address: Ipv4Addr) -> Allocation {
    Allocation { address, host_port: None, link: link::name(address) }
}
