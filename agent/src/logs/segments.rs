//! A log in several files: `<offset of its first byte, 20 digits>.log`, the oldest dropped when there
//! are too many. An offset names a byte for good; what was dropped is skipped, never misread.
//!
//! [`Segments`] reads such a directory whoever writes it; [`Appender`] writes one. One writer only.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A directory of log files, for reading. Keeps the file it read last open.
#[derive(Debug)]
pub struct Segments {
    dir: PathBuf,
    open: Option<(u64, File)>,
}

/// Bytes of a log and where they stand in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub start: u64,
    /// Whole lines, each with its newline.
    pub bytes: Vec<u8>,
}

impl Chunk {
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl Segments {
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, open: None }
    }

    /// Whole lines from `offset` on, at most `limit` bytes of them (a line that is longer than `limit` is
    /// skipped); from the oldest that are left where those at `offset` were dropped. Empty at the end.
    ///
    /// # Errors
    /// When the files cannot be read. A directory that is not there is an empty log.
    pub fn read(&mut self, offset: u64, limit: usize) -> io::Result<Chunk> {
        let (start, bytes) = self.find(offset, limit, |file, from| {
            let bytes = read_at(file, from, limit)?;
            let length = bytes.len();
            Ok((whole_lines(bytes), length))
        })?;
        Ok(Chunk { start, bytes: bytes.unwrap_or_default() })
    }

    /// Start and end of what [`Self::read`] would give, without reading more than the last line of it.
    ///
    /// # Errors
    /// As there.
    pub fn extent(&mut self, offset: u64, limit: usize) -> io::Result<(u64, u64)> {
        let (start, length) = self.find(offset, limit, |file, from| {
            let length = file.metadata()?.len().saturating_sub(from).min(limit as u64) as usize;
            Ok((last_newline(file, from, length)?, length))
        })?;
        Ok((start, start + length.unwrap_or(0)))
    }

    /// What `look` finds at `offset` or in the first file behind it, and where that was. It gets a file and a place
    /// in it, and says too how many bytes there are.
    fn find<T>(
        &mut self,
        offset: u64,
        limit: usize,
        look: impl Fn(&File, u64) -> io::Result<(Option<T>, usize)>,
    ) -> io::Result<(u64, Option<T>)> {
        let mut offset = offset;
        // Each turn but the last goes to a later file, and there are few of them.
        for _ in 0..64 {
            let usable = matches!(&self.open, Some((start, _)) if *start <= offset);
            if !usable {
                self.open = None;
                let Some(start) = self.file_of(offset)? else { break };
                offset = offset.max(start);
                match File::open(path_of(&self.dir, start)) {
                    Ok(file) => self.open = Some((start, file)),
                    // Dropped in between: look again.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
            let Some((start, file)) = &self.open else { break };
            let (start, from) = (*start, offset - *start);
            if let (Some(found), _) = look(file, from)? {
                return Ok((offset, Some(found)));
            }
            // The end of this file, or a line over the limit: go on in the next one, or behind it. The writer
            // has done with a file before it makes the next, so this file's last lines are there by then.
            let next = self.starts()?.into_iter().find(|next| *next > start);
            let Some((_, file)) = &self.open else { break };
            let (found, length) = look(file, from)?;
            if found.is_some() {
                return Ok((offset, found));
            }
            if length >= limit {
                offset += length as u64;
                continue;
            }
            let Some(next) = next else { break };
            offset = offset.max(next);
            self.open = None;
        }
        Ok((offset, None))
    }

    /// The offset behind the last byte.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn end(&self) -> io::Result<u64> {
        let Some(last) = self.starts()?.pop() else { return Ok(0) };
        match std::fs::metadata(path_of(&self.dir, last)) {
            Ok(metadata) => Ok(last + metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(last),
            Err(error) => Err(error),
        }
    }

    /// The offset of the first byte that is left.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn first(&self) -> io::Result<u64> {
        Ok(self.starts()?.first().copied().unwrap_or(0))
    }

    /// The file that holds `offset`, or the oldest there is.
    fn file_of(&self, offset: u64) -> io::Result<Option<u64>> {
        let starts = self.starts()?;
        Ok(starts.iter().rev().find(|start| **start <= offset).or(starts.first()).copied())
    }

    /// Start offsets of the files, ascending.
    fn starts(&self) -> io::Result<Vec<u64>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut starts = Vec::new();
        for entry in entries {
            if let Some(start) = entry?.file_name().to_str().and_then(start_of) {
                starts.push(start);
            }
        }
        starts.sort_unstable();
        Ok(starts)
    }
}

fn path_of(dir: &Path, start: u64) -> PathBuf {
    dir.join(format!("{start:020}.log"))
}

fn start_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// What of the bytes is whole lines, if anything is.
fn whole_lines(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let last = bytes.iter().rposition(|byte| *byte == b'\n')?;
    bytes.truncate(last + 1);
    Some(bytes)
}

fn read_at(file: &File, offset: u64, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; limit];
    let mut filled = 0;
    while filled < limit {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Bytes from `from` on to the last newline of the `length` that are there, if there is one.
fn last_newline(file: &File, from: u64, length: usize) -> io::Result<Option<u64>> {
    const STEP: usize = 16 * 1024;
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(STEP);
        let bytes = read_at(file, from + start as u64, end - start)?;
        if let Some(last) = bytes.iter().rposition(|byte| *byte == b'\n') {
            return Ok(Some((start + last + 1) as u64));
        }
        end = start;
    }
    Ok(None)
}

