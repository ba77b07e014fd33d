//! The shim with real containers: what runs, what is refused, and what is left behind. Needs root, a
//! static busybox and a cgroup v2 tree.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "containers/exec.rs"]
mod exec;
#[path = "containers/harness.rs"]
mod harness;
#[path = "containers/isolation.rs"]
mod isolation;
#[path = "containers/start.rs"]
mod start;
#[path = "containers/storage.rs"]
mod storage;
#[path = "containers/supervision.rs"]
mod supervision;
