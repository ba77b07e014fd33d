//! Where the host keeps its controllers, and the agent's root directory in each place.
//!
//! A controller is used through v2 where v2 has it and through its v1 hierarchy otherwise; the v2 tree
//! is needed in any case, for it tracks and kills. Pure but for [`Hierarchies::prepare`] and the reading
//! of `cgroup.controllers`.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use mogok_api::agent::CgroupMode;

use super::{CgroupError, file};

/// Name of the cgroup, in a delegated unit, that holds the agent itself.
const SUPERVISOR: &str = "supervisor";

/// A kind of limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    Cpu,
    Memory,
    Pids,
    Io,
    Cpuset,
}

impl Controller {
    pub const ALL: [Self; 5] = [Self::Cpu, Self::Memory, Self::Pids, Self::Io, Self::Cpuset];
    /// Those that limit every container. The others are needed by containers that ask for them.
    pub const BASE: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    /// Its name in `cgroup.controllers`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
            Self::Cpuset => "cpuset",
        }
    }

    /// Its name in v1 mount options.
    #[must_use]
    pub fn v1_name(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            other => other.name(),
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// A directory through which one controller limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub version: Version,
    pub dir: PathBuf,
}

impl Place {
    /// The file that counts memory kills.
    pub(super) fn oom_file(&self) -> &'static str {
        match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        }
    }

    /// The file that holds the bytes in use.
    pub(super) fn usage_file(&self) -> &'static str {
        match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        }
    }
}

/// The agent's root directory in the v2 tree and in each v1 hierarchy that limits.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    /// Where cgroup2 is mounted.
    tree: PathBuf,
    /// The cgroup that the root lies in, in the v2 tree.
    base: PathBuf,
    v2: PathBuf,
    /// The agent sits in `base` itself and must leave it before children get controllers.
    leave_base: bool,
    places: [Option<Place>; Controller::ALL.len()],
}

impl Hierarchies {
    /// Reads the tables of mounts (proc_pid_mountinfo(5)) and of the agent's own cgroups
    /// (`/proc/PID/cgroup`, cgroups(7)).
    pub fn find(
        mountinfo: &str,
        own: &str,
        root_name: &str,
        parent: Option<&str>,
    ) -> Result<Self, CgroupError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if root_name.is_empty()
            || root_name.len() > 64
            || root_name.starts_with('.')
            || !root_name.chars().all(legal)
        {
            return Err(CgroupError::InvalidRootName(root_name.to_owned()));
        }
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        let tree = mounts
            .iter()
            .find(|mount| mount.kind == "cgroup2")
            .map(|mount| mount.point.clone())
            .ok_or(CgroupError::NoUnifiedTree)?;
        let available = file::read(&tree.join("cgroup.controllers"))?;
        let unified = Controller::BASE.into_iter().all(|controller| listed(&available, controller));

        // Where v2 limits, the root must lie in what systemd has delegated; where it only tracks, the
        // agent's own place means nothing, and the root of the tree is the one place that always works.
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim();
        let (base, leave_base) = match (unified, parent) {
            (false, _) => (tree.clone(), false),
            (true, Some(parent)) => (below(&tree, parent), false),
            (true, None) => {
                let path = below(&tree, own);
                if path.file_name().is_some_and(|name| name == SUPERVISOR) {
                    (path.parent().map_or(tree.clone(), Path::to_owned), false)
                } else {
                    let leave = path != tree;
                    (path, leave)
                }
            }
        };
        let v2 = base.join(root_name);
        // A unit may have been delegated less than the tree has.
        let delegated = match file::read(&base.join("cgroup.controllers")) {
            Ok(delegated) => delegated,
            Err(CgroupError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => available,
            Err(error) => return Err(error),
        };
        let places = Controller::ALL.map(|controller| {
            if listed(&delegated, controller) {
                return Some(Place { version: Version::V2, dir: v2.clone() });
            }
            mounts
                .iter()
                .find(|mount| mount.kind == "cgroup" && mount.options.contains(&controller.v1_name()))
                .map(|mount| Place { version: Version::V1, dir: mount.point.join(root_name) })
        });
        Ok(Self { tree, base, v2, leave_base, places })
    }

