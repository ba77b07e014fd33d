//! The per-container process and what the agent shares with it: the [`spec`] it is given, the
//! [`protocol`] it speaks, a [`client`] of it, and the system calls ([`sys`]) beyond safe wrappers.

/// Passes a fail point of the supervisions; nothing where there are none.
macro_rules! fail_point {
    ($point:literal) => {
        #[cfg(feature = "failpoints")]
        crate::failpoint::hit($point)?;
    };
}

pub mod client;
pub mod exec;
#[cfg(feature = "failpoints")]
pub mod failpoint;
mod privilege;
pub mod protocol;
pub mod run;
mod sandbox;
pub mod sealed;
pub mod seccomp;
pub mod spec;
mod state_dir;
pub mod step;
pub mod supervise;
pub mod sys;
