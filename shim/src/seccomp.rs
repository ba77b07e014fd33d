//! The system calls a container may make, as BPF compiled at build time from `seccomp/*.json`, where
//! each has its reason.
//!
//! Three stacked filters: what is not allowed fails with EPERM; what programs probe for and do without
//! fails with ENOSYS, as on a kernel that lacks it. Of two refusals the kernel takes that of the filter
//! installed last, so [`APP`] goes first; it lets seccomp(2) itself pass for the others, and [`ABSENT`], the
//! last, ends that. Another architecture's calls (i386) kill the process, and x32
//! numbers are none of the list.

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

/// The allow-list.
pub const APP: Filter = &include!(concat!(env!("OUT_DIR"), "/app.rs"));
/// Calls answered as if the kernel were older.
pub const ABSENT: Filter = &include!(concat!(env!("OUT_DIR"), "/absent.rs"));
/// Numbers the list does not know.
pub const UNKNOWN: Filter = &include!(concat!(env!("OUT_DIR"), "/unknown.rs"));

/// In the order of installation.
pub const FILTERS: [Filter; 3] = [APP, UNKNOWN, ABSENT];

const _: () = assert!(APP.len() <= 4096 && ABSENT.len() <= 4096 && UNKNOWN.len() <= 4096);
