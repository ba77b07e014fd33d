//! agent
pub mod cgroup;
pub mod disk;
pub mod host;
pub mod network;
