//! The thread behind [`Watcher`](super::Watcher): one epoll set, one queue of times to look again.
//!
//! Every descriptor is armed for one event (`EPOLLONESHOT`); after it the thread looks, and arms it again a
//! pause later. A change in the meantime is not lost: an armed descriptor is ready at once when its file has
//! changed since it was read.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use tokio::sync::watch;

use super::super::{CgroupError, removal};
use super::host::Host;
use super::sight::{Kind, Sight, Subject};
use super::tracker::{Hoard, Report, Tracker};
use super::{Attention, Order};

/// Between an event and the next one of the same kind and container.
const PAUSE: Duration = Duration::from_secs(1);
/// How often, and how far apart, the counter is read after a v1 memory event: the kill follows within
/// milliseconds or not at all (a notification also comes when the cgroup is removed).
const KILL_RECHECKS: u32 = 20;
const KILL_RECHECK: Duration = Duration::from_millis(5);
/// How often the files of v1 that wake nobody are read.
const TICK_OF_APP: Duration = Duration::from_secs(30);
const TICK_OF_BUILD: Duration = Duration::from_secs(1);

/// How often the host's memory is looked at.
const LOOK_AT_HOST: Duration = Duration::from_millis(250);

/// A container whose sockets take longer to look at than this is not looked at again for ten times as long.
const LONG_LOOK: Duration = Duration::from_millis(50);
const REST: u32 = 10;

const BELL: u64 = u64::MAX;
/// The look at the host's memory, while there is a container that is searched for hoards.
const HOST: u64 = u64::MAX - 1;
const EVENTS: usize = 64;

/// What to do about a sight after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Wait for the kernel.
    Arm,
    /// Come back after this.
    Again(Duration),
    /// Come back at the next multiple of this, when all others come back too.
    Tick(Duration),
}

#[derive(Debug)]
struct Container {
    subject: Subject,
    tracker: Tracker,
    reports: watch::Sender<Report>,
    sights: [Option<Sight>; Kind::ALL.len()],
    kill_rechecks: u32,
    /// It has so many that a look takes long.
    sockets_rest_until: Option<Instant>,
}

pub(super) struct Thread {
    orders: mpsc::Receiver<Order>,
    bell: Arc<EventFd>,
    epoll: Epoll,
    started: Instant,
    containers: BTreeMap<u64, Container>,
    /// At most one for each sight and one for the host; those of containers that are gone mean nothing.
    looks: BinaryHeap<Reverse<(Instant, u64)>>,
    /// While there is a container that is searched for hoards.
    host: Option<Host>,
}

/// What an event or a time belongs to.
fn token(key: u64, kind: Kind) -> u64 {
    key * Kind::ALL.len() as u64 + kind as u64
}

fn of_token(token: u64) -> (u64, Kind) {
    let kinds = Kind::ALL.len() as u64;
    (token / kinds, Kind::ALL[(token % kinds) as usize])
}

