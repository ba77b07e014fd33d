//! The control plane.

pub mod store;
pub mod wake;
