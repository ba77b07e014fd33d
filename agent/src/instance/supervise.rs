//! Watching a container whose program runs: until it answers, until it ends, until its time is up,
//! until it is wanted no more.

use std::future::pending;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use mogok_api::instance::{FailureCode, Warning};
use tokio::time::Instant;

use super::limited::{Limited, News};
use super::sandbox::PORT;
use super::state::{Event, KillReason, State};
use super::{Instance, ending, rest_of};
use crate::cgroup::watch::descriptors::{DESCRIPTORS, LINES, LONGEST, SHARED};
use crate::cgroup::watch::locks::MOST;
use crate::cgroup::{Cgroup, Hoard};
use crate::clock;
use crate::fail_point;
use crate::health;
use crate::shim::Shim;

/// SIGKILL is sent again after this, as long as something is left (a process may sleep uninterruptibly).
const KILL_AGAIN: Duration = Duration::from_secs(5);
const SIGTERM: i32 = 15;

impl Instance {
    /// From `Booting`, `Up`, `Killing` or `Stopping` to the end of the program.
    pub(super) async fn supervise(&mut self) {
        let process = self.process.take();
        let shim = Shim::new(self.node.ground.ledger.dir(self.id()));
        let cgroup = self.node.ground.cgroups.open(&self.id());
        let spec = self.record.spec.clone();
        let age = self.record.run.as_ref().map_or(Duration::ZERO, |run| clock::age(run.shim_start_time));

        let boot_timeout = Duration::from_secs(spec.health.boot_timeout_s.into());
        let boot_over = rest_of(age, boot_timeout);
        let run_over = spec.max_runtime_s.map(|seconds| rest_of(age, Duration::from_secs(seconds.into())));
        let address = self.record.allocation.as_ref().filter(|_| spec.listens).map(|held| held.address);
        let exit = {
            let mut answered = pin!(async {
                if let Some(address) = address {
                    health::answers(SocketAddr::from((address, PORT)), spec.health.path.as_deref()).await;
                }
            });
            let init = self.record.run.as_ref().and_then(|run| run.init_pid);
            let mut limits = Limited::watch(&self.node.ground, &cgroup, &spec, init);
            let mut ended = pin!(shim.ended(process.as_ref()));
            // Was it asked to end before it is killed?
            let mut asked = self.record.state == State::Stopping;
            let mut overdue = false;
            let mut killed = false;
            // When the container is (again) killed whatever it does.
            let mut kill_at = match self.record.state {
                State::Killing(_) => Some(Instant::now()),
                State::Stopping => Some(self.send_stop(&shim).await),
                _ => None,
            };

            loop {
                let (booting, running) = match self.record.state {
                    State::Booting => (true, true),
                    State::Up => (false, true),
                    _ => (false, false),
                };
                tokio::select! {
                    biased;
                    exit = &mut ended => break exit,
                    () = sleep_until(kill_at) => {
                        if asked && !overdue {
                            overdue = true;
                            let grace = spec.stop_grace_s;
                            self.fail(FailureCode::StopTimeout, format!("did not end within {grace} s of SIGTERM (R12)"));
                            self.say(&format!("killed: did not end within {grace} s of SIGTERM (R12)"));
                        }
                        // A shim that has not told of the end by now is stopped or stuck; nothing depends on it any more.
                        if killed
                            && let Some(process) = &process
                            && cgroup.populated().is_ok_and(|populated| !populated)
                        {
                            tracing::warn!(instance = %self.id(), shim = process.pid(), "a shim is silent about an end");
                            ending::end_shim(process).await;
                        }
                        kill(&cgroup);
                        killed = true;
                        kill_at = Some(Instant::now() + KILL_AGAIN);
                    }
                    () = self.until_unwanted(), if self.record.state != State::Stopping => {
                        let killing = matches!(self.record.state, State::Killing(_));
                        self.apply(Event::Unwanted);
                        if !killing {
                            asked = true;
                            kill_at = Some(self.send_stop(&shim).await);
                        }
                    }
                    news = limits.next(&spec) => {
                        for news in news {
                            let reason = match news {
                                News::Warning(warning) => {
                                    self.warn(warning);
                                    continue;
                                }
                                _ if !running => continue,
                                News::Hoard(hoard) => {
                                    self.say(&hoard_words(hoard, &spec));
                                    KillReason::Memory
                                }
                                News::Kill(KillReason::Processes) => {
                                    self.say(&format!("killed: processes, {}", stuck_words(&spec)));
                                    KillReason::Processes
                                }
                                News::Kill(reason) => reason,
                            };
                            self.apply(Event::Kill(reason));
                            kill_at = Some(Instant::now());
                        }
                    }
                    () = sleep_until(run_over), if running => {
                        let seconds = spec.max_runtime_s.unwrap_or_default();
                        self.say(&format!("killed: ran longer than {seconds} s"));
                        self.apply(Event::Kill(KillReason::RunTimeout));
                        kill_at = Some(Instant::now());
                    }
                    () = &mut answered, if booting => {
                        if spec.listens {
                            self.say("up");
                        }
                        self.record.failure = None;
                        self.record.exit = None;
                        self.record.last_lines.clear();
                        self.apply(Event::Answered);
                    }
                    () = tokio::time::sleep_until(boot_over), if booting => {
                        self.say(&format!("killed: boot timeout, {} (R10)", boot_words(&spec)));
                        self.apply(Event::Kill(KillReason::BootTimeout));
                        kill_at = Some(Instant::now());
                    }
                }
            }
        };
        self.ended(exit, process, &shim, &cgroup).await;
    }

