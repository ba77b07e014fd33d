//! Tells of memory kills as they happen, without polling each container.
//!
//! v2: `memory.events` is pollable. v1: an eventfd registered through `cgroup.event_control`
//! (`Documentation/admin-guide/cgroup-v1/memory.rst`, section 10) fires when the kernel begins to choose
//! a victim, so the counter is read again until it has moved. Either way the counter decides.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::net::unix::pipe;

use super::hierarchy::{Place, Version};
use super::{CgroupError, file, removal};

/// How often, and how far apart, the counter is read after a v1 event: the kill follows within
/// milliseconds or not at all (a notification also comes when the cgroup is removed).
const RECHECKS: u32 = 20;
const RECHECK: Duration = Duration::from_millis(5);

/// A watch on one container. Made inside a tokio runtime with I/O and time.
#[derive(Debug)]
pub struct OomWatch {
    counter: PathBuf,
    seen: u64,
    source: Source,
}

/// The watched descriptor sits in an epoll set of its own, which is readable when the descriptor is
/// ready: so tokio, whose safe interface takes pipes only, can wait for it.
#[derive(Debug)]
struct Source {
    sign: Sign,
    set: Epoll,
    set_readable: pipe::Receiver,
}

#[derive(Debug)]
enum Sign {
    Legacy(EventFd),
    Unified(File),
}

impl OomWatch {
    pub(super) fn new(place: &Place) -> Result<Self, CgroupError> {
        let counter = place.dir.join(place.oom_file());
        let failed = |source| CgroupError::Watch { path: counter.clone(), source };
        let file = File::open(&counter).map_err(failed)?;
        let sign = match place.version {
            Version::V1 => {
                let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                    .map_err(|errno| failed(errno.into()))?;
                let registration = format!("{} {}", event.as_fd().as_raw_fd(), file.as_raw_fd());
                file::write(&place.dir.join("cgroup.event_control"), &registration)?;
                Sign::Legacy(event)
            }
            Version::V2 => Sign::Unified(file),
        };
        let source = Source::new(sign).map_err(failed)?;
        Ok(Self { counter, seen: 0, source })
    }

    /// Waits for the next memory kill and returns how many there were in all; also when it happened
    /// before the watch began. `None` when the cgroup is gone. Safe to drop and call again.
    pub async fn next(&mut self) -> Result<Option<u64>, CgroupError> {
        let mut rechecks = 0;
        loop {
            match file::key(&self.counter, "oom_kill") {
                Ok(count) if count > self.seen => {
                    self.seen = count;
                    return Ok(Some(count));
                }
                Ok(_) => {}
                Err(CgroupError::Read { source, .. }) if removal::is_gone(&source) => return Ok(None),
                Err(error) => return Err(error),
            }
            if rechecks > 0 {
                rechecks -= 1;
                tokio::time::sleep(RECHECK).await;
                continue;
            }
            rechecks = self
                .source
                .wait()
                .await
                .map_err(|source| CgroupError::Watch { path: self.counter.clone(), source })?;
        }
    }
}

impl Source {
    fn new(sign: Sign) -> io::Result<Self> {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        match &sign {
            Sign::Legacy(event) => set.add(event, EpollEvent::new(EpollFlags::EPOLLIN, 0))?,
            Sign::Unified(events) => set.add(events, EpollEvent::new(EpollFlags::EPOLLPRI, 0))?,
        }
        let set_readable = pipe::Receiver::from_owned_fd_unchecked(set.0.try_clone()?)?;
        Ok(Self { sign, set, set_readable })
    }

    /// Waits for a sign and says how often the counter is worth reading after it.
    async fn wait(&self) -> io::Result<u32> {
        self.set_readable.readable().await?;
        let rechecks = match &self.sign {
            Sign::Legacy(event) => {
                // Empties the eventfd; EAGAIN means an earlier wake-up has done so.
                let _ = event.read();
                RECHECKS
            }
            Sign::Unified(events) => {
                // Reading through the descriptor is what rearms the kernel's notification.
                match nix::sys::uio::pread(events, &mut [0; 512], 0) {
                    Ok(_) | Err(Errno::ENODEV) => {}
                    Err(errno) => return Err(errno.into()),
                }
                1
            }
        };
        // Tells tokio that the set is no longer readable, unless it is.
        let checked = self.set_readable.try_io(|| {
            match self.set.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO)? {
                0 => Err(ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        });
        match checked {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(rechecks),
        }
    }
}
