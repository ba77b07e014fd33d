//! The logs that developers read: one per app and one per build, each a few bounded files.
//!
//! Lines get a number that counts up and survives a restart. The files are the only queue: a reader
//! that follows is woken and reads on from its place, so a slow one costs no memory, and snapshot and
//! live lines meet without a gap or a repetition. What survives `kill -9` needs no fsync, so none is made.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use mogok_api::control::{LogLine, LogSource};
use mogok_api::id::{AppId, BuildId};
use tokio::sync::watch;

mod follow;
mod record;
mod segments;
#[cfg(test)]
mod tests;

pub use follow::{Follower, Start};
use segments::Segments;

/// Logs that are kept open at once; the least recently used one is closed, so that hundreds of apps
/// do not need hundreds of descriptors.
const MAX_OPEN: usize = 128;
/// Removed logs that are remembered; what comes late of others goes with the next collection.
const MAX_REMOVED: usize = 256;
/// Lines that one read answers with at most.
const MAX_READ: usize = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the log reader was stopped")]
    Stopped(#[source] tokio::task::JoinError),
}

impl LogError {
    fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogKey {
    App(AppId),
    Build(BuildId),
}

impl From<AppId> for LogKey {
    fn from(id: AppId) -> Self {
        Self::App(id)
    }
}

impl From<BuildId> for LogKey {
    fn from(id: BuildId) -> Self {
        Self::Build(id)
    }
}

/// A line before it has a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLine {
    pub at: DateTime<Utc>,
    pub source: LogSource,
    /// `web.1`, `build`, `router`, `api`.
    pub process: String,
    /// Any bytes: what is no UTF-8, NUL and newlines are replaced, and it is cut at 10,000 bytes.
    pub line: Vec<u8>,
}

/// Which lines a reader wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub source: Option<LogSource>,
    /// `web.1` for one process, `web` for all of the type.
    pub process: Option<String>,
}

impl Filter {
    fn takes(&self, line: &LogLine) -> bool {
        self.source.is_none_or(|source| source == line.source)
            && self.process.as_deref().is_none_or(|process| {
                line.process
                    .strip_prefix(process)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
    }
}

/// All logs; cheap to clone.
#[derive(Debug, Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Grows with every use; the smallest is the least recently used.
    clock: u64,
    logs: HashMap<LogKey, (u64, Arc<Log>)>,
    /// The last that were removed, oldest first: lines of theirs that come late make no new log.
    removed: VecDeque<LogKey>,
}

/// One open log.
#[derive(Debug)]
struct Log {
    segments: Mutex<Segments>,
    tail: watch::Sender<Tail>,
}

/// What readers wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tail {
    /// The number of the newest line.
    seq: u64,
    /// No line will follow.
    closed: bool,
}

