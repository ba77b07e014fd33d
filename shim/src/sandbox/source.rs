//! Everything of the host's that the container will see, opened by descriptor before anything is
//! mounted, so that no later change of a path on the host can swap it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{SFlag, fstat};

use crate::spec::{Spec, Writable};
use crate::step::{At, SetupError, Step};

/// Sources in the order of the spec.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) layers: Vec<OwnedFd>,
    pub(super) binds: Vec<OwnedFd>,
    pub(super) image: Option<File>,
    /// Where the scratch file system goes: the shim's own directory.
    pub(super) scratch: OwnedFd,
}

impl Sources {
    pub(super) fn open(spec: &Spec, state_dir: &Path) -> Result<Self, SetupError> {
        let step = Step::OpenSources;
        let layers = spec.layers.iter().map(|layer| directory(layer, step)).collect::<Result<_, _>>()?;
        let bind = |bind: &crate::spec::Bind| match bind.kind.is_dir() {
            true => directory(&bind.source, step),
            false => file(&bind.source, OFlag::O_PATH, step),
        };
        let image = match &spec.writable {
            Writable::Image { path } => {
                Some(File::from(file(path, OFlag::O_RDWR | OFlag::O_NONBLOCK, step)?))
            }
            Writable::Tmpfs { .. } => None,
        };
        Ok(Self {
            layers,
            binds: spec.binds.iter().map(bind).collect::<Result<_, _>>()?,
            image,
            scratch: directory(state_dir, step)?,
        })
    }
}

/// A directory of the host.
pub(super) fn directory(path: &Path, step: Step) -> Result<OwnedFd, SetupError> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY).at(step, path.display())
}

/// A regular file of the host: a device, a pipe or a socket would be a way out.
fn file(path: &Path, flags: OFlag, step: Step) -> Result<OwnedFd, SetupError> {
    let fd = open(path, flags).at(step, path.display())?;
    let stat = fstat(&fd).at(step, path.display())?;
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFREG { Ok(fd) } else { Err(Errno::EINVAL).at(step, path.display()) }
}

fn open(path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(AT_FDCWD, path, how)
}
