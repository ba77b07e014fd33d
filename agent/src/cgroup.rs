//! The cgroups of the containers: made, limited, watched, killed and removed here.
//!
//! Every container has one directory in the v2 tree, which tracks and kills it, and on a hybrid host
//! one more in each v1 hierarchy that limits it. Invariant: only directories below the agent's own
//! root are ever written, and a container whose limits the host cannot enforce is never created.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mogok_api::agent::{CgroupMode, Usage};
use mogok_api::app::Limits;
use mogok_api::id::InstanceId;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

mod device;
mod file;
mod freeze;
mod hierarchy;
mod limit;
mod removal;
mod statistics;
pub mod watch;

use crate::ledger::instance_named;
use hierarchy::Version;
pub use hierarchy::{Controller, Hierarchies, Place};
pub use watch::{Attention, Hoard, Report, Sockets, Watch, Watcher};

/// How long a removal waits for killed processes to be gone.
const REMOVAL_WAIT: Duration = Duration::from_secs(10);

/// Why a cgroup could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("another agent uses {}: stop it, or give this one another name with --cgroup", .0.display())]
    InUse(PathBuf),
    #[error("cannot lock {}", path.display())]
    Lock { path: PathBuf, source: std::io::Error },
    #[error("cgroup root name {0:?}: use 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.', not starting with '.'")]
    InvalidRootName(String),
    #[error(
        "no cgroup v2 file system is mounted: mount cgroup2 on /sys/fs/cgroup, or on /sys/fs/cgroup/unified beside v1"
    )]
    NoUnifiedTree,
    #[error(
        "controller {0}: this host has it neither in cgroup v2 nor in v1, so the limit cannot be enforced"
    )]
    ControllerMissing(Controller),
    #[error("controller {controller}: the kernel has no {}, so the limit cannot be enforced", file.display())]
    LimitMissing { controller: Controller, file: PathBuf },
    #[error("controller io: {} lies on no single disk, so the limit cannot be enforced: keep the containers' disks on a file system of its own disk", .0.display())]
    NoDisk(PathBuf),
    #[error(
        "controller io: disk {0} is not divided by weight: set its scheduler to bfq, or enable it in io.cost.qos of the root cgroup"
    )]
    NoShares(String),
    #[error("controller cpuset: the container may run on CPUs {effective:?} only, not on {wanted:?}")]
    CpusMissing { wanted: String, effective: String },
    #[error("controller memory: {} is a cgroup v1 file system, which cannot reclaim on demand", .0.display())]
    NoReclaim(PathBuf),
    #[error("cgroup {} is not {state} after {} s", path.display(), after.as_secs())]
    NotFrozen { path: PathBuf, state: &'static str, after: Duration },
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} holds {content:?}, which is not what cgroups(7) says", path.display())]
    Malformed { path: PathBuf, content: String },
    #[error("write {value:?} to {}", path.display())]
    Write { path: PathBuf, value: String, source: std::io::Error },
    #[error("create cgroup {}", path.display())]
    Create { path: PathBuf, source: std::io::Error },
    #[error("remove cgroup {}", path.display())]
    Remove { path: PathBuf, source: std::io::Error },
    #[error("cgroup {} is still in use {} s after its processes were killed", path.display(), after.as_secs())]
    Busy { path: PathBuf, after: Duration },
    #[error("cgroup {} already exists and has processes in it", .0.display())]
    Occupied(PathBuf),
    #[error("watch {}", path.display())]
    Watch { path: PathBuf, source: std::io::Error },
}

/// The agent's subtree of every hierarchy.
#[derive(Debug, Clone)]
pub struct Cgroups {
    hierarchies: Hierarchies,
    /// I/O limits and figures are about the disk below this path.
    disk: PathBuf,
}

impl Cgroups {
    /// Finds the host's hierarchies and makes `root_name` in each that is needed.
    ///
    /// On a unified host under systemd the root lies in the agent's delegated unit: beside the agent's
    /// own cgroup when that is called `supervisor` (`DelegateSubgroup=supervisor`), else the agent moves
    /// itself into a `supervisor` cgroup first, because a v2 cgroup that hands controllers to children
    /// may hold no process (`Documentation/admin-guide/cgroup-v2.rst`, "No Internal Process Constraint").
    pub fn detect(root_name: &str) -> Result<Self, CgroupError> {
        Self::detect_below(root_name, None)
    }

    /// The same below another delegated v2 cgroup, given as a path in the cgroup namespace
    /// (`/mogok.slice/mogok-containers.service`): so a restart of the agent's unit touches no container.
    /// Hybrid hosts ignore `parent`.
    pub fn detect_below(root_name: &str, parent: Option<&str>) -> Result<Self, CgroupError> {
        let found = Self::find_below(root_name, parent)?;
        found.prepare()?;
        Ok(found)
    }

    /// The same, but nothing is made yet.
    pub fn find_below(root_name: &str, parent: Option<&str>) -> Result<Self, CgroupError> {
        let mountinfo = file::read(Path::new("/proc/self/mountinfo"))?;
        let own = file::read(Path::new("/proc/self/cgroup"))?;
        let hierarchies = Hierarchies::find(&mountinfo, &own, root_name, parent)?;
        Ok(Self { hierarchies, disk: PathBuf::from("/") })
    }

