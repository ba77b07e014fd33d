//! `/proc` of the container: a fresh procfs of its PID namespace, with the parts that show or steer the
//! host covered or closed to writes.
//!
//! Runs between clone and exec. Invariant: targets are opened below the procfs that was just mounted,
//! never by a path that something else could stand at.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::sys::mount::{self, Attributes, FileSystem};

/// Show memory, symbols, keys, timers, hardware or other tenants' load to the microsecond.
const COVERED: [&CStr; 22] = [
    c"acpi",
    c"asound",
    c"cmdline",
    c"config.gz",
    c"interrupts",
    c"kallsyms",
    c"kcore",
    c"key-users",
    c"keys",
    c"kmsg",
    c"kpagecgroup",
    c"kpagecount",
    c"kpageflags",
    c"latency_stats",
    c"modules",
    c"pagetypeinfo",
    c"sched_debug",
    c"scsi",
    c"softirqs",
    c"timer_list",
    c"vmallocinfo",
    c"sysrq-trigger",
];
/// Steer the kernel.
const READ_ONLY: [&CStr; 7] = [c"bus", c"driver", c"fs", c"irq", c"mtrr", c"sys", c"tty"];

const HARMLESS: Attributes = Attributes::NO_SUID.and(Attributes::NO_DEV).and(Attributes::NO_EXEC);

/// A detached procfs of the caller's PID namespace. The kernel allows it only while another whole procfs is
/// visible, so this comes before the host is detached.
pub(super) fn mount() -> Result<OwnedFd, Errno> {
    let proc = FileSystem::new(c"proc")?;
    proc.option(c"source", c"proc")?;
    proc.mount(HARMLESS)
}

/// Attaches it at `/proc` and makes sure that it is what stands there.
pub(super) fn attach(proc: BorrowedFd<'_>) -> Result<(), Errno> {
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
    mount::attach(proc, open(AT_FDCWD, c"/proc", directory, ResolveFlag::empty())?)?;
    let seen = open(AT_FDCWD, c"/proc", directory, ResolveFlag::empty())?;
    if fstatfs(&seen)?.filesystem_type() != PROC_SUPER_MAGIC {
        return Err(Errno::ELOOP);
    }
    let (mounted, seen) = (fstat(proc)?, fstat(&seen)?);
    if mounted.st_dev == seen.st_dev { Ok(()) } else { Err(Errno::ELOOP) }
}

/// Covers what must not be seen and closes what must not be written. What this kernel lacks needs neither.
pub(super) fn mask(proc: BorrowedFd<'_>) -> Result<(), Errno> {
    for name in COVERED {
        let Some(target) = find(proc, name)? else { continue };
        let kind = SFlag::from_bits_truncate(fstat(&target)?.st_mode) & SFlag::S_IFMT;
        // Both stand on file systems that the shim made, so neither can be a link of the image's.
        let cover = if kind == SFlag::S_IFDIR { c"/sys" } else { c"/dev/null" };
        mount::attach(mount::copy(AT_FDCWD, cover, false)?, target)?;
    }
    for name in READ_ONLY {
        let Some(target) = find(proc, name)? else { continue };
        let copy = mount::copy(target.as_fd(), c"", false)?;
        mount::change(&copy, HARMLESS.and(Attributes::READ_ONLY), None)?;
        mount::attach(copy, target)?;
    }
    Ok(())
}

fn find(proc: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    match open(proc, name, OFlag::O_PATH, ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn open(at: BorrowedFd<'_>, path: &CStr, flags: OFlag, resolve: ResolveFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(resolve | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(at, path, how)
}
