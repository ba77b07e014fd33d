//! The system calls a container may make, as one BPF program that `build.rs` compiles from
//! `seccomp/*.json`, where each has its reason.
//!
//! What is not allowed fails with EPERM; what programs probe for and do without, and numbers newer than the
//! lists, fail with ENOSYS, as on a kernel that lacks them: seccomp(2) itself is among these, so nothing
//! goes on top. Another architecture's calls (i386) kill the process, and x32 numbers are none of the lists.

/// One instruction, as the kernel's `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// A filter of at most 4,096 instructions (`BPF_MAXINSNS`).
pub type Filter = &'static [Instruction];

/// The filter of every process in a container.
pub const FILTER: Filter = &include!(concat!(env!("OUT_DIR"), "/filter.rs"));
