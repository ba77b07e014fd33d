//! A reader that goes on: first what is there, then what comes.
//!
//! It keeps a place in the files and the number of the last line it gave, and nothing else. When the
//! files it had yet to read were dropped, it says how many lines are missing and goes on behind them.

use std::sync::Arc;

use chrono::Utc;
use mogok_api::control::{LogLine, LogSource};
use tokio::sync::watch;

use super::segments::Position;
use super::{Filter, Log, LogError, MAX_READ, Tail, blocking, lock};

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the newest lines, as many as this (at most 10,000).
    Last(usize),
    /// Behind the line of this number; 0 for all that is kept.
    After(u64),
}

/// See [`super::LogStore::follow`].
#[derive(Debug)]
pub struct Follower {
    log: Arc<Log>,
    tail: watch::Receiver<Tail>,
    filter: Filter,
    /// Lines of the start that were not handed out yet.
    backlog: Vec<LogLine>,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    position: Position,
    /// The last line that was read; 0 where the reader does not mind what was before.
    seq: u64,
}

impl Follower {
    pub(super) async fn new(log: Arc<Log>, start: Start, filter: Filter) -> Result<Self, LogError> {
        let tail = log.tail.subscribe();
        let files = lock(&log.segments).files();
        let wanted = filter.clone();
        let (place, backlog) = blocking(move || match start {
            Start::Last(n) => {
                let place = Place { position: files.end, seq: files.last_seq };
                Ok((place, files.last(n.min(MAX_READ), &wanted)?))
            }
            Start::After(seq) => {
                // A number that was not given yet is of a log that a power loss has shortened.
                let seq = seq.min(files.last_seq);
                Ok((Place { position: files.position_after(seq), seq }, Vec::new()))
            }
        })
        .await?;
        Ok(Self { log, tail, filter, backlog, place })
    }

    /// The next lines, in order, each once; waits for them. Nothing once the log is closed and read.
    ///
    /// Safe to cancel: what was not returned comes with the next call.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn next(&mut self) -> Result<Option<Vec<LogLine>>, LogError> {
        if !self.backlog.is_empty() {
            return Ok(Some(std::mem::take(&mut self.backlog)));
        }
        loop {
            // Seen before the read: a line that comes during it wakes the next turn.
            let tail = *self.tail.borrow_and_update();
            let read = self.read().await?;
            match read {
                Some(lines) if !lines.is_empty() => return Ok(Some(lines)),
                // Read on: the filter took nothing of this part.
                Some(_) => {}
                None if tail.closed => return Ok(None),
                None => {
                    if self.tail.changed().await.is_err() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// What passes of the next part; nothing at the end.
    async fn read(&mut self) -> Result<Option<Vec<LogLine>>, LogError> {
        let (log, from) = (Arc::clone(&self.log), self.place);
        let (lines, position) = blocking(move || {
            let files = lock(&log.segments).files();
            files.chunk(from.position)
        })
        .await?;
        if lines.is_empty() && position == from.position {
            return Ok(None);
        }
        let mut out = Vec::new();
        let mut seq = from.seq;
        for line in lines.into_iter().filter(|line| line.seq > from.seq) {
            if seq != 0 && line.seq > seq + 1 {
                out.push(missing(line.seq - 1, line.seq - 1 - seq));
            }
            seq = line.seq;
            if self.filter.takes(&line) {
                out.push(line);
            }
        }
        self.place = Place { position, seq };
        Ok(Some(out))
    }
}

fn missing(seq: u64, count: u64) -> LogLine {
    let line = format!("{count} lines are no longer kept");
    LogLine { seq, at: Utc::now(), source: LogSource::Mogok, process: "log".to_owned(), line }
}
