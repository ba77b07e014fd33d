//! The output of the node's instances: what the shims wrote, and the platform's own words beside it,
//! as one ordered stream with cursors that survive the agent.
//!
//! Invariant: an instance is gone from here only after its last line has been in the stream, or after
//! a bounded time when nobody reads the stream.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use mogok_api::id::InstanceId;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;

use crate::ledger::{Ledger, LedgerError};

pub mod collect;
pub mod journal;
pub mod line;
pub mod segments;
pub mod stream;
pub mod watches;

use collect::Collector;
use journal::{Cursor, Journal, Source};
use line::{Line, whole};
use segments::{Appender, Bounds, Segments};
use stream::LogReader;
use watches::Watches;

/// Between two looks at what was written: a line is this late at most, and a busy instance costs this many entries.
const PACE: Duration = Duration::from_millis(200);
/// Between two looks while an instance has no watch.
const POLL: Duration = Duration::from_secs(1);
/// Between two looks for what is kept of gone instances.
const SWEEP: Duration = Duration::from_secs(10);
/// A follower's connection shows within this time that it is dead.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long the output of a gone instance is kept at least.
const KEEP: Duration = Duration::from_secs(60);
/// How long it is kept when nobody has read it.
const KEEP_UNREAD: Duration = Duration::from_secs(900);
/// Looks at a log before its instance goes: more than its bounds let it hold.
const RETIRE_ROUNDS: usize = 1000;
/// Bounds of the platform's words about one instance.
const WORDS: Bounds = Bounds { file_bytes: 64 * 1024, files: 2 };
/// Lines shown of an ended run, and bytes of each.
const LAST_LINES: usize = 20;
const LAST_LINE_BYTES: usize = 2_000;
const LAST_BYTES: u64 = 64 * 1024;

/// All output on the node.
#[derive(Debug)]
pub struct Logs {
    ledger: Ledger,
    collector: Mutex<Collector>,
    watches: Mutex<Watches>,
    /// A watch was added.
    added: Notify,
    /// Where the journal ends.
    end: watch::Sender<u64>,
    /// Where the readers of the whole stream are, the foremost of them.
    read: AtomicU64,
    /// Where the journal ended when an instance went.
    gone: Mutex<BTreeMap<InstanceId, u64>>,
}

impl Logs {
    /// # Errors
    /// When the journal cannot be made or read.
    pub fn open(state_dir: &Path, ledger: Ledger) -> io::Result<Self> {
        let journal = Journal::open(state_dir)?;
        let end = watch::Sender::new(journal.end());
        let collector = Mutex::new(Collector::new(journal)?);
        Ok(Self {
            ledger,
            collector,
            watches: Mutex::default(),
            added: Notify::new(),
            end,
            read: AtomicU64::new(0),
            gone: Mutex::default(),
        })
    }

    /// Takes an instance into the stream.
    pub fn watch(&self, id: InstanceId) {
        let dir = self.ledger.dir(id);
        held(&self.collector).watch(id, &dir);
        held(&self.watches).add(id, &Source::Shim.dir(&dir));
        self.added.notify_one();
    }

    /// Says something about an instance in its own log.
    pub fn say(&self, id: InstanceId, text: &str) {
        let dir = Source::Platform.dir(&self.ledger.dir(id));
        let said =
            Appender::open(&dir, WORDS).and_then(|mut log| log.append(&line::platform(Utc::now(), text)));
        if let Err(error) = said {
            tracing::warn!(instance = %id, %error, "cannot write the platform's word");
        }
        self.collect(id);
    }

    /// Takes the last lines of an instance in, and it itself out.
    ///
    /// # Errors
    /// When its directory cannot be put among the gone ones.
    pub fn retire(&self, id: InstanceId) -> Result<(), LedgerError> {
        // Nobody writes any more, so this ends; the bound is against a fault that would keep it from that.
        for _ in 0..RETIRE_ROUNDS {
            if !self.collect(id) {
                break;
            }
        }
        held(&self.watches).remove(id);
        let mut collector = held(&self.collector);
        collector.forget(id);
        self.ledger.retire(id)?;
        held(&self.gone).insert(id, collector.journal().end());
        // Who follows it alone has come to the end.
        self.end.send_modify(|_| ());
        Ok(())
    }

    /// Drops what was kept of gone instances, where it was read or nobody came for it in time.
    pub fn sweep(&self) {
        let (end, read) = (*self.end.borrow(), self.read.load(Ordering::Relaxed));
        let gone = match self.ledger.list_gone() {
            Ok(gone) => gone,
            Err(error) => return tracing::warn!(%error, "cannot list gone instances"),
        };
        for id in gone {
            let mut ends = held(&self.gone);
            // Gone before this agent started: whatever it wrote is in the journal as it was then.
            let last = *ends.entry(id).or_insert(end);
            let kept = self.ledger.gone_for(id).unwrap_or(KEEP_UNREAD);
            if kept >= KEEP_UNREAD || (kept >= KEEP && read >= last) {
                match self.ledger.erase_gone(id) {
                    Ok(()) => drop(ends.remove(&id)),
                    Err(error) => tracing::warn!(instance = %id, %error, "cannot remove a gone instance"),
                }
            }
        }
    }

    /// The last lines that a run wrote whose first byte is at `from`.
    #[must_use]
    pub fn last_lines(&self, id: InstanceId, from: u64) -> Vec<String> {
        last_lines(&self.ledger.dir(id), from)
            .inspect_err(|error| tracing::warn!(instance = %id, %error, "cannot read the last lines"))
            .unwrap_or_default()
    }

    /// Where the log of an instance ends now.
    #[must_use]
    pub fn end_of(&self, id: InstanceId) -> u64 {
        Segments::new(Source::Shim.dir(&self.ledger.dir(id))).end().unwrap_or(0)
    }

