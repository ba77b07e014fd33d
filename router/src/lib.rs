//! The router: Host -> app -> instance, balanced per request, from a table that the control plane
//! injects. Stateless but for the last table on disk, with which it goes on while the control
//! plane is away. No request goes to an instance of which the control plane was told that it is
//! out of use.

pub mod access;
pub mod balance;
pub mod client;
pub mod control;
pub mod domain;
pub mod fault;
pub mod gate;
pub mod headers;
pub mod health;
pub mod instance;
pub mod listener;
pub mod logs;
pub mod nginx;
pub mod proxy;
pub mod saved;
pub mod settings;
pub mod stream;
pub mod sync;
pub mod table;
pub mod tunnel;
