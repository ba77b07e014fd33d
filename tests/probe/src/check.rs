//! A check and its answer, and running each in a child that may be killed or hang.

use std::fmt::Display;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde::Serialize;

/// Longest time for one check; a connection that is dropped and not refused takes two seconds of it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of an answer: a list of what was found is cut, so that a line is one line of the log.
const ANSWER: usize = 300;

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// `None` where the question makes no sense here.
    held: Option<bool>,
    text: String,
}

impl Answer {
    pub(crate) fn held(text: impl Display) -> Self {
        Self { held: Some(true), text: text.to_string() }
    }

    pub(crate) fn broken(text: impl Display) -> Self {
        Self { held: Some(false), text: text.to_string() }
    }

    pub(crate) fn senseless(text: impl Display) -> Self {
        Self { held: None, text: text.to_string() }
    }

    pub(crate) fn when(held: bool, text: impl Display) -> Self {
        Self { held: Some(held), text: text.to_string() }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.held == Some(false)
    }

    /// Held when nothing was found.
    pub(crate) fn none_of(found: &[String], otherwise: impl Display) -> Self {
        if found.is_empty() {
            Self::held(otherwise)
        } else {
            Self::broken(format!("{} found: {}", found.len(), found.join(" ")))
        }
    }

    /// A call that must be refused for want of permission, or not exist.
    pub(crate) fn refused<T>(result: Result<T, Errno>) -> Self {
        match result {
            Ok(_) => Self::broken("allowed"),
            Err(errno @ (Errno::EPERM | Errno::EACCES | Errno::ENOSYS | Errno::EROFS)) => {
                Self::held(name(errno))
            }
            // The call went past the check of permission and was refused for its arguments.
            Err(errno) => Self::broken(format!("reached: {}", name(errno))),
        }
    }

    /// A call that must fail, for whatever reason.
    pub(crate) fn fails<T>(result: Result<T, Errno>) -> Self {
        match result {
            Ok(_) => Self::broken("allowed"),
            Err(errno) => Self::held(name(errno)),
        }
    }
}

/// The symbol of an error number, as `EPERM`.
pub(crate) fn name(errno: Errno) -> String {
    format!("{errno:?}")
}

/// The error number of a failed I/O operation.
pub(crate) fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// One thing to try.
pub(crate) struct Check {
    name: String,
    /// The row of the threat model it belongs to.
    threat: &'static str,
    run: Box<dyn Fn() -> Answer>,
}

impl Check {
    pub(crate) fn new(
        threat: &'static str,
        name: impl Into<String>,
        run: impl Fn() -> Answer + 'static,
    ) -> Self {
        Self { name: name.into(), threat, run: Box::new(run) }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    check: &'a str,
    threat: &'a str,
    held: Option<bool>,
    answer: &'a str,
}

fn print(check: &Check, answer: &Answer) {
    let mut text = answer.text.replace('\n', " ");
    if let Some((end, _)) = text.char_indices().nth(ANSWER) {
        text.truncate(end);
        text.push_str("...");
    }
    let line = Line { check: &check.name, threat: check.threat, held: answer.held, answer: &text };
    println!("{}", serde_json::to_string(&line).unwrap_or_default());
}

/// Makes every check, each in a child that prints its line; prints for those that could not.
pub(crate) fn run(checks: &[Check]) -> ExitCode {
    let Ok(program) = std::env::current_exe() else {
        eprintln!("probe: /proc/self/exe cannot be read");
        return ExitCode::FAILURE;
    };
    for check in checks {
        let child = Command::new(&program).args(["one", &check.name]).stderr(Stdio::null()).spawn();
        let answer = match child {
            Ok(child) => ended(child),
            Err(error) => Some(Answer::senseless(format!("cannot run: {error}"))),
        };
        if let Some(answer) = answer {
            print(check, &answer);
        }
    }
    println!("probe: all done");
    ExitCode::SUCCESS
}

/// How the child ended when it did not print its line itself.
fn ended(mut child: std::process::Child) -> Option<Answer> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return None,
            Ok(Some(status)) => {
                use std::os::unix::process::ExitStatusExt;
                return Some(match status.signal() {
                    Some(signal) => Answer::held(format!("killed by signal {signal}")),
                    None => Answer::broken(format!("the check failed: {status}")),
                });
            }
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Some(Answer::broken("no answer in time"));
            }
        }
    }
}

/// Makes one check in this process.
pub(crate) fn one(checks: &[Check], name: &str) -> ExitCode {
    let Some(check) = checks.iter().find(|check| check.name == name) else {
        eprintln!("probe: there is no check {name:?}");
        return ExitCode::from(2);
    };
    print(check, &(check.run)());
    ExitCode::SUCCESS
}
