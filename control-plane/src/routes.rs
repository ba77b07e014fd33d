//! The routing table on its way to the routers, and their acknowledgements on the way back.
//!
//! Each router has one stream: a snapshot, then deltas, heartbeats in between. Its queue is bounded; a
//! router that does not keep up is cut and starts again with a snapshot. From the acknowledgements
//! follows when an instance may be stopped ([`Routes::released`]) and when a new one is known
//! everywhere ([`Routes::carried`]). Nothing is sent before the first table is [`Routes::publish`]ed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mogok_api::id::{Epoch, InstanceId, RouterId};
use mogok_api::name::AppName;
use mogok_api::route::{AppRoute, RouteAck, RouteMessage};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::wake::Wake;

mod endpoints;
mod listener;
pub mod table;
#[cfg(test)]
mod tests;

pub use endpoints::{Endpoints, EndpointsError};
pub use listener::{ListenError, serve};

/// Messages that may wait for one router.
const QUEUE: usize = 64;
/// Streams at once.
const MAX_ROUTERS: usize = 64;
/// How often a router hears of the control plane at least.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// The waits of the acknowledgement protocol.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A router that was silent for so long is not waited for.
    pub router_lost: Duration,
    /// After its start the control plane does not know which routers there are; by now they have come back.
    pub settle: Duration,
    /// An instance is not held for a router that drains longer than this.
    pub release_bound: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            router_lost: Duration::from_secs(10),
            settle: Duration::from_secs(10),
            release_bound: Duration::from_secs(90),
        }
    }
}

type Table = BTreeMap<AppName, AppRoute>;

/// Handle to the table and the routers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Routes {
    inner: Arc<Mutex<Inner>>,
    wake: Wake,
    timing: Timing,
}

#[derive(Debug)]
struct Inner {
    epoch: Epoch,
    /// 0 until the first table.
    version: u64,
    table: Table,
    started: Instant,
    /// The version in which each instance of the table came into it.
    entered: HashMap<InstanceId, u64>,
    /// The first version without an instance, and since when.
    left: HashMap<InstanceId, (u64, Instant)>,
    streams: Vec<Stream>,
    routers: HashMap<RouterId, Router>,
    closed: bool,
}

/// One connection.
#[derive(Debug)]
struct Stream {
    router: RouterId,
    queue: mpsc::Sender<RouteMessage>,
    /// Has it got a snapshot?
    begun: bool,
}

/// What is known of a router.
#[derive(Debug)]
struct Router {
    heard: Instant,
    last: Option<RouteAck>,
}

/// A stream that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    #[error("{MAX_ROUTERS} routers are connected already")]
    TooMany,
    #[error("the control plane is stopping")]
    Stopping,
}

