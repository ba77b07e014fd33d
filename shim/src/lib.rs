//! The shim's library half: what the agent and the tests share with it.

pub mod protocol;
pub mod spec;
