//! One container of the node, from its first record to its removal: a task that alone mutates it,
//! around the pure life cycle of [`state`].
//!
//! Invariant: every change of state is in the ledger before anyone is told of it, and no program is
//! started before the last one's cgroup is gone.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use mogok_api::id::InstanceId;
use mogok_api::instance::{Failure, FailureCode};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::Moment;
use crate::ledger::Record;
use crate::node::Node;
use crate::restart;
use crate::shim::{self, Process};

pub mod adopt;
pub mod cleanup;
mod ending;
mod limited;
pub mod output;
pub mod sandbox;
mod start;
pub mod state;
mod supervise;
pub mod usage;

use state::{Event, State};

/// Between attempts at something that waits for blobs nobody has announced.
const RECHECK: Duration = Duration::from_secs(10);

/// What the reconciler wants of an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wish {
    pub unwanted: bool,
}

/// The task's own view of its container.
#[derive(Debug)]
pub struct Instance {
    node: Arc<Node>,
    record: Record,
    wish: watch::Receiver<Wish>,
    /// The shim, while one runs.
    process: Option<Process>,
    /// Kept over restarts of the program, so that address and host port stay its own.
    netns: Option<OwnedFd>,
}

impl Instance {
    #[must_use]
    pub fn new(node: Arc<Node>, record: Record, wish: watch::Receiver<Wish>) -> Self {
        Self { node, record, wish, process: None, netns: None }
    }

    /// Goes on with a container of an earlier agent's, to the end of its life.
    pub async fn go_on(mut self, finding: adopt::Finding) {
        self.publish();
        match finding {
            adopt::Finding::Alive(process) => {
                self.process = Some(process);
                let started = shim::read_started(&self.node.ground.ledger.dir(self.id()));
                self.netns = started.filter(|_| self.record.allocation.is_some()).and_then(|started| {
                    shim::network_namespace_of(started.init_pid, started.init_start_time)
                });
            }
            adopt::Finding::Ended => {}
            adopt::Finding::Idle { shims } => adopt::end_all(&self.node.ground, self.id(), &shims).await,
            adopt::Finding::Lost { shims } => {
                adopt::end_all(&self.node.ground, self.id(), &shims).await;
                self.record.run = None;
                self.apply(Event::Lost);
            }
        }
        self.run().await;
    }

    /// Lives the container's life; returns when it is gone.
    pub async fn run(mut self) {
        self.publish();
        loop {
            match self.record.state {
                State::Pending => self.pending().await,
                State::Starting | State::Aborting => self.resume_start().await,
                State::Booting | State::Up | State::Killing(_) | State::Stopping => self.supervise().await,
                State::Crashed => self.crashed().await,
                State::Finished => self.finished().await,
                State::Removing => self.removing().await,
                State::Gone => return self.retire().await,
            }
        }
    }

    /// The present, as waits are measured.
    fn now(&self) -> Moment {
        Moment::now(&self.node.ground.boot_id)
    }

    fn id(&self) -> InstanceId {
        self.record.id()
    }

    fn unwanted(&self) -> bool {
        self.wish.borrow().unwanted
    }

