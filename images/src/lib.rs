//! Base images and packages: the content-addressed store, hostile-safe unpacking, and the recipes
//! and tools that make images.
//!
//! Archives are hostile until [`unpack`] has judged every entry; a tree that exists below a store
//! was judged, complete and renamed into place in one step.

pub mod bootstrap;
pub mod gem_index;
pub mod mirror;
pub mod pack;
pub mod recipe;
pub mod store;
pub mod unpack;

pub use mogok_api::name::{Digest, ImageName};
pub use store::{Store, StoreError};
pub use unpack::{Profile, UnpackError, UnpackLimits};
