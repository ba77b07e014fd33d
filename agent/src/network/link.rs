//! Links, addresses and routes by rtnetlink(7).
//!
//! Both ends of a veth pair carry the same link-layer address and speak no ARP: on an Ethernet device
//! with IFF_NOARP the kernel puts the device's own address into every frame, which is then the
//! other end's too. So there are no neighbours to resolve, to forge or to fill up.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage, State};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::NetworkError;

/// The container's end.
const INSIDE: &str = "eth0";
pub(super) const LOOPBACK_INDEX: u32 = 1;
pub(super) const LOOPBACK: &str = "lo";

/// A quarter of a second in all, which is far more than the link watch takes.
const SETTLE_LOOKS: u32 = 125;
const SETTLE_AGAIN: Duration = Duration::from_millis(2);

/// A netlink socket of one namespace.
#[derive(Debug, Clone)]
pub(super) struct Links {
    handle: Handle,
}

/// The host's end of the link of an address.
pub(super) fn name(address: Ipv4Addr) -> String {
    format!("mg{:08x}", u32::from(address))
}

/// The address of a link that [`name`] named.
pub(super) fn address(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_prefix("mg").filter(|digits| digits.len() == 8)?;
    u32::from_str_radix(digits, 16).ok().map(Ipv4Addr::from)
}

/// The index of a link in the calling thread's namespace; none when there is no such link.
///
/// # Errors
/// When the kernel cannot be asked: that is no sign that it is gone.
pub(super) fn index(name: &str) -> Result<Option<u32>, NetworkError> {
    match nix::net::if_::if_nametoindex(name) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(at("look for link", name)(errno.into())),
    }
}

fn mac(address: Ipv4Addr) -> Vec<u8> {
    let [a, b, c, d] = address.octets();
    // Locally administered, unicast.
    vec![0x02, 0x6d, a, b, c, d]
}

