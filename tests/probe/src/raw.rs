//! System calls by number and through the i386 entry: the only unsafe code of the probe.
//!
//! Invariant: an argument is an integer, static bytes or a zeroed page that is the kernel's for good,
//! so a call that is let through cannot write over anything this program uses.
#![allow(unsafe_code, reason = "an attacker makes the calls that no safe wrapper offers")]

use std::ffi::CStr;

use nix::errno::Errno;

/// One argument of a system call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg {
    Number(i64),
    Text(&'static CStr),
    Bytes(&'static [u8]),
    /// The address of a page of 4,096 zero bytes, a new one for each call.
    Page,
    /// The address of a `struct iovec` over eight bytes, new ones for each call.
    Vector,
}

/// Makes the call `number` with up to six arguments; the rest are zero.
pub(crate) fn call(number: i64, arguments: &[Arg]) -> Result<i64, Errno> {
    let mut words = [0_i64; 6];
    for (word, argument) in words.iter_mut().zip(arguments) {
        *word = match argument {
            Arg::Number(number) => *number,
            Arg::Text(text) => text.as_ptr() as i64,
            Arg::Bytes(bytes) => bytes.as_ptr() as i64,
            Arg::Vector => {
                let bytes = Box::leak(Box::new([0_u64; 1])).as_mut_ptr() as u64;
                Box::leak(Box::new([bytes, 8])).as_ptr() as i64
            }
            Arg::Page => Box::leak(Box::new([0_u8; 4096])).as_mut_ptr() as i64,
        };
    }
    let [a, b, c, d, e, f] = words;
    // SAFETY: pointers are static bytes, which the calls made with them only read, or leaked memory of which no
    // reference is left; no call of the probe's maps or unmaps memory of this process.
    Errno::result(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

/// getpid through `int 0x80`, the entry of i386 programs, which has numbers of its own.
pub(crate) fn i386_getpid() -> i32 {
    let result: i32;
    // SAFETY: call 20 of i386 is getpid and touches no memory; the entry may clear r8 to r11.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("eax") 20_i32 => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}

/// An ioctl whose third argument is a static string or a number.
pub(crate) fn ioctl(fd: i32, request: u64, argument: Arg) -> Result<i64, Errno> {
    call(libc::SYS_ioctl, &[Arg::Number(fd.into()), Arg::Number(request as i64), argument])
}