    /// Makes the agent's root where it is missing.
    pub fn prepare(&self) -> Result<(), CgroupError> {
        self.hierarchies.prepare()
    }

    /// I/O limits and figures are to be about the disk that `path` lies on (or is), not about that of `/`.
    #[must_use]
    pub fn with_disk(self, path: &Path) -> Self {
        Self { disk: path.to_owned(), ..self }
    }

    /// Which of the two kinds of host this is.
    #[must_use]
    pub fn mode(&self) -> CgroupMode {
        self.hierarchies.mode()
    }

    /// A new, empty cgroup with all limits set. What an earlier life left under the same id is removed
    /// first, unless processes live in it.
    pub fn create(&self, id: &InstanceId, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let needed = |controller| limit::needs(controller, limits);
        let missing = |controller: &Controller| self.hierarchies.place(*controller).is_none();
        if let Some(missing) = Controller::ALL.into_iter().filter(|c| needed(*c)).find(missing) {
            return Err(CgroupError::ControllerMissing(missing));
        }
        let cgroup = self.cgroup(id, |place, controller| place.version == Version::V2 || needed(controller));
        match cgroup.make(limits, self.hierarchies.tree()) {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                if !matches!(error, CgroupError::Occupied(_)) {
                    // The first error is the one that matters; this one would follow from it.
                    let _ = cgroup.remove();
                }
                Err(error)
            }
        }
    }

    /// The cgroup of a container that may or may not exist.
    #[must_use]
    pub fn open(&self, id: &InstanceId) -> Cgroup {
        // Which v1 hierarchies it is in depends on its limits, but for those that limit every container.
        self.cgroup(id, |place, controller| Controller::BASE.contains(&controller) || place.dir.exists())
    }

    /// The container's places in the hierarchies, where `has` says that it is in them.
    fn cgroup(&self, id: &InstanceId, has: impl Fn(&Place, Controller) -> bool) -> Cgroup {
        let name = id.to_string();
        let places = Controller::ALL.map(|controller| {
            self.hierarchies
                .place(controller)
                .map(|place| Place { version: place.version, dir: place.dir.join(&name) })
                .filter(|place| has(place, controller))
        });
        let v2 = self.hierarchies.v2().join(&name);
        let mut v1: Vec<PathBuf> = Vec::new();
        for place in places.iter().flatten() {
            // Hierarchies with several controllers (`cpu,memory`) are one directory.
            if place.dir != v2 && !v1.contains(&place.dir) {
                v1.push(place.dir.clone());
            }
        }
        Cgroup { v2, v1, places, disk: self.disk.clone() }
    }

    /// Every container that has a cgroup, in no order: how the agent finds what it does not remember.
    pub fn list(&self) -> Result<Vec<InstanceId>, CgroupError> {
        let mut found = Vec::new();
        for dir in std::iter::once(self.hierarchies.v2()).chain(self.hierarchies.v1()) {
            let entries = match fs::read_dir(dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(source) => return Err(CgroupError::Read { path: dir.to_owned(), source }),
            };
            for entry in entries {
                let entry = entry.map_err(|source| CgroupError::Read { path: dir.to_owned(), source })?;
                if let Some(id) = entry.file_name().to_str().and_then(instance_named)
                    && !found.contains(&id)
                {
                    found.push(id);
                }
            }
        }
        Ok(found)
    }

    /// Keeps other agents away from this root; freed by the kernel with the process. Every container
    /// below the root that is not in an agent's own ledger is debris to it, so two would kill each other's.
    ///
    /// # Errors
    /// When another agent has it.
    pub fn lock(&self) -> Result<Flock<File>, CgroupError> {
        let path = self.hierarchies.v2();
        let dir = File::open(path).map_err(|source| CgroupError::Lock { path: path.to_owned(), source })?;
        Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => CgroupError::InUse(path.to_owned()),
            errno => CgroupError::Lock { path: path.to_owned(), source: errno.into() },
        })
    }

    /// Removes the agent's root directories where they are empty. For a node that is given up, and tests.
    pub fn remove_root(&self) {
        for dir in self.hierarchies.v1().chain(std::iter::once(self.hierarchies.v2())) {
            if let Err(error) = fs::remove_dir(dir)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(path = %dir.display(), %error, "cgroup root not removed");
            }
        }
    }
}

/// One container's cgroup: a handle, not an owner; dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Cgroup {
    v2: PathBuf,
    v1: Vec<PathBuf>,
    places: [Option<Place>; Controller::ALL.len()],
    /// Below which path the disk lies that its I/O is counted on.
    disk: PathBuf,
}

impl Cgroup {
    /// Its directory in the v2 tree, for `CLONE_INTO_CGROUP`.
    #[must_use]
    pub fn v2_path(&self) -> &Path {
        &self.v2
    }

