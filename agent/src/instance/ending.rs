//! After the program: its status, its last lines, its output, and what follows from them.

use std::time::Duration;

use chrono::Utc;
use mogok_api::app::RestartPolicy;
use mogok_api::instance::{ExitStatus, FailureCode};
use mogok_shim::protocol::Exit;

use super::output::{self, OutputError};
use super::state::{Event, KillReason, State};
use super::{Instance, cleanup, supervise};
use crate::cgroup::Cgroup;
use crate::fail_point;
use crate::restart;
use crate::shim::{Process, Shim};

const SIGKILL: i32 = 9;
/// A shim that was let go takes no time to leave.
const LEAVE: Duration = Duration::from_secs(5);

impl Instance {
    /// The program has ended; `exit` is absent when its shim died before it could say how.
    pub(super) async fn ended(
        &mut self,
        exit: Option<Exit>,
        process: Option<Process>,
        shim: &Shim,
        cgroup: &Cgroup,
    ) {
        let id = self.id();
        fail_point!(EndSeen, ignored);
        // Read before the cgroup goes.
        let memory_kills = cgroup.oom_kills().unwrap_or(0);
        let mut status = ExitStatus {
            code: exit.as_ref().and_then(|exit| exit.code),
            signal: exit.as_ref().and_then(|exit| exit.signal),
            out_of_memory: false,
        };
        // Where want of memory ends one process only, another end of the container may come after it.
        let by_kill = self.record.spec.limits.oom_group || status.signal == Some(SIGKILL);
        status.out_of_memory = memory_kills > 0 && by_kill && !status.success();

        if let Some(process) = process {
            if let Err(error) = shim.quit().await {
                tracing::debug!(instance = %id, error = %crate::chain(&error), "a shim was gone before it was let go");
            } else {
                let _ = tokio::time::timeout(LEAVE, process.ended()).await;
            }
            end_shim(&process).await;
        }
        fail_point!(ShimLetGo, ignored);
        cleanup::run(&self.node.ground, id).await;
        fail_point!(RunCleaned, ignored);

        let run = self.record.run.take();
        self.record.last_lines = self.node.logs.last_lines(id, run.as_ref().map_or(0, |run| run.log_start));
        self.record.exit = Some(status);
        let ran = run.map(|run| run.length(exit.as_ref().map(|exit| exit.at_us))).unwrap_or_default();
        self.say(&status.to_string());
        self.judge(status).await;
        fail_point!(Judged, ignored);
        self.plan_restart(ran);
        self.apply(Event::Ended);
        fail_point!(EndRecorded, ignored);
    }

    /// Says what was wrong about this end, if anything, and takes the output of a good one.
    async fn judge(&mut self, status: ExitStatus) {
        match self.record.state {
            State::Stopping => return,
            State::Killing(reason) => {
                let message = match reason {
                    KillReason::BootTimeout => format!("{} (R10)", supervise::boot_words(&self.record.spec)),
                    KillReason::RunTimeout => {
                        format!("ran longer than {} s", self.record.spec.max_runtime_s.unwrap_or_default())
                    }
                    KillReason::Memory => memory_words(&self.record.spec),
                    KillReason::Processes => supervise::stuck_words(&self.record.spec),
                };
                return self.fail(reason.code(), message);
            }
            _ => {}
        }
        let dir = self.node.ground.ledger.dir(self.id());
        if status.out_of_memory {
            return self.fail(FailureCode::Memory, memory_words(&self.record.spec));
        }
        if let Some(output) = self.record.spec.output.clone() {
            if output::too_large(&dir, &output) {
                let message = OutputError::TooLarge { max_bytes: output.max_bytes }.to_string();
                return self.fail(FailureCode::OutputTooLarge, message);
            }
            if status.success() {
                let store = self.node.store.clone();
                let taken = tokio::task::spawn_blocking(move || output::take(&dir, &output, &store)).await;
                match taken {
                    Ok(Ok(digest)) => self.record.output = Some(digest),
                    Ok(Err(error @ OutputError::TooLarge { .. })) => {
                        self.fail(FailureCode::OutputTooLarge, error.to_string());
                    }
                    Ok(Err(error)) => {
                        let message = format!("the output was not kept: {}", crate::chain(&error));
                        self.fail(FailureCode::Crashed, message);
                    }
                    Err(error) => {
                        self.fail(FailureCode::Crashed, format!("the output was not kept: {error}"));
                    }
                }
            }
        }
        if !status.success() || self.record.spec.restart == RestartPolicy::Always {
            self.fail(FailureCode::Crashed, status.to_string());
        }
    }

    /// When to start it again, if it is to be.
    pub(super) fn plan_restart(&mut self, ran: Duration) {
        let leaving = matches!(self.record.state, State::Stopping | State::Aborting);
        if self.record.spec.restart == RestartPolicy::Never || leaving {
            return;
        }
        let delay = self.record.backoff.ended(ran, restart::jitter());
        self.record.restart_at = chrono::TimeDelta::from_std(delay).ok().map(|delay| Utc::now() + delay);
        self.record.restart_due = Some(self.now().after(delay));
        if !delay.is_zero() {
            self.say(&format!("restart in {} s", delay.as_secs()));
        }
    }

    /// Takes everything away, however often that takes.
    pub(super) async fn removing(&mut self) {
        let id = self.id();
        let mut pause = cleanup::AGAIN;
        loop {
            self.netns = None;
            match cleanup::everything(&self.node, id).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(instance = %id, error = %crate::chain(&error), "cannot remove an instance yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(cleanup::AGAIN_AT_MOST);
                }
            }
        }
        self.node.give_uids(self.record.uid_base);
        self.apply(Event::Cleaned);
        fail_point!(GoneRecorded, ignored);
    }

    /// Puts what is left of it, its output, among the gone ones.
    pub(super) async fn retire(&mut self) {
        let id = self.id();
        self.node.events.removed(id);
        let node = self.node.clone();
        let retired = tokio::task::spawn_blocking(move || node.logs.retire(id)).await;
        if let Ok(Err(error)) = retired {
            tracing::error!(instance = %id, error = %crate::chain(&error), "cannot retire the directory of an instance");
        }
        fail_point!(Retired, ignored);
    }
}

fn memory_words(spec: &mogok_api::instance::InstanceSpec) -> String {
    format!("needed more than its {} MiB of memory (R15)", spec.limits.memory_bytes >> 20)
}

/// Makes sure that a shim is gone. Its container is killed by its cgroup, not by this.
pub(super) async fn end_shim(process: &Process) {
    if let Err(error) = process.kill() {
        tracing::error!(pid = process.pid(), %error, "cannot kill a shim");
        return;
    }
    if tokio::time::timeout(LEAVE, process.ended()).await.is_err() {
        tracing::error!(pid = process.pid(), "a killed shim does not end");
    }
}
