//! The container's root file system: the id-mapped layers under the writable one, and what is mounted
//! on top, put together on a scratch file system in the shim's mount namespace.
//!
//! Overlay takes detached mounts as layers only from Linux 6.15 on, so each is attached at a short
//! relative name first; that also keeps the option within the 255 bytes of fsconfig(2). After [`build`]
//! the working directory is the scratch file system and `root` in it the container's root.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::{fchdir, fchownat};

use super::source::Sources;
use super::target::Root;
use super::writable::tmpfs;
use super::{devices, root_of, writable};
use crate::spec::{Bind, BindKind, Spec};
use crate::step::{At, SetupError, Step};
use crate::sys::mount::{self, Attributes, FileSystem};

/// Name of the root on the scratch file system.
pub(super) const ROOT: &std::ffi::CStr = c"root";
/// The writable layer, with overlay's two directories in it.
const WRITABLE: &str = "w";
/// The file system that `/tmp` and `/dev/shm` share.
const TEMPORARY: &str = "t";
const UPPER: &std::ffi::CStr = c"w/upper";
const WORK: &std::ffi::CStr = c"w/work";

const NOTHING_SPECIAL: Attributes = Attributes::NO_DEV.and(Attributes::NO_SUID);
const READ_ONLY: Attributes = NOTHING_SPECIAL.and(Attributes::READ_ONLY);

/// The scratch file system, and the sources as mounts that nothing can hide any more.
pub(super) struct Scratch {
    layers: Vec<OwnedFd>,
    binds: Vec<OwnedFd>,
    image: Option<File>,
}

impl Scratch {
    /// A small tmpfs over the state directory, in this mount namespace only. It becomes the working directory.
    pub(super) fn new(sources: Sources, spec: &Spec) -> Result<Self, SetupError> {
        let Sources { layers, binds, image, scratch } = sources;
        // Copies lie outside any tree, so they must be taken before the scratch file system hides the directory
        // that some of the sources are in.
        let layers = copies(layers.iter().zip(&spec.layers), Step::Layers)?;
        let binds = copies(binds.iter().zip(spec.binds.iter().map(|bind| &bind.source)), Step::Binds)?;
        let step = Step::Scratch;
        let tree = tmpfs(1 << 16, 128, 0o711, 0, Attributes::NO_SUID).at(step, "tmpfs")?;
        mount::attach(&tree, &scratch).at(step, "attach")?;
        fchdir(&tree).at(step, "enter")?;
        Ok(Self { layers, binds, image })
    }
}

/// Puts the container's root together in the working directory, its ids mapped by `ids`.
pub(super) fn build(spec: &Spec, scratch: Scratch, ids: BorrowedFd<'_>) -> Result<(), SetupError> {
    let Scratch { layers, binds, image } = scratch;
    let mut lower = String::new();
    for (place, (layer, path)) in layers.iter().zip(&spec.layers).enumerate() {
        let step = Step::Layers;
        mount::change(layer, READ_ONLY, Some(ids)).at(step, format_args!("id-map {}", path.display()))?;
        let name = place.to_string();
        attach(layer.as_fd(), &name).at(step, path.display())?;
        lower.extend([if lower.is_empty() { "" } else { ":" }, &name]);
    }

    let layer = writable::mount(&spec.writable, image, &spec.disk_limits)?;
    attach(layer.as_fd(), WRITABLE).at(Step::WritableLayer, WRITABLE)?;
    let (uid, gid) = root_of(spec.id_base);
    make_dir(UPPER).and_then(|()| make_dir(WORK)).at(Step::WritableLayer, "not a fresh file system")?;
    fchownat(AT_FDCWD, UPPER, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).at(Step::WritableLayer, "owner")?;

    let overlay = overlay(&lower).at(Step::Overlay, format_args!("lowerdir={lower}"))?;
    make_dir(ROOT).at(Step::Overlay, "root")?;
    mount::attach(&overlay, open_dir(ROOT).at(Step::Overlay, "root")?).at(Step::Overlay, "attach")?;
    let root = Root::new(open_dir(ROOT).at(Step::Overlay, "open")?, spec.id_base);

    for file in &spec.files {
        root.write(&file.path, &file.content).at(Step::WriteFiles, &file.path)?;
    }
    // The child mounts a fresh procfs here, once its PID namespace is its own.
    root.directory("/proc").at(Step::MountPoints, "/proc of the image")?;
    devices::mount(spec, &root)?;
    temporary(spec, &root)?;
    for (bind, source) in spec.binds.iter().zip(&binds) {
        attach_bind(spec, bind, source.as_fd(), &root, ids).at(Step::Binds, &bind.target)?;
    }
    Ok(())
}

