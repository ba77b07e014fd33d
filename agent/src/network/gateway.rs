//! The host's end of the pool: the gateway's address on the loopback interface, and a route that swallows what has no
//! container.
//!
//! Invariant: the address bears a label made of the agent's table name, and outlives the route; so what an agent left
//! here is known for its own whatever became of its settings. Sources: rtnetlink(7), ip-address(8) (`label`).

use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder};

use super::link::{LOOPBACK, LOOPBACK_INDEX, Links, at, into_io, unless};
use super::{NetworkError, Subnet};

/// What an agent has, or had, for its gateway's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gateways {
    label: String,
    pub(super) addresses: Vec<Ipv4Addr>,
}

/// The label of the addresses of the agent whose links are in `group`: 15 characters at most, `lo:` first.
fn label(group: u32) -> String {
    format!("{LOOPBACK}:{group:08x}")
}

fn blackhole(pool: Subnet) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(pool.base(), pool.prefix())
        .kind(RouteType::BlackHole)
        .build()
}

fn address(gateway: Ipv4Addr, label: &str) -> AddressMessage {
    let mut message =
        AddressMessageBuilder::<Ipv4Addr>::new().index(LOOPBACK_INDEX).address(gateway, 32).build();
    message.attributes.push(AddressAttribute::Label(label.to_owned()));
    message
}

fn local(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(std::net::IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

impl Gateways {
    /// Out of the addresses of the host.
    pub(super) fn of(group: u32, addresses: &[AddressMessage]) -> Self {
        let label = label(group);
        let own = |message: &&AddressMessage| {
            message
                .attributes
                .iter()
                .any(|is| matches!(is, AddressAttribute::Label(other) if *other == label))
        };
        let addresses = addresses.iter().filter(own).filter_map(local).collect();
        Self { label, addresses }
    }

    /// Of all agents, and what else the host has for addresses.
    pub(super) fn of_anybody(addresses: &[AddressMessage]) -> Self {
        Self { label: String::new(), addresses: addresses.iter().filter_map(local).collect() }
    }

    /// The pool of a blackhole route of this agent's, or the way to one of its containers.
    pub(super) fn has(&self, route: &RouteMessage) -> bool {
        let attributes = &route.attributes;
        let destination = attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        });
        let source = attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        });
        if route.header.kind == RouteType::BlackHole {
            // The gateway's address is the first one of its pool.
            let gateway = destination.and_then(|base| u32::from(base).checked_add(1)).map(Ipv4Addr::from);
            return gateway.is_some_and(|gateway| self.addresses.contains(&gateway));
        }
        route.header.destination_prefix_length == 32
            && source.is_some_and(|source| self.addresses.contains(&source))
    }
}

impl Links {
    pub(super) async fn gateways(&self, group: u32) -> Result<Gateways, NetworkError> {
        Ok(Gateways::of(group, &self.addresses().await?))
    }

    /// Loopback up, the gateway's address and the route there, and those of an earlier pool gone.
    pub(super) async fn prepare_host(&self, pool: Subnet, group: u32) -> Result<(), NetworkError> {
        self.turn_on(LOOPBACK_INDEX, LOOPBACK).await?;
        let gateway = pool.gateway();
        let mut earlier = self.gateways(group).await?;
        earlier.addresses.retain(|address| *address != gateway);
        self.remove_gateways(&earlier).await?;
        let mut request = self.handle().address().add(LOOPBACK_INDEX, gateway.into(), 32);
        *request.message_mut() = address(gateway, &earlier.label);
        unless(Errno::EEXIST, request.execute().await).map_err(at("add the gateway address", gateway))?;
        let added = self.handle().route().add(blackhole(pool)).execute().await;
        unless(Errno::EEXIST, added).map_err(at("add the blackhole route", pool))
    }

    /// Undoes [`prepare_host`](Self::prepare_host), also that of earlier pools, but for the loopback.
    pub(super) async fn clear_host(&self, group: u32) -> Result<(), NetworkError> {
        self.remove_gateways(&self.gateways(group).await?).await
    }

    async fn remove_gateways(&self, gateways: &Gateways) -> Result<(), NetworkError> {
        if gateways.addresses.is_empty() {
            return Ok(());
        }
        let routes = self.routes().await?;
        let blackhole =
            |route: &RouteMessage| route.header.kind == RouteType::BlackHole && gateways.has(route);
        for route in routes.into_iter().filter(blackhole) {
            let removed = self.handle().route().del(route).execute().await;
            unless(Errno::ESRCH, removed).map_err(at("remove", "the blackhole route"))?;
        }
        for gateway in &gateways.addresses {
            let removed = self.handle().address().del(address(*gateway, &gateways.label)).execute().await;
            unless(Errno::EADDRNOTAVAIL, removed).map_err(at("remove the gateway address", gateway))?;
        }
        Ok(())
    }

    pub(super) async fn addresses(&self) -> Result<Vec<AddressMessage>, NetworkError> {
        let all = self.handle().address().get().execute().try_collect().await;
        all.map_err(into_io).map_err(at("list", "addresses"))
    }

    /// Of IPv4.
    pub(super) async fn routes(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let all = self.handle().route().get(all).execute().try_collect().await;
        all.map_err(into_io).map_err(at("list", "routes"))
    }
}
