//! What to do next about a build whose container is on a node: a pure function of its row and of what
//! is seen of the container, so that the path after a crash is the path of every day.
//!
//! ```text
//! queued ──prepare──> running ──exited, output──> collect ──> succeeded
//!    │                   ├──exited otherwise, lost──────────> failed
//!    └──────cancel───────┴──────────────────────────────────> cancelled
//! ```

use chrono::{DateTime, TimeDelta, Utc};
use mogok_api::app::Limits;
use mogok_api::instance::{FailureCode, InstanceStatus, Phase};
use mogok_api::name::Digest;

use super::settings::{BuildSettings, duration, size};

/// Beyond its time limit a build may wait for its layers, its stop and its report: after that its node is lost.
const LOST_AFTER: TimeDelta = TimeDelta::minutes(5);
/// What the build program writes before the reason of a failure, as its last line.
const REASON_MARK: &str = "mogok-build: failed: ";
/// How it says that something of the source was not what it had to be; then come the system's words, with a path.
const STOPPED: &str = "the build program stopped: ";
/// What the build writes to, and finds as the commit has it.
const SOURCE_HINT: &str = "look at this path in the commit: .bundle, .mogok, vendor, public, tmp and log must be \
                           directories where it has them";
/// How Bundler says that it looked for a gem in vendor/cache alone, which the commit has; perhaps over two lines.
const FROM_CACHE: &str = "in cached gems or installed locally";
const CACHE_HINT: &str = "vendor/cache of the commit lacks gems: run bundle cache --all-platforms and commit it, or \
                          take vendor/cache out of the commit";
/// Characters of a reason at most, without the hint.
const MAX_REASON: usize = 300;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing until something changes.
    Wait,
    /// The container has ended well: fetch its output and make the release.
    Collect(Digest),
    /// The build has failed, for this reason.
    Fail(String),
}

/// Decides; `status` is absent while nothing was heard of the container.
pub(super) fn decide(
    started_at: DateTime<Utc>,
    status: Option<&InstanceStatus>,
    settings: &BuildSettings,
    now: DateTime<Utc>,
) -> Step {
    if let Some(status) = status.filter(|status| status.phase == Phase::Exited) {
        let well = status.failure.is_none() && status.exit.is_some_and(|exit| exit.success());
        return match &status.output {
            Some(output) if well => Step::Collect(output.clone()),
            _ => Step::Fail(reason(status, settings)),
        };
    }
    let limit = TimeDelta::seconds(i64::from(settings.seconds)) + LOST_AFTER;
    if now - started_at > limit {
        return Step::Fail("the server of the build did not report its end: build again".to_owned());
    }
    Step::Wait
}

/// Why it failed, in one line.
fn reason(status: &InstanceStatus, settings: &BuildSettings) -> String {
    let memory = || format!("killed: memory: a build may use {}", mib(Limits::build().memory_bytes));
    let timeout = || format!("timed out after {}", duration(settings.seconds));
    match status.failure.as_ref().map(|failure| (failure.code, &failure.message)) {
        Some((FailureCode::Memory, _)) => return memory(),
        Some((FailureCode::Processes, _)) => {
            return format!("processes: a build may have {} of them and of threads", Limits::build().pids);
        }
        Some((FailureCode::RunTimeout | FailureCode::StopTimeout, _)) => return timeout(),
        Some((FailureCode::OutputTooLarge, _)) => {
            return format!("the package is larger than {}", size(settings.package_bytes));
        }
        Some((FailureCode::CannotStart, message)) => return one_line(&format!("cannot start: {message}")),
        Some((FailureCode::BootTimeout | FailureCode::Crashed, _)) | None => {}
    }
    if status.exit.is_some_and(|exit| exit.out_of_memory) {
        return memory();
    }
    // What the program wrote is the tenant's word about the tenant's build: shown, never acted upon.
    if let Some(said) = status.last_lines.iter().rev().find_map(|line| line.strip_prefix(REASON_MARK)) {
        let hint = hint(said, &status.last_lines).map(|hint| format!(": {hint}")).unwrap_or_default();
        return one_line(said) + &hint;
    }
    if status.last_lines.iter().any(|line| line.contains("No space left on device")) {
        return format!("disk full: a build may write {}", mib(Limits::build().disk_bytes));
    }
    match status.exit {
        Some(exit) if exit.success() => "the build ended well and left no package".to_owned(),
        Some(exit) => format!("the build {exit}"),
        None => "the build ended, its status is unknown".to_owned(),
    }
}

/// What to look at, where the build program's own reason does not tell.
fn hint(said: &str, last_lines: &[String]) -> Option<&'static str> {
    if said.starts_with(STOPPED) {
        return Some(SOURCE_HINT);
    }
    let words: Vec<&str> = last_lines.iter().flat_map(|line| line.split_whitespace()).collect();
    words.join(" ").contains(FROM_CACHE).then_some(CACHE_HINT)
}

