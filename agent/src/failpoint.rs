//! The agent's fail points (`mogok_shim::failpoint` tells what one is): one between every two steps that
//! leave something on the host or in the ledger.
//!
//! Invariant: [`ALL`] is what the tests go through, and [`fail_point`](crate::fail_point) takes a name of
//! it only, so that none is forgotten.

#[cfg(feature = "failpoints")]
use std::path::Path;

#[cfg(feature = "failpoints")]
use mogok_shim::failpoint;
#[cfg(feature = "failpoints")]
use tokio::runtime::{Handle, RuntimeFlavor};

/// A step that a test made fail.
#[cfg(feature = "failpoints")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("fail point {0}")]
pub struct Injected(&'static str);

/// Passes a fail point: an error there is one of the step before. Nothing where there are none.
#[macro_export]
macro_rules! fail_point {
    ($point:ident) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::hit($crate::failpoint::Point::$point)?;
    };
    // For a step that cannot fail.
    ($point:ident, ignored) => {
        #[cfg(feature = "failpoints")]
        let _ = $crate::failpoint::hit($crate::failpoint::Point::$point);
    };
}

#[cfg(feature = "failpoints")]
macro_rules! points {
    ($($name:ident = $text:literal,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point { $($name,)* }

        impl Point {
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => concat!("agent/", $text),)* }
            }
        }

        /// The name of every fail point.
        pub const ALL: &[&str] = &[$(concat!("agent/", $text),)*];
    };
}

#[cfg(feature = "failpoints")]
points! {
    // Create and start.
    Accepted = "accepted",
    Layers = "layers",
    Cgroup = "cgroup",
    Disk = "disk",
    Attached = "attached",
    AttachmentRecorded = "attachment_recorded",
    SpecWritten = "spec_written",
    Spawned = "spawned",
    RunRecorded = "run_recorded",
    Reported = "reported",
    Started = "started",
    // Stop and end.
    StopSent = "stop_sent",
    EndSeen = "end_seen",
    ShimLetGo = "shim_let_go",
    RunCleaned = "run_cleaned",
    Judged = "judged",
    EndRecorded = "end_recorded",
    // Remove.
    CgroupRemoved = "cgroup_removed",
    DiskRemoved = "disk_removed",
    Detached = "detached",
    GoneRecorded = "gone_recorded",
    Retired = "retired",
    // A program that joins.
    ExecAllowed = "exec_allowed",
    ExecSpawned = "exec_spawned",
    ExecAsked = "exec_asked",
    ExecStarted = "exec_started",
    ExecAnswered = "exec_answered",
    ExecEnded = "exec_ended",
    // The start of the agent itself.
    LedgerRead = "ledger_read",
    Examined = "examined",
    NetworkUp = "network_up",
    Swept = "swept",
    Adopted = "adopted",
}

/// Passes a fail point. Blocks while the test holds its answer back.
///
/// # Errors
/// When the test wants the step to fail.
#[cfg(feature = "failpoints")]
pub fn hit(point: Point) -> Result<(), Injected> {
    let hit = || failpoint::hit(point.name()).map_err(|_| Injected(point.name()));
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        // The worker's other tasks go on elsewhere.
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(hit),
        _ => hit(),
    }
}

/// What a shim gets in its environment to find the same listener.
#[cfg(feature = "failpoints")]
#[must_use]
pub fn variable() -> String {
    let socket = std::env::var(failpoint::VARIABLE).unwrap_or_default();
    format!("{}={socket}", failpoint::VARIABLE)
}

/// The variable that names a file of cgroups to which nothing is written: a limit that is forgotten, and that
/// a test must miss. `make mutations` goes through them.
#[cfg(feature = "failpoints")]
pub const UNWRITTEN: &str = "MOGOK_UNWRITTEN";

/// Is this the file to which nothing is to be written?
#[cfg(feature = "failpoints")]
#[must_use]
pub fn is_unwritten(path: &Path) -> bool {
    std::env::var_os(UNWRITTEN).is_some_and(|name| path.file_name() == Some(&name))
}
