//! The thread that owns the node's network: the only one that runs nft and speaks rtnetlink, one
//! request after the other. While nobody asks, it makes namespaces ahead and looks after its table.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use mogok_api::id::InstanceId;
use mogok_api::instance::ContainerKind;
use tokio::runtime::Builder;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::lease::Leases;
use super::link::{self, Links};
use super::ruleset::{Entry, Ruleset};
use super::{Allocation, Attachment, Egress, NetworkConfig, NetworkError, Saved, namespace, nft, sysctl};

/// Namespaces kept ready. One costs about 200 KB of kernel memory and takes milliseconds to make.
const READY: usize = 4;
/// Between two looks at the table, and after a namespace that could not be made.
const LOOK: Duration = Duration::from_secs(5);

type Reply<T> = oneshot::Sender<Result<T, NetworkError>>;

#[derive(Debug)]
pub(super) enum Command {
    Attach { id: InstanceId, kind: ContainerKind, listens: bool, reply: Reply<Attachment> },
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

/// A namespace with its link, waiting for a container.
#[derive(Debug)]
struct Slot {
    address: Ipv4Addr,
    netns: OwnedFd,
}

#[derive(Debug)]
struct Worker {
    config: NetworkConfig,
    rules: Ruleset,
    leases: Leases,
    links: Links,
    /// The namespace of the host, where this thread always is between two requests.
    home: OwnedFd,
    ready: VecDeque<Slot>,
    /// It could not return home once: whatever it did now would happen in a container's namespace.
    astray: bool,
}

impl Worker {
    async fn start(
        config: NetworkConfig,
        resolvers: Vec<Ipv4Addr>,
        saved: Vec<Saved>,
    ) -> Result<(Self, Vec<InstanceId>), NetworkError> {
        let home = namespace::current()?;
        let links = Links::open().map_err(|source| NetworkError::Netlink {
            operation: "open",
            subject: "rtnetlink".into(),
            source,
        })?;
        let rules = Ruleset::new(&config, resolvers);
        let existing = links.in_group(rules.group()).await?;
        let leases = Leases::open(&config, existing.iter().filter_map(|name| link::address(name)))?;
        links.prepare_host(config.pool).await?;
        let mut worker = Self { config, rules, leases, links, home, ready: VecDeque::new(), astray: false };
        let mut lost = Vec::new();
        for saved in saved {
            let id = saved.id;
            if let Err(error) = worker.adopt(saved) {
                tracing::warn!(instance = %id, %error, "network of a container is lost");
                lost.push(id);
            }
        }
        worker.rebuild("make the table").await?;
        // Only now: there must be no moment in which the host forwards and nothing is refused.
        if worker.config.egress == Egress::Internet {
            sysctl::enable_forwarding()?;
        }
        Ok((worker, lost))
    }

    async fn serve(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut refill = true;
        while !self.astray {
            let short = refill && self.ready.len() < READY;
            let command = if short {
                match queue.try_recv() {
                    Ok(command) => Some(command),
                    Err(TryRecvError::Disconnected) => return,
                    Err(TryRecvError::Empty) => {
                        match self.make_slot().await {
                            Ok(slot) => self.ready.push_back(slot),
                            // Whoever needs one will make it, and hear why not.
                            Err(error) => {
                                tracing::warn!(%error, "no namespace made ahead");
                                refill = false;
                            }
                        }
                        continue;
                    }
                }
            } else {
                match tokio::time::timeout(LOOK, queue.recv()).await {
                    Ok(Some(command)) => Some(command),
                    Ok(None) => return,
                    Err(_) => None,
                }
            };
            match command {
                Some(Command::Stop { reply }) => {
                    queue.close();
                    let _ = reply.send(self.stop().await);
                    return;
                }
                Some(Command::Attach { id, kind, listens, reply }) => {
                    let answer = self.attach(id, kind, listens).await;
                    if let Err(Ok(_)) = reply.send(answer) {
                        // Its namespace is closed with the answer, so the rest must not stay behind.
                        if let Err(error) = self.detach(id).await {
                            tracing::warn!(instance = %id, %error, "network of an abandoned start not removed");
                        }
                    }
                }
                // An asker that has gone away leaves its answer unread; what was done stays done.
                Some(Command::Restore { saved, reply }) => drop(reply.send(self.restore(saved).await)),
                Some(Command::Detach { id, reply }) => drop(reply.send(self.detach(id).await)),
                Some(Command::Sweep { reply }) => drop(reply.send(self.sweep().await)),
                None => {
                    refill = true;
                    self.look_after_table().await;
                }
            }
        }
        tracing::error!("network thread cannot return to the host's namespace, and ends");
    }

    async fn attach(
        &mut self,
        id: InstanceId,
        kind: ContainerKind,
        listens: bool,
    ) -> Result<Attachment, NetworkError> {
        if self.leases.holds(&id) {
            return Err(NetworkError::AlreadyAttached(id));
        }
        let slot = match self.ready.pop_front() {
            Some(slot) => slot,
            None => self.make_slot().await?,
        };
        let host_port = if listens {
            let gateway = self.config.pool.gateway();
            // A port that someone listens on would be taken away from them by the rules.
            match self.leases.take_port(|port| TcpListener::bind((gateway, port)).is_ok()) {
                Ok(Some(port)) => Some(port),
                other => {
                    self.ready.push_front(slot);
                    let (first, last) = self.config.ports;
                    return Err(other.err().unwrap_or(NetworkError::NoPort { first, last }));
                }
            }
        } else {
            None
        };
        let Slot { address, netns } = slot;
        let allocation = Allocation { address, host_port, link: link::name(address) };
        let entry = Entry { allocation: allocation.clone(), build: kind == ContainerKind::Build };
        self.leases.hold(id, entry.clone());
        if let Err(error) = self.update("add a container", &self.rules.add(&entry)).await {
            self.leases.forget(&id);
            if let Some(port) = host_port {
                self.leases.release_port(port);
            }
            self.ready.push_front(Slot { address, netns });
            return Err(error);
        }
        Ok(Attachment { netns, allocation })
    }

