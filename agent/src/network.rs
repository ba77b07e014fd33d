//! The network of a node: an address, a namespace and a host port for every container, and the one
//! nftables table that says who may talk to whom.
//!
//! Containers hang on routed veth pairs with /32 addresses, no bridge. Invariants: a packet crosses
//! only if a rule allows it, from the first moment a link exists; nothing of other tables, links or
//! routes is touched; an address or port is handed to a second container only after the first one's
//! link and rules are gone. [`Network`] is a handle: one thread (`worker`) decides, one makes namespaces
//! ahead and one removes links behind, all in the network namespace of the caller of [`Network::start`].

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use mogok_api::id::InstanceId;
use mogok_api::instance::{ContainerKind, InstanceSpec};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

mod element;
mod error;
mod feature;
mod gateway;
mod lease;
mod link;
mod maker;
pub mod name;
mod namespace;
mod nfnetlink;
mod nft;
mod pool;
mod reach;
mod remover;
mod resolver;
mod rotation;
mod routes;
mod ruleset;
mod subnet;
pub mod survey;
mod sysctl;
mod worker;

pub use error::NetworkError;
pub use feature::{FEATURES, Feature};
pub use subnet::{InvalidSubnet, Subnet};

/// The port every container listens on, in its own namespace.
pub const CONTAINER_PORT: u16 = 5000;
/// Requests that may wait for the worker before callers wait to ask.
const QUEUE: usize = 256;

/// What containers may reach beside what is granted to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Nothing.
    Deny,
    /// Public addresses, and the host's DNS resolvers. Turns on `net.ipv4.ip_forward`.
    Internet,
}

/// The settings of a node's network.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Container addresses; the first one is the gateway's.
    pub pool: Subnet,
    /// First and last host port, both included, for containers that listen.
    pub ports: (u16, u16),
    pub egress: Egress,
    /// What builds may reach (the gem mirror): addresses of this host; of others only where the host
    /// forwards.
    pub build_grants: Vec<SocketAddrV4>,
    /// Megabits per second that a container may send, and as many that it may receive.
    pub bandwidth: NonZeroU32,
    /// Connections that a container has opened and that the host still tracks, at most.
    pub connections: NonZeroU32,
    /// The DNS servers that containers may ask, 3 at most. Without any: the host's under
    /// [`Egress::Internet`], none under [`Egress::Deny`].
    pub resolvers: Vec<Ipv4Addr>,
    /// Name of the nftables table (family inet), this agent's alone: `[a-z][a-z0-9_]*`, 31 at most.
    pub table: String,
    /// Where the place in the rotation of addresses and ports is kept over restarts.
    pub state_dir: PathBuf,
}

impl NetworkConfig {
    /// How many containers can be attached at once.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        let ports = u32::from(self.ports.1.saturating_sub(self.ports.0)) + 1;
        ports.min(self.pool.containers())
    }

    /// # Errors
    /// The first setting that no network can be made by.
    pub fn check(&self) -> Result<(), NetworkError> {
        let name = self.table.as_bytes();
        let legal = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
        if name.len() > 31 || !name.first().is_some_and(u8::is_ascii_lowercase) || !name.iter().all(legal) {
            return Err(NetworkError::InvalidTable(self.table.clone()));
        }
        if self.ports.0 == 0 || self.ports.0 > self.ports.1 {
            return Err(NetworkError::InvalidPorts { first: self.ports.0, last: self.ports.1 });
        }
        if self.resolvers.len() > resolver::MAX {
            return Err(NetworkError::TooManyResolvers(self.resolvers.len()));
        }
        if let Some(address) = self.resolvers.iter().find(|address| !resolver::is_usable(**address)) {
            return Err(NetworkError::InvalidResolver(*address));
        }
        Ok(())
    }
}

/// What a container is to have of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    pub kind: ContainerKind,
    /// A host port leads to it.
    pub listens: bool,
    /// What it alone may reach by TCP, beside what its kind may: addresses of this host; of others only where the
    /// host forwards.
    pub grants: BTreeSet<SocketAddrV4>,
}

impl Demand {
    #[must_use]
    pub fn new(kind: ContainerKind, listens: bool) -> Self {
        Self { kind, listens, grants: BTreeSet::new() }
    }

