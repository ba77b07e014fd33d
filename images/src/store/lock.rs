//! The store's locks: `flock(2)` on files, so they hold across processes and end with their holder.
//!
//! Order, against deadlock: the store's lock first, then at most one blob's.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Store, StoreError};

/// How long collection waits for makers to finish.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

impl Store {
    /// Held by whoever makes something in `tmp`: nothing is swept or collected meanwhile.
    pub(super) fn lock_shared(&self) -> Result<Flock<File>, StoreError> {
        let path = self.root.join("lock");
        lock(lock_file(&path)?, FlockArg::LockShared).map_err(|e| StoreError::io("lock", &path, e))
    }

    /// Held by whoever removes; `None` when somebody makes something now.
    pub(super) fn try_lock_exclusive(&self) -> Result<Option<Flock<File>>, StoreError> {
        let path = self.root.join("lock");
        match lock(lock_file(&path)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(StoreError::io("lock", &path, e)),
        }
    }

    /// As [`Self::try_lock_exclusive`], with a bounded wait.
    pub(super) fn lock_exclusive(&self) -> Result<Flock<File>, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(lock) = self.try_lock_exclusive()? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(StoreError::Busy { store: self.root.clone(), seconds: PATIENCE.as_secs() });
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Waits until nobody else holds `file` (a blob: one unpacks it, the others wait for the tree).
pub(super) fn lock(file: File, how: FlockArg) -> io::Result<Flock<File>> {
    let mut file = file;
    loop {
        match Flock::lock(file, how) {
            Ok(lock) => return Ok(lock),
            // A signal of the caller's process; it says nothing about the lock.
            Err((back, Errno::EINTR)) => file = back,
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}

fn lock_file(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|e| StoreError::io("open", path, e))
}
