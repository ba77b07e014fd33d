//! The harness of the whole-stack tests: a platform of real parts in a network namespace of its own,
//! developers with a home directory and git, visitors, and a detector of what was left behind.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let Some(platform) = mogok_tests::Platform::start()? else { return Ok(()) };
//! let dev = platform.developer("ann@example.com")?;
//! let app = dev.deploy("rack", "hello")?;
//! assert_eq!(platform.visit(&app, "/")?.status, 200);
//! platform.finish()
//! # }
//! ```

pub mod bench;
pub mod developer;
pub mod leak;
pub mod network;
pub mod platform;
pub mod program;
pub mod security;
pub mod visitor;
pub mod vm;

pub use developer::{App, Developer};
pub use platform::Platform;
pub use visitor::Answer;
