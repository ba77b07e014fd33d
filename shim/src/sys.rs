//! The system calls that no safe wrapper covers: the only unsafe code of the project.
//!
//! Each wrapper takes borrowed and returns owned descriptors, allocates nothing, and reports the bare
//! [`Errno`](nix::errno::Errno), so that it can also be called between clone and exec. Invariant: a
//! safe function here is sound whatever its arguments; where that takes a promise, it is `unsafe`.

#![allow(unsafe_code, reason = "this module is where the project keeps it")]

pub mod pidfd;
pub mod signal;