/// The data behind a lock is whole after every step, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogStore {
    /// The logs below `state_dir` (`logs/APP ID/` and `build-logs/BUILD ID/`, made when first written).
    #[must_use]
    pub fn open(state_dir: &Path) -> Self {
        Self { inner: Arc::new(Inner { root: state_dir.to_owned(), open: Mutex::default() }) }
    }

    /// Appends one line; returns its number.
    ///
    /// # Errors
    /// When the file cannot be written (a full disk); nothing of the line is kept then.
    pub fn append(
        &self,
        key: impl Into<LogKey>,
        at: DateTime<Utc>,
        source: LogSource,
        process: &str,
        line: impl AsRef<[u8]>,
    ) -> Result<u64, LogError> {
        let line = NewLine { at, source, process: process.to_owned(), line: line.as_ref().to_vec() };
        self.append_all(key, std::slice::from_ref(&line))
    }

    /// Appends lines with as few writes as the files allow; returns the number of the last one.
    ///
    /// # Errors
    /// When the file cannot be written; lines before the failure may have been kept, whole.
    pub fn append_all(&self, key: impl Into<LogKey>, lines: &[NewLine]) -> Result<u64, LogError> {
        let key = key.into();
        if lock(&self.inner.open).removed.contains(&key) {
            return Ok(0);
        }
        let log = self.log(key)?;
        let mut segments = lock(&log.segments);
        let result = segments.append(lines);
        let seq = segments.last_seq();
        if log.tail.borrow().seq != seq {
            log.tail.send_modify(|tail| tail.seq = seq);
        }
        result.map(|()| seq)
    }

    /// The newest `n` lines (at most 10,000) that pass the filter, oldest first.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn read_last(
        &self,
        key: impl Into<LogKey>,
        n: usize,
        filter: Filter,
    ) -> Result<Vec<LogLine>, LogError> {
        let log = self.log(key.into())?;
        blocking(move || {
            let files = lock(&log.segments).files();
            files.last(n.min(MAX_READ), &filter)
        })
        .await
    }

    /// The first `n` lines (at most 10,000) behind number `seq` that pass the filter.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn read_after(
        &self,
        key: impl Into<LogKey>,
        seq: u64,
        n: usize,
        filter: Filter,
    ) -> Result<Vec<LogLine>, LogError> {
        let log = self.log(key.into())?;
        blocking(move || {
            let files = lock(&log.segments).files();
            files.after(seq, n.min(MAX_READ), &filter)
        })
        .await
    }

    /// A reader that begins at `start` and goes on with every new line until the log is closed or removed.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn follow(
        &self,
        key: impl Into<LogKey>,
        start: Start,
        filter: Filter,
    ) -> Result<Follower, LogError> {
        Follower::new(self.log(key.into())?, start, filter).await
    }

    /// Says that no line will follow, durably: readers that follow come to an end. Lines that come
    /// later all the same are kept, for those who read afterwards.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn close(&self, key: impl Into<LogKey>) -> Result<(), LogError> {
        let log = self.log(key.into())?;
        let mut segments = lock(&log.segments);
        segments.close()?;
        log.tail.send_modify(|tail| tail.closed = true);
        Ok(())
    }

    /// Was the log closed? Looks at the mark alone and opens nothing.
    #[must_use]
    pub fn is_closed(&self, key: impl Into<LogKey>) -> bool {
        segments::is_closed(&self.dir(key.into()))
    }

    /// Removes the log and ends its readers. Removing what is not there is no error.
    ///
    /// # Errors
    /// When files remain.
    pub fn remove(&self, key: impl Into<LogKey>) -> Result<(), LogError> {
        let key = key.into();
        let mut open = lock(&self.inner.open);
        if !open.removed.contains(&key) {
            if open.removed.len() >= MAX_REMOVED {
                open.removed.pop_front();
            }
            open.removed.push_back(key);
        }
        if let Some((_, log)) = open.logs.remove(&key) {
            lock(&log.segments).abandon();
            log.tail.send_modify(|tail| tail.closed = true);
        }
        let dir = self.dir(key);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LogError::io("remove the log", &dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// The apps and builds that have a log on disk, so that those of nobody can be removed.
    ///
    /// # Errors
    /// When the directories cannot be listed.
    pub fn keys(&self) -> Result<Vec<LogKey>, LogError> {
        let mut keys = Vec::new();
        for (folder, key) in [("logs", parse_app as fn(&str) -> _), ("build-logs", parse_build)] {
            let dir = self.inner.root.join(folder);
            let entries = match std::fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(LogError::io("list the logs in", &dir))?,
            };
            for entry in entries {
                let entry = entry.map_err(LogError::io("list the logs in", &dir))?;
                keys.extend(entry.file_name().to_str().and_then(key));
            }
        }
        Ok(keys)
    }

    fn dir(&self, key: LogKey) -> PathBuf {
        match key {
            LogKey::App(id) => self.inner.root.join("logs").join(id.to_string()),
            LogKey::Build(id) => self.inner.root.join("build-logs").join(id.to_string()),
        }
    }

    /// The open log, opened now if it is not. Whoever holds it keeps it from being closed for want of room.
    fn log(&self, key: LogKey) -> Result<Arc<Log>, LogError> {
        let mut open = lock(&self.inner.open);
        open.clock += 1;
        let clock = open.clock;
        if let Some((used, log)) = open.logs.get_mut(&key) {
            *used = clock;
            return Ok(Arc::clone(log));
        }
        if open.logs.len() >= MAX_OPEN {
            // Nobody but the map holds it, and nobody can get it while the map is locked.
            let idle = open.logs.iter().filter(|(_, (_, log))| Arc::strong_count(log) == 1);
            if let Some(oldest) = idle.min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key) {
                open.logs.remove(&oldest);
            }
        }
        let segments = Segments::open(self.dir(key))?;
        let tail = Tail { seq: segments.last_seq(), closed: segments.closed() };
        let log = Arc::new(Log { segments: Mutex::new(segments), tail: watch::Sender::new(tail) });
        open.logs.insert(key, (clock, Arc::clone(&log)));
        Ok(log)
    }
}

fn parse_app(name: &str) -> Option<LogKey> {
    name.parse().ok().map(LogKey::App)
}

fn parse_build(name: &str) -> Option<LogKey> {
    name.parse().ok().map(LogKey::Build)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(work).await.map_err(LogError::Stopped)?
}
