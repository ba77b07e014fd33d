//! The life of a container on a node, as a pure function of what happened.
//!
//! ```text
//!            ready          started         answered
//!  Pending ────────> Starting ─────> Booting ────────> Up
//!   │ ^  ^              │  │            │ kill│           │ kill
//!   │ │  └─ lost (host  │  │ unwanted   │     v           v
//!   │ │     rebooted) ──┴──│────────────┴── Killing <─────┤
//!   │ │                    v            │ ended │ ended     │ ended
//!   │ └── due ── Crashed <─│────────────┴───────┴───────────┤   (restart: always)
//!   │                │     │      Finished <────────────────┤   (restart: never)
//!   │ unwanted       │     v          │                      │ unwanted
//!   │                │  Aborting ─────│── started ──> Stopping
//!   │                │     │ failed   │                │ ended
//!   └────────────────┴─────┴──────────┴─> Removing <───┘
//!                                             └── cleaned ──> Gone
//! ```
//!
//! Invariant: an unwanted container only moves towards `Gone`, and no state in which a program may
//! run leads to `Starting` without an end, a loss or a failed start in between.

use mogok_api::app::RestartPolicy;
use mogok_api::instance::{FailureCode, Phase};
use serde::{Deserialize, Serialize};

/// Where a container is. Kept in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for its layers or its turn.
    Pending,
    /// Its sandbox is being made.
    Starting,
    /// As `Starting`, and already unwanted.
    Aborting,
    /// The program runs and has not answered yet.
    Booting,
    Up,
    /// The agent has killed it and waits for its end.
    Killing(KillReason),
    /// Ended by itself and waits for its restart.
    Crashed,
    /// Unwanted: SIGTERM, a grace, SIGKILL.
    Stopping,
    /// Ended for good.
    Finished,
    /// Everything it has is being taken away.
    Removing,
    Gone,
}

/// Why the agent killed a container that is still wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillReason {
    /// R10.
    BootTimeout,
    RunTimeout,
    /// R15, where the kernel kills one process only (cgroup v1).
    Memory,
    /// A build that is stuck at its limit of processes.
    Processes,
}

impl KillReason {
    #[must_use]
    pub fn code(self) -> FailureCode {
        match self {
            Self::BootTimeout => FailureCode::BootTimeout,
            Self::RunTimeout => FailureCode::RunTimeout,
            Self::Memory => FailureCode::Memory,
            Self::Processes => FailureCode::Processes,
        }
    }
}

/// What can happen to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its layers are on the node and it is its turn.
    Ready,
    Started,
    StartFailed,
    /// It accepts connections, or needs to accept none.
    Answered,
    Kill(KillReason),
    /// The program ended.
    Ended,
    /// Nothing of it runs any more, for no fault of its own: the host was booted since.
    Lost,
    RestartDue,
    /// It left the wanted set.
    Unwanted,
    /// Nothing of it is left.
    Cleaned,
}

/// An event that the state has no answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("it is already on its way out ({0:?})")]
    AlreadyLeaving(State),
    #[error("{event:?} cannot happen in {state:?}")]
    OutOfOrder { state: State, event: Event },
}

impl State {
    /// The state after `event`.
    ///
    /// # Errors
    /// [`Denied`] when the event has no meaning in this state; the state is then unchanged.
    pub fn next(self, event: Event, restart: RestartPolicy) -> Result<Self, Denied> {
        let ended = match restart {
            RestartPolicy::Always => Self::Crashed,
            RestartPolicy::Never => Self::Finished,
        };
        Ok(match (self, event) {
            (Self::Pending, Event::Ready) => Self::Starting,
            (Self::Starting, Event::Started) => Self::Booting,
            (Self::Aborting, Event::Started) => Self::Stopping,
            (Self::Booting, Event::Answered) => Self::Up,
            (Self::Booting | Self::Up, Event::Kill(reason)) => Self::Killing(reason),
            (Self::Pending | Self::Starting, Event::StartFailed) => ended,
            (Self::Starting | Self::Booting | Self::Up | Self::Killing(_), Event::Ended) => ended,
            (Self::Starting | Self::Booting | Self::Up | Self::Killing(_), Event::Lost) => Self::Pending,
            (Self::Crashed, Event::RestartDue) => Self::Pending,
            (Self::Aborting, Event::StartFailed | Event::Ended | Event::Lost)
            | (Self::Stopping, Event::Ended | Event::Lost) => Self::Removing,
            (Self::Removing, Event::Cleaned) => Self::Gone,
            (Self::Pending | Self::Crashed | Self::Finished, Event::Unwanted) => Self::Removing,
            (Self::Starting, Event::Unwanted) => Self::Aborting,
            (Self::Booting | Self::Up | Self::Killing(_), Event::Unwanted) => Self::Stopping,
            (state, Event::Unwanted) => return Err(Denied::AlreadyLeaving(state)),
            (state, event) => return Err(Denied::OutOfOrder { state, event }),
        })
    }

    /// May processes of the container exist in this state?
    #[must_use]
    pub fn may_run(self) -> bool {
        matches!(
            self,
            Self::Starting
                | Self::Aborting
                | Self::Booting
                | Self::Up
                | Self::Killing(_)
                | Self::Stopping
                | Self::Removing
        )
    }

