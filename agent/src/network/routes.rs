//! The host's way to each container: made with its link, and put back when somebody took it away (with the gateway's
//! address the kernel drops all of them, with a link that is turned off its own).

use std::collections::HashSet;
use std::net::Ipv4Addr;

use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};

use super::link::{self, Links};
use super::{NetworkError, Subnet};

impl Links {
    /// Is there a route to each of these by its link? Much cheaper than a list of links.
    pub(super) async fn lead_to(
        &self,
        mut addresses: impl Iterator<Item = Ipv4Addr>,
    ) -> Result<bool, NetworkError> {
        let there: HashSet<_> = self.routes().await?.iter().filter_map(to_one).collect();
        Ok(addresses.all(|address| {
            let index = link::index(&link::name(address));
            index.is_ok_and(|index| index.is_some_and(|index| there.contains(&(address, index))))
        }))
    }

    /// Turns the links of a group on and makes the routes to them, where they are missing; how many there were. Those of
    /// an earlier pool lead nowhere any more.
    pub(super) async fn restore_routes(&self, group: u32, pool: Subnet) -> Result<usize, NetworkError> {
        let there: HashSet<_> = self.routes().await?.iter().filter_map(to_one).collect();
        let (mut restored, mut failed) = (0, None);
        for (name, index) in self.numbered_in_group(group).await? {
            let Some(address) = link::address(&name) else { continue };
            if there.contains(&(address, index)) || !pool.has(address) {
                continue;
            }
            let made = match self.turn_on(index, &name).await {
                Ok(()) => self.route_to(address, index, pool.gateway()).await,
                Err(error) => Err(error),
            };
            match made {
                Ok(()) => restored += 1,
                // It went in this moment, and needs no route.
                Err(_) if matches!(link::index(&name), Ok(None)) => {}
                // The others are not to wait for this one.
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(restored), Err)
    }
}

/// The single address that a route of the main table leads to, and by which link.
fn to_one(route: &RouteMessage) -> Option<(Ipv4Addr, u32)> {
    let (mut address, mut index) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(to)) => address = Some(*to),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            _ => {}
        }
    }
    let header = &route.header;
    let main = header.destination_prefix_length == 32 && header.table == RouteHeader::RT_TABLE_MAIN;
    main.then_some((address?, index?))
}
