//! The writable layer: where every write of the container goes, of a size that is known beforehand.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::stat::{major, minor};

use crate::spec::{DiskLimit, Writable};
use crate::step::{At, SetupError, Step};
use crate::sys::loop_device::LoopDevice;
use crate::sys::mount::{Attributes, FileSystem};

/// Neither devices nor set-user-id: what the container makes gives no power.
const ATTRIBUTES: Attributes = Attributes::NO_DEV.and(Attributes::NO_SUID);

/// A detached mount of the layer; `image` is the open file of [`Writable::Image`]. Its device is limited before it is used.
pub(super) fn mount(
    writable: &Writable,
    image: Option<File>,
    limits: &[DiskLimit],
) -> Result<OwnedFd, SetupError> {
    let step = Step::WritableLayer;
    match (writable, image) {
        (Writable::Tmpfs { bytes, inodes }, _) => {
            tmpfs(*bytes, *inodes, 0o755, 0, ATTRIBUTES).at(step, "tmpfs")
        }
        (Writable::Image { path }, Some(image)) => {
            let device =
                LoopDevice::new(image).at(step, format_args!("loop device of {}", path.display()))?;
            for limit in limits {
                write_limit(&device, limit).at(step, limit.file.display())?;
            }
            let source = CString::new(device.path.as_str()).map_err(|_| Errno::EINVAL).at(step, "device")?;
            // The device frees itself with the mount; until there is one, `device` keeps it.
            let mount = || {
                let ext4 = FileSystem::new(c"ext4")?;
                ext4.option(c"source", &source)?;
                ext4.mount(ATTRIBUTES)
            };
            mount().at(step, format_args!("ext4 of {}", path.display()))
        }
        (Writable::Image { path }, None) => Err(Errno::ENOENT).at(step, path.display()),
    }
}

fn write_limit(device: &LoopDevice, limit: &DiskLimit) -> io::Result<()> {
    let number = fs::metadata(&device.path)?.rdev();
    let line = format!("{}:{} {}", major(number), minor(number), limit.limits);
    // An existing file only, of the cgroup that the agent has made.
    fs::OpenOptions::new().write(true).open(&limit.file)?.write_all(line.as_bytes())
}

/// A detached tmpfs whose root has the owner and group `owner`.
pub(super) fn tmpfs(
    bytes: u64,
    inodes: u64,
    mode: u32,
    owner: u32,
    attributes: Attributes,
) -> Result<OwnedFd, Errno> {
    let tmpfs = FileSystem::new(c"tmpfs")?;
    for (key, value) in [
        (c"size", bytes.to_string()),
        (c"nr_inodes", inodes.to_string()),
        (c"mode", format!("{mode:o}")),
        (c"uid", owner.to_string()),
        (c"gid", owner.to_string()),
    ] {
        tmpfs.option(key, &CString::new(value).map_err(|_| Errno::EINVAL)?)?;
    }
    tmpfs.mount(attributes)
}
