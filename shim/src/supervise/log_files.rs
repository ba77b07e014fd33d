//! The log on disk: files named by the offset of their first byte in the whole log, the oldest dropped
//! when there are too many.
//!
//! Invariants: an offset never means two different records; a file holds whole records, but for the
//! last one after a crash, which the next start cuts.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use memchr::{memchr, memrchr};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::clock::STAMP;
use super::lines::LINE;
use crate::spec::Log;

/// Bytes of a record besides its line: time, stream, piece, spaces, newline.
pub(crate) const FRAME: usize = STAMP + 6;
const DIGITS: usize = 20;
const SUFFIX: &str = ".log";

#[derive(Debug)]
pub(crate) struct LogFiles {
    dir: OwnedFd,
    bounds: Log,
    /// Offsets of the files that are there, the oldest first.
    starts: VecDeque<u64>,
    file: File,
    /// Bytes of `file`.
    size: u64,
}

impl LogFiles {
    /// Goes on where the log in `name` below `parent` ends, or begins one.
    pub(crate) fn open(parent: impl AsFd, name: &str, bounds: Log) -> io::Result<Self> {
        match mkdirat(&parent, name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = openat(&parent, name, flags, Mode::empty())?;
        let mut starts = existing(&dir)?;
        let start = starts.last().copied().unwrap_or(0);
        if starts.is_empty() {
            starts.push(start);
        }
        let file = open_file(&dir, start)?;
        let size = cut_torn(&file)?;
        Ok(Self { dir, bounds, starts: starts.into(), file, size })
    }

    /// Appends whole records, each file filled as far as whole records go; the bytes that are in the log then,
    /// fewer than were given when the disk did not take them.
    pub(crate) fn append(&mut self, records: &[u8]) -> usize {
        let mut rest = records;
        while !rest.is_empty() {
            let room =
                usize::try_from(self.bounds.file_bytes.saturating_sub(self.size)).unwrap_or(usize::MAX);
            let mut fit = if rest.len() <= room {
                rest.len()
            } else {
                memrchr(b'\n', &rest[..room]).map_or(0, |end| end + 1)
            };
            if fit == 0 && self.size > 0 {
                if self.rotate().is_err() {
                    break;
                }
                continue;
            }
            if fit == 0 {
                // Larger than a file, which no checked spec allows: then alone in one.
                fit = memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
            }
            if self.write(&rest[..fit]).is_err() {
                break;
            }
            rest = &rest[fit..];
        }
        records.len() - rest.len()
    }

    fn write(&mut self, records: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all_at(records, self.size) {
            // A reader takes only whole lines, and what is cut here is written over.
            self.file.set_len(self.size)?;
            return Err(error);
        }
        self.size += records.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let last = self.starts.back().copied().unwrap_or(0);
        let next = last + self.size;
        self.file = open_file(&self.dir, next)?;
        self.size = 0;
        self.starts.push_back(next);
        while self.starts.len() > self.bounds.files as usize {
            if let Some(oldest) = self.starts.pop_front() {
                unlinkat(&self.dir, file_name(oldest).as_str(), UnlinkatFlags::NoRemoveDir)?;
            }
        }
        Ok(())
    }
}

fn file_name(start: u64) -> String {
    format!("{start:0DIGITS$}{SUFFIX}")
}

fn open_file(dir: &OwnedFd, start: u64) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(dir, file_name(start).as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?))
}

fn existing(dir: &OwnedFd) -> io::Result<Vec<u64>> {
    let mut starts = Vec::new();
    for entry in Dir::from_fd(dir.try_clone()?)?.iter() {
        let entry = entry?;
        let start = entry
            .file_name()
            .to_str()
            .ok()
            .and_then(|name| name.strip_suffix(SUFFIX))
            .filter(|digits| digits.len() == DIGITS)
            .and_then(|digits| digits.parse::<u64>().ok());
        starts.extend(start);
    }
    starts.sort_unstable();
    Ok(starts)
}

/// Cuts the record that a crash left without its end; returns the size then.
fn cut_torn(file: &File) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let mut tail = [0; LINE + FRAME];
    let from = size.saturating_sub(tail.len() as u64);
    let tail = &mut tail[..(size - from) as usize];
    file.read_exact_at(tail, from)?;
    let kept = tail.iter().rposition(|byte| *byte == b'\n').map_or(from, |end| from + end as u64 + 1);
    if kept < size {
        file.set_len(kept)?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const BOUNDS: Log = Log { file_bytes: 100, files: 3, rate_bytes: 1 };

    fn open(dir: &Path) -> LogFiles {
        LogFiles::open(File::open(dir).unwrap(), "log", BOUNDS).unwrap()
    }

    fn read(dir: &Path) -> Vec<(u64, String)> {
        let mut files: Vec<_> = std::fs::read_dir(dir.join("log"))
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                assert_eq!(name.len(), DIGITS + SUFFIX.len());
                let start = name[..DIGITS].parse().unwrap();
                (start, std::fs::read_to_string(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn files_follow_on_each_other_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        for number in 0..50 {
            let record = format!("record {number:022}\n");
            assert_eq!(log.append(record.as_bytes()), record.len());
        }
        let files = read(dir.path());
        assert_eq!(files.len(), 3);
        for pair in files.windows(2) {
            assert_eq!(pair[0].0 + pair[0].1.len() as u64, pair[1].0);
            assert!(pair[0].1.len() as u64 <= BOUNDS.file_bytes);
        }
        assert!(files.last().unwrap().1.ends_with("49\n"));
    }

    #[test]
    fn many_records_at_once_are_spread_over_whole_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        let records: String = (0..50).map(|number| format!("record {number:012}\n")).collect();
        assert_eq!(log.append(records.as_bytes()), records.len());
        // A file holds five of 20 bytes; the last three files are kept.
        let files = read(dir.path());
        assert_eq!(files.iter().map(|(start, _)| *start).collect::<Vec<_>>(), [700, 800, 900]);
        assert_eq!(files.into_iter().map(|(_, text)| text).collect::<String>(), records[700..]);
        // One that is larger than a file stands alone.
        assert_eq!(log.append(&[[b'x'; 200].as_slice(), b"\ny\n"].concat()), 203);
        assert_eq!(read(dir.path()).last().unwrap(), &(1201, "y\n".to_owned()));
    }

    #[test]
    fn a_torn_record_is_cut_and_offsets_go_on() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).append(b"whole\nto");
        open(dir.path()).append(b"next\n");
        assert_eq!(read(dir.path()), [(0, "whole\nnext\n".to_owned())]);
    }

    #[test]
    fn strange_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()));
        std::fs::write(dir.path().join("log/1.log"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("log/x")).unwrap();
        assert_eq!(open(dir.path()).starts, [0]);
    }
}