    /// Its directories in v1 hierarchies, each to be joined by the container's init; empty on a unified host.
    #[must_use]
    pub fn v1_paths(&self) -> &[PathBuf] {
        &self.v1
    }

    /// Limits of its disk's device, which is known only when the container is made: files, and what they take behind the
    /// device's number. (What goes through a loop device is not its own for the limits of the disk below.)
    #[must_use]
    pub fn disk_limits(&self, limits: &Limits) -> Vec<(PathBuf, String)> {
        self.place(Controller::Io).map_or_else(|_| Vec::new(), |place| limit::of_a_device(place, limits))
    }

    fn place(&self, controller: Controller) -> Result<&Place, CgroupError> {
        self.places[controller as usize].as_ref().ok_or(CgroupError::ControllerMissing(controller))
    }

    fn make(&self, limits: &Limits, tree: &Path) -> Result<(), CgroupError> {
        for dir in std::iter::once(&self.v2).chain(&self.v1) {
            match fs::create_dir(dir) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    if self.populated()? || !file::pids(&dir.join("cgroup.procs"))?.is_empty() {
                        return Err(CgroupError::Occupied(dir.clone()));
                    }
                    // Made anew, so that its counters (memory kills) begin at zero.
                    removal::remove_tree(dir, REMOVAL_WAIT)?;
                    fs::create_dir(dir)
                        .map_err(|source| CgroupError::Create { path: dir.clone(), source })?;
                }
                Err(source) => return Err(CgroupError::Create { path: dir.clone(), source }),
            }
        }
        for (controller, place) in Controller::ALL.into_iter().zip(&self.places) {
            if let Some(place) = place {
                limit::apply(controller, place, limits, &self.disk, tree)?;
            }
        }
        Ok(())
    }

    /// Sends SIGKILL to every process at once (`cgroup.kill`, Linux 5.14); a container that forks
    /// faster than anyone can count does not escape it. A cgroup that is gone is no error.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match file::write(&self.v2.join("cgroup.kill"), "1") {
            Err(CgroupError::Write { source, .. })
                if source.kind() == ErrorKind::NotFound && !self.v2.exists() =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Stops every process where it stands, and waits until all stand (10 s at most). Blocks. It can still
    /// be killed, but SIGTERM has no effect before it is thawed.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        freeze::set(&self.v2, true)
    }

    /// Lets what was frozen go on.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        freeze::set(&self.v2, false)
    }

    /// Is it frozen, or on its way there? False when the cgroup is gone.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        file::number(&self.v2.join("cgroup.freeze")).is_ok_and(|frozen| frozen == 1)
    }

    /// Asks the kernel to take about so many bytes of memory back (`memory.reclaim`, Linux 5.19), and says
    /// whether it could. Page cache goes first; without swap, memory that the program itself holds stays.
    pub fn reclaim(&self, bytes: u64) -> Result<bool, CgroupError> {
        let place = self.place(Controller::Memory)?;
        if place.version == Version::V1 {
            return Err(CgroupError::NoReclaim(place.dir.clone()));
        }
        match file::write(&place.dir.join("memory.reclaim"), &bytes.to_string()) {
            Ok(()) => Ok(true),
            Err(CgroupError::Write { source, .. }) if source.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Does a process live in it or below? False when the cgroup is gone.
    pub fn populated(&self) -> Result<bool, CgroupError> {
        let path = self.v2.join("cgroup.events");
        match file::key(&path, "populated") {
            Ok(count) => Ok(count != 0),
            Err(CgroupError::Read { source, .. }) if removal::is_gone(&source) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Process ids in it, as the host sees them. Empty when the cgroup is gone.
    pub fn procs(&self) -> Result<Vec<i32>, CgroupError> {
        match file::pids(&self.v2.join("cgroup.procs")) {
            Err(CgroupError::Read { source, .. }) if removal::is_gone(&source) => Ok(Vec::new()),
            other => other,
        }
    }

    /// How many of its processes the kernel has killed for want of memory since it was created.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let (path, key) = self.oom_counter()?;
        file::key(&path, key)
    }

    fn oom_counter(&self) -> Result<(PathBuf, &'static str), CgroupError> {
        let place = self.place(Controller::Memory)?;
        Ok((place.dir.join(place.oom_file()), "oom_kill"))
    }

    /// What it uses now, but for its network and its writable layer, which are no matter of cgroups.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        statistics::Places {
            v2: &self.v2,
            cpu: self.place(Controller::Cpu)?,
            memory: self.place(Controller::Memory)?,
            pids: self.place(Controller::Pids)?,
            io: self.place(Controller::Io).ok(),
            disk: &self.disk,
        }
        .read()
    }

    /// Kills what is in it, waits until that is gone (10 s at most) and removes its directories.
    /// Blocks. Does nothing when there is nothing.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.kill()?;
        removal::wait_empty(&self.v2, REMOVAL_WAIT)?;
        // The v2 directory goes last: as long as it exists, `list` finds a removal that was cut short.
        for dir in self.v1.iter().chain(std::iter::once(&self.v2)) {
            removal::remove_tree(dir, REMOVAL_WAIT)?;
        }
        Ok(())
    }
}
