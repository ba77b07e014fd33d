//! One running part: its process and the threads that forward its output, line by line, with the
//! part's name in front.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::layout::{Layout, Part};
use crate::pidfile::Process;

/// Longest piece of a line that is forwarded at once, in bytes.
const MAX_LINE: u64 = 16 * 1024;

#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) part: Part,
    pub(crate) process: Process,
    pub(crate) started: Instant,
    /// Held for its pid only; the supervisor reaps.
    _child: Child,
}

/// Starts a part in its own process group, so that Ctrl-C on the terminal reaches only the supervisor.
pub(crate) fn start(layout: &Layout, part: Part) -> Result<Running> {
    let mut command: Command = layout.command(part)?;
    layout.drop_privilege(part, &mut command);
    command
        .env("NO_COLOR", "1")
        .env("HOME", layout.dir(part))
        .current_dir(layout.dir(part))
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    if let Some(stdout) = child.stdout.take() {
        forward(part, stdout);
    }
    if let Some(stderr) = child.stderr.take() {
        forward(part, stderr);
    }
    let pid = i32::try_from(child.id()).context("pid out of range")?;
    let process = Process::of(pid).with_context(|| format!("{program} ended at once"))?;
    process.write(&layout.run_dir().join(format!("{}.pid", part.name())))?;
    Ok(Running { part, process, started: Instant::now(), _child: child })
}

fn forward(part: Part, stream: impl Read + Send + 'static) {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line);
            let mut stdout = std::io::stdout().lock();
            let _ = writeln!(stdout, "{:>13} | {}", part.name(), text.trim_end());
            line.clear();
        }
    });
}
