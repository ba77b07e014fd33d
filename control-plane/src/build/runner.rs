//! The loop that moves builds on: woken, it reads all that have not ended and starts the next step of
//! each in a task of its own. A step that fails for the platform's reasons is tried again, later and
//! later, and not for ever.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use mogok_api::control::BuildState;
use mogok_api::id::BuildId;
use tokio::task::{Id, JoinSet};

use super::finish::{cancel, fail, succeed};
use super::log::say;
use super::prepare::{StepError, prepare};
use super::step::{Step, decide, one_line};
use crate::state::AppState;
use crate::store::StoreError;
use crate::store::builds::BuildRow;

/// The loop looks at least so often: times pass without a wake-up.
const TICK: Duration = Duration::from_secs(5);
/// Tries of one step before the build fails: some five minutes.
const MAX_TRIES: u32 = 14;
/// Between two tries, at most.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A build that no node takes for so long fails.
const MAX_WAIT: TimeDelta = TimeDelta::minutes(30);

/// Why a build fails that the platform cannot store.
const DISK_FULL: &str =
    "the platform's disk is full: nothing of the app was changed; tell the operator, and build again later";

/// Runs builds for ever.
pub(super) async fn run(state: AppState) {
    let mut woken = state.wake.builds.listen();
    let mut runner = Runner { state, steps: JoinSet::new(), builds: HashMap::new(), pauses: HashMap::new() };
    loop {
        tokio::select! {
            () = woken.woken() => {}
            () = tokio::time::sleep(TICK) => {}
            Some(done) = runner.steps.join_next_with_id() => runner.done(done).await,
        }
        if let Err(error) = runner.look().await {
            tracing::error!(%error, "builds not moved on");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// A step that is to be tried again.
#[derive(Debug, Clone, Copy)]
struct Pause {
    tries: u32,
    until: Instant,
    /// Its log says already what it waits for.
    told: bool,
}

struct Runner {
    state: AppState,
    /// At most one per build.
    steps: JoinSet<Result<(), StepError>>,
    builds: HashMap<Id, BuildId>,
    pauses: HashMap<BuildId, Pause>,
}

impl Runner {
    /// Starts every step that can be done now.
    async fn look(&mut self) -> Result<(), StoreError> {
        let open = self.state.store.open_builds().await?;
        let at_work: HashSet<BuildId> = self.builds.values().copied().collect();
        self.pauses.retain(|id, _| open.iter().any(|build| build.id == *id));
        let concurrency = self.state.config.builds.concurrency as usize;
        let mut running = open
            .iter()
            .filter(|build| build.state == BuildState::Running || at_work.contains(&build.id))
            .count();
        for build in open {
            if build.cancel_requested {
                cancel(&self.state, build.id, build.app).await?;
                continue;
            }
            let paused = self.pauses.get(&build.id).is_some_and(|pause| pause.until > Instant::now());
            if paused || at_work.contains(&build.id) {
                continue;
            }
            match build.state {
                BuildState::Queued if running < concurrency => {
                    running += 1;
                    let (id, state) = (build.id, self.state.clone());
                    let step = self.steps.spawn(async move { prepare(&state, &build).await });
                    self.builds.insert(step.id(), id);
                }
                BuildState::Running => self.advance(build),
                _ => {}
            }
        }
        Ok(())
    }

    /// Starts the next step of a running build, if there is one.
    fn advance(&mut self, build: BuildRow) {
        let Some(handed) = build.handed.clone() else { return };
        let status = self.state.observed.status(handed.spec.id);
        let started = build.started_at.unwrap_or(build.created_at);
        let step = decide(started, status.as_ref(), &self.state.config.builds, Utc::now());
        let (id, state) = (build.id, self.state.clone());
        let step = match (step, status) {
            (Step::Collect(output), Some(status)) => {
                self.steps.spawn(async move { succeed(&state, &build, &handed, &output, &status).await })
            }
            (Step::Fail(reason), status) => self.steps.spawn(async move {
                fail(&state, &build, &reason, status.as_ref()).await.map_err(StepError::from)
            }),
            (Step::Wait | Step::Collect(_), _) => return,
        };
        self.builds.insert(step.id(), id);
    }

    /// A step has ended: goes on, tries again later, or ends the build.
    async fn done(&mut self, done: Result<(Id, Result<(), StepError>), tokio::task::JoinError>) {
        let (step, result) = match done {
            Ok((step, result)) => (step, result),
            Err(error) => (error.id(), Err(StepError::Stopped(error))),
        };
        let Some(id) = self.builds.remove(&step) else { return };
        let Err(error) = result else {
            self.pauses.remove(&id);
            return;
        };
        let build = match self.state.store.build(id).await {
            Ok(Some(build)) if !build.state.ended() => build,
            Ok(_) => return,
            Err(error) => {
                // Tried again as if the step had not been done.
                tracing::error!(build = %id, %error, "build not read");
                return;
            }
        };
        let before = self.pauses.get(&id).copied();
        let (tries, told) = before.map_or((0, false), |pause| (pause.tries, pause.told));
        let reason = match &error {
            StepError::Failed(reason) => Some(one_line(reason)),
            StepError::NoNode(unfit) => {
                if !told {
                    say(&self.state.logs, id, build.app, &format!("waiting: {unfit}"));
                }
                (Utc::now() - build.created_at > MAX_WAIT).then(|| format!("no server took it: {unfit}"))
            }
            error if error.is_disk_full() => {
                tracing::error!(build = %id, error = error as &dyn std::error::Error, "the disk is full");
                Some(DISK_FULL.to_owned())
            }
            error => {
                let error = error as &dyn std::error::Error;
                tracing::warn!(build = %id, tries, error, "step failed");
                (tries + 1 >= MAX_TRIES).then(|| "the platform failed at it: build again".to_owned())
            }
        };
        if let Some(reason) = reason
            && let Err(error) = fail(&self.state, &build, &reason, None).await
        {
            tracing::error!(build = %id, %error, "build not ended");
        }
        let waits = matches!(error, StepError::NoNode(_));
        let tries = if waits { tries } else { tries + 1 };
        let pause = if waits { TICK } else { Duration::from_secs(1 << tries.min(5)).min(MAX_PAUSE) };
        self.pauses.insert(id, Pause { tries, until: Instant::now() + pause, told: told || waits });
    }
}