/// How large a log may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub file_bytes: u64,
    pub files: usize,
}

/// A directory of log files, for writing.
#[derive(Debug)]
pub struct Appender {
    segments: Segments,
    bounds: Bounds,
    start: u64,
    length: u64,
    file: File,
}

impl Appender {
    /// Opens a log and makes it where there is none; cuts the torn line that a crash may have left.
    ///
    /// # Errors
    /// When the directory or the file cannot be made or read.
    pub fn open(dir: &Path, bounds: Bounds) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let segments = Segments::new(dir.to_owned());
        let start = segments.starts()?.pop().unwrap_or(0);
        let file = open_append(&path_of(dir, start))?;
        let length = file.metadata()?.len();
        let tail = read_at(&file, length.saturating_sub(TAIL), usize::try_from(TAIL).unwrap_or(0))?;
        let torn = tail.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
        file.set_len(length - torn)?;
        Ok(Self { segments, bounds, start, length: length - torn, file })
    }

    /// Appends whole lines.
    ///
    /// # Errors
    /// When they cannot be written; none of them is in the log then.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.length > 0 && self.length + lines.len() as u64 > self.bounds.file_bytes {
            self.turn()?;
        }
        if let Err(error) = self.file.write_all(lines) {
            // A full disk may have taken a part.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += lines.len() as u64;
        Ok(())
    }

    /// The offset behind the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.length
    }

    fn turn(&mut self) -> io::Result<()> {
        let start = self.end();
        self.file = open_append(&path_of(&self.segments.dir, start))?;
        (self.start, self.length) = (start, 0);
        let starts = self.segments.starts()?;
        for old in &starts[..starts.len().saturating_sub(self.bounds.files.max(1))] {
            std::fs::remove_file(path_of(&self.segments.dir, *old))?;
        }
        Ok(())
    }
}

/// More than the longest line.
const TAIL: u64 = 64 * 1024;

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { file_bytes: 40, files: 3 };

    #[test]
    fn dropped_files_are_skipped_and_offsets_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Appender::open(dir.path(), BOUNDS).unwrap();
        for n in 0..20 {
            log.append(format!("line {n:04}....\n").as_bytes()).unwrap();
        }
        assert_eq!(log.end(), 20 * 14);
        let mut reader = Segments::new(dir.path().to_owned());
        let first = reader.read(0, 1000).unwrap();
        assert_eq!(first.start, reader.first().unwrap());
        assert!(first.start > 0 && first.bytes.starts_with(b"line 00"));
        let named: u64 = std::str::from_utf8(&first.bytes[5..9]).unwrap().parse().unwrap();
        assert_eq!(first.start, named * 14);
        assert_eq!(reader.end().unwrap(), log.end());
        assert!(reader.read(log.end(), 1000).unwrap().bytes.is_empty());
    }

    #[test]
    fn a_torn_line_is_cut_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Appender::open(dir.path(), BOUNDS).unwrap();
        log.append(b"whole\n").unwrap();
        log.file.write_all(b"torn").unwrap();
        let mut reader = Segments::new(dir.path().to_owned());
        assert_eq!(reader.read(0, 100).unwrap().bytes, b"whole\n");
        let mut log = Appender::open(dir.path(), BOUNDS).unwrap();
        log.append(b"next\n").unwrap();
        assert_eq!(reader.read(0, 100).unwrap().bytes, b"whole\nnext\n");
    }

    #[test]
    fn a_line_longer_than_the_limit_does_not_stop_the_reader() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Appender::open(dir.path(), Bounds { file_bytes: 1000, files: 3 }).unwrap();
        log.append(&[b'x'; 50]).unwrap();
        log.append(b"\nshort\n").unwrap();
        let mut reader = Segments::new(dir.path().to_owned());
        let chunk = reader.read(0, 20).unwrap();
        assert!(chunk.bytes.ends_with(b"short\n"), "{chunk:?}");
    }

    proptest! {
        #[test]
        fn a_reader_in_any_steps_sees_every_line_that_is_kept(
            lines in prop::collection::vec("[a-z]{0,12}", 0..60), limit in 16_usize..64,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut log = Appender::open(dir.path(), Bounds { file_bytes: 40, files: 1000 }).unwrap();
            for line in &lines { log.append(format!("{line}\n").as_bytes()).unwrap(); }
            let mut reader = Segments::new(dir.path().to_owned());
            let (mut offset, mut read) = (0, Vec::new());
            loop {
                let chunk = reader.read(offset, limit).unwrap();
                if chunk.bytes.is_empty() { break }
                prop_assert!(chunk.bytes.len() <= limit);
                prop_assert_eq!(reader.extent(offset, limit).unwrap(), (chunk.start, chunk.end()));
                prop_assert_eq!(chunk.start, offset);
                offset = chunk.end();
                read.extend(chunk.bytes);
            }
            let expected: String = lines.iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(String::from_utf8(read).unwrap(), expected);
        }
    }
}
