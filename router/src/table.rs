//! The routing table: an immutable snapshot keyed by full host that requests read without a lock,
//! and its keeper, the one writer, that turns the control plane's messages into the next snapshot.
//!
//! Invariant: a message that does not follow what was applied changes nothing and is a [`Gap`];
//! an instance leaves the table before it is retired, and is listed as leaving until nothing of it
//! is in flight.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use mogok_api::id::{Epoch, InstanceId};
use mogok_api::name::AppName;
use mogok_api::route::{AppRoute, RouteMessage, RouteState};
use tokio::sync::Notify;

use crate::domain::MAX_NAME;
use crate::instance::Instance;

#[cfg(test)]
mod tests;

/// One app of the table.
pub struct App {
    pub name: AppName,
    pub state: RouteState,
    pub instances: Vec<Arc<Instance>>,
    /// Request lines of this app that could not be queued, since one last could.
    pub lines_dropped: Arc<AtomicU64>,
}

/// Which table: the sender's life and the version within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub epoch: Epoch,
    pub version: u64,
}

/// What requests read.
#[derive(Default)]
pub struct Table {
    /// `None` until a first table was received or found on disk.
    pub position: Option<Position>,
    hosts: HashMap<Box<str>, Arc<App>>,
}

impl Table {
    /// The app of a host name (without port), in any case, with or without a final dot.
    #[must_use]
    pub fn app(&self, host: &[u8]) -> Option<&Arc<App>> {
        let host = host.strip_suffix(b".").unwrap_or(host);
        let mut lower = [0; MAX_NAME];
        let lower = lower.get_mut(..host.len())?;
        lower.copy_from_slice(host);
        lower.make_ascii_lowercase();
        self.hosts.get(std::str::from_utf8(lower).ok()?)
    }

    /// How many hosts it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }
}

/// The table in force and the instances on their way out of it, shared by all.
#[derive(Default)]
pub struct Tables {
    current: ArcSwap<Table>,
    leaving: Mutex<Vec<Arc<Instance>>>,
    /// Woken when the last request of a retired instance ends.
    pub drained: Arc<Notify>,
}

impl Tables {
    /// The table in force.
    #[must_use]
    pub fn load(&self) -> arc_swap::Guard<Arc<Table>> {
        self.current.load()
    }

    /// The instances out of the table that still have requests in flight.
    #[must_use]
    pub fn draining(&self) -> Vec<InstanceId> {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.retain(|instance| instance.in_flight() > 0);
        leaving.iter().map(|instance| instance.id).collect()
    }

    /// Closes connections to instances that were unused for longer than `limit`.
    pub fn sweep(&self, limit: std::time::Duration) {
        let table = self.current.load_full();
        // An app with several hosts is swept once for each, which is harmless.
        for instance in table.hosts.values().flat_map(|app| &app.instances) {
            instance.sweep(limit);
        }
    }
}

/// A message that does not follow what was applied: the stream must begin again with a snapshot.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    #[error("a change came before any snapshot")]
    NoSnapshot,
    #[error("the control plane began a new epoch without a snapshot")]
    Epoch,
    #[error("the table is at version {have}, the message follows version {from}")]
    Version { have: u64, from: u64 },
}

/// The one writer of the table.
pub struct Keeper {
    tables: Arc<Tables>,
    position: Option<Position>,
    routes: HashMap<AppName, (AppRoute, Arc<App>)>,
    instances: HashMap<(InstanceId, SocketAddr), Arc<Instance>>,
}

impl Keeper {
    #[must_use]
    pub fn new(tables: Arc<Tables>) -> Self {
        Self { tables, position: None, routes: HashMap::new(), instances: HashMap::new() }
    }

    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// The routes as they were received, for the disk.
    pub fn routes(&self) -> impl Iterator<Item = &AppRoute> {
        self.routes.values().map(|(route, _)| route)
    }

    /// Applies one message; `true` when the table changed.
    ///
    /// # Errors
    /// [`Gap`], and nothing has changed.
    pub fn apply(&mut self, message: RouteMessage) -> Result<bool, Gap> {
        match message {
            RouteMessage::Snapshot { epoch, version, routes } => {
                self.routes.clear();
                for route in routes {
                    self.upsert(route);
                }
                self.publish(Position { epoch, version });
                Ok(true)
            }
            RouteMessage::Delta { epoch, from, version, upsert, remove } => {
                self.follows(epoch, from)?;
                for app in remove {
                    self.routes.remove(&app);
                }
                for route in upsert {
                    self.upsert(route);
                }
                self.publish(Position { epoch, version });
                Ok(true)
            }
            RouteMessage::Heartbeat { epoch, version } => self.follows(epoch, version).map(|()| false),
        }
    }

    fn follows(&self, epoch: Epoch, from: u64) -> Result<(), Gap> {
        let have = self.position.ok_or(Gap::NoSnapshot)?;
        if have.epoch != epoch {
            Err(Gap::Epoch)
        } else if have.version != from {
            Err(Gap::Version { have: have.version, from })
        } else {
            Ok(())
        }
    }

    fn upsert(&mut self, route: AppRoute) {
        let instances = route
            .upstreams
            .iter()
            .map(|upstream| {
                let instance = self
                    .instances
                    .entry((upstream.instance, upstream.address))
                    .or_insert_with(|| Arc::new(Instance::new(upstream, Arc::clone(&self.tables.drained))));
                Arc::clone(instance)
            })
            .collect();
        let lines_dropped =
            self.routes.get(&route.app).map_or_else(Arc::default, |(_, app)| Arc::clone(&app.lines_dropped));
        let app = App { name: route.app.clone(), state: route.state, instances, lines_dropped };
        self.routes.insert(route.app.clone(), (route, Arc::new(app)));
    }

    /// Puts the new table in force, then retires what is no longer in it.
    fn publish(&mut self, position: Position) {
        let mut hosts: HashMap<Box<str>, Arc<App>> = HashMap::with_capacity(self.routes.len());
        let mut used = HashSet::with_capacity(self.instances.len());
        for (route, app) in self.routes.values() {
            for host in &route.hosts {
                let other = hosts.insert(host.to_ascii_lowercase().into_boxed_str(), Arc::clone(app));
                if let Some(other) = other {
                    tracing::error!(host, app = %app.name, other = %other.name, "two apps claim one host");
                }
            }
            used.extend(route.upstreams.iter().map(|upstream| (upstream.instance, upstream.address)));
        }
        self.position = Some(position);
        self.tables.current.store(Arc::new(Table { position: Some(position), hosts }));

        let gone: Vec<_> = self.instances.extract_if(|key, _| !used.contains(key)).collect();
        let mut leaving = self.tables.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.retain(|instance| instance.in_flight() > 0);
        for (_, instance) in gone {
            instance.retire();
            leaving.push(instance);
        }
    }
}