fn overlay(lower: &str) -> Result<OwnedFd, Errno> {
    let lower = CString::new(lower).map_err(|_| Errno::EINVAL)?;
    let overlay = FileSystem::new(c"overlay")?;
    for (key, value) in [
        (c"source", c"mogok"),
        (c"lowerdir", lower.as_c_str()),
        (c"upperdir", UPPER),
        (c"workdir", WORK),
        // Attributes in a layer must not point anywhere: layers come from strangers.
        (c"redirect_dir", c"nofollow"),
        (c"metacopy", c"off"),
        (c"index", c"off"),
    ] {
        overlay.option(key, value)?;
    }
    // Nothing of a container outlives it, so its fsync need not reach a disk that its neighbours use.
    overlay.flag(c"volatile")?;
    overlay.mount(NOTHING_SPECIAL)
}

/// `/tmp` and `/dev/shm` share a file system and its size; `/sys` is empty: all that programs look up there they
/// also do without, and it is also what covers directories of /proc.
fn temporary(spec: &Spec, root: &Root) -> Result<(), SetupError> {
    let step = Step::Temporary;
    let inodes = temporary_inodes(spec.tmp_bytes);
    let shared = tmpfs(spec.tmp_bytes, inodes, 0o711, spec.id_base, NOTHING_SPECIAL).at(step, "tmpfs")?;
    attach(shared.as_fd(), TEMPORARY).at(step, "tmpfs")?;
    let (uid, gid) = root_of(spec.id_base);
    for (source, mode, attributes, target) in [
        (c"t/tmp", 0o1777, NOTHING_SPECIAL, "/tmp"),
        (c"t/shm", 0o1777, NOTHING_SPECIAL.and(Attributes::NO_EXEC), "/dev/shm"),
        (c"sys", 0o555, READ_ONLY.and(Attributes::NO_EXEC), "/sys"),
    ] {
        let place = || {
            make_dir(source)?;
            fchownat(AT_FDCWD, source, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            fchmodat(AT_FDCWD, source, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?;
            let mount = mount::copy(AT_FDCWD, source, false)?;
            mount::change(&mount, attributes, None)?;
            mount::attach(mount, root.directory(target)?)
        };
        place().at(step, target)?;
    }
    Ok(())
}

/// One inode for each four pages, as a file costs the kernel about a page besides its content.
fn temporary_inodes(bytes: u64) -> u64 {
    (bytes / 16_384).max(256)
}

fn attach_bind(
    spec: &Spec,
    bind: &Bind,
    source: BorrowedFd<'_>,
    root: &Root,
    ids: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let target = match bind.kind {
        BindKind::ReadOnlyFile => {
            mount::change(source, READ_ONLY, None)?;
            root.file(&bind.target)?
        }
        BindKind::ReadOnlyDir => {
            mount::change(source, READ_ONLY, Some(ids))?;
            root.directory(&bind.target)?
        }
        BindKind::WritableFile => {
            let (uid, gid) = (spec.id_base + spec.uid, spec.id_base + spec.gid);
            fchownat(source, "", Some(uid.into()), Some(gid.into()), AtFlags::AT_EMPTY_PATH)?;
            mount::change(source, NOTHING_SPECIAL.and(Attributes::NO_EXEC), None)?;
            root.file(&bind.target)?
        }
    };
    mount::attach(source, target)
}

/// Detached copies of the mounts that the sources lie on, each with its source as root.
fn copies<'a>(
    sources: impl Iterator<Item = (&'a OwnedFd, &'a std::path::PathBuf)>,
    step: Step,
) -> Result<Vec<OwnedFd>, SetupError> {
    sources.map(|(source, path)| mount::copy(source.as_fd(), c"", false).at(step, path.display())).collect()
}

/// Attaches a mount at a new directory of the scratch file system.
fn attach(mount: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    make_dir(&name)?;
    mount::attach(mount, open_dir(&name)?)
}

pub(super) fn make_dir(name: &std::ffi::CStr) -> Result<(), Errno> {
    mkdirat(AT_FDCWD, name, Mode::from_bits_truncate(0o755))
}

pub(super) fn open_dir(name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(AT_FDCWD, name, flags, Mode::empty())
}
