//! agent
pub mod cgroup;
pub mod disk;
pub mod network;
