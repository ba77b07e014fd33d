//! Do two processes share a resource of the kernel's (kcmp(2))?

use std::cmp::Ordering;

use nix::errno::Errno;

/// `KCMP_FILE` and `KCMP_FILES` of `linux/kcmp.h`: the open file of a descriptor, and the table of descriptors.
const FILE: i32 = 0;
const FILES: i32 = 2;

/// Have two tasks one table of descriptors between them?
///
/// # Errors
/// `ESRCH` when one has ended, `EPERM`, `ENOSYS` on a kernel without `CONFIG_KCMP`.
pub fn same_files(one: i32, other: i32) -> Result<bool, Errno> {
    // SAFETY: the call takes integers and touches no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, one, other, FILES, 0, 0) }).map(|order| order == 0)
}

/// Are two descriptors, each of a task, for one open file? Else their order, which stays while both are open.
///
/// # Errors
/// `ESRCH` when a task has ended, `EBADF` when a descriptor is closed; as [`same_files`].
pub fn open_files(one: (i32, i32), other: (i32, i32)) -> Result<Ordering, Errno> {
    // SAFETY: the call takes integers and touches no memory.
    let order = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            one.0,
            other.0,
            FILE,
            libc::c_long::from(one.1),
            libc::c_long::from(other.1),
        )
    })?;
    Ok(match order {
        0 => Ordering::Equal,
        1 => Ordering::Less,
        _ => Ordering::Greater,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn threads_share_their_table_and_processes_do_not() {
        let own = nix::unistd::gettid().as_raw();
        let thread = std::thread::spawn(move || same_files(own, nix::unistd::gettid().as_raw()));
        assert_eq!(thread.join().unwrap(), Ok(true));
        assert_eq!(same_files(own, nix::unistd::getppid().as_raw()), Ok(false));
        assert_eq!(same_files(own, i32::MAX), Err(Errno::ESRCH));
    }

    #[test]
    fn descriptors_of_one_open_file_are_told_from_others() {
        let own = nix::unistd::gettid().as_raw();
        let open = || File::open("/proc/self/status").unwrap();
        let (one, other) = (open(), open());
        let again = one.try_clone().unwrap();
        let of = |file: &File| (own, file.as_raw_fd());
        assert_eq!(open_files(of(&one), of(&again)), Ok(Ordering::Equal));
        let order = open_files(of(&one), of(&other)).unwrap();
        assert_ne!(order, Ordering::Equal);
        assert_eq!(open_files(of(&other), of(&one)), Ok(order.reverse()));
        assert_eq!(open_files(of(&one), (own, i32::MAX)), Err(Errno::EBADF));
    }
}
