//! Reading the journal from a cursor on: the records of all instances, or of one, as they were seen.
//!
//! Invariants: the cursor of a record stands right behind it, so going on from it neither loses nor
//! repeats a line that is still kept; a reader that was too slow for a log's bounds is told how many bytes it
//! missed, and holds one batch however far behind it is.

use std::collections::HashMap;
use std::io;

use mogok_api::agent::{LogRecord, LogStream};
use mogok_api::id::InstanceId;
use mogok_api::name::{AppName, ProcessName};

use super::journal::{Cursor, Place, Source, Stretch};
use super::line::{Line, whole};
use super::segments::Segments;
use crate::ledger::{Ledger, read_record};

/// Bytes of the journal read at once.
const ENTRIES: usize = 16 * 1024;
/// Bytes of a log read at once.
const CHUNK: usize = 64 * 1024;
/// Bytes of a batch, roughly.
const BATCH: usize = 256 * 1024;
/// Of a record, beside its text; there may be nothing but empty lines.
const RECORD: usize = size_of::<LogRecord>() + 64;
/// Instances whose files are kept open.
const OPEN: usize = 128;

/// Whose records they are, and their logs.
#[derive(Debug)]
struct Instance {
    app: AppName,
    process: ProcessName,
    logs: [Segments; 2],
    /// Behind the last line of each log that was handed out.
    read: [Option<u64>; 2],
}

/// A reader of the journal.
#[derive(Debug)]
pub struct LogReader {
    journal: Segments,
    epoch: String,
    place: Place,
    only: Option<InstanceId>,
    ledger: Ledger,
    instances: HashMap<InstanceId, Option<Instance>>,
}

impl LogReader {
    /// Starts behind `after`, or at the oldest record that is kept: also when the cursor is of another
    /// journal, because then nothing of this one was read yet.
    #[must_use]
    pub fn new(
        journal: Segments,
        epoch: String,
        end: u64,
        after: Option<Cursor>,
        only: Option<InstanceId>,
        ledger: Ledger,
    ) -> Self {
        let place = after
            .filter(|cursor| cursor.epoch == epoch && cursor.place.entry <= end)
            .map_or_else(Place::default, |cursor| cursor.place);
        Self { journal, epoch, place, only, ledger, instances: HashMap::new() }
    }

    /// How far it has read.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// The next records, in order; `None` at the end of what there is. A batch may be empty.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn batch(&mut self) -> io::Result<Option<Vec<LogRecord>>> {
        let entries = self.journal.read(self.place.entry, ENTRIES)?;
        if entries.bytes.is_empty() {
            return Ok(None);
        }
        if entries.start != self.place.entry {
            self.place = Place { entry: entries.start, read: 0 };
        }
        let (mut records, mut bytes) = (Vec::new(), 0);
        for (line, end) in whole(&entries.bytes) {
            let next = entries.start + end as u64;
            if let Some(stretch) = Stretch::parse(line)
                && self.only.is_none_or(|only| only == stretch.instance)
            {
                // A log that cannot be read must not hold up those behind it.
                let done = self.read_stretch(stretch, &mut records, &mut bytes).unwrap_or_else(|error| {
                    tracing::warn!(instance = %stretch.instance, %error, "a stretch of a log cannot be read");
                    true
                });
                if !done {
                    break;
                }
            }
            self.place = Place { entry: next, read: 0 };
            if bytes >= BATCH {
                break;
            }
        }
        Ok(Some(records))
    }

    /// False when the batch was full before the stretch was read to its end.
    fn read_stretch(
        &mut self,
        stretch: Stretch,
        records: &mut Vec<LogRecord>,
        bytes: &mut usize,
    ) -> io::Result<bool> {
        if self.instances.len() >= OPEN && !self.instances.contains_key(&stretch.instance) {
            self.instances.clear();
        }
        let ledger = &self.ledger;
        let instance =
            self.instances.entry(stretch.instance).or_insert_with(|| open(ledger, stretch.instance));
        let Some(instance) = instance else { return Ok(true) };
        let source = usize::from(stretch.source == Source::Platform);
        let mut at = stretch.start.max(self.place.read);
        if at > 0 && at == self.place.read {
            instance.read[source] = Some(at);
        }
        while at < stretch.end {
            let chunk = instance.logs[source].read(at, CHUNK)?;
            if chunk.bytes.is_empty() || chunk.start >= stretch.end {
                break;
            }
            for (line, end) in whole(&chunk.bytes) {
                let begin = chunk.start + (end - line.len() - 1) as u64;
                at = chunk.start + end as u64;
                if at > stretch.end {
                    break;
                }
                let missed = begin.saturating_sub(instance.read[source].unwrap_or(begin));
                // What is no line, as a crash of the host may leave it, was not dropped.
                if missed == 0 {
                    instance.read[source] = Some(at);
                }
                let Some(line) = Line::parse(line) else { continue };
                let notice = (missed > 0).then(|| (begin, LogStream::Platform, told(missed)));
                for (read, stream, text) in notice.into_iter().chain([(at, line.stream, line.shown())]) {
                    self.place.read = read;
                    *bytes += RECORD + text.len();
                    records.push(LogRecord {
                        cursor: Cursor { epoch: self.epoch.clone(), place: self.place }.to_string(),
                        at: line.at,
                        instance: stretch.instance,
                        app: instance.app.clone(),
                        process: instance.process.clone(),
                        stream,
                        line: text,
                    });
                }
                instance.read[source] = Some(at);
                if *bytes >= BATCH {
                    return Ok(at >= stretch.end);
                }
            }
        }
        Ok(true)
    }
}

fn told(missed: u64) -> String {
    format!("mogok: {missed} bytes of output were dropped before they were read")
}

fn open(ledger: &Ledger, id: InstanceId) -> Option<Instance> {
    let dir = ledger.find(id)?;
    let spec = read_record(&dir).ok()?.spec;
    let logs = [Source::Shim, Source::Platform].map(|source| Segments::new(source.dir(&dir)));
    Some(Instance { app: spec.app, process: spec.process, logs, read: [None; 2] })
}
