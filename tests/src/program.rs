//! Running programs and reading what they print.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// When it cannot be run or fails; the message holds its standard error.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} {} failed: {}", args.join(" "), text(&output.stderr));
    }
    Ok(text(&output.stdout))
}

/// What a program printed, as text.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output and standard error together, for messages.
#[must_use]
pub fn both(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Polls until `check` holds.
///
/// # Errors
/// When it does not within `within`; the message says `what`.
pub fn wait_until(what: &str, within: Duration, mut check: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + within;
    while !check() {
        if Instant::now() > deadline {
            bail!("waited {} s in vain: {what}", within.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits until a process sleeps in poll(2), having given back what it needed to start; proc_pid_syscall(5).
///
/// # Errors
/// When it does not within `within`.
pub fn wait_until_idle(pid: u32, within: Duration) -> Result<()> {
    let poll = format!("{} ", nix::libc::SYS_poll);
    wait_until("the process sleeps", within, || {
        std::fs::read_to_string(format!("/proc/{pid}/syscall")).is_ok_and(|call| call.starts_with(&poll))
    })
}
