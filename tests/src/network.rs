//! A network namespace for the calling thread and all that it starts: the same ports and addresses
//! for every test, no way out, and nothing left when the last process has ended.

use std::cell::Cell;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};

use crate::program;

thread_local! {
    static OWN: Cell<bool> = const { Cell::new(false) };
}

/// Moves this thread into a new network namespace with only its loopback interface up; once a thread.
///
/// # Errors
/// Without `CAP_SYS_ADMIN`, or when iproute2 is missing.
pub fn enter_own_namespace() -> Result<()> {
    if OWN.get() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    program::run("ip", &["link", "set", "lo", "up"])?;
    OWN.set(true);
    Ok(())
}
