//! A whole node on the real kernel: a real agent with real shims, in a network namespace of its own.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking, their helpers too")]

mod adopt;
mod api;
mod exec;
#[cfg(feature = "failpoints")]
mod faults;
mod hold;
mod host;
mod life;
mod network;
mod soak;
mod upgrade;
