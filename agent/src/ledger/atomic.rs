//! Replacing a small file whole: write beside it, then rename over it. A reader sees the old file or
//! the new one, never a part. What must survive `kill -9` needs no fsync (the page cache survives);
//! what must survive a power loss gets one for the file and one for its directory.
//!
//! What is replaced often, that is all that needs no fsync, is exchanged with the one beside, `NAME.new`, which stays and
//! is written over next. So nothing is made or removed however often that is: ext4 does not use a removed inode again for a minute and looks at all such before it
//! finds one for a new file (`recently_deleted` in fs/ext4/ialloc.c), which at a thousand starts was more work than
//! the starts themselves. Invariant: what is written over was locked before, and a reader locks what it reads.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use serde::Serialize;

use super::LedgerError;

/// What the new content has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of this process.
    Kill,
    /// The death of the machine.
    PowerLoss,
}

/// Replaces `path` by `value` as JSON, mode 0600. Only one writer per path at a time.
///
/// # Errors
/// When the new file cannot be written; the old one is then unchanged.
pub fn write_json<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<(), LedgerError> {
    let bytes =
        serde_json::to_vec(value).map_err(|source| LedgerError::Parse { path: path.to_owned(), source })?;
    write(path, &bytes, durability).map_err(|source| LedgerError::Write { path: path.to_owned(), source })
}

/// Replaces `path` by `bytes`, mode 0600. Only one writer per path at a time.
///
/// # Errors
/// When the new file cannot be written; the old one is then unchanged.
pub fn write(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let beside = path.with_extension("new");
    match durability {
        Durability::Kill => exchange(path, &beside, bytes),
        Durability::PowerLoss => replace(path, &beside, bytes),
    }
}

fn exchange(path: &Path, beside: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = beside_to_write(beside)?;
    file.write_all(bytes)?;
    // Not truncated before the write: ext4 takes that for a replacement and writes the file to the disk at once.
    file.set_len(bytes.len() as u64)?;
    match renameat2(AT_FDCWD, beside, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE) {
        // The first time there is nothing to exchange it with; and not every file system can.
        Err(Errno::ENOENT | Errno::EINVAL) => std::fs::rename(beside, path),
        exchanged => Ok(exchanged?),
    }
}

fn replace(path: &Path, beside: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(beside, path)?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// The content of a file that [`write`] replaces.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Not one that an open or a read would wait for.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidData, "not a regular file"));
    }
    let mut file = locked(file, FlockArg::LockShared)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The file beside, whatever is in it; a fresh one where somebody still reads the old.
fn beside_to_write(beside: &Path) -> io::Result<Flock<File>> {
    let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(beside);
    match locked(open()?, FlockArg::LockExclusiveNonblock) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            std::fs::remove_file(beside)?;
            locked(open()?, FlockArg::LockExclusiveNonblock)
        }
        other => other,
    }
}

fn locked(file: File, how: FlockArg) -> io::Result<Flock<File>> {
    Flock::lock(file, how).map_err(|(_, errno)| errno.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_by_one_of_two_that_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let mut inodes = std::collections::BTreeSet::new();
        for content in ["first, the longest", "second", "third", "", "fifth"] {
            write(&path, content.as_bytes(), Durability::Kill).unwrap();
            assert_eq!(read(&path).unwrap(), content.as_bytes());
            let metadata = std::fs::metadata(&path).unwrap();
            assert_eq!(metadata.mode() & 0o777, 0o600);
            inodes.insert(metadata.ino());
        }
        assert_eq!(inodes.len(), 2);
        write(&path, b"for good", Durability::PowerLoss).unwrap();
        assert_eq!(read(&path).unwrap(), b"for good");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_being_read_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write(&path, b"first", Durability::Kill).unwrap();
        let mut reader = locked(File::open(&path).unwrap(), FlockArg::LockShared).unwrap();
        write(&path, b"second", Durability::Kill).unwrap();
        write(&path, b"third", Durability::Kill).unwrap();
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!((seen.as_str(), read(&path).unwrap().as_slice()), ("first", &b"third"[..]));
    }

    #[test]
    fn a_reader_sees_one_whole_content_however_often_it_is_replaced() {
        const WRITES: usize = 2000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let content = |number: usize| vec![b'a' + u8::try_from(number % 26).unwrap(); 100 + number % 9000];
        write(&path, &content(0), Durability::Kill).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for number in 0..WRITES {
                    write(&path, &content(number), Durability::Kill).unwrap();
                }
            });
            while !writer.is_finished() {
                let seen = read(&path).unwrap();
                assert!(seen.iter().all(|byte| *byte == seen[0]), "a mixture");
            }
        });
        assert_eq!(read(&path).unwrap(), content(WRITES - 1));
    }

    #[test]
    fn half_a_file_that_a_killed_writer_left_is_no_hindrance() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        std::fs::write(dir.path().join("a.new"), "much longer than what comes").unwrap();
        write(&path, b"whole", Durability::Kill).unwrap();
        assert_eq!(read(&path).unwrap(), b"whole");
    }
}
