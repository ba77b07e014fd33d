//! What hostile bytes must never do, one body for each parser of them. Each takes any bytes and panics when an
//! invariant breaks; each costs a bounded time and amount of memory.

#[cfg(feature = "images")]
pub mod archive;
#[cfg(feature = "shim")]
pub mod exec;
#[cfg(feature = "shim")]
pub mod frames;
#[cfg(feature = "router")]
pub mod gate;
#[cfg(feature = "shim")]
pub mod lines;
#[cfg(feature = "control-plane")]
pub mod lockfile;
#[cfg(feature = "control-plane")]
pub mod procfile;
#[cfg(feature = "agent")]
pub mod records;
#[cfg(feature = "shim")]
pub mod spec;
