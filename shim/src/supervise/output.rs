//! From the program's two pipes to the log: `<time> <O|E> <F|P> <bytes>\n` a line.
//!
//! O is standard output, E standard error and the shim's own words; F a full line, P a part of one that
//! goes on in the next record of its stream. Invariant: it never waits for anything but the disk, and what
//! it does not keep it counts.

use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::time::Instant;

use memchr::memchr_iter;

use super::clock;
use super::lines::{Lines, Piece};
use super::log_files::{FRAME, LogFiles};
use super::rate::{Dropped, Rate, Reason};
use crate::spec::Log;

/// Records are written together, up to this many bytes; usually and in a flood that is kept.
const BATCH: usize = 16 << 10;
const WIDE_BATCH: usize = 512 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug)]
pub(crate) struct Output {
    lines: [Lines; 2],
    writer: Writer,
}

/// Everything behind the cutting of lines.
#[derive(Debug)]
struct Writer {
    files: LogFiles,
    rate: Rate,
    batch: Vec<u8>,
    /// What `batch` may hold: it never grows by itself.
    room: usize,
    /// The time of this turn's records.
    stamp: String,
    now: Instant,
    dropping: bool,
}

impl Output {
    pub(crate) fn open(parent: impl AsFd, name: &str, bounds: Log) -> std::io::Result<Self> {
        let now = Instant::now();
        let writer = Writer {
            files: LogFiles::open(parent, name, bounds)?,
            rate: Rate::new(bounds.rate_bytes, now),
            batch: Vec::with_capacity(BATCH),
            room: BATCH,
            stamp: String::with_capacity(clock::STAMP),
            now,
            dropping: false,
        };
        Ok(Self { lines: Default::default(), writer })
    }

    /// Takes what was read from a pipe; true when some of it was dropped.
    pub(crate) fn take(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        let Self { lines, writer } = self;
        writer.turn();
        lines[stream as usize].push(bytes, &mut |piece, line| writer.record(stream, piece, line));
        writer.notice(false);
        writer.flush();
        writer.dropping
    }

    /// Takes more records at once, for a flood.
    pub(crate) fn widen(&mut self) {
        self.writer.make_room(WIDE_BATCH);
    }

    /// As it was before the flood.
    pub(crate) fn narrow(&mut self) {
        self.writer.make_room(BATCH);
        self.lines.iter_mut().for_each(Lines::shrink);
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.writer.rate.due()
    }

    /// Tells what was dropped, when it is time to.
    pub(crate) fn tick(&mut self) {
        if self.due().is_some() {
            self.writer.turn();
            self.writer.notice(false);
            self.writer.flush();
        }
    }

    /// Writes what is held back.
    pub(crate) fn end(&mut self) {
        let Self { lines, writer } = self;
        writer.turn();
        for (lines, stream) in lines.iter_mut().zip([Stream::Stdout, Stream::Stderr]) {
            lines.end(&mut |piece, line| writer.record(stream, piece, line));
        }
        writer.notice(true);
        writer.flush();
    }
}

impl Writer {
    /// All records of one read have its time.
    fn turn(&mut self) {
        self.stamp.clear();
        clock::stamp(&mut self.stamp, clock::now_us());
        self.now = Instant::now();
        self.dropping = false;
    }

    fn record(&mut self, stream: Stream, piece: Piece, line: &[u8]) {
        let bytes = line.len() + FRAME;
        if self.rate.admit(bytes, self.now) {
            self.put(stream, piece, line);
        } else {
            self.rate.drop(Reason::Rate, 1, line.len() as u64, self.now);
            self.dropping = true;
        }
    }

    fn put(&mut self, stream: Stream, piece: Piece, line: &[u8]) {
        if self.batch.len() + line.len() + FRAME > self.room {
            self.flush();
        }
        self.batch.extend_from_slice(self.stamp.as_bytes());
        self.batch.extend_from_slice(match (stream, piece) {
            (Stream::Stdout, Piece::Full) => b" O F ",
            (Stream::Stdout, Piece::Part) => b" O P ",
            (Stream::Stderr, Piece::Full) => b" E F ",
            (Stream::Stderr, Piece::Part) => b" E P ",
        });
        self.batch.extend_from_slice(line);
        self.batch.push(b'\n');
    }

    fn notice(&mut self, last: bool) {
        for (reason, Dropped { lines, bytes }) in self.rate.notice(self.now, last) {
            let mut line = format!("mogok: {lines} lines ({bytes} bytes) of output dropped: ");
            // Writing to a String does not fail.
            let _ = match reason {
                Reason::Rate => {
                    write!(line, "the log keeps {} bytes a second", self.rate.bytes_per_second())
                }
                Reason::Disk => write!(line, "the disk of the node did not take them"),
            };
            self.flush();
            self.put(Stream::Stderr, Piece::Full, line.as_bytes());
            if self.files.append(&self.batch) < self.batch.len() {
                // Told later, with what is dropped until then.
                self.rate.drop(reason, lines, bytes, self.now);
            }
            self.batch.clear();
        }
    }

    fn flush(&mut self) {
        if !self.batch.is_empty() {
            let kept = self.files.append(&self.batch);
            if kept < self.batch.len() {
                // A full disk: the program goes on, and the next notice counts these too.
                let lost = &self.batch[kept..];
                let lines = memchr_iter(b'\n', lost).count() as u64;
                self.rate.drop(Reason::Disk, lines, lost.len() as u64, self.now);
            }
            self.batch.clear();
        }
    }

    /// Nothing is in the batch between two turns.
    fn make_room(&mut self, room: usize) {
        self.flush();
        (self.batch, self.room) = (Vec::with_capacity(room), room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rate_bytes: u64, chunks: &[(Stream, &[u8])]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Log { file_bytes: 1 << 30, files: 2, rate_bytes };
        let mut output = Output::open(std::fs::File::open(dir.path()).unwrap(), "log", bounds).unwrap();
        for (stream, bytes) in chunks {
            output.take(*stream, bytes);
        }
        output.end();
        let log = std::fs::read(dir.path().join("log/00000000000000000000.log")).unwrap();
        let text = String::from_utf8_lossy(&log).into_owned();
        text.lines().map(|line| line[clock::STAMP + 1..].to_owned()).collect()
    }

    #[test]
    fn streams_keep_their_own_lines() {
        use Stream::{Stderr, Stdout};
        let log = run(1 << 20, &[(Stdout, b"a"), (Stderr, b"b\n"), (Stdout, b"c\nd"), (Stderr, b"\xff\0")]);
        assert_eq!(log, ["E F b", "O F ac", "O F d", "E F \u{fffd}\0"]);
    }

    #[test]
    fn a_flood_is_dropped_and_counted() {
        let flood = b"0123456789\n".repeat(10_000);
        let log = run(1000, &[(Stream::Stdout, &flood)]);
        let kept = log.iter().filter(|line| line.starts_with("O F ")).count();
        assert!((1..1000).contains(&kept));
        let told = format!("E F mogok: {} lines", 10_000 - kept);
        assert!(log.last().unwrap().starts_with(&told), "{:?} {kept}", log.last());
    }
}
