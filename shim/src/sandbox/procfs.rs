//! `/proc` of the container: a fresh procfs of its PID namespace, with the parts that show or steer the
//! host covered or closed to writes.
//!
//! Runs between clone and exec. Invariant: targets are found below the procfs that was just mounted, by names
//! that the kernel gives, never by a path that something else could stand at.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::fstat;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::sys::mount::{self, Attributes, FileSystem};

/// Files that show memory, symbols, keys, timers, hardware, other tenants' load to the microsecond, or which
/// host this is; or that steer the kernel. What stays is what runtimes read: see `docs/security-report.md`.
const COVERED_FILES: [&CStr; 44] = [
    c"allocinfo",
    c"bootconfig",
    c"buddyinfo",
    c"cgroups",
    c"cmdline",
    c"config.gz",
    c"consoles",
    c"crypto",
    c"devices",
    c"diskstats",
    c"dma",
    c"execdomains",
    c"fb",
    c"interrupts",
    c"iomem",
    c"ioports",
    c"kallsyms",
    c"kcore",
    c"key-users",
    c"keys",
    c"kmsg",
    c"kpagecgroup",
    c"kpagecount",
    c"kpageflags",
    c"latency_stats",
    c"locks",
    c"mdstat",
    c"misc",
    c"modules",
    c"mtd",
    c"mtrr",
    c"pagetypeinfo",
    c"partitions",
    c"sched_debug",
    c"schedstat",
    c"slabinfo",
    c"softirqs",
    c"swaps",
    c"sysrq-trigger",
    c"timer_list",
    c"vmallocinfo",
    c"vmstat",
    c"zoneinfo",
    // The same for all containers of a host until it boots again.
    c"sys/kernel/random/boot_id",
];
/// The directories of that kind.
const COVERED_DIRECTORIES: [&CStr; 10] =
    [c"acpi", c"asound", c"bus", c"driver", c"dynamic_debug", c"fs", c"irq", c"pressure", c"scsi", c"tty"];

const HARMLESS: Attributes = Attributes::NO_SUID.and(Attributes::NO_DEV).and(Attributes::NO_EXEC);

/// Nothing but this very procfs, and through no link.
const BELOW: ResolveFlag = ResolveFlag::RESOLVE_BENEATH.union(ResolveFlag::RESOLVE_NO_XDEV);

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
    // Read-only first: a copy of it does not carry covers along.
    let sys = open(proc, c"sys", OFlag::O_PATH, BELOW)?;
    let copy = mount::copy(sys.as_fd(), c"", false)?;
    mount::change(&copy, HARMLESS.and(Attributes::READ_ONLY), None)?;
    mount::attach(copy, sys)?;
    // Both stand on file systems that the shim made, so neither can be a link of the image's.
    cover(proc, &COVERED_FILES, c"/dev/null")?;
    cover(proc, &COVERED_DIRECTORIES, c"/sys")
}

/// Attaches a copy of the mount of `with` at each of the names that this kernel has.
fn cover(proc: BorrowedFd<'_>, names: &[&CStr], with: &CStr) -> Result<(), Errno> {
    let mut spare = None;
    for name in names {
        let copy = match spare.take() {
            Some(copy) => copy,
            None => mount::copy(AT_FDCWD, with, false)?,
        };
        match mount::attach_at(&copy, proc, name) {
            Ok(()) => {}
            Err(Errno::ENOENT) => spare = Some(copy),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn open(at: BorrowedFd<'_>, path: &CStr, flags: OFlag, resolve: ResolveFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(resolve | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(at, path, how)
}
