//! Is the address pool free on this host? Asked before an agent changes anything there.
//!
//! Another agent's pool would be cut off by this one's table, and the network that the host itself is in would lose
//! addresses to containers.

use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};

use super::link::{Links, into_io};
use super::{NetworkError, Subnet};

/// Networks that a host has neighbours in are not larger.
const LAN: u8 = 16;

/// # Errors
/// When something of the host's, or of another agent's, is in the pool. `ours` says that an earlier agent of this
/// state directory may have used it, whose gateway address and routes are there.
pub async fn pool(pool: Subnet, ours: bool) -> Result<(), NetworkError> {
    let links = Links::open()?;
    let failed = |operation: &'static str| {
        move |error| NetworkError::Netlink { operation, subject: pool.to_string(), source: into_io(error) }
    };
    let taken = |by: String| Err(NetworkError::PoolTaken { pool, by });
    let mut addresses = links.handle().address().get().execute();
    while let Some(message) = addresses.try_next().await.map_err(failed("list addresses for"))? {
        for attribute in message.attributes {
            if let AddressAttribute::Local(std::net::IpAddr::V4(address)) = attribute
                && pool.has(address)
                && !(ours && address == pool.gateway())
            {
                return taken(format!("the host's address {address}"));
            }
        }
    }
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut routes = links.handle().route().get(all).execute();
    while let Some(route) = routes.try_next().await.map_err(failed("list routes for"))? {
        if let Some(destination) = in_the_way(&route, pool, ours) {
            return taken(format!("the host's route to {destination}"));
        }
    }
    Ok(())
}

/// The destination of a route that overlaps the pool. One that is wider may, for what has a container is nearer; but not
/// that of a network that the host is in, unless it came later.
fn in_the_way(route: &RouteMessage, pool: Subnet, ours: bool) -> Option<String> {
    let prefix = route.header.destination_prefix_length;
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })?;
    let wider = prefix < pool.prefix();
    let overlaps = if wider {
        u32::from(destination) == u32::from(pool.base()) & !(u32::MAX.checked_shr(prefix.into()).unwrap_or(0))
    } else {
        pool.has(destination)
    };
    let own = ours && !wider && (route.header.kind == RouteType::BlackHole || prefix == 32);
    let near = route.header.kind == RouteType::Unicast && route.header.scope == RouteScope::Link;
    let far = wider && (ours || !near || prefix < LAN);
    (prefix > 0 && overlaps && !own && !far).then(|| format!("{destination}/{prefix}"))
}
