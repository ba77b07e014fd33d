//! The shared contract of mogok's programs: ids, names, states, wire errors, and the two HTTP
//! APIs (agent and control plane) as types with their typed clients.
//!
//! Everything that comes from outside is parsed here into a type once; the inside trusts it.

pub mod agent;
pub mod app;
pub mod control;
pub mod error;
pub mod id;
pub mod instance;
#[cfg(feature = "linger")]
pub mod linger;
pub mod name;
pub mod openapi;
pub mod route;
