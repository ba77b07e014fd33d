//! Installing a compiled filter between clone and exec (seccomp(2)).

use nix::errno::Errno;

use crate::seccomp::Instruction;

/// `struct sock_fprog` of linux/filter.h.
#[repr(C)]
struct Program {
    length: libc::c_ushort,
    instructions: *const Instruction,
}

/// Puts `filter` on top of those installed before. Takes no_new_privs.
///
/// # Errors
/// `EACCES` without no_new_privs, `EINVAL` when the filter is none.
pub fn install(filter: &'static [Instruction]) -> Result<(), Errno> {
    let length = libc::c_ushort::try_from(filter.len()).map_err(|_| Errno::EINVAL)?;
    let program = Program { length, instructions: filter.as_ptr() };
    // SAFETY: the program and the instructions it points to live through the call, and Instruction has the
    // layout of struct sock_filter; the kernel checks the rest.
    let set =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    Errno::result(set).map(drop)
}