    /// Returns when the instance is wanted no more.
    async fn until_unwanted(&mut self) {
        // The reconciler keeps its end as long as this task lives; should it go, this instance stays as it is.
        if self.wish.wait_for(|wish| wish.unwanted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Moves on. A refusal is a fault of this program: it is logged, and the state stays.
    fn apply(&mut self, event: Event) {
        match self.record.state.next(event, self.record.spec.restart) {
            Ok(next) => {
                tracing::info!(instance = %self.id(), app = %self.record.spec.app, from = ?self.record.state, to = ?next, "instance moves on");
                self.record.state = next;
                self.record.since = Utc::now();
                self.record.entered = Some(self.now());
                self.store();
                self.publish();
            }
            Err(denied) => tracing::error!(instance = %self.id(), %denied, "event refused"),
        }
    }

    fn store(&self) {
        // A full disk must not stop a container; the record on disk is then older, and adoption goes by what
        // it finds in the kernel anyway.
        if let Err(error) = self.node.ground.ledger.store(&self.record) {
            tracing::error!(instance = %self.id(), error = %crate::chain(&error), "cannot write the record");
        }
    }

    fn publish(&self) {
        if self.record.state != State::Gone {
            self.node.events.changed(self.record.status(self.node.network.gateway()));
        }
    }

    fn say(&self, text: &str) {
        self.node.logs.say(self.id(), text);
    }

    fn fail(&mut self, code: FailureCode, message: String) {
        tracing::warn!(instance = %self.id(), app = %self.record.spec.app, ?code, %message, "instance failed");
        self.record.failure = Some(Failure { code, message });
    }

    async fn pending(&mut self) {
        let node = Arc::clone(&self.node);
        loop {
            // Before the look, so that a blob that comes during it is not slept over.
            let arrival = node.arrivals.notified();
            if self.unwanted() {
                return self.apply(Event::Unwanted);
            }
            if let Err(error) = sandbox::check(&self.record.spec) {
                self.cannot_start(&error.to_string());
                return;
            }
            if self.node.missing_blobs([&self.record.spec]).is_empty() {
                let permit = tokio::select! {
                    permit = node.starts.acquire() => permit,
                    () = self.until_unwanted() => continue,
                };
                // The semaphore is never closed.
                let Ok(_permit) = permit else { return };
                self.apply(Event::Ready);
                return self.start().await;
            }
            tokio::select! {
                () = arrival => {}
                () = self.until_unwanted() => {}
                () = tokio::time::sleep(RECHECK) => {}
            }
        }
    }

    async fn crashed(&mut self) {
        let wait = self.until_restart();
        tokio::select! {
            () = tokio::time::sleep(wait) => {
                self.record.restarts = self.record.restarts.saturating_add(1);
                self.record.restart_at = None;
                self.record.restart_due = None;
                self.apply(Event::RestartDue);
            }
            () = self.until_unwanted() => self.apply(Event::Unwanted),
        }
    }

    /// What is left of the wait before a restart. In a boot that does not know when it began, the wall
    /// clock says so; should it be wrong, no wait is longer than the longest.
    fn until_restart(&self) -> Duration {
        let by_uptime = self.record.restart_due.as_ref().and_then(|due| due.left(&self.now()));
        let by_clock = || (self.record.restart_at? - Utc::now()).to_std().ok();
        by_uptime.or_else(by_clock).unwrap_or_default().min(restart::LONGEST)
    }

    async fn finished(&mut self) {
        self.release_network().await;
        self.publish();
        self.until_unwanted().await;
        self.apply(Event::Unwanted);
    }

    async fn release_network(&mut self) {
        self.netns = None;
        match self.node.network.detach(self.id()).await {
            Ok(()) => {
                if self.record.allocation.take().is_some() {
                    self.store();
                }
            }
            Err(error) => {
                tracing::warn!(instance = %self.id(), error = %crate::chain(&error), "cannot release the network");
            }
        }
    }
}

/// The instant at which a wait of `whole` is over of which `passed` is behind us: what is left of a wait that
/// may have begun before this agent did.
fn rest_of(passed: Duration, whole: Duration) -> Instant {
    Instant::now() + whole.saturating_sub(passed)
}

/// An instance for tests.
#[cfg(test)]
pub(crate) fn sample_spec() -> mogok_api::instance::InstanceSpec {
    use mogok_api::app::{HealthCheck, Limits, RestartPolicy};
    mogok_api::instance::InstanceSpec {
        id: InstanceId::new(),
        app: "fugafuga".parse().unwrap(),
        process: "web.1".parse().unwrap(),
        release: None,
        kind: mogok_api::instance::ContainerKind::App,
        image: "ruby".parse().unwrap(),
        image_digest: None,
        package: None,
        package_mounts: vec![],
        blobs: vec![],
        output: None,
        command: vec!["/bin/sh".into()],
        env: std::collections::BTreeMap::new(),
        limits: Limits::app(),
        grants: Default::default(),
        listens: false,
        health: HealthCheck::default(),
        restart: RestartPolicy::Always,
        stop_grace_s: 30,
        max_runtime_s: None,
    }
}