impl Thread {
    pub(super) fn new(orders: mpsc::Receiver<Order>, bell: Arc<EventFd>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(bell.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        Ok(Self {
            orders,
            bell,
            epoll,
            started: Instant::now(),
            containers: BTreeMap::new(),
            looks: BinaryHeap::new(),
            host: None,
        })
    }

    /// Until it is told to stop.
    pub(super) fn run(mut self) {
        // For whom has this capability the kernel starts a thread per pressure trigger. Only this thread
        // loses it; should that fail, the triggers work all the same.
        if let Err(error) = caps::drop(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE) {
            tracing::debug!(%error, "pressure is watched with the kernel's own threads");
        }
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let ready = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "containers are no longer watched");
                    return;
                }
            };
            for event in &events[..ready] {
                if event.data() != BELL {
                    self.look(event.data(), true);
                } else if !self.take_orders() {
                    return;
                }
            }
            let now = Instant::now();
            while let Some(Reverse((at, token))) = self.looks.peek().copied()
                && at <= now
            {
                self.looks.pop();
                self.look(token, false);
            }
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let Some(Reverse((at, _))) = self.looks.peek() else { return EpollTimeout::NONE };
        let millis = at.saturating_duration_since(Instant::now()).as_millis() + 1;
        EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
    }

    /// False when it is time to stop.
    fn take_orders(&mut self) -> bool {
        // EAGAIN: somebody has emptied it, and that is all that is wanted.
        let _ = self.bell.read();
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Watch(key, subject, reports) => self.watch(key, *subject, reports),
                // Closing its descriptors takes them out of the set.
                Order::Forget(key) => drop(self.containers.remove(&key)),
                Order::Stop => return false,
            }
        }
        true
    }

    /// Is it time to look for hoards?
    fn look_at_host(&mut self, now: Instant) {
        let Some(host) = &mut self.host else { return };
        if !self.containers.values().any(|container| container.subject.sockets.is_some()) {
            self.host = None;
            return;
        }
        self.looks.push(Reverse((now + LOOK_AT_HOST, HOST)));
        for (key, hoard) in host.found() {
            if let Some(container) = self.containers.get_mut(&key) {
                container.hoards(hoard);
            }
        }
        let due = host.is_due(now);
        if due {
            host.search(|| {
                let searched =
                    self.containers.iter().filter(|(_, container)| container.subject.sockets.is_some());
                searched.map(|(key, container)| (*key, container.subject.v2.clone())).collect()
            });
        }
        let suspected = |container: &Container| {
            let sockets = container.subject.sockets.as_ref();
            sockets.is_some_and(|sockets| sockets.are_suspected(now))
        };
        for container in self.containers.values_mut() {
            if due || suspected(container) {
                container.look_at_sockets(Instant::now());
            }
        }
    }

    fn watch(&mut self, key: u64, subject: Subject, reports: watch::Sender<Report>) {
        if subject.sockets.is_some() && self.host.is_none() {
            let now = Instant::now();
            self.host = Host::new(now);
            self.looks.push(Reverse((now + LOOK_AT_HOST, HOST)));
        }
        // What cannot be read now is told of by the looks below.
        let hits = subject.process_limit_hits().unwrap_or(0);
        let tracker = Tracker::new(subject.attention, subject.memory_high, hits);
        let mut container = Container {
            subject,
            tracker,
            reports,
            sights: Default::default(),
            kill_rechecks: 0,
            sockets_rest_until: None,
        };
        for kind in Kind::ALL {
            match container.subject.open(kind) {
                Ok(None) => {}
                Ok(Some(sight)) => {
                    let event = EpollEvent::new(EpollFlags::EPOLLONESHOT, token(key, kind));
                    match self.epoll.add(&sight, event) {
                        Ok(()) => container.sights[kind as usize] = Some(sight),
                        Err(error) => tracing::warn!(?kind, %error, "cannot watch a container"),
                    }
                }
                Err(error) if gone(&error) => return,
                Err(error) => {
                    tracing::warn!(?kind, error = %crate::chain(&error), "cannot watch a container");
                }
            }
        }
        self.containers.insert(key, container);
        for kind in Kind::ALL {
            self.look(token(key, kind), false);
        }
    }

    /// Reads what a container's counter says, after an event (its descriptor is not armed then) or because
    /// it is time to.
    fn look(&mut self, token: u64, event: bool) {
        if token == HOST {
            return self.look_at_host(Instant::now());
        }
        let (key, kind) = of_token(token);
        let Some(container) = self.containers.get_mut(&key) else { return };
        match container.look(kind, event, Instant::now()) {
            Ok(Next::Again(pause)) => self.looks.push(Reverse((Instant::now() + pause, token))),
            Ok(Next::Tick(period)) => {
                let ticks = self.started.elapsed().as_secs() / period.as_secs() + 1;
                let at = self.started + Duration::from_secs(ticks * period.as_secs());
                self.looks.push(Reverse((at, token)));
            }
            Ok(Next::Arm) => {
                let Some(sight) = &container.sights[kind as usize] else { return };
                let mut event = EpollEvent::new(sight.flags() | EpollFlags::EPOLLONESHOT, token);
                if let Err(error) = self.epoll.modify(sight, &mut event) {
                    tracing::warn!(?kind, %error, "a container is no longer watched");
                }
            }
            Err(error) => {
                if !gone(&error) {
                    tracing::warn!(?kind, error = %crate::chain(&error), "a container is no longer watched");
                }
                self.containers.remove(&key);
            }
        }
    }
}

