//! The per-container process and what the agent shares with it: the [`spec`] it is given, the
//! [`protocol`] it speaks, a [`client`] of it, and the system calls ([`sys`]) beyond safe wrappers.

pub mod client;
pub mod protocol;
pub mod spec;
pub mod sys;
