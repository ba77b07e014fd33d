//! One instance as the router sees it: its address, what is in flight with it, its unused
//! connections, and whether it is set aside or retired.
//!
//! Invariant: after [`Instance::retire`] no request begins with it, and a request that began
//! before is counted in [`Instance::in_flight`] until its last byte. The count is raised before
//! the mark is read, and the mark is set before the count is read, both sequentially consistent;
//! so either the request sees the mark or the acknowledgement sees the request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mogok_api::id::InstanceId;
use mogok_api::route::Upstream;
use tokio::sync::Notify;

use crate::client::Sender;

/// The most unused connections that are kept for one instance.
const MAX_IDLE: usize = 64;

pub struct Instance {
    pub id: InstanceId,
    /// `web.1`, for the log.
    pub process: Box<str>,
    pub address: SocketAddr,
    in_flight: AtomicUsize,
    waiting: AtomicUsize,
    retired: AtomicBool,
    /// Milliseconds since `born`.
    aside_until: AtomicU64,
    born: Instant,
    idle: Mutex<Vec<(Sender, Instant)>>,
    drained: Arc<Notify>,
}

impl Instance {
    /// `drained` is woken when the last request of the retired instance ends.
    #[must_use]
    pub fn new(upstream: &Upstream, drained: Arc<Notify>) -> Self {
        Self {
            id: upstream.instance,
            process: upstream.process.to_string().into_boxed_str(),
            address: upstream.address,
            in_flight: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
            aside_until: AtomicU64::new(0),
            born: Instant::now(),
            idle: Mutex::new(Vec::new()),
            drained,
        }
    }

    /// Requests from their choice of this instance to their last byte; tunnels too.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Those of them that have no first byte yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes it out of use; unused connections close.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// No requests for a while: it could not be connected to.
    pub fn set_aside(&self, time: Duration) {
        let until = self.born.elapsed() + time;
        self.aside_until.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_aside(&self) -> bool {
        let until = self.aside_until.load(Ordering::Relaxed);
        until > 0 && Duration::from_millis(until) > self.born.elapsed()
    }

    /// The youngest unused connection that was used within `within`.
    #[must_use]
    pub fn take_idle(&self, within: Duration) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((sender, since)) = idle.pop() {
            if sender.is_closed() {
                continue;
            }
            if since.elapsed() <= within {
                return Some(sender);
            }
            // It is the youngest: the others are older still. It may do for a safe method.
            idle.push((sender, since));
            return None;
        }
        None
    }

    /// Keeps a connection for the next request.
    pub fn keep(&self, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock that `retire` clears under, so that none is left behind.
        if idle.len() < MAX_IDLE && !self.is_retired() {
            idle.push((sender, Instant::now()));
        }
    }

    /// Closes connections unused for longer than `limit`.
    pub fn sweep(&self, limit: Duration) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(sender, since)| !sender.is_closed() && since.elapsed() <= limit);
    }
}

/// A request's claim on an instance; dropping it ends the request.
pub struct Ticket {
    instance: Arc<Instance>,
    waiting: bool,
}

impl Ticket {
    /// `None` when the instance has been retired: the table must be read afresh.
    #[must_use]
    pub fn take(instance: &Arc<Instance>) -> Option<Self> {
        instance.in_flight.fetch_add(1, Ordering::SeqCst);
        instance.waiting.fetch_add(1, Ordering::Relaxed);
        let ticket = Self { instance: Arc::clone(instance), waiting: true };
        (!instance.is_retired()).then_some(ticket)
    }

    #[must_use]
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// The first byte came.
    pub fn answered(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.instance.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.answered();
        if self.instance.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 && self.instance.is_retired() {
            self.instance.drained.notify_one();
        }
    }
}