    /// What others are told.
    #[must_use]
    pub fn phase(self) -> Phase {
        match self {
            Self::Pending => Phase::Pending,
            Self::Starting | Self::Booting => Phase::Starting,
            Self::Up => Phase::Up,
            Self::Crashed => Phase::Crashed,
            Self::Killing(_) | Self::Aborting | Self::Stopping | Self::Removing | Self::Gone => {
                Phase::Stopping
            }
            Self::Finished => Phase::Exited,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Ready),
            Just(Event::Started),
            Just(Event::StartFailed),
            Just(Event::Answered),
            Just(Event::Kill(KillReason::BootTimeout)),
            Just(Event::Kill(KillReason::Memory)),
            Just(Event::Ended),
            Just(Event::Lost),
            Just(Event::RestartDue),
            Just(Event::Unwanted),
            Just(Event::Cleaned),
        ]
    }

    fn policy() -> impl Strategy<Value = RestartPolicy> {
        prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::Never)]
    }

    proptest! {
        #[test]
        fn a_program_is_never_started_beside_another(
            restart in policy(), history in prop::collection::vec(events(), 0..60),
        ) {
            let mut state = State::Pending;
            let mut running = false;
            for event in history {
                let Ok(next) = state.next(event, restart) else { continue };
                match event {
                    Event::Started => { prop_assert!(!running); running = true; }
                    Event::Ended | Event::Lost => running = false,
                    _ => {}
                }
                prop_assert!(!running || next.may_run(), "{event:?} led to {next:?} with the program running");
                if next == State::Gone { prop_assert!(!running); }
                state = next;
            }
        }

        #[test]
        fn the_unwanted_never_comes_back(
            restart in policy(),
            before in prop::collection::vec(events(), 0..30),
            after in prop::collection::vec(events(), 0..30),
        ) {
            let step = |state: State, event| state.next(event, restart).unwrap_or(state);
            let left = step(before.into_iter().fold(State::Pending, step), Event::Unwanted);
            let leaving =
                |s| matches!(s, State::Aborting | State::Stopping | State::Removing | State::Gone);
            prop_assert!(leaving(left));
            let mut state = left;
            for event in after {
                state = step(state, event);
                prop_assert!(leaving(state), "{event:?} brought it back to {state:?}");
            }
            // Whatever happened, these three lead out.
            for event in [Event::StartFailed, Event::Ended, Event::Cleaned] {
                state = step(state, event);
            }
            prop_assert_eq!(state, State::Gone);
        }

        #[test]
        fn a_finished_program_is_not_started_again(history in prop::collection::vec(events(), 0..30)) {
            let mut state = State::Finished;
            for event in history {
                state = state.next(event, RestartPolicy::Never).unwrap_or(state);
                prop_assert!(matches!(state, State::Finished | State::Removing | State::Gone));
            }
        }
    }

    const STATES: [State; 13] = [
        State::Pending,
        State::Starting,
        State::Aborting,
        State::Booting,
        State::Up,
        State::Killing(KillReason::BootTimeout),
        State::Killing(KillReason::RunTimeout),
        State::Killing(KillReason::Memory),
        State::Crashed,
        State::Stopping,
        State::Finished,
        State::Removing,
        State::Gone,
    ];
    /// What the world does by itself sooner or later to what is there; nobody has to want it.
    const BY_ITSELF: [Event; 5] =
        [Event::StartFailed, Event::Started, Event::Ended, Event::Lost, Event::Cleaned];

    #[test]
    fn only_what_was_removed_is_gone_and_nothing_comes_after() {
        for restart in [RestartPolicy::Always, RestartPolicy::Never] {
            for state in STATES {
                for event in BY_ITSELF.into_iter().chain([
                    Event::Ready,
                    Event::Answered,
                    Event::RestartDue,
                    Event::Unwanted,
                ]) {
                    let next = state.next(event, restart);
                    if next == Ok(State::Gone) {
                        assert_eq!((state, event), (State::Removing, Event::Cleaned));
                    }
                    assert!(state != State::Gone || next.is_err(), "{event:?} brought {next:?} back");
                }
            }
        }
    }

    /// Whatever happens in whatever order, at most four events that have a meaning lead out.
    #[test]
    fn the_unwanted_is_gone_after_few_events() {
        fn longest(state: State, restart: RestartPolicy, events: u32) -> u32 {
            assert!(events <= 4, "no end from {state:?}");
            let next = BY_ITSELF.into_iter().filter_map(|event| state.next(event, restart).ok());
            next.map(|next| longest(next, restart, events + 1)).max().unwrap_or_else(|| {
                assert_eq!(state, State::Gone, "stuck");
                events
            })
        }
        for restart in [RestartPolicy::Always, RestartPolicy::Never] {
            for state in STATES {
                if let Ok(leaving) = state.next(Event::Unwanted, restart) {
                    longest(leaving, restart, 1);
                }
            }
        }
    }

    #[test]
    fn what_cannot_happen_is_refused_by_name() {
        let refused = State::Pending.next(Event::Answered, RestartPolicy::Always);
        assert_eq!(refused, Err(Denied::OutOfOrder { state: State::Pending, event: Event::Answered }));
        let twice = State::Removing.next(Event::Unwanted, RestartPolicy::Always);
        assert_eq!(twice, Err(Denied::AlreadyLeaving(State::Removing)));
    }
}
