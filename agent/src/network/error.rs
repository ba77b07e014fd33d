//! Why the network could not do what it was asked: each names its subject, and what to do where somebody can.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use mogok_api::id::InstanceId;

use super::Subnet;

/// Why the network could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("nftables table name {0:?}: use a-z, then a-z, 0-9 and '_', 31 at most")]
    InvalidTable(String),
    #[error("host ports {first}-{last}: the first must be 1 or more and not above the last")]
    InvalidPorts { first: u16, last: u16 },
    #[error("{0} DNS resolvers: a container's libc asks 3 at most")]
    TooManyResolvers(usize),
    #[error("DNS resolver {0}: in a container that is not the host; name an address that others can reach")]
    InvalidResolver(Ipv4Addr),
    #[error("address pool {pool}: {by} is in it: give --pool another network, for example 10.89.0.0/16")]
    PoolTaken { pool: Subnet, by: String },
    #[error("{name}: {remedy}: {message}")]
    MissingFeature { name: &'static str, remedy: &'static str, message: String },
    #[error("nft, {operation}")]
    NftStart { operation: &'static str, source: io::Error },
    #[error("nft, {operation}: {message}")]
    Nft { operation: &'static str, message: String },
    #[error("nft, {operation}: no answer within {seconds} s")]
    NftTimeout { operation: &'static str, seconds: u64 },
    #[error("{operation} {subject}")]
    Netlink { operation: &'static str, subject: String, source: io::Error },
    #[error("network namespace: {operation}")]
    Namespace { operation: &'static str, source: io::Error },
    #[error("network namespace: return to the host's")]
    NamespaceLost(#[source] io::Error),
    #[error("write {value:?} to {}", path.display())]
    Sysctl { path: PathBuf, value: &'static str, source: io::Error },
    #[error("keep the rotation in {}", path.display())]
    Rotation { path: PathBuf, source: io::Error },
    #[error("no address is free in {0}: stop containers or set a larger pool")]
    NoAddress(Subnet),
    #[error("no host port is free in {first}-{last}: stop containers or set a larger range")]
    NoPort { first: u16, last: u16 },
    #[error("instance {0} already has a network")]
    AlreadyAttached(InstanceId),
    #[error("link {link} of instance {id} is gone: the container must be started anew")]
    LinkGone { id: InstanceId, link: String },
    #[error("{what} of instance {id} lies outside of this node's settings or belongs to another instance")]
    Conflict { id: InstanceId, what: String },
    #[error("nftables: {0}")]
    Table(String),
    #[error("make a network namespace: {0}")]
    Maker(String),
    #[error("start the network's thread")]
    Thread(#[source] io::Error),
    #[error("the network has been stopped")]
    Stopped,
}
