//! Mounts by descriptor: fsopen(2), fsmount(2), open_tree(2), mount_setattr(2), move_mount(2). What is
//! not attached vanishes with its descriptor.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;

/// What a mount refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes(u64);

impl Attributes {
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    pub const NO_SUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    pub const NO_DEV: Self = Self(libc::MOUNT_ATTR_NODEV);
    pub const NO_EXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);

    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A file system that is being configured.
#[derive(Debug)]
pub struct FileSystem(OwnedFd);

impl FileSystem {
    /// # Errors
    /// `ENODEV` when the kernel does not have it.
    pub fn new(name: &CStr) -> Result<Self, Errno> {
        // SAFETY: the name ends with a NUL and lives through the call.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) })?;
        Ok(Self(owned(fd)))
    }

    /// Sets an option, at most 255 bytes.
    ///
    /// # Errors
    /// `EINVAL` when the file system refuses it.
    pub fn option(&self, key: &CStr, value: &CStr) -> Result<(), Errno> {
        self.configure(FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())
    }

    /// Sets an option without a value.
    ///
    /// # Errors
    /// `EINVAL` when the file system refuses it.
    pub fn flag(&self, key: &CStr) -> Result<(), Errno> {
        self.configure(FSCONFIG_SET_FLAG, key.as_ptr(), std::ptr::null())
    }

    /// Makes the file system and one detached mount of it.
    ///
    /// # Errors
    /// Those of mount(2).
    pub fn mount(self, attributes: Attributes) -> Result<OwnedFd, Errno> {
        self.configure(FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null())?;
        // SAFETY: a descriptor and two integers.
        let fd = Errno::result(unsafe {
            libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes.0 as u32)
        })?;
        Ok(owned(fd))
    }

    fn configure(
        &self,
        command: u32,
        key: *const libc::c_char,
        value: *const libc::c_char,
    ) -> Result<(), Errno> {
        // SAFETY: key and value are null where the command takes none, else strings of the callers above that
        // live through the call.
        let set = unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, key, value, 0) };
        Errno::result(set).map(drop)
    }
}

/// A detached copy of the mount that `at` or the `path` below it lies on, with that as its root; with
/// everything mounted below it, where `recursive`. An empty path means `at` itself.
///
/// # Errors
/// `EINVAL` when it is not in the caller's mount namespace or something locked would be revealed.
pub fn copy(at: BorrowedFd<'_>, path: &CStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_SYMLINK_NOFOLLOW as u32;
    flags |= libc::AT_EMPTY_PATH as u32;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    // SAFETY: the path ends with a NUL and lives through the call.
    let fd =
        Errno::result(unsafe { libc::syscall(libc::SYS_open_tree, at.as_raw_fd(), path.as_ptr(), flags) })?;
    Ok(owned(fd))
}

/// Attaches a detached mount on top of `target`.
///
/// # Errors
/// `ENOTDIR` when one is a directory and the other not; those of move_mount(2).
pub fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the empty strings are static; the rest are integers.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            target.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    Errno::result(moved).map(drop)
}

/// Attaches a detached mount at the `path` below `at`. A link in the last place is not followed.
///
/// # Errors
/// `ENOENT`, `ENOTDIR` when one is a directory and the other not; those of move_mount(2).
pub fn attach_at(mount: impl AsFd, at: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    // SAFETY: the paths end with a NUL and live through the call; the rest are integers.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            at.as_raw_fd(),
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(moved).map(drop)
}

/// Changes a mount: sets attributes, cuts it off from the events of its peers, and maps its ids through a
/// user namespace where one is given (the mount must be detached then).
///
/// # Errors
/// `EINVAL` when the file system cannot be id-mapped, `EPERM`.
pub fn change(mount: impl AsFd, attributes: Attributes, ids: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: attributes.0 | if ids.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: ids.map_or(0, |ids| ids.as_raw_fd() as u64),
    };
    // SAFETY: the empty string is static, `attributes` lives through the call and the size is its own.
    let changed = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(changed).map(drop)
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: callers pass the result of a call that makes a new descriptor, after checking it for failure.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}
