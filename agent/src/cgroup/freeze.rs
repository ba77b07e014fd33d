//! Stopping a container where it stands and letting it go on: the v2 freezer, which hybrid hosts have too.
//!
//! A frozen container still counts its memory and can be killed. Every wait is bounded.

use std::path::Path;
use std::time::Duration;

use super::{CgroupError, file, removal};

/// Processes that sleep in the kernel freeze when they wake up.
const FREEZE_WAIT: Duration = Duration::from_secs(10);

/// Freezes or thaws the v2 cgroup `dir` and waits until all of it is so (`frozen` in `cgroup.events`).
///
/// # Errors
/// After 10 s; the kernel goes on with what was asked.
pub(super) fn set(dir: &Path, frozen: bool) -> Result<(), CgroupError> {
    file::write(&dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    let settled = removal::wait_event(dir, "frozen", u64::from(frozen), FREEZE_WAIT)?;
    if settled {
        return Ok(());
    }
    let state = if frozen { "frozen" } else { "thawed" };
    Err(CgroupError::NotFrozen { path: dir.to_owned(), state, after: FREEZE_WAIT })
}