    fn collect(&self, id: InstanceId) -> bool {
        let mut collector = held(&self.collector);
        let more = collector.collect(id).unwrap_or_else(|error| {
            tracing::warn!(instance = %id, %error, "cannot take note of output");
            false
        });
        let end = collector.journal().end();
        self.end.send_if_modified(|old| std::mem::replace(old, end) != end);
        more
    }

    /// Collects from those that wrote; true when some of them have more.
    fn collect_changed(&self) -> bool {
        let changed = held(&self.watches).take();
        let mut more = false;
        for id in changed {
            if self.collect(id) {
                held(&self.watches).mark(id);
                more = true;
            }
        }
        more
    }

    /// Looks at logs that were written; never returns.
    pub async fn run(self: Arc<Self>) {
        #[expect(
            deprecated,
            reason = "its successor is unsafe code; this descriptor is owned and never replaced"
        )]
        let events = held(&self.watches).descriptor().and_then(|fd| fd.map(AsyncFd::new).transpose());
        let events = events.unwrap_or_else(|error| {
            tracing::error!(%error, "output is polled: inotify cannot be waited for");
            None
        });
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let polled = events.is_none() || held(&self.watches).polled();
            tokio::select! {
                () = written(events.as_ref()) => {}
                () = self.added.notified() => {}
                () = tokio::time::sleep(POLL), if polled => {}
                _ = sweep.tick() => {
                    self.look(|logs| logs.sweep()).await;
                    continue;
                }
            }
            if self.look(|logs| logs.collect_changed()).await == Some(true) {
                self.added.notify_one();
            }
            tokio::time::sleep(PACE).await;
        }
    }

    async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let logs = Arc::clone(self);
        tokio::task::spawn_blocking(move || look(&logs))
            .await
            .inspect_err(|error| tracing::error!(%error, "the collection of output failed"))
            .ok()
    }

    /// The stream as lines of JSON: records behind `after`, of one instance or of all; with `follow` it goes
    /// on as output comes, until the one instance is gone, and empty lines show that it lives.
    #[must_use]
    pub fn stream(
        self: &Arc<Self>,
        after: Option<Cursor>,
        only: Option<InstanceId>,
        follow: bool,
    ) -> ReceiverStream<io::Result<Bytes>> {
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(Arc::clone(self).feed(after, only, follow, sender));
        ReceiverStream::new(receiver)
    }

    async fn feed(
        self: Arc<Self>,
        after: Option<Cursor>,
        only: Option<InstanceId>,
        follow: bool,
        sender: mpsc::Sender<io::Result<Bytes>>,
    ) {
        let mut end = self.end.subscribe();
        let mut reader = {
            let collector = held(&self.collector);
            let journal = collector.journal();
            let (epoch, at) = (journal.epoch().to_owned(), journal.end());
            LogReader::new(journal.reader(), epoch, at, after, only, self.ledger.clone())
        };
        loop {
            // Before the look, so that what comes during it is not slept over.
            end.mark_unchanged();
            let over = !follow || only.is_some_and(|id| !self.ledger.dir(id).is_dir());
            let looked = tokio::task::spawn_blocking(move || {
                let batch = reader.batch().map(|batch| batch.map(|records| lines(&records)));
                (reader, batch)
            });
            let Ok((back, batch)) = looked.await else { return };
            reader = back;
            match batch {
                Err(error) => {
                    drop(sender.send(Err(error)).await);
                    return;
                }
                Ok(Some(lines)) => {
                    if !lines.is_empty() && sender.send(Ok(lines)).await.is_err() {
                        return;
                    }
                    if only.is_none() {
                        self.read.fetch_max(reader.place().entry, Ordering::Relaxed);
                    }
                }
                Ok(None) if over => return,
                Ok(None) => {
                    let more = tokio::time::timeout(KEEPALIVE, end.changed());
                    tokio::select! {
                        woken = more => if woken.is_err() && sender.send(Ok(Bytes::from_static(b"\n"))).await.is_err() {
                            return;
                        },
                        () = sender.closed() => return,
                    }
                }
            }
        }
    }
}

/// Until there are events; for ever where there are none to wait for.
async fn written(events: Option<&AsyncFd<OwnedFd>>) {
    let Some(events) = events else { return std::future::pending().await };
    match events.readable().await {
        // They are read behind this, so none that comes meanwhile is missed.
        Ok(mut ready) => ready.clear_ready(),
        Err(_) => std::future::pending().await,
    }
}

fn lines(records: &[mogok_api::agent::LogRecord]) -> Bytes {
    let mut lines = Vec::new();
    for record in records {
        // These types have no value that JSON cannot hold.
        if let Ok(mut line) = serde_json::to_vec(record) {
            lines.append(&mut line);
            lines.push(b'\n');
        }
    }
    lines.into()
}

fn last_lines(dir: &Path, from: u64) -> io::Result<Vec<String>> {
    let mut log = Segments::new(Source::Shim.dir(dir));
    let end = log.end()?;
    let mut at = from.max(end.saturating_sub(LAST_BYTES));
    let mut last = std::collections::VecDeque::new();
    while at < end {
        let chunk = log.read(at, LAST_BYTES as usize)?;
        if chunk.bytes.is_empty() {
            break;
        }
        at = chunk.end();
        for line in whole(&chunk.bytes).filter_map(|(line, _)| Line::parse(line)) {
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            let mut shown = line.shown();
            shown.truncate(shown.floor_char_boundary(LAST_LINE_BYTES));
            last.push_back(shown);
        }
    }
    Ok(last.into())
}

/// The content of a lock whose holder may have panicked: the values in here are valid at every step.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
