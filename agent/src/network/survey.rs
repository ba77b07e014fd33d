//! Is the address pool free on this host? Asked before an agent changes anything there.
//!
//! Another agent's pool would be cut off by this one's table, and the network that the host itself is in would lose
//! addresses to containers.

use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};

use super::gateway::Gateways;
use super::link::Links;
use super::{NetworkConfig, NetworkError, Subnet, name};

/// Networks that a host has neighbours in are not larger.
const LAN: u8 = 16;

/// # Errors
/// When something of the host's, or of another agent's, is in the pool. `used` says that the agent has worked with this
/// pool before: a network that the host came into later does not keep it from going on.
pub async fn pool(config: &NetworkConfig, used: bool) -> Result<(), NetworkError> {
    let pool = config.pool;
    let links = Links::open()?;
    let taken = |by: String| Err(NetworkError::PoolTaken { pool, by });
    let addresses = links.addresses().await?;
    let mut own = Gateways::of(name::group(&config.table), &addresses);
    let anybody = Gateways::of_anybody(&addresses);
    for address in anybody.addresses.iter().copied() {
        if pool.has(address) && !own.addresses.contains(&address) {
            return taken(format!("the host's address {address}"));
        }
    }
    if used {
        // It may have been taken away since.
        own.addresses.push(pool.gateway());
    }
    for route in links.routes().await?.iter().filter(|route| !own.has(route)) {
        let used = own.addresses.contains(&pool.gateway());
        if let Some(destination) = in_the_way(route, pool, used, anybody.has(route)) {
            return taken(format!("the host's route to {destination}"));
        }
    }
    Ok(())
}

/// The destination of a route that overlaps the pool. One that is wider may, for what has a container is nearer; but not
/// that of another agent's pool, nor that of a network that the host is in, unless it came later.
fn in_the_way(route: &RouteMessage, pool: Subnet, used: bool, agents: bool) -> Option<String> {
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
    let near = route.header.kind == RouteType::Unicast && route.header.scope == RouteScope::Link;
    let far = wider && !agents && (used || !near || prefix < LAN);
    (prefix > 0 && overlaps && !far).then(|| format!("{destination}/{prefix}"))
}
