//! The request lines on their way to the apps' logs: a bounded queue that no request ever waits
//! for, and the task that posts it in batches. What finds no room is counted for its app, and the
//! app's next line says how many are missing.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use mogok_api::route::RouterLog;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::control::ControlAddress;

/// The most lines of one batch; the contract's limit.
const MAX_BATCH: usize = 1000;
/// How long lines are gathered before they are sent.
const GATHER: Duration = Duration::from_millis(100);
/// Between two attempts to post the same batch: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The sending end, shared by all requests.
pub struct LogQueue {
    sender: mpsc::Sender<RouterLog>,
    dropped: AtomicU64,
    undelivered: Arc<AtomicUsize>,
}

/// The receiving end.
pub struct LogPoster {
    receiver: mpsc::Receiver<RouterLog>,
    undelivered: Arc<AtomicUsize>,
}

/// A queue of at most `length` lines.
#[must_use]
pub fn queue(length: usize) -> (LogQueue, LogPoster) {
    let (sender, receiver) = mpsc::channel(length.max(1));
    let undelivered = Arc::default();
    (
        LogQueue { sender, dropped: AtomicU64::new(0), undelivered: Arc::clone(&undelivered) },
        LogPoster { receiver, undelivered },
    )
}

impl LogQueue {
    /// Queues a line, or counts it in `missing`, the app's own count.
    pub fn push(&self, line: RouterLog, missing: &AtomicU64) {
        // In the common case nothing is missing, and this is one load.
        let lost = if missing.load(Ordering::Relaxed) > 0 { missing.swap(0, Ordering::Relaxed) } else { 0 };
        if lost > 0 {
            let notice = format!("at=warning desc=\"{lost} request lines before this were dropped\"");
            let notice = RouterLog { at: line.at, app: line.app.clone(), line: notice };
            if !self.send(notice) {
                missing.fetch_add(lost, Ordering::Relaxed);
            }
        }
        if !self.send(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            missing.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn send(&self, line: RouterLog) -> bool {
        // Counted first, so that the poster never takes off what was not put on.
        self.undelivered.fetch_add(1, Ordering::Relaxed);
        let sent = self.sender.try_send(line).is_ok();
        if !sent {
            self.undelivered.fetch_sub(1, Ordering::Relaxed);
        }
        sent
    }

    /// Lines dropped since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Lines that the control plane does not have yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.undelivered.load(Ordering::Relaxed)
    }
}

impl LogPoster {
    /// Posts batches until it is dropped. A batch that cannot be posted is tried again; meanwhile
    /// the queue fills.
    pub async fn run(mut self, control: ControlAddress) -> Infallible {
        let receiver = &mut self.receiver;
        let mut batch = Vec::with_capacity(MAX_BATCH);
        loop {
            if receiver.recv_many(&mut batch, MAX_BATCH).await == 0 {
                // Every sender is gone: so is the router.
                return std::future::pending().await;
            }
            // Waits for company, unless the batch is full.
            let _ = timeout(GATHER, async {
                while batch.len() < MAX_BATCH {
                    let room = MAX_BATCH - batch.len();
                    if receiver.recv_many(&mut batch, room).await == 0 {
                        break;
                    }
                }
            })
            .await;
            let mut backoff = BACKOFF.0;
            while let Err(error) = control.post("/v1/router-logs", &batch).await {
                tracing::debug!(%error, lines = batch.len(), "request lines not delivered, trying again");
                sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
            self.undelivered.fetch_sub(batch.len(), Ordering::Relaxed);
            batch.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> RouterLog {
        RouterLog { at: chrono::Utc::now(), app: "alpha".parse().unwrap(), line: text.to_owned() }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_reported() {
        let (queue, poster) = queue(2);
        let missing = AtomicU64::new(0);
        for text in ["1", "2", "3", "4"] {
            queue.push(line(text), &missing);
        }
        assert_eq!((queue.dropped(), queue.waiting(), missing.load(Ordering::Relaxed)), (2, 2, 2));
        let mut receiver = poster.receiver;
        assert_eq!(receiver.try_recv().unwrap().line, "1");
        assert_eq!(receiver.try_recv().unwrap().line, "2");
        queue.push(line("5"), &missing);
        assert_eq!(
            receiver.try_recv().unwrap().line,
            "at=warning desc=\"2 request lines before this were dropped\""
        );
        assert_eq!(receiver.try_recv().unwrap().line, "5");
        assert_eq!(missing.load(Ordering::Relaxed), 0);
    }
}
