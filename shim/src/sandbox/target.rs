//! Places inside the container's root: where mounts and files go.
//!
//! The image is hostile, so no symbolic link of it is ever followed: each name is opened on its own,
//! and what is not the expected kind is refused. Invariant: a [`Root`] reaches nothing outside.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, fchownat, unlinkat};

use super::root_of;

/// The root of the container, in the shim's mount namespace.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    id_base: u32,
}

impl Root {
    /// `fd` is a directory opened with `O_PATH`.
    pub(super) fn new(fd: OwnedFd, id_base: u32) -> Self {
        Self { fd, id_base }
    }

    /// The directory at `path`, made with its parents where missing.
    pub(super) fn directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        let mut at = open(self.fd.as_fd(), ".", OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        for name in names(path) {
            at = self.step(at.as_fd(), name)?;
        }
        Ok(at)
    }

    /// The regular file at `path`, made empty where missing.
    pub(super) fn file(&self, path: &str) -> Result<OwnedFd, Errno> {
        let (parent, name) = self.parent(path)?;
        let fd = match open(parent.as_fd(), name, OFlag::O_PATH) {
            Err(Errno::ENOENT) => {
                self.create(parent.as_fd(), name)?;
                open(parent.as_fd(), name, OFlag::O_PATH)?
            }
            other => other?,
        };
        let kind = SFlag::from_bits_truncate(fstat(&fd)?.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFREG { Ok(fd) } else { Err(Errno::ELOOP) }
    }

    /// Puts a file at `path`, in place of whatever file or link the image has there.
    pub(super) fn write(&self, path: &str, content: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        let mut file = File::from(self.create(parent.as_fd(), name)?);
        file.write_all(content.as_bytes())
            .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    fn parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str), Errno> {
        let (parent, name) = path.rsplit_once('/').ok_or(Errno::EINVAL)?;
        Ok((self.directory(parent)?, name))
    }

    fn create(&self, at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .mode(Mode::from_bits_truncate(0o644))
            .resolve(inside());
        let fd = openat2(at, name, how)?;
        self.give(fd.as_fd(), "", AtFlags::AT_EMPTY_PATH)?;
        Ok(fd)
    }

    fn step(&self, at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match open(at, name, flags) {
            Err(Errno::ENOENT) => {
                mkdirat(at, name, Mode::from_bits_truncate(0o755))?;
                self.give(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                open(at, name, flags)
            }
            other => other,
        }
    }

    /// To the container's root, or it would belong to nobody there.
    fn give(&self, at: BorrowedFd<'_>, name: &str, flags: AtFlags) -> Result<(), Errno> {
        let (uid, gid) = root_of(self.id_base);
        fchownat(at, name, uid, gid, flags)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The names of an absolute path that [`crate::spec::Spec::check`] has seen.
fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

fn open(at: BorrowedFd<'_>, name: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat2(at, name, OpenHow::new().flags(flags).resolve(inside()))
}

fn inside() -> ResolveFlag {
    ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root(dir: &std::path::Path) -> Root {
        let own = nix::unistd::geteuid().as_raw();
        let fd = nix::fcntl::open(dir, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        Root::new(fd, own)
    }

    #[test]
    fn missing_places_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        root.directory("/a/b").unwrap();
        root.file("/c/d").unwrap();
        root.write("/c/e", "text").unwrap();
        assert!(dir.path().join("a/b").is_dir());
        assert!(dir.path().join("c/d").is_file());
        assert_eq!(std::fs::read_to_string(dir.path().join("c/e")).unwrap(), "text");
    }

    #[test]
    fn no_link_of_the_image_is_followed() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("proc")).unwrap();
        symlink("/etc/passwd", dir.path().join("file")).unwrap();
        let root = root(dir.path());
        // O_DIRECTORY is looked at before the link is.
        assert_eq!(root.directory("/proc").unwrap_err(), Errno::ENOTDIR);
        assert_eq!(root.directory("/proc/x").unwrap_err(), Errno::ENOTDIR);
        assert_eq!(root.file("/proc/x").unwrap_err(), Errno::ENOTDIR);
        assert_eq!(root.file("/file").unwrap_err(), Errno::ELOOP);
        assert_eq!(root.write("/proc/x", "").unwrap_err(), Errno::ENOTDIR);
        root.write("/file", "mine").unwrap();
        assert!(dir.path().join("file").symlink_metadata().unwrap().is_file());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
