//! The router in process, between raw sockets on both sides and a control plane that the tests
//! play. Times are shortened through `Settings`; what waits for something polls with a deadline.

#![allow(clippy::unwrap_used, reason = "the whole crate is a test")]

mod balance;
mod faults;
mod gate;
mod harness;
mod keepalive;
mod nginx;
mod program;
mod streaming;
mod sync;
mod websocket;