impl Routes {
    /// No table yet. Acknowledgements wake `reconcile`.
    #[must_use]
    pub fn new(wake: Wake, timing: Timing) -> Self {
        let inner = Inner {
            epoch: Epoch::new(),
            version: 0,
            table: Table::new(),
            started: Instant::now(),
            entered: HashMap::new(),
            left: HashMap::new(),
            streams: Vec::new(),
            routers: HashMap::new(),
            closed: false,
        };
        Self { inner: Arc::new(Mutex::new(inner)), wake, timing }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change below is whole when the lock is given back, so a panic elsewhere spoils nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes this the table, and tells the routers what is new in it.
    pub fn publish(&self, table: Table) {
        let mut inner = self.lock();
        let first = inner.version == 0;
        if !first && inner.table == table {
            return;
        }
        let from = inner.version;
        inner.version += 1;
        let (epoch, version) = (inner.epoch, inner.version);
        let upsert =
            table.values().filter(|route| inner.table.get(&route.app) != Some(*route)).cloned().collect();
        let remove = inner.table.keys().filter(|app| !table.contains_key(*app)).cloned().collect();
        inner.table = table;
        inner.note_instances();
        inner.tell(|inner, stream| {
            if stream.begun {
                RouteMessage::Delta {
                    epoch,
                    from,
                    version,
                    upsert: Vec::clone(&upsert),
                    remove: Vec::clone(&remove),
                }
            } else {
                inner.snapshot()
            }
        });
        drop(inner);
        // Without a router nothing is acknowledged, and the change itself is the news.
        self.wake.reconcile.wake();
    }

    /// A stream for a router: the table as it is, then every change. A second one replaces the first.
    ///
    /// # Errors
    /// When there are too many, or the control plane is stopping.
    pub fn subscribe(&self, router: RouterId) -> Result<mpsc::Receiver<RouteMessage>, SubscribeError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(SubscribeError::Stopping);
        }
        inner.streams.retain(|stream| stream.router != router && !stream.queue.is_closed());
        if inner.streams.len() >= MAX_ROUTERS {
            return Err(SubscribeError::TooMany);
        }
        let (queue, receiver) = mpsc::channel(QUEUE);
        let begun = inner.version > 0 && queue.try_send(inner.snapshot()).is_ok();
        inner.streams.push(Stream { router, queue, begun });
        inner.heard(router);
        Ok(receiver)
    }

    /// A router says what it has applied.
    pub fn acknowledge(&self, ack: RouteAck) {
        let mut inner = self.lock();
        let router = inner.heard(ack.router);
        let news = router.last.as_ref() != Some(&ack);
        router.last = Some(ack);
        drop(inner);
        if news {
            self.wake.reconcile.wake();
        }
    }

    /// Does every live router have all of these instances in its table?
    #[must_use]
    pub fn carried(&self, instances: &[InstanceId]) -> bool {
        let inner = self.lock();
        let Some(version) =
            instances.iter().map(|id| inner.entered.get(id).copied()).try_fold(0, |v, e| Some(e?.max(v)))
        else {
            return false;
        };
        inner.live(self.timing).all(|router| router.reached(inner.epoch, version).is_some())
    }

    /// Has every live router a table without the instance, and no request to it in flight? Also true when that
    /// took longer than the bound.
    #[must_use]
    pub fn released(&self, instance: InstanceId) -> bool {
        let mut inner = self.lock();
        if inner.version == 0 || inner.entered.contains_key(&instance) {
            return false;
        }
        let version = inner.version;
        let (version, since) = *inner.left.entry(instance).or_insert((version, Instant::now()));
        if since.elapsed() >= self.timing.release_bound {
            tracing::warn!(%instance, "a router did not let go of an instance in time");
            return true;
        }
        inner.started.elapsed() >= self.timing.settle
            && inner.live(self.timing).all(|router| {
                router.reached(inner.epoch, version).is_some_and(|ack| !ack.draining.contains(&instance))
            })
    }

    /// Sends heartbeats until `stop` is cancelled, then ends every stream.
    pub async fn run(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => self.heartbeat(),
            }
        }
        self.close();
    }

    /// Ends every stream, and refuses new ones.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.streams.clear();
    }

    fn heartbeat(&self) {
        let mut inner = self.lock();
        if inner.version > 0 {
            let (epoch, version) = (inner.epoch, inner.version);
            inner.tell(|_, _| RouteMessage::Heartbeat { epoch, version });
        }
        // Long gone ones are forgotten; what they would have to acknowledge is bounded anyway.
        let lost = self.timing.router_lost * 60;
        inner.routers.retain(|_, router| router.heard.elapsed() < lost);
        let bound = self.timing.release_bound * 10;
        inner.left.retain(|_, (_, since)| since.elapsed() < bound);
    }
}

impl Inner {
    fn snapshot(&self) -> RouteMessage {
        let routes = self.table.values().cloned().collect();
        RouteMessage::Snapshot { epoch: self.epoch, version: self.version, routes }
    }

    /// Puts a message into every queue, and cuts the streams whose queue is full.
    fn tell(&mut self, message: impl Fn(&Self, &Stream) -> RouteMessage) {
        let mut streams = std::mem::take(&mut self.streams);
        streams.retain_mut(|stream| {
            let sent = stream.queue.try_send(message(self, stream));
            stream.begun = true;
            match sent {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    tracing::warn!(router = %stream.router, "cut a router that does not keep up");
                    false
                }
            }
        });
        self.streams = streams;
    }

    /// Notes which instances came into this version of the table and which left it.
    fn note_instances(&mut self) {
        let present: HashMap<InstanceId, u64> = self
            .table
            .values()
            .flat_map(|route| &route.upstreams)
            .map(|upstream| (upstream.instance, self.version))
            .collect();
        let gone: Vec<_> = self.entered.keys().filter(|id| !present.contains_key(id)).copied().collect();
        for id in gone {
            self.entered.remove(&id);
            self.left.insert(id, (self.version, Instant::now()));
        }
        for (id, version) in present {
            self.left.remove(&id);
            self.entered.entry(id).or_insert(version);
        }
    }

    fn heard(&mut self, router: RouterId) -> &mut Router {
        let router = self.routers.entry(router).or_insert(Router { heard: Instant::now(), last: None });
        router.heard = Instant::now();
        router
    }

    fn live(&self, timing: Timing) -> impl Iterator<Item = &Router> {
        self.routers.values().filter(move |router| router.heard.elapsed() < timing.router_lost)
    }
}

impl Router {
    /// Its last acknowledgement, when that is of this version or a later one.
    fn reached(&self, epoch: Epoch, version: u64) -> Option<&RouteAck> {
        self.last.as_ref().filter(|ack| ack.epoch == epoch && ack.version >= version)
    }
}
