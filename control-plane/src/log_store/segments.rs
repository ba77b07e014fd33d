//! One log on disk: up to three files of 2 MiB, each named after the number of its first line.
//!
//! A file is only ever appended to, and the next one is begun only when it is whole. So whoever knows
//! that a later file exists may read a file to its end and be sure that it has all of it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use mogok_api::control::LogLine;

use super::record::{self, MAX_RECORD};
use super::{Filter, LogError, NewLine};

/// Bytes of one file at most.
pub(super) const SEGMENT_BYTES: u64 = 2 << 20;
/// Files of one log at most.
pub(super) const SEGMENTS: usize = 3;
/// Bytes that are read at once; a record fits in it many times.
const CHUNK_BYTES: u64 = 256 << 10;
const _: () = assert!(CHUNK_BYTES > 2 * MAX_RECORD as u64);
/// The empty file that says that the log is complete.
const CLOSED: &str = "closed";

/// The writing end.
#[derive(Debug)]
pub(super) struct Segments {
    dir: PathBuf,
    /// First numbers of the files, ascending.
    bases: Vec<u64>,
    /// The last file and its length.
    file: Option<(File, u64)>,
    next_seq: u64,
    closed: bool,
    /// Its directory was removed: it takes no more lines.
    abandoned: bool,
}

/// The reading end: the files as they were at one moment.
#[derive(Debug, Clone)]
pub(super) struct Files {
    dir: PathBuf,
    bases: Vec<u64>,
    /// Where the last file ended.
    pub(super) end: Position,
    pub(super) last_seq: u64,
}

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    base: u64,
    offset: u64,
}

impl Segments {
    /// Opens what is there and cuts a last line that was not written whole.
    pub(super) fn open(dir: PathBuf) -> Result<Self, LogError> {
        let mut log =
            Self { bases: list(&dir)?, dir, file: None, next_seq: 1, closed: false, abandoned: false };
        log.closed = is_closed(&log.dir);
        if let Some(base) = log.bases.last().copied() {
            let path = path(&log.dir, base);
            let mut file = OpenOptions::new()
                .read(true)
                .append(true)
                .open(&path)
                .map_err(LogError::io("open the log file", &path))?;
            let (seq, end) = recover(&mut file).map_err(LogError::io("recover the log file", &path))?;
            log.next_seq = seq.map_or(base, |seq| seq.saturating_add(1)).max(base);
            log.file = Some((file, end));
        }
        Ok(log)
    }

    pub(super) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    pub(super) fn closed(&self) -> bool {
        self.closed
    }

    pub(super) fn files(&self) -> Files {
        let end = match (self.bases.last(), &self.file) {
            (Some(base), Some((_, offset))) => Position { base: *base, offset: *offset },
            _ => Position::default(),
        };
        Files { dir: self.dir.clone(), bases: self.bases.clone(), end, last_seq: self.last_seq() }
    }

    pub(super) fn append(&mut self, lines: &[NewLine]) -> Result<(), LogError> {
        if self.abandoned || lines.is_empty() {
            return Ok(());
        }
        let (mut buffer, mut buffered, mut encoded) = (Vec::new(), 0, Vec::new());
        for line in lines {
            encoded.clear();
            record::encode(self.next_seq + buffered, line, &mut encoded);
            let size = self.file.as_ref().map(|(_, size)| size + buffer.len() as u64 + encoded.len() as u64);
            if size.is_none_or(|size| size > SEGMENT_BYTES) {
                self.write(&buffer, buffered)?;
                buffer.clear();
                buffered = 0;
                self.rotate()?;
            }
            buffer.extend_from_slice(&encoded);
            buffered += 1;
        }
        self.write(&buffer, buffered)
    }

    fn write(&mut self, bytes: &[u8], lines: u64) -> Result<(), LogError> {
        let Some((file, size)) = &mut self.file else { return Ok(()) };
        if let Err(error) = file.write_all(bytes) {
            // What was written of it must not stay: the next line would be glued to half of this one.
            let _ = file.set_len(*size);
            return Err(LogError::io("write the log in", &self.dir)(error));
        }
        *size += bytes.len() as u64;
        self.next_seq += lines;
        Ok(())
    }

    /// Begins the next file and drops the oldest.
    fn rotate(&mut self) -> Result<(), LogError> {
        fs::create_dir_all(&self.dir).map_err(LogError::io("make the log directory", &self.dir))?;
        let path = path(&self.dir, self.next_seq);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(LogError::io("make the log file", &path))?;
        self.file = Some((file, 0));
        if self.bases.last() != Some(&self.next_seq) {
            self.bases.push(self.next_seq);
        }
        while self.bases.len() > SEGMENTS {
            let oldest = self::path(&self.dir, self.bases[0]);
            match fs::remove_file(&oldest) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(LogError::io("drop the oldest log file", &oldest)(error));
                }
                _ => drop(self.bases.remove(0)),
            }
        }
        Ok(())
    }

    pub(super) fn close(&mut self) -> Result<(), LogError> {
        if self.abandoned || self.closed {
            return Ok(());
        }
        fs::create_dir_all(&self.dir).map_err(LogError::io("make the log directory", &self.dir))?;
        let mark = self.dir.join(CLOSED);
        File::create(&mark).map_err(LogError::io("close the log", &mark))?;
        self.closed = true;
        Ok(())
    }

    /// Its directory is about to go.
    pub(super) fn abandon(&mut self) {
        self.abandoned = true;
        self.file = None;
    }
}

