//! Changes of the table that wait for their transaction, and what follows from its outcome.
//!
//! Invariant: the leases are changed before the transaction (a table that is made anew comes from them)
//! and changed back where neither the transaction nor the new table succeeds.

use std::os::fd::OwnedFd;

use mogok_api::id::InstanceId;

use super::{Reply, Worker};
use crate::network::ruleset::Entry;
use crate::network::{Attachment, NetworkError};

/// One container's.
#[derive(Debug)]
pub(super) enum Change {
    Attach {
        id: InstanceId,
        entry: Entry,
        netns: OwnedFd,
        reply: Reply<Attachment>,
    },
    Restore {
        id: InstanceId,
        entry: Entry,
        reply: Reply<()>,
    },
    /// Without a reply where nobody asked: the start that it takes back was abandoned.
    Detach {
        id: InstanceId,
        entry: Entry,
        reply: Option<Reply<()>>,
    },
}

impl Worker {
    /// Applies all, or none, and answers. A second round takes back what nobody waits for any more.
    pub(super) async fn apply(&mut self, changes: Vec<Change>) {
        let abandoned = self.apply_once(changes).await;
        self.apply_once(abandoned).await;
    }

    async fn apply_once(&mut self, changes: Vec<Change>) -> Vec<Change> {
        if changes.is_empty() {
            return Vec::new();
        }
        match self.write(&changes).await {
            Ok(()) => self.done(changes),
            Err(error) => {
                self.take_back(changes, &crate::chain(&error));
                Vec::new()
            }
        }
    }

    /// Where a transaction fails the table is not what we believe (someone flushed the rules), so it is
    /// made anew from what we know.
    async fn write(&mut self, changes: &[Change]) -> Result<(), NetworkError> {
        let table = self.rules.table();
        let changed = self.nfnetlink.commit("change the table", |batch| {
            for change in changes {
                match change {
                    Change::Attach { entry, .. } | Change::Restore { entry, .. } => batch.add(table, entry),
                    Change::Detach { entry, .. } => batch.remove(table, entry),
                }
            }
        });
        let Err(error) = changed else { return Ok(()) };
        tracing::warn!(error = %crate::chain(&error), "table does not take a change, making it anew");
        self.rebuild("make the table anew").await
    }

    fn done(&mut self, changes: Vec<Change>) -> Vec<Change> {
        let mut abandoned = Vec::new();
        for change in changes {
            match change {
                Change::Attach { id, entry, netns, reply } => {
                    let allocation = entry.allocation.clone();
                    if reply.send(Ok(Attachment { netns, allocation })).is_err() {
                        self.leases.forget(&id);
                        abandoned.push(Change::Detach { id, entry, reply: None });
                    }
                }
                Change::Restore { reply, .. } => drop(reply.send(Ok(()))),
                Change::Detach { entry, reply, .. } => {
                    self.dying.push(entry.allocation);
                    if let Some(reply) = reply {
                        let _ = reply.send(Ok(()));
                    }
                }
            }
        }
        abandoned
    }

    /// Backwards: one batch may take a container's old network away and give it a new one.
    fn take_back(&mut self, changes: Vec<Change>, message: &str) {
        let failed = || NetworkError::Table(message.to_owned());
        for change in changes.into_iter().rev() {
            match change {
                Change::Attach { id, entry, reply, .. } => {
                    self.leases.forget(&id);
                    self.dying.push(entry.allocation);
                    let _ = reply.send(Err(failed()));
                }
                Change::Restore { id, entry, reply } => {
                    self.leases.forget(&id);
                    self.leases.release(&entry.allocation);
                    let _ = reply.send(Err(failed()));
                }
                Change::Detach { id, entry, reply } => {
                    // Held on, so that the caller can try again and nobody gets the numbers meanwhile.
                    self.leases.hold(id, entry);
                    match reply {
                        Some(reply) => drop(reply.send(Err(failed()))),
                        None => {
                            tracing::warn!(instance = %id, message, "network of an abandoned start not removed");
                        }
                    }
                }
            }
        }
    }
}