impl Links {
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// A socket in the calling thread's namespace, served by the calling thread's runtime.
    pub(super) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(at("open", "rtnetlink"))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Host: a veth pair, this end up and in `group`, the other end in `namespace`. The other end cannot
    /// be turned on yet: the kernel refuses (ENOTCONN) while its peer is being made.
    pub(super) async fn add_pair(
        &self,
        container: Ipv4Addr,
        group: u32,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), NetworkError> {
        let name = name(container);
        let inside = LinkUnspec::new_with_name(INSIDE)
            .address(mac(container))
            .setns_by_fd(namespace.as_raw_fd())
            .arp(false)
            .build();
        let pair = LinkVeth::new(&name, INSIDE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(inside)))
            .address(mac(container))
            .link_group(group)
            .arp(false)
            .up()
            .build();
        self.handle.link().add(pair).execute().await.map_err(into_io).map_err(at("add the veth pair", name))
    }

    /// Host: the way to a container, with the gateway as the host's own address.
    pub(super) async fn route_to(
        &self,
        container: Ipv4Addr,
        index: u32,
        gateway: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(container, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .pref_source(gateway)
            .build();
        // Replaces: a link that went in this moment may have left its route for a moment more.
        self.handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(into_io)
            .map_err(at("add the route to", container))
    }

    /// Inside: loopback, address, link and default route.
    pub(super) async fn prepare_inside(
        &self,
        container: Ipv4Addr,
        gateway: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        self.turn_on(LOOPBACK_INDEX, LOOPBACK).await?;
        let index = self.find(INSIDE).await?;
        self.turn_on(index, INSIDE).await?;
        let added = self.handle.address().add(index, container.into(), 32).execute().await;
        added.map_err(into_io).map_err(at("add the container's address", container))?;
        let route =
            RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).onlink().build();
        let added = self.handle.route().add(route).execute().await;
        added.map_err(into_io).map_err(at("add the container's default route via", gateway))
    }

    /// Host: waits until a link lets packets through. Its end is up before its peer is, so it gets its queue
    /// by the kernel's link watch, a little later, and what is sent to it before is lost without a word: the
    /// answer to a first question, which libc asks again after 5 s. Linux 6.8 and later do it on being asked.
    pub(super) async fn settle(&self, name: &str) -> Result<(), NetworkError> {
        for _ in 0..SETTLE_LOOKS {
            let found = self.handle.link().get().match_name(name).execute().try_next().await;
            let link = found.map_err(into_io).map_err(at("look at link", name))?;
            let up = |is: &LinkAttribute| matches!(is, LinkAttribute::OperState(State::Up));
            if link.is_none_or(|link| link.attributes.iter().any(up)) {
                return Ok(());
            }
            tokio::time::sleep(SETTLE_AGAIN).await;
        }
        tracing::debug!(link = name, "not up yet, its first packets may be lost");
        Ok(())
    }

    pub(super) async fn turn_on(&self, index: u32, name: &str) -> Result<(), NetworkError> {
        let change = LinkUnspec::new_with_index(index).up().build();
        let changed = self.handle.link().change(change).execute().await;
        changed.map_err(into_io).map_err(at("turn on link", name))
    }

    async fn find(&self, name: &str) -> Result<u32, NetworkError> {
        let found = self.handle.link().get().match_name(name).execute().try_next().await;
        found
            .map_err(into_io)
            .and_then(|link| link.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map(|link| link.header.index)
            .map_err(at("find link", name))
    }

    /// Removes a link; its other end and its routes go with it.
    pub(super) async fn remove(&self, name: &str) -> Result<(), NetworkError> {
        let link = LinkUnspec::new_with_name(name).build();
        let removed = self.handle.link().del_with_message(link).execute().await;
        unless(Errno::ENODEV, removed).map_err(at("remove link", name))
    }

    /// Removes links together: a single one makes the kernel wait for its readers as long as many do.
    /// `dead` is a group that has no other links; those of a call that failed go with the next.
    pub(super) async fn remove_all(&self, names: &[String], dead: u32) -> Result<(), NetworkError> {
        for name in names {
            let link = LinkUnspec::new_with_name(name).link_group(dead).build();
            let moved = self.handle.link().change(link).execute().await;
            unless(Errno::ENODEV, moved).map_err(at("put away link", name))?;
        }
        let mut group = LinkMessage::default();
        group.attributes.push(LinkAttribute::Group(dead));
        let removed = self.handle.link().del_with_message(group).execute().await;
        unless(Errno::ENODEV, removed).map_err(at("remove links of group", dead))
    }

    /// Names of the links in `group`.
    pub(super) async fn in_group(&self, group: u32) -> Result<Vec<String>, NetworkError> {
        Ok(self.numbered_in_group(group).await?.into_iter().map(|(name, _)| name).collect())
    }

    /// The same with the index of each.
    pub(super) async fn numbered_in_group(&self, group: u32) -> Result<Vec<(String, u32)>, NetworkError> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(into_io)
            .map_err(at("list links of group", group))?;
        let member = |link: &LinkMessage| {
            link.attributes.iter().any(|is| matches!(is, LinkAttribute::Group(g) if *g == group))
        };
        let name_of = |link: LinkMessage| {
            let index = link.header.index;
            link.attributes.into_iter().find_map(|is| match is {
                LinkAttribute::IfName(name) => Some((name, index)),
                _ => None,
            })
        };
        Ok(links.into_iter().filter(member).filter_map(name_of).collect())
    }
}

pub(super) fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// Takes an answer that says the work was done before for success.
pub(super) fn unless(done: Errno, result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    result
        .map_err(into_io)
        .or_else(|error| if error.raw_os_error() == Some(done as i32) { Ok(()) } else { Err(error) })
}

pub(super) fn at(operation: &'static str, subject: impl ToString) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Netlink { operation, subject: subject.to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_named_after_its_address() {
        let container = Ipv4Addr::new(10, 88, 0, 255);
        assert_eq!(name(container), "mg0a5800ff");
        assert_eq!(address("mg0a5800ff"), Some(container));
        assert_eq!(address("mg0a58"), None);
        assert_eq!(address("eth0"), None);
        assert!(name(Ipv4Addr::BROADCAST).len() <= 15);
    }
}