    /// Makes the root directories and hands the controllers down to them.
    pub(super) fn prepare(&self) -> Result<(), CgroupError> {
        for dir in self.v1().chain(std::iter::once(self.v2())) {
            make_dir(dir)?;
        }
        if let Some(Place { version: Version::V1, dir }) = self.place(Controller::Cpuset) {
            inherit_cpuset(dir)?;
        }
        let wanted: Vec<Controller> = Controller::ALL
            .into_iter()
            .filter(|controller| self.place(*controller).is_some_and(|place| place.version == Version::V2))
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        if self.leave_base {
            let supervisor = self.base.join(SUPERVISOR);
            make_dir(&supervisor)?;
            // 0 is the writing process, all its threads included.
            file::write(&supervisor.join("cgroup.procs"), "0")?;
        }
        for dir in [&self.base, &self.v2] {
            let path = dir.join("cgroup.subtree_control");
            let enabled = file::read(&path)?;
            for controller in &wanted {
                if !listed(&enabled, *controller) {
                    file::write(&path, &format!("+{controller}"))?;
                }
            }
        }
        Ok(())
    }

    #[must_use]
    pub fn mode(&self) -> CgroupMode {
        let legacy = |place: &Option<Place>| !matches!(place, Some(Place { version: Version::V2, .. }));
        let base = &self.places[..Controller::BASE.len()];
        if base.iter().any(legacy) { CgroupMode::Hybrid } else { CgroupMode::Unified }
    }

    /// The root of the v2 tree.
    pub(super) fn tree(&self) -> &Path {
        &self.tree
    }

    /// The agent's root in the v2 tree.
    #[must_use]
    pub fn v2(&self) -> &Path {
        &self.v2
    }

    /// The agent's roots in v1 hierarchies, each once.
    pub fn v1(&self) -> impl Iterator<Item = &Path> {
        let legacy = |index: usize| {
            self.places[index].as_ref().filter(|place| place.version == Version::V1).map(|place| &*place.dir)
        };
        (0..self.places.len()).filter_map(move |index| {
            legacy(index).filter(|dir| !(0..index).any(|before| legacy(before) == Some(*dir)))
        })
    }

    /// Through which directory a controller limits, if it can.
    #[must_use]
    pub fn place(&self, controller: Controller) -> Option<&Place> {
        self.places[controller as usize].as_ref()
    }
}

/// Does a file of controllers (`cgroup.controllers`, `cgroup.subtree_control`) name this one?
fn listed(names: &str, controller: Controller) -> bool {
    names.split_whitespace().any(|name| name == controller.name())
}

/// A new v1 cpuset has no CPU and no memory node, and nothing can run in it (cpuset(7)): it is given what
/// its parent has.
pub(super) fn inherit_cpuset(dir: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if file::read(&dir.join(name))?.trim().is_empty() {
            let inherited = file::read(&dir.join("..").join(name))?;
            file::write(&dir.join(name), inherited.trim())?;
        }
    }
    Ok(())
}

fn make_dir(dir: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(CgroupError::Create { path: dir.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// `path` of the cgroup namespace as a directory below `tree`. `..` (a cgroup outside of the
/// namespace) is left out: the namespace's root is as far up as the agent may go.
fn below(tree: &Path, path: &str) -> PathBuf {
    let mut dir = tree.to_owned();
    dir.extend(Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))));
    dir
}

struct Mount<'a> {
    point: PathBuf,
    kind: &'a str,
    options: Vec<&'a str>,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut file_system = file_system.split(' ');
        let kind = file_system.next()?;
        let options = file_system.nth(1)?.split(',').collect();
        let point = PathBuf::from(mount.split(' ').nth(4)?);
        Some(Self { point, kind, options })
    }
}

#[cfg(test)]
mod tests;
