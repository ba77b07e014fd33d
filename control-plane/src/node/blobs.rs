//! Sending a node the blobs it lacks. The agent names them in every acknowledgement until it has them,
//! so nothing needs to be remembered here but what is under way and what failed lately.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mogok_api::agent::client::{AgentClient, ClientError};
use mogok_api::name::Digest;
use tokio::task::JoinSet;

use super::chain;

/// Transfers at once.
const AT_ONCE: usize = 2;
/// How long a blob that could not be sent is left alone: doubling with each failure, to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The transfers to one node; dropping it ends them.
#[derive(Debug)]
pub(super) struct Blobs {
    store: mogok_images::Store,
    client: AgentClient,
    running: JoinSet<(Digest, Result<(), ClientError>)>,
    under_way: Vec<Digest>,
    failed: HashMap<Digest, (u32, Instant)>,
}

impl Blobs {
    pub(super) fn new(store: mogok_images::Store, client: AgentClient) -> Self {
        Self { store, client, running: JoinSet::new(), under_way: Vec::new(), failed: HashMap::new() }
    }

    /// Begins to send what is missing, as far as there is room; the next acknowledgement names the rest again.
    pub(super) fn send(&mut self, missing: Vec<Digest>) {
        self.failed.retain(|digest, _| missing.contains(digest));
        for digest in missing {
            if self.running.len() >= AT_ONCE {
                return;
            }
            let early = self.failed.get(&digest).is_some_and(|(_, retry)| *retry > Instant::now());
            if early || self.under_way.contains(&digest) {
                continue;
            }
            let (client, path) = (self.client.clone(), self.store.blob_path(&digest));
            self.under_way.push(digest.clone());
            self.running.spawn(async move {
                let sent = client.put_blob(&digest, &path).await;
                (digest, sent)
            });
        }
    }

    /// Waits until a transfer ends; for ever when none is under way. Cancel-safe.
    pub(super) async fn finished(&mut self) {
        let Some(ended) = self.running.join_next().await else { return std::future::pending().await };
        match ended {
            Ok((digest, result)) => {
                self.under_way.retain(|other| *other != digest);
                match result {
                    Ok(()) => {
                        tracing::info!(%digest, address = %self.client.address(), "sent a blob");
                        self.failed.remove(&digest);
                    }
                    Err(error) => {
                        let address = self.client.address();
                        tracing::warn!(%digest, %address, error = chain(&error), "cannot send a blob");
                        let (failures, _) = self.failed.get(&digest).copied().unwrap_or((0, Instant::now()));
                        let pause = Duration::from_secs(1 << failures.min(6)).min(LONGEST_PAUSE);
                        self.failed.insert(digest, (failures.saturating_add(1), Instant::now() + pause));
                    }
                }
            }
            // A transfer that panicked: which one is not known, and the agent asks again for all that it lacks.
            Err(error) => {
                tracing::error!(%error, "a transfer died");
                self.running.abort_all();
                self.under_way.clear();
            }
        }
    }
}
