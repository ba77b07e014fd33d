//! The public listener from outside: a whole control plane on loopback, its API over HTTP, and git with
//! the real git program.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod accounts;
mod apps;
mod git;
mod git_hostile;
mod harness;
mod logs;
mod runs;
