//! Who holds which address and host port. Pure but for the file that keeps the rotations' place.
//!
//! Invariant: a number that is held, or whose link still exists, is not handed out.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use mogok_api::id::InstanceId;
use serde::{Deserialize, Serialize};

use super::rotation::Rotation;
use super::ruleset::Entry;
use super::{Allocation, NetworkConfig, NetworkError, Saved, link};
use crate::ledger::atomic;

const FILE: &str = "network-rotation.json";

/// Where the rotations go on after a restart.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Place {
    address: u32,
    port: u32,
}

#[derive(Debug)]
pub(super) struct Leases {
    addresses: Rotation,
    ports: Rotation,
    held: HashMap<InstanceId, Entry>,
    /// Addresses of links that were there at the start and that nobody has claimed yet.
    unclaimed: HashSet<u32>,
    file: PathBuf,
    /// The place as the file has it.
    saved: Option<(u32, u32)>,
}

impl Leases {
    /// `links` are the addresses whose links exist.
    pub(super) fn open(
        config: &NetworkConfig,
        links: impl Iterator<Item = Ipv4Addr>,
    ) -> Result<Self, NetworkError> {
        let file = config.state_dir.join(FILE);
        fs::create_dir_all(&config.state_dir)
            .map_err(|source| NetworkError::Rotation { path: config.state_dir.clone(), source })?;
        // A lost or torn place costs nothing but the order.
        let place: Place =
            fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let (first, last) = config.pool.range();
        let mut addresses = Rotation::new(first, last, place.address);
        let ports = Rotation::new(config.ports.0.into(), config.ports.1.into(), place.port);
        let unclaimed = links.map(u32::from).filter(|number| addresses.reserve(*number)).collect();
        Ok(Self { addresses, ports, held: HashMap::new(), unclaimed, file, saved: None })
    }

    /// Keeps the rotations' place; for once after several numbers were taken.
    pub(super) fn save(&mut self) -> Result<(), NetworkError> {
        let place = (self.addresses.next(), self.ports.next());
        if self.saved == Some(place) {
            return Ok(());
        }
        let failed = |source| NetworkError::Rotation { path: self.file.clone(), source };
        let text = serde_json::to_vec(&Place { address: place.0, port: place.1 })
            .map_err(|error| failed(error.into()))?;
        atomic::write(&self.file, &text, atomic::Durability::Kill).map_err(failed)?;
        self.saved = Some(place);
        Ok(())
    }

    pub(super) fn take_address(&mut self) -> Option<Ipv4Addr> {
        self.addresses.take(|_| true).map(Ipv4Addr::from)
    }

    pub(super) fn release_address(&mut self, address: Ipv4Addr) {
        self.addresses.release(address.into());
        self.unclaimed.remove(&address.into());
    }

    /// Frees the addresses of unclaimed links that have gone by themselves: those of namespaces that the
    /// last agent had ready, which the kernel removes a moment after it.
    pub(super) fn release_gone(&mut self, exists: impl Fn(Ipv4Addr) -> bool) {
        let gone: Vec<u32> =
            self.unclaimed.iter().copied().filter(|number| !exists(Ipv4Addr::from(*number))).collect();
        for number in gone {
            self.release_address(Ipv4Addr::from(number));
        }
    }

    pub(super) fn take_port(&mut self, usable: impl Fn(u16) -> bool) -> Option<u16> {
        let usable = |port| u16::try_from(port).is_ok_and(&usable);
        self.ports.take(usable).and_then(|port| u16::try_from(port).ok())
    }

    pub(super) fn release_port(&mut self, port: u16) {
        self.ports.release(port.into());
    }

    /// Records that `id` holds numbers that were taken before.
    pub(super) fn hold(&mut self, id: InstanceId, entry: Entry) {
        self.held.insert(id, entry);
    }

    /// The reverse of [`hold`](Self::hold): the numbers stay taken.
    pub(super) fn forget(&mut self, id: &InstanceId) -> Option<Entry> {
        self.held.remove(id)
    }

    pub(super) fn release(&mut self, allocation: &Allocation) {
        self.release_address(allocation.address);
        if let Some(port) = allocation.host_port {
            self.release_port(port);
        }
    }

