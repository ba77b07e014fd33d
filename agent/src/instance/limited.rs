//! What a container's run-ins with its limits mean: a warning to its developer, or its end.
//!
//! Invariant: whatever a container does, there is one warning of a kind in five minutes
//! (`cgroup::watch`), so it cannot flood its own log with the platform's words.

use std::future::pending;

use mogok_api::instance::{ContainerKind, InstanceSpec, Warning, WarningCode};

use super::state::KillReason;
use crate::cgroup::{Attention, Cgroup, Hoard, Report, Sockets, Watch};
use crate::node::Ground;

/// Something to say or do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    Warning(Warning),
    /// It ends for what the kernel keeps for it.
    Hoard(Hoard),
    Kill(KillReason),
}

/// The watch on one container.
pub(super) struct Limited {
    watch: Option<Watch>,
    last: Report,
}

impl Limited {
    /// `init` is the pid of the container's init.
    pub(super) fn watch(ground: &Ground, cgroup: &Cgroup, spec: &InstanceSpec, init: Option<i32>) -> Self {
        let attention = match spec.kind {
            ContainerKind::App => Attention::App,
            ContainerKind::Build => Attention::Build,
        };
        // One that has ended by now takes its sockets along, and its cgroup tells of the rest.
        let sockets = init.and_then(|init| Sockets::of_process(init).ok()).filter(|_| holds(cgroup, init));
        let watch = ground.watcher.watch(cgroup, &spec.limits, attention, sockets);
        let watch = watch.inspect_err(|error| {
            tracing::warn!(instance = %spec.id, error = %crate::chain(error), "cannot watch a container");
        });
        Self { watch: watch.ok(), last: Report::default() }
    }

    /// Waits for news; for ever once the cgroup is gone, and the container with it.
    pub(super) async fn next(&mut self, spec: &InstanceSpec) -> Vec<News> {
        let Some(watch) = &mut self.watch else { return pending().await };
        match watch.next().await {
            Some(report) => {
                let last = std::mem::replace(&mut self.last, report);
                news(last, report, spec)
            }
            None => {
                self.watch = None;
                pending().await
            }
        }
    }
}

/// Is the process in this cgroup, and so no other that has its pid now?
fn holds(cgroup: &Cgroup, pid: Option<i32>) -> bool {
    pid.is_some_and(|pid| cgroup.procs().is_ok_and(|pids| pids.contains(&pid)))
}

/// What is new between two reports.
fn news(last: Report, report: Report, spec: &InstanceSpec) -> Vec<News> {
    let limits = &spec.limits;
    let mib = limits.memory_bytes >> 20;
    let mut news = Vec::new();
    let mut warn = |code, message: String| news.push(News::Warning(Warning { code, message }));
    if report.memory_high > last.memory_high {
        let high = limits.memory_high() >> 20;
        warn(WarningCode::MemoryHigh, format!("memory: needs more than {high} of its {mib} MiB (R14)"));
    }
    if report.memory_losses > last.memory_losses && !limits.oom_group {
        let message = format!("killed: memory, one process, which needed more than the {mib} MiB (R15)");
        warn(WarningCode::MemoryKill, message);
    }
    if report.throttled > last.throttled {
        let (cores, thousandths) = (limits.cpu_millis / 1000, limits.cpu_millis % 1000);
        let message =
            format!("cpu: held back, it has used all of its {cores}.{thousandths:03} cores for 10 s");
        warn(WarningCode::Throttled, message);
    }
    if report.process_limit > last.process_limit {
        let message = format!("processes: at its limit of {}, it could start no other", limits.pids);
        warn(WarningCode::Processes, message);
    }
    if report.memory_kills > last.memory_kills && limits.oom_group {
        // On v2 the kernel has ended all of it by now; on v1 only one process.
        news.push(News::Kill(KillReason::Memory));
    } else if let (Some(hoard), None) = (report.hoard, last.hoard) {
        news.push(News::Hoard(hoard));
    } else if report.stuck && !last.stuck {
        news.push(News::Kill(KillReason::Processes));
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::sample_spec;

    fn told(report: Report, spec: &InstanceSpec) -> Vec<String> {
        let words = |news| match news {
            News::Warning(warning) => warning.message,
            News::Hoard(hoard) => format!("{hoard:?}"),
            News::Kill(reason) => format!("{reason:?}"),
        };
        news(Report::default(), report, spec).into_iter().map(words).collect()
    }

    #[test]
    fn each_run_in_has_its_words() {
        let spec = sample_spec();
        let quiet = Report::default();
        assert!(told(quiet, &spec).is_empty());
        for (report, words) in [
            (Report { memory_high: 1, ..quiet }, "memory: needs more than 480 of its 512 MiB (R14)"),
            (Report { throttled: 1, ..quiet }, "cpu: held back, it has used all of its 2.000 cores for 10 s"),
            (Report { process_limit: 1, ..quiet }, "processes: at its limit of 256, it could start no other"),
            (Report { memory_kills: 1, ..quiet }, "Memory"),
            (Report { hoard: Some(Hoard::Sockets), ..quiet }, "Sockets"),
            (Report { hoard: Some(Hoard::Locks), ..quiet }, "Locks"),
            (Report { stuck: true, ..quiet }, "Processes"),
        ] {
            assert_eq!(told(report, &spec), [words]);
            assert!(news(report, report, &spec).is_empty(), "the same report is no news");
        }
    }

    #[test]
    fn one_process_that_was_killed_is_not_the_container() {
        let mut spec = sample_spec();
        spec.limits.oom_group = false;
        let report = Report { memory_kills: 2, memory_losses: 1, ..Report::default() };
        assert_eq!(
            told(report, &spec),
            ["killed: memory, one process, which needed more than the 512 MiB (R15)"]
        );
    }
}
