//! agent
pub mod cgroup;
pub mod network;
