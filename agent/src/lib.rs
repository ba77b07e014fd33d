//! The node's container supervisor: turns a declared set of containers into running ones.
//!
//! `config` says how; `server` takes what is wanted and tells what is; `reconcile` compares the two;
//! `instance` lives the life of one container; `ledger` remembers it; `shim`, `cgroup`, `network`,
//! `disk` are what a container is made of, and `debris` is what it leaves; `logs`, `events`, `health`, `blobs` are what others see.

pub mod blobs;
pub mod cgroup;
pub mod clock;
pub mod config;
pub mod debris;
pub mod disk;
pub mod events;
pub mod exec;
pub mod failpoint;
pub mod health;
pub mod hold;
pub mod host;
pub mod inspect;
pub mod instance;
pub mod ledger;
pub mod logs;
pub mod network;
pub mod node;
pub mod purge;
pub mod reconcile;
pub mod restart;
pub mod run;
pub mod server;
pub mod shim;
pub mod tls;

/// An error and its causes in one line, for logs and failures: no Display of this project repeats its
/// source.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