/// Is its cgroup no longer there?
fn gone(error: &CgroupError) -> bool {
    match error {
        CgroupError::Read { source, .. }
        | CgroupError::Watch { source, .. }
        | CgroupError::Write { source, .. } => removal::is_gone(source),
        _ => false,
    }
}

impl Container {
    fn look(&mut self, kind: Kind, event: bool, now: Instant) -> Result<Next, CgroupError> {
        if event && let Some(sight) = &self.sights[kind as usize] {
            let settled = sight.settle();
            settled.map_err(|source| CgroupError::Watch { path: self.subject.v2.clone(), source })?;
        }
        let next = match kind {
            Kind::Memory => self.look_at_memory(event, now)?,
            Kind::Pids => self.look_at_pids(event, now)?,
            Kind::Cpu if event => {
                self.tracker.periods(now, self.subject.periods()?);
                Next::Again(PAUSE)
            }
            Kind::Cpu => Next::Arm,
        };
        let report = self.tracker.report();
        self.reports.send_if_modified(|last| std::mem::replace(last, report) != report);
        Ok(next)
    }

    fn look_at_sockets(&mut self, now: Instant) {
        let Some(sockets) = &mut self.subject.sockets else { return };
        if self.sockets_rest_until.is_some_and(|until| now < until) {
            return;
        }
        let looked = sockets.hold_more_than(self.subject.memory_limit);
        let took = now.elapsed();
        self.sockets_rest_until = (took > LONG_LOOK).then(|| now + REST * took);
        match looked {
            Ok(false) => {}
            Ok(true) => self.hoards(Hoard::Sockets),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => {
                self.subject.sockets = None;
            }
            Err(error) => {
                let cgroup = self.subject.v2.display();
                tracing::warn!(%cgroup, %error, "cannot see what the sockets of a container hold");
            }
        }
    }

    fn hoards(&mut self, hoard: Hoard) {
        self.tracker.hoards(hoard);
        let report = self.tracker.report();
        self.reports.send_if_modified(|last| std::mem::replace(last, report) != report);
    }

    fn look_at_memory(&mut self, event: bool, now: Instant) -> Result<Next, CgroupError> {
        let kills = self.subject.memory_kills()?;
        let news = kills > self.tracker.report().memory_kills;
        self.tracker.memory_kills(now, kills);
        if !self.subject.memory_by_timer() {
            if event {
                self.tracker.memory(now, self.subject.memory()?);
                return Ok(Next::Again(PAUSE));
            }
            return Ok(Next::Arm);
        }
        // The event comes before the kill.
        self.kill_rechecks = match (news, event) {
            (true, _) => 0,
            (false, true) => KILL_RECHECKS,
            (false, false) => self.kill_rechecks.saturating_sub(1),
        };
        if self.kill_rechecks == 0 {
            return Ok(Next::Arm);
        }
        Ok(Next::Again(KILL_RECHECK))
    }

    fn look_at_pids(&mut self, event: bool, now: Instant) -> Result<Next, CgroupError> {
        self.tracker.process_limit_hits(now, self.subject.process_limit_hits()?);
        if !self.subject.pids_by_timer() {
            return Ok(if event { Next::Again(PAUSE) } else { Next::Arm });
        }
        // The same timer does for memory: v1 offers an eventfd for a threshold, but the kernel takes 12 ms to
        // register one, and page cache crosses the threshold for good.
        if self.subject.memory_by_timer() {
            self.tracker.memory(now, self.subject.memory()?);
        }
        Ok(Next::Tick(match self.subject.attention {
            Attention::App => TICK_OF_APP,
            Attention::Build => TICK_OF_BUILD,
        }))
    }
}
