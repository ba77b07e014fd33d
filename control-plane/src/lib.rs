//! The control plane: accounts, apps, git server, builds, releases, scheduler and routes.
//!
//! Its store holds what is wanted; agents and routers hold what is. Everything here can be killed at
//! any instant and goes on from the store when it is started again.

pub mod api;
pub mod apps;
pub mod auth;
pub mod build;
pub mod config;
pub mod deploy;
pub mod git;
pub mod lockfile;
pub mod log_store;
pub mod node;
pub mod plan;
pub mod procfile;
pub mod reconcile;
pub mod release;
pub mod retention;
pub mod routes;
pub mod scheduler;
pub mod server;
pub mod state;
pub mod store;
mod turn;
pub mod wake;
