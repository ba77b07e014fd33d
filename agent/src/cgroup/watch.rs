//! Tells of what happens to containers at their limits: killed for want of memory, short of it, throttled,
//! at the limit of processes.
//!
//! One thread and one epoll set watch all containers, so that an idle one costs a few descriptors and no
//! wake-up. Where the kernel wakes nobody (`pids.events` of cgroup v1, what is charged to nobody), one timer looks. Invariant: the
//! kernel's counters decide, a wake-up only says that they are worth reading; and however often a container
//! runs into a limit, it wakes this thread about once a second.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use mogok_api::app::Limits;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::watch;

use super::{Cgroup, CgroupError, Controller};

pub mod descriptors;
mod episode;
mod host;
pub mod locks;
mod sight;
pub mod sockets;
mod thread;
mod tracker;

pub use sockets::Sockets;
pub use tracker::{Hoard, Report};

/// How closely a container is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// It is to live on at its limits; what it is told of is for its developer.
    App,
    /// It ends when it is stuck at its limit of processes, and may use all of its CPU without a word.
    Build,
}

/// The thread that watches all containers of a node.
#[derive(Debug)]
pub struct Watcher {
    orders: Orders,
    thread: Option<JoinHandle<()>>,
}

/// The way to the thread; at most two orders a container wait in it.
#[derive(Debug, Clone)]
struct Orders {
    sender: mpsc::Sender<Order>,
    bell: Arc<EventFd>,
    next_key: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Order {
    Watch(u64, Box<sight::Subject>, watch::Sender<Report>),
    Forget(u64),
    Stop,
}

impl Orders {
    fn give(&self, order: Order) {
        // Without a thread there is nobody to tell, and the watch ends as if its cgroup were gone.
        if self.sender.send(order).is_ok()
            && let Err(error) = self.bell.write(1)
        {
            tracing::error!(%error, "cannot wake the thread that watches containers");
        }
    }
}

impl Watcher {
    /// # Errors
    /// When the kernel gives no thread or no descriptors.
    pub fn start() -> io::Result<Self> {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (sender, orders) = mpsc::channel();
        let worker = thread::Thread::new(orders, Arc::clone(&bell))?;
        let thread = std::thread::Builder::new().name("limits".into()).spawn(move || worker.run())?;
        let orders = Orders { sender, bell, next_key: Arc::default() };
        Ok(Self { orders, thread: Some(thread) })
    }

    /// Watches one container until the [`Watch`] is dropped or its cgroup is gone; its `sockets` as well, where they
    /// are given.
    ///
    /// # Errors
    /// When the host lacks a controller that every container needs.
    pub fn watch(
        &self,
        cgroup: &Cgroup,
        limits: &Limits,
        attention: Attention,
        sockets: Option<Sockets>,
    ) -> Result<Watch, CgroupError> {
        let subject = sight::Subject {
            memory: cgroup.place(Controller::Memory)?.clone(),
            pids: cgroup.place(Controller::Pids)?.clone(),
            cpu: cgroup.place(Controller::Cpu)?.clone(),
            v2: cgroup.v2_path().to_owned(),
            memory_high: limits.memory_high(),
            memory_limit: limits.memory_bytes,
            sockets,
            attention,
        };
        let key = self.orders.next_key.fetch_add(1, Ordering::Relaxed);
        let (sender, reports) = watch::channel(Report::default());
        self.orders.give(Order::Watch(key, Box::new(subject), sender));
        Ok(Watch { key, reports, orders: self.orders.clone() })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.orders.give(Order::Stop);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

/// The watch on one container.
#[derive(Debug)]
pub struct Watch {
    key: u64,
    reports: watch::Receiver<Report>,
    orders: Orders,
}

impl Watch {
    /// Waits for something new, also from before the watch began. `None` when the cgroup is gone. Safe to
    /// drop and call again.
    pub async fn next(&mut self) -> Option<Report> {
        self.reports.changed().await.ok()?;
        Some(*self.reports.borrow_and_update())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.orders.give(Order::Forget(self.key));
    }
}
