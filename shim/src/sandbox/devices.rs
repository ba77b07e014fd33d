//! `/dev`: a file system of the sandbox's own with the seven devices that every program may have, so
//! that neither a device of the host's nor a link of the image's is ever in the way.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat, umask};
use nix::unistd::{fchownat, symlinkat};

use super::root_of;
use super::rootfs::{make_dir, open_dir};
use super::target::Root;
use crate::spec::Spec;
use crate::step::{At, SetupError, Step};
use crate::sys::mount::{self, Attributes, FileSystem};

/// Its name on the scratch file system.
const DIRECTORY: &CStr = c"dev";
/// Name, major and minor number (Documentation/admin-guide/devices.txt).
const NODES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// Terminals a container may have open: all containers of a host share its 4,096 (`kernel.pty.max`), of which 1,024 are
/// kept for the host (`kernel.pty.reserve`).
const TERMINALS: &CStr = c"32";
/// The group `tty` of Debian.
const TTY_GROUP: u32 = 5;

/// Mounts `/dev` and `/dev/pts` below `root`, and closes `/dev` to changes. It is a directory of the scratch
/// file system rather than a file system of its own, which would cost as much as all that is in it.
pub(super) fn mount(spec: &Spec, root: &Root) -> Result<(), SetupError> {
    let step = Step::Devices;
    let before = umask(Mode::empty());
    let filled = fill(spec.id_base);
    umask(before);
    let dev = filled.at(step, "nodes and links")?;
    let attributes = Attributes::NO_SUID.and(Attributes::NO_EXEC);
    mount::change(&dev, attributes.and(Attributes::READ_ONLY), None).at(step, "read-only")?;
    mount::attach(&dev, root.directory("/dev").at(step, "/dev")?).at(step, "/dev")?;
    let terminals = devpts(spec.id_base).at(step, "/dev/pts")?;
    mount::attach(terminals, root.directory("/dev/pts").at(step, "/dev/pts")?).at(step, "/dev/pts")
}

/// A detached mount of the directory with everything in it.
fn fill(id_base: u32) -> Result<OwnedFd, Errno> {
    let (uid, gid) = root_of(id_base);
    let nofollow = AtFlags::AT_SYMLINK_NOFOLLOW;
    make_dir(DIRECTORY)?;
    let dev = open_dir(DIRECTORY)?;
    for (name, major, minor) in NODES {
        let mode = Mode::from_bits_truncate(0o666);
        mknodat(&dev, name, SFlag::S_IFCHR, mode, makedev(major, minor))?;
        fchownat(&dev, name, uid, gid, nofollow)?;
    }
    for (name, target) in LINKS {
        symlinkat(target, &dev, name)?;
        fchownat(&dev, name, uid, gid, nofollow)?;
    }
    for name in ["pts", "shm"] {
        mkdirat(&dev, name, Mode::from_bits_truncate(0o755))?;
    }
    fchownat(&dev, "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
    mount::copy(dev.as_fd(), c"", false)
}

fn devpts(id_base: u32) -> Result<OwnedFd, Errno> {
    let devpts = FileSystem::new(c"devpts")?;
    let group = CString::new((id_base + TTY_GROUP).to_string()).map_err(|_| Errno::EINVAL)?;
    for (key, value) in
        [(c"gid", group.as_c_str()), (c"mode", c"620"), (c"ptmxmode", c"666"), (c"max", TERMINALS)]
    {
        devpts.option(key, value)?;
    }
    devpts.mount(Attributes::NO_SUID.and(Attributes::NO_EXEC))
}
