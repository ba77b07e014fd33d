//! What the kernel offers to be woken by, container by container, and the reading of what it counts.
//!
//! | | unified | hybrid |
//! |---|---|---|
//! | memory kills | `memory.events` | eventfd on `memory.oom_control`: fires when the kernel begins to look for a victim |
//! | short of memory | `memory.events` | nothing: looked at by a timer |
//! | processes | `pids.events` | nothing: looked at by a timer |
//! | throttled | trigger on `cpu.pressure` of the v2 tree | the same |
//!
//! Sources: `Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/memory.rst` (section 10),
//! `Documentation/accounting/psi.rst`.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::super::hierarchy::{Place, Version};
use super::super::{CgroupError, file};
use super::Attention;
use super::sockets::Sockets;
use super::tracker::{Memory, Periods};

/// Woken when all runnable tasks of the container had to wait for a quarter of two seconds. The kernel lets
/// windows of whole two seconds be watched without a thread of its own (Linux 6.5).
const CPU_PRESSURE: &str = "full 500000 2000000";

/// One of the things that are watched of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Memory kills; on v2 also shortage.
    Memory,
    /// On v1 also shortage.
    Pids,
    Cpu,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];
}

/// Where a container is looked at.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) memory: Place,
    pub(super) pids: Place,
    pub(super) cpu: Place,
    pub(super) v2: PathBuf,
    pub(super) memory_high: u64,
    pub(super) memory_limit: u64,
    pub(super) sockets: Option<Sockets>,
    pub(super) attention: Attention,
}

/// A descriptor that becomes ready when something is worth reading.
#[derive(Debug)]
pub(super) enum Sight {
    /// A file of cgroupfs; reading it is what makes it wait for the next change.
    File(File),
    Event(EventFd),
    /// A trigger lives as long as its file is open.
    Pressure(File),
}

impl AsFd for Sight {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file) | Self::Pressure(file) => file.as_fd(),
            Self::Event(event) => event.as_fd(),
        }
    }
}

impl Sight {
    pub(super) fn flags(&self) -> EpollFlags {
        match self {
            Self::File(_) | Self::Pressure(_) => EpollFlags::EPOLLPRI,
            Self::Event(_) => EpollFlags::EPOLLIN,
        }
    }

    /// Makes it wait for the next change.
    pub(super) fn settle(&self) -> io::Result<()> {
        match self {
            Self::File(file) => nix::sys::uio::pread(file, &mut [0; 512], 0).map(drop)?,
            // EAGAIN: somebody has emptied it, and that is all that is wanted.
            Self::Event(event) => drop(event.read()),
            Self::Pressure(_) => {}
        }
        Ok(())
    }
}

impl Subject {
    /// The descriptor for a kind; none where the kernel has nothing to wait for, or nothing is wanted.
    pub(super) fn open(&self, kind: Kind) -> Result<Option<Sight>, CgroupError> {
        let v1 = |place: &Place| place.version == Version::V1;
        let open = |path: PathBuf| {
            let opened = File::open(&path).map(Sight::File).and_then(|sight| {
                sight.settle()?;
                Ok(sight)
            });
            opened.map_err(|source| CgroupError::Watch { path, source })
        };
        Ok(match kind {
            Kind::Memory if v1(&self.memory) => Some(self.memory_event()?),
            Kind::Memory => Some(open(self.memory.dir.join("memory.events"))?),
            Kind::Pids if v1(&self.pids) => None,
            Kind::Pids => Some(open(self.pids.dir.join("pids.events"))?),
            Kind::Cpu if self.attention == Attention::Build => None,
            Kind::Cpu => self.pressure()?,
        })
    }

    /// Notifications of cgroup v1: an eventfd that is registered with a file.
    fn memory_event(&self) -> Result<Sight, CgroupError> {
        let path = self.memory.dir.join(self.memory.oom_file());
        let failed = |source| CgroupError::Watch { path: path.clone(), source };
        let watched = File::open(&path).map_err(failed)?;
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        let registration = format!("{} {}", event.as_fd().as_raw_fd(), watched.as_raw_fd());
        file::write(&self.memory.dir.join("cgroup.event_control"), &registration)?;
        Ok(Sight::Event(event))
    }

    fn pressure(&self) -> Result<Option<Sight>, CgroupError> {
        let path = self.v2.join("cpu.pressure");
        let trigger = OpenOptions::new().read(true).write(true).open(&path).and_then(|mut file| {
            file.write_all(CPU_PRESSURE.as_bytes())?;
            Ok(file)
        });
        match trigger {
            Ok(file) => Ok(Some(Sight::Pressure(file))),
            // A kernel without PSI, or with PSI turned off at boot.
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound && self.v2.exists() => Ok(None),
            Err(source) => Err(CgroupError::Watch { path, source }),
        }
    }

    pub(super) fn memory_kills(&self) -> Result<u64, CgroupError> {
        file::key(&self.memory.dir.join(self.memory.oom_file()), "oom_kill")
    }

    /// What it uses; how much of that is page cache only where it would be short of memory otherwise.
    pub(super) fn memory(&self) -> Result<Memory, CgroupError> {
        let stat = self.memory.dir.join("memory.stat");
        let used = file::number(&self.memory.dir.join(self.memory.usage_file()))?;
        let all = Memory { used, file: 0 };
        if !all.short(self.memory_high) {
            return Ok(all);
        }
        // Read once: the kernel adds up what all CPUs counted for it.
        let [inactive, active] = file::keys(&stat, ["inactive_file", "active_file"])?;
        Ok(Memory { used, file: inactive + active })
    }

    pub(super) fn process_limit_hits(&self) -> Result<u64, CgroupError> {
        file::key(&self.pids.dir.join("pids.events"), "max")
    }

    pub(super) fn periods(&self) -> Result<Periods, CgroupError> {
        let path = self.cpu.dir.join("cpu.stat");
        let [all, throttled] = file::keys(&path, ["nr_periods", "nr_throttled"])?;
        Ok(Periods { all, throttled })
    }

    /// Does the kernel wake nobody when memory gets short?
    pub(super) fn memory_by_timer(&self) -> bool {
        self.memory.version == Version::V1
    }

    /// Does the kernel wake nobody when the limit of processes is hit?
    pub(super) fn pids_by_timer(&self) -> bool {
        self.pids.version == Version::V1
    }
}