    /// Says aloud that the container has run into a limit.
    fn warn(&self, warning: Warning) {
        self.say(&warning.message);
        self.node.events.warned(self.id(), warning);
    }

    /// SIGTERM to every process of the container; says when its grace is over.
    async fn send_stop(&mut self, shim: &Shim) -> Instant {
        let grace = Duration::from_secs(self.record.spec.stop_grace_s.into());
        let passed = self.record.entered.as_ref().and_then(|entered| entered.passed(&self.now()));
        let over = rest_of(passed.unwrap_or_default(), grace);
        self.say("stopping");
        let cgroup = self.node.ground.cgroups.open(&self.id());
        // What stands still hears nothing.
        if cgroup.is_frozen() {
            let thawed = tokio::task::spawn_blocking(move || cgroup.thaw()).await;
            if let Ok(Err(error)) = thawed {
                tracing::warn!(instance = %self.id(), error = %crate::chain(&error), "cannot thaw a container that is to stop");
            }
        }
        if let Err(error) = shim.signal_all(SIGTERM).await {
            // It may have just ended; if not, SIGKILL follows after the grace.
            tracing::warn!(instance = %self.id(), error = %crate::chain(&error), "cannot send SIGTERM");
        }
        fail_point!(StopSent, ignored);
        over
    }
}

/// What an instance that did not come up in time should have done.
pub(super) fn boot_words(spec: &mogok_api::instance::InstanceSpec) -> String {
    let seconds = spec.health.boot_timeout_s;
    match &spec.health.path {
        None => format!("nothing listened on 0.0.0.0:$PORT within {seconds} s"),
        Some(path) => format!("GET {path} was not answered with 2xx or 3xx within {seconds} s"),
    }
}

/// What a build did that ran into its limit of processes again and again.
pub(super) fn stuck_words(spec: &mogok_api::instance::InstanceSpec) -> String {
    format!("stuck at its limit of {} processes and threads", spec.limits.pids)
}

/// What the kernel kept for a container that was killed for it.
fn hoard_words(hoard: Hoard, spec: &mogok_api::instance::InstanceSpec) -> String {
    match hoard {
        Hoard::Sockets => {
            format!("killed: memory, its sockets held more than its {} MiB", spec.limits.memory_bytes >> 20)
        }
        Hoard::Locks => format!("killed: memory, it held more than {MOST} record locks of files"),
        Hoard::SharedLocks => format!(
            "killed: memory, it held more than {SHARED} locks of eventfds or the like, whose locks all of the host share"
        ),
        Hoard::Descriptors => format!(
            "killed: memory, it had more descriptors than can be searched for locks of files and directories: {DESCRIPTORS}, {LINES} lines about them, or {} s",
            LONGEST.as_secs()
        ),
        Hoard::Directories => {
            "killed: memory, the kernel kept too much for the directories it has open".to_owned()
        }
    }
}

fn kill(cgroup: &Cgroup) {
    if let Err(error) = cgroup.kill() {
        tracing::error!(cgroup = %cgroup.v2_path().display(), error = %crate::chain(&error), "cannot kill a container");
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => pending().await,
    }
}
