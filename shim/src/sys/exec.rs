//! The last calls of a cloned child: execve(2) from strings that were laid out before the clone, and
//! leaving without unwinding.

use std::ffi::{CStr, CString};

use nix::errno::Errno;

/// A program with its arguments and environment, ready to be executed without allocating.
#[derive(Debug)]
pub struct Image {
    arguments: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// Owns what `envp` points to.
    _environment: Vec<CString>,
}

impl Image {
    /// `arguments` begins with the path of the program.
    #[must_use]
    pub fn new(arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        // The heap buffers of the strings stay where they are when the vectors move.
        let pointers = |strings: &[CString]| {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        let (argv, envp) = (pointers(&arguments), pointers(&environment));
        Self { arguments, argv, envp, _environment: environment }
    }

    /// Becomes that program; returns only when it cannot.
    #[must_use]
    pub fn execute(&self) -> Errno {
        let Some(program) = self.arguments.first().map(CString::as_c_str) else { return Errno::EINVAL };
        execute(program, &self.argv, &self.envp)
    }
}

fn execute(program: &CStr, argv: &[*const libc::c_char], envp: &[*const libc::c_char]) -> Errno {
    // SAFETY: both arrays end with a null pointer and point to strings that `Image` owns (execve(2)).
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Errno::last()
}

/// Leaves at once, as _exit(2).
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: no memory is involved, and the call does not return.
    unsafe { libc::_exit(code) }
}
