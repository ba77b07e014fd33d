//! Do two processes share a resource of the kernel's (kcmp(2))?

use nix::errno::Errno;

/// `KCMP_FILES` of `linux/kcmp.h`: the table of descriptors.
const FILES: i32 = 2;

/// Have two tasks one table of descriptors between them?
///
/// # Errors
/// `ESRCH` when one has ended, `EPERM`, `ENOSYS` on a kernel without `CONFIG_KCMP`.
pub fn same_files(one: i32, other: i32) -> Result<bool, Errno> {
    // SAFETY: the call takes integers and touches no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, one, other, FILES, 0, 0) }).map(|order| order == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_their_table_and_processes_do_not() {
        let own = nix::unistd::gettid().as_raw();
        let thread = std::thread::spawn(move || same_files(own, nix::unistd::gettid().as_raw()));
        assert_eq!(thread.join().unwrap(), Ok(true));
        assert_eq!(same_files(own, nix::unistd::getppid().as_raw()), Ok(false));
        assert_eq!(same_files(own, i32::MAX), Err(Errno::ESRCH));
    }
}