    #[must_use]
    pub fn of(spec: &InstanceSpec) -> Self {
        Self { kind: spec.kind, listens: spec.listens, grants: spec.grants.clone() }
    }
}

/// What a container holds of the node. Kept by the caller, who hands it back after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    pub address: Ipv4Addr,
    /// On the gateway address; leads to the container's port 5000.
    pub host_port: Option<u16>,
    /// The host's end of its veth pair.
    pub link: String,
}

/// A network namespace that is ready for a container.
#[derive(Debug)]
pub struct Attachment {
    /// Keeps the namespace alive until a process is in it.
    pub netns: OwnedFd,
    pub allocation: Allocation,
}

/// A container that had a network before the agent restarted.
#[derive(Debug, Clone)]
pub struct Saved {
    pub id: InstanceId,
    pub demand: Demand,
    pub allocation: Allocation,
}

/// The node's network. Dropping it leaves containers' links and rules in place, for the next start.
#[derive(Debug)]
pub struct Network {
    gateway: Ipv4Addr,
    resolvers: Vec<Ipv4Addr>,
    commands: mpsc::Sender<worker::Command>,
}

impl Network {
    /// Makes the gateway address, the pool's blackhole route and the table, whole, without containers.
    pub async fn start(config: &NetworkConfig) -> Result<Self, NetworkError> {
        Ok(Self::start_with(config, Vec::new()).await?.0)
    }

    /// The same with the containers that live on: they are in the table from its first moment, so their
    /// connections do not notice. Also answers which of them have no link any more.
    pub async fn start_with(
        config: &NetworkConfig,
        saved: Vec<Saved>,
    ) -> Result<(Self, Vec<InstanceId>), NetworkError> {
        config.check()?;
        let resolvers = match config.egress {
            _ if !config.resolvers.is_empty() => config.resolvers.clone(),
            Egress::Deny => Vec::new(),
            Egress::Internet => resolver::of_host(),
        };
        let (commands, queue) = mpsc::channel(QUEUE);
        let (started, outcome) = oneshot::channel();
        worker::spawn(config.clone(), resolvers.clone(), saved, queue, started)?;
        let lost = outcome.await.map_err(|_| NetworkError::Stopped)??;
        Ok((Self { gateway: config.pool.gateway(), resolvers, commands }, lost))
    }

    /// The address of the host that containers see, and on which host ports are reached.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// The DNS servers that containers may ask.
    #[must_use]
    pub fn resolvers(&self) -> &[Ipv4Addr] {
        &self.resolvers
    }

    /// A namespace with a link of its own, a host port where the container listens, and its rules.
    pub async fn attach(&self, id: InstanceId, demand: Demand) -> Result<Attachment, NetworkError> {
        self.ask(|reply| worker::Command::Attach { id, demand, reply }).await
    }

    /// Takes back what a container held before the agent restarted. Doing it twice is doing it once.
    pub async fn restore(
        &self,
        id: InstanceId,
        demand: Demand,
        saved: &Allocation,
    ) -> Result<(), NetworkError> {
        let saved = Saved { id, demand, allocation: saved.clone() };
        self.ask(|reply| worker::Command::Restore { saved, reply }).await
    }

    /// Takes the rules away; from then on nothing passes. The link goes in the background, within moments,
    /// and address and port are free only after it. Does nothing for an unknown instance.
    pub async fn detach(&self, id: InstanceId) -> Result<(), NetworkError> {
        self.ask(|reply| worker::Command::Detach { id, reply }).await
    }

    /// Removes links of this agent that belong to no known container. For after the restores.
    /// Answers how many there were.
    pub async fn sweep(&self) -> Result<usize, NetworkError> {
        self.ask(|reply| worker::Command::Sweep { reply }).await
    }

    /// Gives the node back: table, links, route and gateway address go, containers lose their network.
    /// What cannot be removed is in the log.
    pub async fn stop(&self) {
        let stopped = self.ask(|reply| worker::Command::Stop { reply }).await;
        if let Err(error) = stopped {
            tracing::warn!(%error, "network not stopped");
        }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, NetworkError>>) -> worker::Command,
    ) -> Result<T, NetworkError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| NetworkError::Stopped)?;
        answer.await.map_err(|_| NetworkError::Stopped)?
    }
}
