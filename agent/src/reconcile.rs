//! Brings what is to what is wanted: starts a task for every wanted instance that has none, and tells
//! those that are wanted no more.
//!
//! Invariant: it takes a wake-up and no data; each turn reads wanted and actual afresh, so the turn
//! after a crash is the turn of every day.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mogok_api::agent::{DesiredAck, DesiredMessage};
use mogok_api::id::InstanceId;
use mogok_api::instance::{Failure, FailureCode, InstanceSpec};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::fail_point;
use crate::instance::{Instance, Wish, adopt};
use crate::ledger::{LedgerError, Record};
use crate::node::Node;

pub mod desired;

use desired::{Applied, Desired, DesiredFile};

/// A turn without a wake-up: for what nobody tells of, like a disk that has room again.
const TURN: Duration = Duration::from_secs(10);

/// What no record tells of is given this long to go before anything is started.
const DEBRIS: Duration = Duration::from_secs(2);

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
        let applied = next.apply(message.clone());
        if applied == Applied::Changed {
            let (file, stored) = (self.file.clone(), next.clone());
            tokio::task::spawn_blocking(move || file.store(&stored, &message)).await.unwrap_or_else(
                |error| {
                    Err(LedgerError::Write {
                        path: "desired.json".into(),
                        source: std::io::Error::other(error),
                    })
                },
            )?;
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
            missing_blobs: node.missing_blobs(held.instances.values().map(Arc::as_ref)),
        })
    }

    /// Something of what is has changed.
    fn wake(&self) {
        self.wake.notify_one();
    }

    /// When no wanted instance needs this blob: something that keeps it so until it is dropped. Blocks.
    pub fn without(&self, digest: &mogok_api::name::Digest) -> Option<impl Sized> {
        let held = self.held.blocking_lock();
        let needs = |spec: &Arc<InstanceSpec>| crate::node::blobs_of(spec).any(|needed| needed == digest);
        (!held.instances.values().any(needs)).then_some(held)
    }

    /// What is wanted; `None` as long as nobody has ever said.
    async fn instances(&self) -> Option<BTreeMap<InstanceId, Arc<InstanceSpec>>> {
        let held = self.held.lock().await;
        held.epoch.map(|_| held.instances.clone())
    }
}

/// The task of an instance and what it was told.
#[derive(Debug)]
struct Task {
    /// What it was begun with; nothing of debris.
    spec: Option<Arc<InstanceSpec>>,
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

impl Task {
    /// Was it begun with this? If not, its id was removed and wanted again in the meantime.
    fn is_of(&mut self, wanted: &Arc<InstanceSpec>) -> bool {
        // What went out is removed first, whatever is wanted next.
        let Some(spec) = &mut self.spec else { return true };
        let same = Arc::ptr_eq(spec, wanted) || spec == wanted;
        if same {
            // One copy is enough, and looked at the more quickly.
            spec.clone_from(wanted);
        }
        same
    }
}

/// The loop.
#[derive(Debug)]
pub struct Reconciler {
    node: Arc<Node>,
    wanted: Arc<Wanted>,
    tasks: BTreeMap<InstanceId, Task>,
    /// Wanted ones that have no task because not even a record could be made; others are told of them.
    refused: BTreeSet<InstanceId>,
}

/// No record could be made.
#[derive(Debug, thiserror::Error)]
enum AcceptError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoint::Injected),
}

impl Reconciler {
    #[must_use]
    pub fn new(node: Arc<Node>, wanted: Arc<Wanted>) -> Self {
        Self { node, wanted, tasks: BTreeMap::new(), refused: BTreeSet::new() }
    }

    /// Takes an instance of an earlier agent's in.
    pub fn adopt(&mut self, record: Record, finding: adopt::Finding) {
        let wish = watch::Sender::new(Wish::default());
        self.node.logs.watch(record.id());
        let id = record.id();
        let spec = Some(Arc::new(record.spec.clone()));
        let instance = Instance::new(self.node.clone(), record, wish.subscribe());
        self.spawn(id, spec, wish, instance.go_on(finding));
    }