/// A limit of the container, in the unit in which its node speaks of it in the same log.
fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// Printable, without control characters, of bounded length.
pub(super) fn one_line(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect();
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use mogok_api::id::InstanceId;
    use mogok_api::instance::{ContainerKind, ExitStatus, Failure};

    use super::*;

    const SETTINGS: BuildSettings = BuildSettings {
        concurrency: 4,
        source_bytes: 1_000_000_000,
        package_bytes: 500_000_000,
        seconds: 900,
    };

    fn exited(code: i32) -> InstanceStatus {
        InstanceStatus {
            id: InstanceId::new(),
            app: "fugafuga".parse().unwrap(),
            process: "build.1".parse().unwrap(),
            release: None,
            kind: ContainerKind::Build,
            phase: Phase::Exited,
            since: Utc::now(),
            endpoint: None,
            restarts: 0,
            exit: Some(ExitStatus { code: Some(code), signal: None, out_of_memory: false }),
            failure: None,
            last_lines: Vec::new(),
            restart_at: None,
            output: None,
        }
    }

    fn with_failure(code: FailureCode) -> InstanceStatus {
        let failure = Some(Failure { code, message: "image ruby-build\nis missing".to_owned() });
        InstanceStatus { failure, ..exited(1) }
    }

    fn said(lines: &[&str]) -> InstanceStatus {
        InstanceStatus { last_lines: lines.iter().map(|line| (*line).to_owned()).collect(), ..exited(1) }
    }

    fn step(status: Option<&InstanceStatus>) -> Step {
        decide(Utc::now(), status, &SETTINGS, Utc::now())
    }

    #[test]
    fn a_good_end_is_collected() {
        let output: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let good = InstanceStatus { output: Some(output.clone()), ..exited(0) };
        assert_eq!(step(Some(&good)), Step::Collect(output.clone()));
        // Not when it ended badly, whatever it left.
        let bad = InstanceStatus { output: Some(output), ..exited(1) };
        assert_eq!(step(Some(&bad)), Step::Fail("the build exited with status 1".to_owned()));
    }

    #[test]
    fn a_bad_end_has_a_reason_in_one_line() {
        let oom = Some(ExitStatus { code: None, signal: Some(9), out_of_memory: true });
        for (status, reason) in [
            (with_failure(FailureCode::Memory), "killed: memory: a build may use 2048 MiB"),
            (with_failure(FailureCode::RunTimeout), "timed out after 15 min"),
            (with_failure(FailureCode::Processes), "processes: a build may have 512 of them and of threads"),
            (with_failure(FailureCode::OutputTooLarge), "the package is larger than 500 MB"),
            (with_failure(FailureCode::CannotStart), "cannot start: image ruby-build is missing"),
            (
                InstanceStatus { exit: oom, ..said(&["mogok-build: failed: lied"]) },
                "killed: memory: a build may use 2048 MiB",
            ),
            (said(&["mogok-build: failed: bundle install\u{1b}[0m", "x"]), "bundle install [0m"),
            (said(&["tar: write error: No space left on device"]), "disk full: a build may write 4096 MiB"),
            (
                said(&["mogok-build: failed: the build program stopped: Not a directory - /app/vendor"]),
                "the build program stopped: Not a directory - /app/vendor: look at this path in the commit: .bundle, \
                 .mogok, vendor, public, tmp and log must be directories where it has them",
            ),
            (
                said(&[
                    "       Could not find rack-3.1.0 in cached gems or",
                    "       installed locally",
                    "mogok-build: failed: bundle install failed",
                ]),
                "bundle install failed: vendor/cache of the commit lacks gems: run bundle cache --all-platforms and \
                 commit it, or take vendor/cache out of the commit",
            ),
            (said(&["x"]), "the build exited with status 1"),
            (exited(0), "the build ended well and left no package"),
            (InstanceStatus { exit: None, ..exited(0) }, "the build ended, its status is unknown"),
        ] {
            assert_eq!(step(Some(&status)), Step::Fail(reason.to_owned()));
        }
        let long = format!("mogok-build: failed: {}", "é".repeat(10_000));
        let Step::Fail(reason) = step(Some(&said(&[&long]))) else { panic!("not failed") };
        assert_eq!(reason.chars().count(), MAX_REASON);
    }

    #[test]
    fn what_runs_or_is_not_heard_of_is_waited_for_but_not_for_ever() {
        let up = InstanceStatus { phase: Phase::Up, exit: None, ..exited(0) };
        for status in [None, Some(&up)] {
            assert_eq!(step(status), Step::Wait);
            let late = Utc::now() + TimeDelta::minutes(21);
            assert!(matches!(decide(Utc::now(), status, &SETTINGS, late), Step::Fail(_)));
            let nearly = Utc::now() + TimeDelta::minutes(19);
            assert_eq!(decide(Utc::now(), status, &SETTINGS, nearly), Step::Wait);
        }
        // An end that is known counts, however late.
        let late = Utc::now() + TimeDelta::days(1);
        let Step::Fail(reason) = decide(Utc::now(), Some(&exited(3)), &SETTINGS, late) else {
            panic!("not failed")
        };
        assert_eq!(reason, "the build exited with status 3");
    }
}