    pub(super) fn holds(&self, id: &InstanceId) -> bool {
        self.held.contains_key(id)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> + Clone {
        self.held.values()
    }

    /// Takes back what a container held before a restart. `None` when it is held already.
    pub(super) fn adopt(&mut self, saved: Saved) -> Result<Option<Entry>, NetworkError> {
        let Saved { id, demand, allocation } = saved;
        let entry = Entry::new(allocation, demand);
        if let Some(held) = self.held.get(&id) {
            let what = format!("network {} beside {}", entry.allocation.link, held.allocation.link);
            return if *held == entry { Ok(None) } else { Err(NetworkError::Conflict { id, what }) };
        }
        let Allocation { address, host_port, link } = &entry.allocation;
        if *link != link::name(*address) {
            return Err(NetworkError::Conflict { id, what: format!("link {link}") });
        }
        let number = u32::from(*address);
        if !self.unclaimed.contains(&number) && !self.addresses.reserve(number) {
            return Err(NetworkError::Conflict { id, what: format!("address {address}") });
        }
        if let Some(port) = host_port
            && !self.ports.reserve((*port).into())
        {
            // The address stays unclaimed: its link exists, and a sweep decides about it.
            self.unclaimed.insert(number);
            return Err(NetworkError::Conflict { id, what: format!("host port {port}") });
        }
        self.unclaimed.remove(&number);
        self.held.insert(id, entry.clone());
        Ok(Some(entry))
    }
}

#[cfg(test)]
mod tests {
    use mogok_api::instance::ContainerKind;

    use super::*;
    use crate::network::{Demand, Egress};

    fn config(dir: &std::path::Path) -> NetworkConfig {
        NetworkConfig {
            pool: "10.88.0.0/29".parse().unwrap(),
            ports: (100, 101),
            egress: Egress::Deny,
            build_grants: Vec::new(),
            bandwidth: std::num::NonZeroU32::MIN,
            connections: std::num::NonZeroU32::MIN,
            resolvers: Vec::new(),
            table: "mogok".into(),
            state_dir: dir.to_owned(),
        }
    }

    fn saved(last: u8, port: u16) -> Saved {
        let address = Ipv4Addr::new(10, 88, 0, last);
        let allocation = Allocation { address, host_port: Some(port), link: link::name(address) };
        Saved { id: InstanceId::new(), demand: Demand::new(ContainerKind::App, true), allocation }
    }

    #[test]
    fn the_rotation_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Leases::open(&config(dir.path()), [].into_iter()).unwrap();
        assert_eq!(first.take_address(), Some(Ipv4Addr::new(10, 88, 0, 2)));
        assert_eq!(first.take_port(|_| true), Some(100));
        first.save().unwrap();
        let mut second = Leases::open(&config(dir.path()), [].into_iter()).unwrap();
        assert_eq!(second.take_address(), Some(Ipv4Addr::new(10, 88, 0, 3)));
        assert_eq!(second.take_port(|_| true), Some(101));
    }

    #[test]
    fn addresses_of_existing_links_wait_for_their_container() {
        let dir = tempfile::tempdir().unwrap();
        let old = saved(2, 100);
        let mut leases = Leases::open(&config(dir.path()), [old.allocation.address].into_iter()).unwrap();
        assert_eq!(leases.take_address(), Some(Ipv4Addr::new(10, 88, 0, 3)));
        assert!(leases.adopt(old.clone()).unwrap().is_some());
        assert!(leases.adopt(old.clone()).unwrap().is_none());
        for other in [saved(2, 101), saved(3, 101), saved(4, 100), saved(9, 101), saved(4, 99)] {
            assert!(matches!(leases.adopt(other), Err(NetworkError::Conflict { .. })));
        }
        leases.forget(&old.id).unwrap();
        leases.release(&old.allocation);
        assert!(leases.adopt(saved(2, 100)).unwrap().is_some());
    }

    #[test]
    fn a_link_that_goes_by_itself_frees_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let [two, three] = [2, 3].map(|last| Ipv4Addr::new(10, 88, 0, last));
        let mut leases = Leases::open(&config(dir.path()), [two, three].into_iter()).unwrap();
        leases.release_gone(|address| address == three);
        assert_eq!(leases.take_address(), Some(two));
        assert_eq!(leases.take_address(), Some(Ipv4Addr::new(10, 88, 0, 4)));
    }
}