    fn adopt(&mut self, saved: Saved) -> Result<Option<Entry>, NetworkError> {
        let link = &saved.allocation.link;
        if link::index(link).is_none() {
            return Err(NetworkError::LinkGone { id: saved.id, link: link.clone() });
        }
        self.leases.adopt(saved)
    }

    async fn restore(&mut self, saved: Saved) -> Result<(), NetworkError> {
        let id = saved.id;
        let Some(entry) = self.adopt(saved)? else { return Ok(()) };
        let updated = self.update("add a container", &self.rules.add(&entry)).await;
        if updated.is_err() {
            self.leases.forget(&id);
            self.leases.release(&entry.allocation);
        }
        updated
    }

    async fn detach(&mut self, id: InstanceId) -> Result<(), NetworkError> {
        let Some(entry) = self.leases.forget(&id) else { return Ok(()) };
        let removed = match self.update("remove a container", &self.rules.remove(&entry)).await {
            Ok(()) => self.links.remove(&entry.allocation.link).await,
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => self.leases.release(&entry.allocation),
            // Held on, so that the caller can try again and nobody gets the numbers meanwhile.
            Err(_) => self.leases.hold(id, entry),
        }
        removed
    }

    async fn sweep(&mut self) -> Result<usize, NetworkError> {
        let mut swept = 0;
        for name in self.links.in_group(self.rules.group()).await? {
            let held = self.leases.entries().any(|entry| entry.allocation.link == name);
            let waiting = self.ready.iter().any(|slot| link::name(slot.address) == name);
            if !held && !waiting {
                self.links.remove(&name).await?;
                if let Some(address) = link::address(&name) {
                    self.leases.release_address(address);
                }
                swept += 1;
            }
        }
        self.leases.release_gone(|address| link::index(&link::name(address)).is_some());
        Ok(swept)
    }

    async fn stop(&mut self) -> Result<(), NetworkError> {
        self.ready.clear();
        // Links first: without the table they would be unguarded. The first error is told, the rest
        // is tried all the same.
        let links = match self.links.in_group(self.rules.group()).await {
            Ok(names) => {
                let mut outcome = Ok(());
                for name in names {
                    outcome = outcome.and(self.links.remove(&name).await);
                }
                outcome
            }
            Err(error) => Err(error),
        };
        let table = nft::apply("remove the table", &self.rules.none()).await;
        let host = self.links.clear_host(self.config.pool).await;
        links.and(table).and(host)
    }

    async fn make_slot(&mut self) -> Result<Slot, NetworkError> {
        let address = self.leases.take_address()?.ok_or(NetworkError::NoAddress(self.config.pool))?;
        match self.build(address).await {
            Ok(netns) => Ok(Slot { address, netns }),
            Err(error) => {
                self.astray = matches!(error, NetworkError::NamespaceLost(_));
                match self.links.remove(&link::name(address)).await {
                    Ok(()) => self.leases.release_address(address),
                    Err(error) => tracing::warn!(%address, %error, "half-made link not removed"),
                }
                Err(error)
            }
        }
    }

    /// Until its element is in the table, the rules drop all that comes from this link.
    async fn build(&self, address: Ipv4Addr) -> Result<OwnedFd, NetworkError> {
        let gateway = self.config.pool.gateway();
        let name = link::name(address);
        let (netns, inside) = namespace::create(&self.home)?;
        self.links.add_pair(address, self.rules.group(), netns.as_fd()).await?;
        sysctl::disable_ipv6(&name)?;
        let index = link::index(&name).ok_or_else(|| NetworkError::Netlink {
            operation: "find link",
            subject: name,
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        self.links.route_to(address, index, gateway).await?;
        inside.prepare_inside(address, gateway).await?;
        Ok(netns)
    }

    async fn rebuild(&self, operation: &'static str) -> Result<(), NetworkError> {
        nft::apply(operation, &self.rules.whole(self.leases.entries())).await
    }

    /// Changes single elements. Where that fails the table is not what we believe (someone flushed the
    /// rules), so it is made anew from what we know.
    async fn update(&self, operation: &'static str, script: &str) -> Result<(), NetworkError> {
        let Err(error) = nft::apply(operation, script).await else { return Ok(()) };
        tracing::warn!(%error, "table does not take a change, making it anew");
        self.rebuild("make the table anew").await
    }

    /// `nft flush ruleset`, or a restart of the host's firewall, would leave containers unguarded.
    async fn look_after_table(&self) {
        if let Err(error) = nft::query("look for the table", &self.rules.probe()).await {
            tracing::warn!(%error, "table is gone, making it anew");
            if let Err(error) = self.rebuild("make the table anew").await {
                tracing::error!(%error, "table not made anew");
            }
        }
    }
}
