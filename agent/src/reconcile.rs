//! Brings what is to what is wanted: starts a task for every wanted instance that has none, and tells
//! those that are wanted no more.
//!
//! Invariant: it takes a wake-up and no data; each turn reads wanted and actual afresh, so the turn
//! after a crash is the turn of every day.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mogok_api::agent::{DesiredAck, DesiredMessage};
use mogok_api::id::InstanceId;
use mogok_api::instance::{Failure, FailureCode, InstanceSpec};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;

use crate::instance::{Instance, Wish};
use crate::ledger::{LedgerError, Record};
use crate::node::Node;

pub mod desired;

use desired::{Applied, Desired, DesiredFile};

/// A turn without a wake-up: for what nobody tells of, like a disk that has room again.
const TURN: Duration = Duration::from_secs(10);

/// The wanted set and the wake-up of whoever acts on it.
#[derive(Debug)]
pub struct Wanted {
    file: DesiredFile,
    held: Mutex<Desired>,
    wake: Notify,
}

impl Wanted {
    /// The set as it was last acknowledged.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn open(file: DesiredFile) -> Result<Self, LedgerError> {
        let held = Mutex::new(file.load()?);
        Ok(Self { file, held, wake: Notify::new() })
    }

    /// Applies a message; what the answer acknowledges survives a power loss.
    ///
    /// # Errors
    /// When the set cannot be stored; it is then as it was before.
    pub async fn apply(&self, message: DesiredMessage, node: &Node) -> Result<DesiredAck, LedgerError> {
        let mut held = self.held.lock().await;
        let mut next = held.clone();
        let applied = next.apply(message);
        if applied == Applied::Changed {
            let (file, stored) = (self.file.clone(), next.clone());
            tokio::task::spawn_blocking(move || file.store(&stored)).await.unwrap_or_else(|error| {
                Err(LedgerError::Write { path: "desired.json".into(), source: std::io::Error::other(error) })
            })?;
            *held = next;
            tracing::info!(
                version = held.version,
                instances = held.instances.len(),
                "the wanted set changed"
            );
            self.wake.notify_one();
        }
        Ok(DesiredAck {
            epoch: held.epoch,
            version: held.version,
            need_snapshot: applied == Applied::NeedSnapshot,
            missing_blobs: node.missing_blobs(held.instances.values()),
        })
    }

    /// Something that instances wait for may be there.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// When no wanted instance needs this blob: something that keeps it so until it is dropped. Blocks.
    pub fn without(&self, digest: &mogok_api::name::Digest) -> Option<impl Sized> {
        let held = self.held.blocking_lock();
        let needs = |spec| crate::node::blobs_of(spec).any(|needed| needed == digest);
        (!held.instances.values().any(needs)).then_some(held)
    }

    async fn instances(&self) -> BTreeMap<InstanceId, InstanceSpec> {
        self.held.lock().await.instances.clone()
    }
}

/// The task of an instance and what it was told.
#[derive(Debug)]
struct Task {
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

/// The loop.
#[derive(Debug)]
pub struct Reconciler {
    node: Arc<Node>,
    wanted: Arc<Wanted>,
    tasks: BTreeMap<InstanceId, Task>,
}

impl Reconciler {
    #[must_use]
    pub fn new(node: Arc<Node>, wanted: Arc<Wanted>) -> Self {
        Self { node, wanted, tasks: BTreeMap::new() }
    }

    /// Takes an instance of an earlier agent's in.
    pub fn adopt(&mut self, record: Record, finding: crate::instance::adopt::Finding) {
        let wish = watch::Sender::new(Wish::default());
        self.node.logs.watch(record.id());
        let id = record.id();
        let instance = Instance::new(self.node.clone(), record, wish.subscribe()).adopted(finding);
        self.spawn(id, wish, instance);
    }

    /// Turns for good.
    pub async fn run(mut self) {
        loop {
            let wanted = self.wanted.instances().await;
            self.turn(wanted);
            let _ = tokio::time::timeout(TURN, self.wanted.wake.notified()).await;
        }
    }

    fn turn(&mut self, wanted: BTreeMap<InstanceId, InstanceSpec>) {
        self.tasks.retain(|id, task| {
            // A task ends when its instance is gone, and in a panic: then the ledger still has it.
            if task.task.is_finished() && self.node.ground.ledger.dir(*id).exists() {
                tracing::error!(instance = %id, "the task of an instance failed: restart the agent to take it up again");
            }
            !task.task.is_finished()
        });
        for (id, task) in &self.tasks {
            let unwanted = !wanted.contains_key(id);
            task.wish.send_modify(|wish| {
                // An instance that was unwanted once is on its way out and does not come back under its id.
                wish.unwanted |= unwanted;
                wish.wake = wish.wake.wrapping_add(1);
            });
        }
        for (id, spec) in wanted {
            if !self.tasks.contains_key(&id) && !self.node.ground.ledger.dir(id).exists() {
                self.begin(spec);
            }
        }
    }

    fn begin(&mut self, spec: InstanceSpec) {
        let record = match self.node.take_uids() {
            Ok(uid_base) => Record::new(spec, uid_base),
            Err(error) => return self.refused(Record::new(spec, 0), &error),
        };
        if let Err(error) = self.node.ground.ledger.store(&record) {
            self.node.give_uids(record.uid_base);
            return self.refused(record, &error);
        }
        let id = record.id();
        let wish = watch::Sender::new(Wish::default());
        self.node.logs.watch(id);
        let instance = Instance::new(self.node.clone(), record, wish.subscribe());
        self.spawn(id, wish, instance);
    }

    fn spawn(&mut self, id: InstanceId, wish: watch::Sender<Wish>, instance: Instance) {
        let wanted = self.wanted.clone();
        let task = tokio::spawn(async move {
            instance.run().await;
            // It may be wanted anew.
            wanted.wake();
        });
        self.tasks.insert(id, Task { wish, task });
    }

    /// Not even a record could be made; the next turn tries again.
    fn refused(&self, mut record: Record, error: &dyn std::error::Error) {
        let message = crate::chain(error);
        tracing::error!(instance = %record.id(), error = %message, "cannot take an instance in");
        record.failure = Some(Failure { code: FailureCode::CannotStart, message });
        self.node.events.changed(record.status(self.node.network.gateway()));
    }
}