impl Files {
    /// The oldest place from which the lines behind `seq` can be read.
    pub(super) fn position_after(&self, seq: u64) -> Position {
        let base = self.bases.iter().rev().find(|base| **base <= seq.saturating_add(1));
        Position { base: base.or(self.bases.first()).copied().unwrap_or(0), offset: 0 }
    }

    /// The lines at `position`, at most about 256 KiB of them, and the place behind them. Nothing at the end.
    pub(super) fn chunk(&self, mut position: Position) -> Result<(Vec<LogLine>, Position), LogError> {
        // Each turn reads or moves on to a later file.
        for _ in 0..=self.bases.len() {
            let bytes = self.bytes(position)?;
            let whole = bytes.as_deref().and_then(|b| b.iter().rposition(|b| *b == b'\n')).map(|at| at + 1);
            if let (Some(bytes), Some(whole)) = (bytes, whole) {
                position.offset += whole as u64;
                let lines = bytes[..whole - 1].split(|b| *b == b'\n').filter_map(record::decode).collect();
                return Ok((lines, position));
            }
            // The file is gone or read to its end: the next one, if there is one.
            let Some(next) = self.bases.iter().find(|base| **base > position.base) else { break };
            position = Position { base: *next, offset: 0 };
        }
        Ok((Vec::new(), position))
    }

    fn bytes(&self, position: Position) -> Result<Option<Vec<u8>>, LogError> {
        let path = path(&self.dir, position.base);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(LogError::io("open the log file", &path))?,
        };
        let read = |file: &mut File| {
            file.seek(SeekFrom::Start(position.offset))?;
            let mut bytes = Vec::new();
            file.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read(&mut file).map(Some).map_err(LogError::io("read the log file", &path))
    }

    /// The newest `n` lines up to [`Files::end`] that pass.
    pub(super) fn last(&self, n: usize, filter: &Filter) -> Result<Vec<LogLine>, LogError> {
        let mut newest = VecDeque::new();
        // Newest file first, so that the older ones are read only when they are needed.
        for (index, base) in self.bases.iter().enumerate().rev() {
            let mut here = VecDeque::new();
            let one = Self { bases: vec![*base], ..self.clone() };
            let mut position = Position { base: *base, offset: 0 };
            loop {
                let (lines, next) = one.chunk(position)?;
                if lines.is_empty() && next == position {
                    break;
                }
                position = next;
                for line in lines {
                    // Lines that came since are the follower's.
                    if line.seq <= self.last_seq && filter.takes(&line) {
                        here.push_back(line);
                        if here.len() + newest.len() > n {
                            here.pop_front();
                        }
                    }
                }
            }
            here.append(&mut newest);
            newest = here;
            if newest.len() >= n || index == 0 {
                break;
            }
        }
        Ok(newest.into())
    }

    /// The first `n` lines behind `seq` that pass.
    pub(super) fn after(&self, seq: u64, n: usize, filter: &Filter) -> Result<Vec<LogLine>, LogError> {
        let (mut found, mut position) = (Vec::new(), self.position_after(seq));
        while found.len() < n {
            let (lines, next) = self.chunk(position)?;
            if lines.is_empty() && next == position {
                break;
            }
            position = next;
            let wanted = lines.into_iter().filter(|line| line.seq > seq && filter.takes(line));
            found.extend(wanted.take(n - found.len()));
        }
        Ok(found)
    }
}

/// Has the log in this directory the mark that it is complete?
pub(super) fn is_closed(dir: &Path) -> bool {
    dir.join(CLOSED).exists()
}

/// The number of the last whole record and where it ends; cuts what is behind it.
fn recover(file: &mut File) -> io::Result<(Option<u64>, u64)> {
    let size = file.metadata()?.len();
    let tail = size.min(4 * MAX_RECORD as u64);
    // Nearly always the tail is enough; after a power loss it may be all zeros.
    for start in [size - tail, 0] {
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        Read::by_ref(file).take(size - start).read_to_end(&mut bytes)?;
        let mut end = bytes.len();
        while let Some(newline) = bytes[..end].iter().rposition(|b| *b == b'\n') {
            let begin = bytes[..newline].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            if let Some(line) = record::decode(&bytes[begin..newline]) {
                let end = start + newline as u64 + 1;
                if end < size {
                    file.set_len(end)?;
                }
                return Ok((Some(line.seq), end));
            }
            end = newline;
        }
    }
    file.set_len(0)?;
    Ok((None, 0))
}

fn path(dir: &Path, base: u64) -> PathBuf {
    dir.join(format!("{base:020}.log"))
}

fn list(dir: &Path) -> Result<Vec<u64>, LogError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(LogError::io("list the log", dir))?,
    };
    let mut bases = Vec::new();
    for entry in entries {
        let name = entry.map_err(LogError::io("list the log", dir))?.file_name();
        let base = name.to_str().and_then(|name| name.strip_suffix(".log")).map(str::parse::<u64>);
        bases.extend(base.and_then(Result::ok));
    }
    bases.sort_unstable();
    Ok(bases)
}
