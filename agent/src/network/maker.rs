//! A thread that makes namespaces with their links, so that a container need not wait for one: the
//! kernel takes most of a millisecond for each.
//!
//! One thread, and never while links are removed: who turns IPv6 off on a link does not sleep while another has the
//! kernel's lock on links but tries again and again (`addrconf_sysctl_disable` in net/ipv6/addrconf.c), and on a busy
//! host that took more of the CPUs than all the rest of a start.
//!
//! Invariant: until its element is in the table, the rules drop all that comes from a new link.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::runtime::Builder;
use tokio::sync::{Mutex, mpsc};

use super::link::{self, Links};
use super::sysctl::Ipv6;
use super::{NetworkError, namespace};

/// What became of an order.
pub(super) type Made = (Ipv4Addr, Result<OwnedFd, NetworkError>);

/// Held by whoever makes or removes links.
pub(super) type Turn = Arc<Mutex<()>>;

/// Starts the thread in the calling thread's namespace. It ends when the orders do.
pub(super) fn spawn(
    gateway: Ipv4Addr,
    group: u32,
    queue: usize,
    turn: Turn,
) -> Result<(mpsc::Sender<Ipv4Addr>, mpsc::Receiver<Made>), NetworkError> {
    let (order, orders) = mpsc::channel(queue);
    let (done, made) = mpsc::channel(queue);
    let runtime = Builder::new_current_thread().enable_all().build().map_err(NetworkError::Thread)?;
    std::thread::Builder::new()
        .name("namespaces".into())
        .spawn(move || runtime.block_on(serve(gateway, group, &turn, orders, &done)))
        .map_err(NetworkError::Thread)?;
    Ok((order, made))
}

async fn serve(
    gateway: Ipv4Addr,
    group: u32,
    turn: &Mutex<()>,
    mut orders: mpsc::Receiver<Ipv4Addr>,
    done: &mpsc::Sender<Made>,
) {
    let opened = Home::open();
    loop {
        let Some(address) = orders.recv().await else { return };
        let (result, lost) = match &opened {
            Ok(home) => {
                let _turn = turn.lock().await;
                let result = make(home, gateway, group, address).await;
                let lost = matches!(result, Err(NetworkError::NamespaceLost(_)));
                (result, lost)
            }
            Err(error) => (Err(NetworkError::Maker(crate::chain(error))), false),
        };
        // Wherever this thread is now, nothing more may be done there.
        if done.send((address, result)).await.is_err() || lost {
            return;
        }
    }
}

/// The host's namespace, and what links are made there by.
struct Home {
    namespace: OwnedFd,
    links: Links,
    ipv6: Ipv6,
}

impl Home {
    /// The calling thread's.
    fn open() -> Result<Self, NetworkError> {
        Ok(Self { namespace: namespace::current()?, links: Links::open()?, ipv6: Ipv6::open()? })
    }
}

/// A namespace whose link is whole, or neither.
async fn make(
    home: &Home,
    gateway: Ipv4Addr,
    group: u32,
    address: Ipv4Addr,
) -> Result<OwnedFd, NetworkError> {
    let made = furnish(home, gateway, group, address).await;
    if let Err(error) = &made
        && !matches!(error, NetworkError::NamespaceLost(_))
        && let Err(error) = home.links.remove(&link::name(address)).await
    {
        // The next one of this address fails and tells.
        tracing::warn!(%address, %error, "half-made link not removed");
    }
    made
}

async fn furnish(
    home: &Home,
    gateway: Ipv4Addr,
    group: u32,
    address: Ipv4Addr,
) -> Result<OwnedFd, NetworkError> {
    let name = link::name(address);
    let (netns, inside) = namespace::create(&home.namespace)?;
    home.links.add_pair(address, group, netns.as_fd()).await?;
    home.ipv6.disable(&name)?;
    let index = link::index(&name)?.ok_or_else(|| NetworkError::Netlink {
        operation: "find link",
        subject: name.clone(),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    home.links.route_to(address, index, gateway).await?;
    inside.prepare_inside(address, gateway).await?;
    home.links.settle(&name).await?;
    Ok(netns)
}
