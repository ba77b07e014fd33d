//! The system calls that no safe wrapper covers: the only unsafe code of the project.
//!
//! Each wrapper takes borrowed and returns owned descriptors, allocates nothing, and reports the bare
//! [`Errno`](nix::errno::Errno), so that it can also be called between clone and exec. Invariant: no
//! function here can corrupt memory, whatever its arguments.

#![allow(unsafe_code, reason = "this module is where the project keeps it")]

pub mod capability;
pub mod clone;
pub mod command_line;
pub mod descriptor;
pub mod exec;
pub mod interface;
pub mod kcmp;
pub mod keyring;
pub mod limit;
pub mod loop_device;
pub mod memory;
pub mod mount;
pub mod owner;
pub mod pass;
pub mod pidfd;
pub mod seccomp;
pub mod signal;
pub mod terminal;
