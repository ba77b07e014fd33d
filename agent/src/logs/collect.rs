//! Taking note of what instances wrote: reads on in each of their logs and enters the stretches into
//! the journal, the program's output and the platform's words in the order of their times.
//!
//! Invariant: every whole line is entered once; where to go on is found in the journal itself.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use chrono::{DateTime, Utc};
use mogok_api::id::InstanceId;

use super::journal::{Journal, Source, Stretch};
use super::line::{Line, whole};
use super::segments::{Chunk, Segments};

/// Bytes read at once of one log, where its lines are to be put in order with others.
const CHUNK: usize = 64 * 1024;
/// Bytes of a stretch that is entered unread.
const STRETCH: usize = 8 * 1024 * 1024;
/// Rounds for one instance before the others get their turn.
const ROUNDS: usize = 8;

/// One of an instance's logs and how far it was entered.
#[derive(Debug)]
struct Tail {
    log: Segments,
    at: u64,
}

/// The journal and the logs that are watched for it.
#[derive(Debug)]
pub struct Collector {
    journal: Journal,
    tails: BTreeMap<InstanceId, [Tail; 2]>,
    /// How far the logs were entered, as the journal has it at the start.
    entered: BTreeMap<(InstanceId, Source), u64>,
}

impl Collector {
    /// # Errors
    /// When the journal cannot be read.
    pub fn new(journal: Journal) -> io::Result<Self> {
        let mut entered = BTreeMap::new();
        let mut reader = journal.reader();
        let mut at = 0;
        // Ends at the journal's end, which nobody else moves.
        while at < journal.end() {
            let chunk = reader.read(at, CHUNK)?;
            if chunk.bytes.is_empty() {
                break;
            }
            for stretch in whole(&chunk.bytes).filter_map(|(line, _)| Stretch::parse(line)) {
                entered.insert((stretch.instance, stretch.source), stretch.end);
            }
            at = chunk.end();
        }
        Ok(Self { journal, tails: BTreeMap::new(), entered })
    }

    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Watches the logs of an instance in `dir`. Again does no harm.
    pub fn watch(&mut self, id: InstanceId, dir: &Path) {
        let entered = &mut self.entered;
        self.tails.entry(id).or_insert_with(|| {
            [Source::Shim, Source::Platform].map(|source| Tail {
                log: Segments::new(source.dir(dir)),
                at: entered.remove(&(id, source)).unwrap_or(0),
            })
        });
    }

    /// Watches an instance no longer.
    pub fn forget(&mut self, id: InstanceId) {
        self.tails.remove(&id);
    }

    /// Enters what is new of one instance. True when there may be more.
    ///
    /// # Errors
    /// When its logs cannot be read or the journal does not take them.
    pub fn collect(&mut self, id: InstanceId) -> io::Result<bool> {
        let Some([shim, platform]) = self.tails.get_mut(&id) else { return Ok(false) };
        for _ in 0..ROUNDS {
            // The platform's words first: whatever the program wrote before them is then in its log already.
            let words = platform.log.read(platform.at, CHUNK)?;
            let stretches = if words.bytes.is_empty() {
                let (start, end) = shim.log.extent(shim.at, STRETCH)?;
                if start == end {
                    return Ok(false);
                }
                vec![Stretch { instance: id, source: Source::Shim, start, end }]
            } else {
                merged(id, &shim.log.read(shim.at, CHUNK)?, &words)
            };
            self.journal.append(&stretches)?;
            for stretch in &stretches {
                match stretch.source {
                    Source::Shim => shim.at = stretch.end,
                    Source::Platform => platform.at = stretch.end,
                }
            }
        }
        Ok(true)
    }
}

/// Ends of the lines of a chunk with the time of each; a line that is none has the time of the one before.
fn timed(chunk: &Chunk) -> Vec<(DateTime<Utc>, u64)> {
    let mut last = DateTime::<Utc>::MIN_UTC;
    whole(&chunk.bytes)
        .map(|(line, end)| {
            last = Line::parse(line).map_or(last, |line| line.at.max(last));
            (last, chunk.start + end as u64)
        })
        .collect()
}

/// The stretches of both logs in the order of time. When the output goes on behind its chunk, words that
/// are later than the chunk wait for the next round.
fn merged(id: InstanceId, output: &Chunk, words: &Chunk) -> Vec<Stretch> {
    let (lines, mut said) = (timed(output), timed(words));
    if output.bytes.len() > CHUNK / 2
        && let Some((last, _)) = lines.last()
    {
        said.retain(|(at, _)| at <= last);
    }
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut starts = [output.start, words.start];
    let (mut lines, mut said) = (lines.into_iter().peekable(), said.into_iter().peekable());
    loop {
        let (source, end) = match (lines.peek(), said.peek()) {
            (None, None) => return stretches,
            (Some((line, end)), word) if word.is_none_or(|(word, _)| line <= word) => {
                let end = *end;
                lines.next();
                (Source::Shim, end)
            }
            (_, Some((_, end))) => {
                let end = *end;
                said.next();
                (Source::Platform, end)
            }
            // The first arm takes every line that no word stands beside.
            (Some(_), None) => return stretches,
        };
        let start = &mut starts[usize::from(source == Source::Platform)];
        match stretches.last_mut() {
            Some(last) if last.source == source => last.end = end,
            _ => stretches.push(Stretch { instance: id, source, start: *start, end }),
        }
        *start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::line;
    use crate::logs::segments::{Appender, Bounds};

    const BOUNDS: Bounds = Bounds { file_bytes: 1 << 20, files: 4 };

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap()
    }

    fn stretches(collector: &Collector) -> Vec<(Source, u64, u64)> {
        let chunk = collector.journal().reader().read(0, 1 << 16).unwrap();
        let all = whole(&chunk.bytes).map(|(line, _)| Stretch::parse(line).unwrap());
        all.map(|stretch| (stretch.source, stretch.start, stretch.end)).collect()
    }

    #[test]
    fn output_and_words_are_entered_once_and_in_order_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (state, instance) = (dir.path().join("state"), dir.path().join("instance"));
        std::fs::create_dir(&state).unwrap();
        let id = InstanceId::new();
        let mut output = Appender::open(&Source::Shim.dir(&instance), BOUNDS).unwrap();
        let mut words = Appender::open(&Source::Platform.dir(&instance), BOUNDS).unwrap();
        words.append(&line::platform(at(0), "started")).unwrap();
        output.append(&line::platform(at(1), "a")).unwrap();
        output.append(&line::platform(at(2), "b")).unwrap();
        words.append(&line::platform(at(3), "exited")).unwrap();

        let mut collector = Collector::new(Journal::open(&state).unwrap()).unwrap();
        collector.watch(id, &instance);
        assert!(!collector.collect(id).unwrap());
        let end = output.end();
        let started = line::platform(at(0), "started").len() as u64;
        let seen = [
            (Source::Platform, 0, started),
            (Source::Shim, 0, end),
            (Source::Platform, started, words.end()),
        ];
        assert_eq!(stretches(&collector), seen);

        let mut collector = Collector::new(Journal::open(&state).unwrap()).unwrap();
        collector.watch(id, &instance);
        collector.collect(id).unwrap();
        assert_eq!(stretches(&collector), seen);
        output.append(&line::platform(at(4), "c")).unwrap();
        collector.collect(id).unwrap();
        assert_eq!(stretches(&collector).last(), Some(&(Source::Shim, end, output.end())));
    }
}
