//! Programs in running containers: who may be joined, how many at a time, by which helper.
//!
//! The helper is `mogok-shim exec`, executed from a sealed copy that the agent makes of its shim at its start:
//! both are of one version, whatever is installed since. Invariant: a program that was started here is ended
//! when its client goes, when the agent dies, and with its container; and it holds one of its container's
//! places until nothing of it or its helper is left.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use mogok_api::agent::exec::ExecRequest;
use mogok_api::error::{ApiError, ErrorCode};
use mogok_api::id::InstanceId;
use mogok_shim::protocol::versions::JOINABLE;
use mogok_shim::protocol::{StepFailed, Versions};
use mogok_shim::sealed::Sealed;

use crate::fail_point;
use crate::instance::state::State;
use crate::ledger::LedgerError;
use crate::node::Node;
use crate::shim::{self, Process};

pub mod command;
mod helper;
mod session;
mod streams;

pub use session::Running;

/// At a time in one container.
pub const MOST: usize = 8;

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("instance {0} is not on this node")]
    NoInstance(InstanceId),
    #[error("instance {id} {reason}")]
    NotJoinable { id: InstanceId, reason: &'static str },
    #[error("instance {0} has {MOST} such programs already: end one first")]
    TooMany(InstanceId),
    #[error(
        "instance {id} was started by a shim that speaks {theirs} of the protocol, and a program joins from version {JOINABLE} on, with an agent of {}: restart the instance",
        Versions::OURS
    )]
    Version { id: InstanceId, theirs: Versions },
    #[error("cannot read the record of the instance")]
    Ledger(#[source] LedgerError),
    #[error("cannot {operation}")]
    Io { operation: &'static str, source: io::Error },
    #[error("the helper does not answer as it should")]
    Helper(#[source] mogok_shim::protocol::frame::FrameError),
    #[error("the program was not started")]
    Step(#[source] StepFailed),
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoint::Injected),
}

impl ExecError {
    /// In the words of the API.
    #[must_use]
    pub fn into_api(self) -> ApiError {
        let code = match &self {
            Self::NoInstance(_) => ErrorCode::NotFound,
            Self::NotJoinable { .. } | Self::Version { .. } => ErrorCode::Conflict,
            Self::TooMany(_) => ErrorCode::TooMany,
            Self::Step(failed) => match (failed.step.as_str(), failed.errno) {
                ("request" | "execute" | "working_directory", _) => ErrorCode::Invalid,
                // It ended, or was killed, in the middle of it.
                ("join_namespaces" | "report", libc::ESRCH) => ErrorCode::Conflict,
                ("clone" | "fork", libc::EAGAIN) => {
                    let message = "the container is at its limit of processes (a program that joins takes two), or its host is";
                    return ApiError::new(ErrorCode::TooMany, message.to_owned());
                }
                _ => ErrorCode::Internal,
            },
            Self::Ledger(_) | Self::Io { .. } | Self::Helper(_) => ErrorCode::Internal,
            #[cfg(feature = "failpoints")]
            Self::Injected(_) => ErrorCode::Internal,
        };
        ApiError::new(code, crate::chain(&self))
    }
}

/// The node's programs in running containers.
#[derive(Debug)]
pub struct Execs {
    program: Sealed,
    places: Arc<Mutex<HashMap<InstanceId, usize>>>,
}

impl Execs {
    /// Makes the sealed copy of the shim's program.
    ///
    /// # Errors
    /// When it cannot be read or sealed.
    pub fn new(shim: &Path) -> io::Result<Self> {
        Ok(Self { program: Sealed::copy_of(shim)?, places: Arc::default() })
    }

    fn place(&self, id: InstanceId) -> Result<Place, ExecError> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = places.entry(id).or_default();
        if *taken >= MOST {
            return Err(ExecError::TooMany(id));
        }
        *taken += 1;
        Ok(Place { id, places: self.places.clone() })
    }
}

/// One of the [`MOST`], given back when dropped.
#[derive(Debug)]
struct Place {
    id: InstanceId,
    places: Arc<Mutex<HashMap<InstanceId, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = places.get_mut(&self.id) {
            *taken -= 1;
            if *taken == 0 {
                places.remove(&self.id);
            }
        }
    }
}

/// May a program join a container in this state? If not, why.
pub(crate) fn joinable(state: State) -> Result<(), &'static str> {
    match state {
        State::Booting | State::Up => Ok(()),
        State::Pending | State::Starting | State::Aborting => Err("has not been started yet"),
        State::Killing(_) | State::Stopping => Err("is stopping"),
        State::Crashed | State::Finished | State::Removing | State::Gone => Err("is not running"),
    }
}

/// Starts the program; it runs when this returns. Blocks, within a runtime.
///
/// # Errors
/// When the container is in no state to be joined, or a step of the start fails; nothing is left then.
pub fn start(node: &Node, id: InstanceId, request: &ExecRequest) -> Result<Running, ExecError> {
    let ground = &node.ground;
    if ground.ledger.find(id).is_none() || node.events.status(id).is_none() {
        return Err(ExecError::NoInstance(id));
    }
    let record = ground.ledger.load(id).map_err(ExecError::Ledger)?;
    joinable(record.state).map_err(|reason| ExecError::NotJoinable { id, reason })?;
    let cgroup = ground.cgroups.open(&id);
    if cgroup.is_frozen() {
        return Err(ExecError::NotJoinable { id, reason: "is frozen: thaw it first" });
    }
    let place = node.execs.place(id)?;
    fail_point!(ExecAllowed);
    let dir = ground.ledger.dir(id);
    let not_running = || ExecError::NotJoinable { id, reason: "is not running" };
    let started = shim::read_started(&dir).ok_or_else(not_running)?;
    let theirs = started.versions();
    if Versions::OURS.common(theirs).is_none_or(|version| version < JOINABLE) {
        return Err(ExecError::Version { id, theirs });
    }
    let init = Process::open(started.init_pid, Some(started.init_start_time))
        .map_err(|source| ExecError::Io { operation: "open a pidfd", source })?
        .ok_or_else(not_running)?;
    let helper = helper::start(&node.execs.program, &dir, init.pidfd(), request)?;
    Ok(Running::new(helper, place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::state::KillReason;

    #[test]
    fn only_what_runs_and_is_to_go_on_is_joined() {
        for state in [State::Booting, State::Up] {
            assert_eq!(joinable(state), Ok(()));
        }
        for state in [
            State::Pending,
            State::Starting,
            State::Aborting,
            State::Killing(KillReason::Memory),
            State::Crashed,
            State::Stopping,
            State::Finished,
            State::Removing,
            State::Gone,
        ] {
            assert!(joinable(state).is_err(), "{state:?}");
        }
    }

    #[test]
    fn places_are_counted_for_each_container_and_given_back() {
        let execs = Execs::new(Path::new("/proc/self/exe")).unwrap();
        let (one, other) = (InstanceId::new(), InstanceId::new());
        let mut held: Vec<_> = (0..MOST).map(|_| execs.place(one).unwrap()).collect();
        assert!(matches!(execs.place(one), Err(ExecError::TooMany(_))));
        execs.place(other).unwrap();
        held.pop();
        held.push(execs.place(one).unwrap());
        assert!(execs.place(one).is_err());
        drop(held);
        assert!(execs.places.lock().unwrap().is_empty());
    }
}