    /// Removes what belongs to ids that no record tells of, each with its shims. Until that is done nothing is
    /// started under such an id; others wait for it a moment only, as the user ids it has are not known.
    pub async fn clear(&mut self, debris: Vec<(InstanceId, Vec<i32>)>) {
        let ids: Vec<_> = debris.iter().map(|(id, _)| *id).collect();
        for (id, shims) in debris {
            let ground = self.node.ground.clone();
            self.spawn(id, None, watch::Sender::default(), async move {
                tracing::warn!(instance = %id, "removing what no record tells of");
                adopt::end_all(&ground, id, &shims).await;
                if let Err(error) = ground.ledger.erase(id) {
                    tracing::error!(instance = %id, error = %crate::chain(&error), "cannot remove a directory");
                }
            });
        }
        let deadline = Instant::now() + DEBRIS;
        for id in ids {
            if let Some(task) = self.tasks.get_mut(&id) {
                let _ = tokio::time::timeout_at(deadline, &mut task.task).await;
            }
        }
    }

    /// Turns for good.
    pub async fn run(mut self) {
        loop {
            // An agent that was told nothing stops nothing: it may have lost its files.
            if let Some(wanted) = self.wanted.instances().await {
                self.turn(wanted);
            }
            let _ = tokio::time::timeout(TURN, self.wanted.wake.notified()).await;
        }
    }

    fn turn(&mut self, wanted: BTreeMap<InstanceId, Arc<InstanceSpec>>) {
        self.tasks.retain(|id, task| {
            // A task ends when its instance is gone, and in a panic: then the ledger still has it.
            if task.task.is_finished() && self.node.ground.ledger.dir(*id).exists() {
                tracing::error!(instance = %id, "the task of an instance failed: restart the agent to take it up again");
            }
            !task.task.is_finished()
        });
        for (id, task) in &mut self.tasks {
            // Nobody else is asked, let alone woken: of a thousand tasks this turn is about one.
            if !wanted.get(id).is_some_and(|spec| task.is_of(spec)) {
                // What was unwanted once is on its way out and does not come back under its id.
                task.wish.send_if_modified(|wish| !std::mem::replace(&mut wish.unwanted, true));
            }
        }
        let gone: Vec<_> = self.refused.iter().copied().filter(|id| !wanted.contains_key(id)).collect();
        for id in gone {
            self.refused.remove(&id);
            self.node.events.removed(id);
        }
        for (id, spec) in wanted {
            if !self.tasks.contains_key(&id) && !self.node.ground.ledger.dir(id).exists() {
                self.begin(spec);
            }
        }
    }

    fn begin(&mut self, spec: Arc<InstanceSpec>) {
        let own = InstanceSpec::clone(&spec);
        let record = match self.node.take_uids() {
            Ok(uid_base) => Record::new(own, uid_base),
            Err(error) => return self.refused(Record::new(own, 0), &error),
        };
        let id = record.id();
        if let Err(error) = self.accept(&record) {
            // Its directory would pass for an instance that has a task.
            if let Err(error) = self.node.ground.ledger.erase(id) {
                tracing::error!(instance = %id, error = %crate::chain(&error), "cannot remove a directory");
            }
            self.node.give_uids(record.uid_base);
            return self.refused(record, &error);
        }
        self.refused.remove(&id);
        let wish = watch::Sender::new(Wish::default());
        self.node.logs.watch(id);
        let instance = Instance::new(self.node.clone(), record, wish.subscribe());
        self.spawn(id, Some(spec), wish, instance.run());
    }

    fn accept(&self, record: &Record) -> Result<(), AcceptError> {
        self.node.ground.ledger.store(record)?;
        fail_point!(Accepted);
        Ok(())
    }

    fn spawn(
        &mut self,
        id: InstanceId,
        spec: Option<Arc<InstanceSpec>>,
        wish: watch::Sender<Wish>,
        life: impl Future<Output = ()> + Send + 'static,
    ) {
        let wanted = self.wanted.clone();
        let task = tokio::spawn(async move {
            life.await;
            // It may be wanted anew.
            wanted.wake();
        });
        self.tasks.insert(id, Task { spec, wish, task });
    }

    /// Not even a record could be made; the next turn tries again.
    fn refused(&mut self, mut record: Record, error: &dyn std::error::Error) {
        let message = crate::chain(error);
        tracing::error!(instance = %record.id(), error = %message, "cannot take an instance in");
        record.failure = Some(Failure { code: FailureCode::CannotStart, message });
        self.refused.insert(record.id());
        self.node.events.changed(record.status(self.node.network.gateway()));
    }
}
