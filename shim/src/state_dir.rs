//! A container's state directory, held by descriptor and by a lock that no second shim gets: so a live
//! container is never started twice.
//!
//! Invariant: a reader sees a file whole or not at all. Nothing is synced: a power loss ends the container
//! too, and what was wanted of it is the agent's to know.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// The directory, locked as long as this lives.
#[derive(Debug)]
pub(crate) struct StateDir(Flock<OwnedFd>);

impl StateDir {
    /// `EWOULDBLOCK` when another shim has it.
    pub(crate) fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = nix::fcntl::open(path, flags, Mode::empty())?;
        Flock::lock(dir, FlockArg::LockExclusiveNonblock).map(Self).map_err(|(_, errno)| errno)
    }

    /// The whole of a small file, at most `limit` bytes.
    pub(crate) fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(openat(self, name, flags, Mode::empty())?);
        let mut bytes = Vec::new();
        let read = file.take(limit + 1).read_to_end(&mut bytes)?;
        if read as u64 > limit { Err(Errno::EFBIG.into()) } else { Ok(bytes) }
    }

    /// Puts a file there in one move.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = format!("{name}.new");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(self, new.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        file.write_all(bytes)?;
        Ok(renameat(self, new.as_str(), self, name)?)
    }

    /// Removes a file that may not be there.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Errno> {
        match unlinkat(self, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// A path to `name` that is short whatever the directory's own is, for the addresses of sockets.
    pub(crate) fn short_path(&self, name: &str) -> String {
        format!("/proc/self/fd/{}/{name}", self.as_fd().as_raw_fd())
    }
}

impl AsFd for StateDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shim_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        assert_eq!(StateDir::open(dir.path()).unwrap_err(), Errno::EWOULDBLOCK);
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_file_is_replaced_whole_and_read_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.write("a", b"longer").unwrap();
        state.write("a", b"short").unwrap();
        assert_eq!(state.read("a", 5).unwrap(), b"short");
        assert!(state.read("a", 4).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        state.remove("a").unwrap();
        state.remove("a").unwrap();
        assert!(state.read("a", 5).is_err());
    }
}
