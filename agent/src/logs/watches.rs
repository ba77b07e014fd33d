//! Which instances have written something: one inotify(7) watch on each log directory, so that an idle
//! node looks at nothing.
//!
//! Invariant: an instance that wrote since the last [`Watches::take`] is among its answers; those that the
//! kernel gives no watch for (`fs.inotify.max_user_watches`) always are, and [`Watches::polled`] tells that
//! there are such.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use mogok_api::id::InstanceId;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// Reads of events in one go; one read takes at least a dozen, and the kernel queues 16,384 by default.
const READS: usize = 2048;

/// The watches of a node.
#[derive(Debug)]
pub struct Watches {
    inotify: Option<Inotify>,
    ids: HashMap<WatchDescriptor, InstanceId>,
    watched: HashMap<InstanceId, WatchDescriptor>,
    unwatched: HashMap<InstanceId, PathBuf>,
    changed: BTreeSet<InstanceId>,
}

impl Default for Watches {
    fn default() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .inspect_err(|error| tracing::warn!(%error, "no inotify: output is polled"))
            .ok();
        Self {
            inotify,
            ids: HashMap::new(),
            watched: HashMap::new(),
            unwatched: HashMap::new(),
            changed: BTreeSet::new(),
        }
    }
}

impl Watches {
    /// Readable when [`Self::take`] has something; none where everything is polled.
    ///
    /// # Errors
    /// When it cannot be duplicated.
    pub fn descriptor(&self) -> io::Result<Option<OwnedFd>> {
        self.inotify.as_ref().map(|inotify| inotify.as_fd().try_clone_to_owned()).transpose()
    }

    /// Watches the log directory of an instance. Its shim may not have made it yet, so this does, where
    /// the instance's own is there. The instance counts as changed, for what was written before.
    pub fn add(&mut self, id: InstanceId, dir: &Path) {
        self.changed.insert(id);
        if self.watched.contains_key(&id) {
            return;
        }
        match self.try_add(dir) {
            Ok(watch) => {
                self.unwatched.remove(&id);
                self.watched.insert(id, watch);
                self.ids.insert(watch, id);
            }
            Err(error) => {
                if self.unwatched.insert(id, dir.to_owned()).is_none() {
                    tracing::warn!(instance = %id, %error, "output is polled: raise fs.inotify.max_user_watches");
                }
            }
        }
    }

    fn try_add(&self, dir: &Path) -> Result<WatchDescriptor, Errno> {
        let inotify = self.inotify.as_ref().ok_or(Errno::ENOSYS)?;
        // An error shows at the watch.
        let _ = std::fs::DirBuilder::new().mode(0o700).create(dir);
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(dir, flags)
    }

    pub fn remove(&mut self, id: InstanceId) {
        self.unwatched.remove(&id);
        self.changed.remove(&id);
        if let (Some(watch), Some(inotify)) = (self.watched.remove(&id), &self.inotify) {
            self.ids.remove(&watch);
            // Gone already when the directory is.
            let _ = inotify.rm_watch(watch);
        }
    }

    /// Are there instances without a watch?
    #[must_use]
    pub fn polled(&self) -> bool {
        !self.unwatched.is_empty()
    }

    /// The instance is to be looked at again.
    pub fn mark(&mut self, id: InstanceId) {
        self.changed.insert(id);
    }

    /// Those that may have written since the last call.
    pub fn take(&mut self) -> BTreeSet<InstanceId> {
        for (id, dir) in std::mem::take(&mut self.unwatched) {
            self.unwatched.insert(id, dir.clone());
            self.add(id, &dir);
        }
        for _ in 0..READS {
            let Some(Ok(events)) = self.inotify.as_ref().map(Inotify::read_events) else { break };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    self.changed.extend(self.watched.keys());
                } else if let Some(id) = self.ids.get(&event.wd) {
                    self.changed.insert(*id);
                }
            }
        }
        std::mem::take(&mut self.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_who_wrote_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (InstanceId::new(), InstanceId::new());
        let mut watches = Watches::default();
        watches.add(one, &dir.path().join("one"));
        watches.add(two, &dir.path().join("two"));
        assert!(!watches.polled());
        assert_eq!(watches.take(), BTreeSet::from([one, two]));
        assert_eq!(watches.take(), BTreeSet::new());
        std::fs::write(dir.path().join("two/a"), "x").unwrap();
        assert_eq!(watches.take(), BTreeSet::from([two]));
        watches.remove(two);
        std::fs::write(dir.path().join("two/a"), "x").unwrap();
        assert_eq!(watches.take(), BTreeSet::new());
    }

    #[test]
    fn one_without_a_directory_is_polled_until_it_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let id = InstanceId::new();
        let mut watches = Watches::default();
        watches.add(id, &dir.path().join("instance/log"));
        assert!(watches.polled());
        assert_eq!(watches.take(), BTreeSet::from([id]));
        assert_eq!(watches.take(), BTreeSet::from([id]));
        std::fs::create_dir(dir.path().join("instance")).unwrap();
        assert_eq!(watches.take(), BTreeSet::from([id]));
        assert!(!watches.polled());
        assert_eq!(watches.take(), BTreeSet::new());
    }
}
