//! agent
pub mod cgroup;
