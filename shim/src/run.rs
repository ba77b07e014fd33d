//! One run of the shim, from its spec to the end of its container.
//!
//! Invariant: the agent gets exactly one [`Report`], on standard output, which is then closed.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::dup2_stdout;

use crate::protocol::{Report, Started, Versions};
use crate::sandbox::{self, Running};
use crate::spec::{Spec, file};
use crate::state_dir::StateDir;
use crate::step::{At, SetupError, Step};
use crate::supervise::{Supervisor, clock, control::Control, output::Output};
use crate::sys::{descriptor, memory};
use crate::{privilege, protocol};

/// Bytes of the largest spec; its files and its environment are small.
pub(crate) const SPEC_BYTES: u64 = 4 << 20;

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    pub state_dir: PathBuf,
    /// The network namespace, as an inherited descriptor; a new one without.
    pub netns: Option<i32>,
}

/// A run that did not come to its good end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the container was not started")]
    Start(#[source] SetupError),
    #[error("the supervision broke off")]
    Supervise(#[source] io::Error),
}

/// Starts the container, reports, and supervises it to its end.
///
/// # Errors
/// When a step of the start fails, which is also reported; or when the exit cannot be recorded.
pub fn run(arguments: &Arguments) -> Result<(), RunError> {
    match start(arguments) {
        Ok(supervisor) => supervisor.run().map_err(RunError::Supervise),
        Err(error) => {
            let failed = protocol::StepFailed {
                step: error.step.name().to_owned(),
                errno: error.source as i32,
                detail: error.detail.clone(),
            };
            // When the agent is gone it finds neither a running shim nor started.json, which says the same.
            drop(report(&Report::Failed(failed)));
            Err(RunError::Start(error))
        }
    }
}

fn start(arguments: &Arguments) -> Result<Supervisor, SetupError> {
    memory::settle_heap();
    let netns = arguments.netns.map(descriptor::adopt).transpose().at(Step::Descriptors, "--netns-fd")?;
    let kept: Vec<_> = netns.iter().map(AsFd::as_fd).collect();
    descriptor::keep_only(&kept).at(Step::Descriptors, "close_range")?;
    drop(kept);
    let dir = arguments.state_dir.display();
    let state = StateDir::open(&arguments.state_dir).at(Step::StateDir, dir)?;
    let spec = read_spec(&state)?;
    // Of an earlier run; neither may be taken for this one's.
    for name in [file::STARTED, file::EXIT] {
        state.remove(name).at(Step::StateDir, name)?;
    }
    privilege::settle()?;
    let output = Output::open(&state, file::LOG_DIR, spec.log).at(Step::OpenLog, file::LOG_DIR)?;
    let control = Control::listen(&state).at(Step::Listen, file::SOCKET)?;
    let running = sandbox::start(&spec, &arguments.state_dir, netns)?;
    let started = describe(&running)?;
    let json = serde_json::to_vec(&started).map_err(|_| Errno::EINVAL).at(Step::Report, file::STARTED)?;
    state.write(file::STARTED, &json).at(Step::Report, file::STARTED)?;
    let supervisor = Supervisor::new(state, started.clone(), running, output, control)
        .at(Step::Report, "non-blocking pipes")?;
    // Without an agent the container runs on; the next agent finds started.json.
    drop(report(&Report::Started(started)));
    Ok(supervisor)
}

fn read_spec(state: &StateDir) -> Result<Spec, SetupError> {
    parse_spec(&state.read(file::SPEC, SPEC_BYTES).at(Step::ReadSpec, file::SPEC)?)
}

/// The checked spec in the bytes of its file.
pub(crate) fn parse_spec(bytes: &[u8]) -> Result<Spec, SetupError> {
    let step = Step::ReadSpec;
    let spec: Spec = serde_json::from_slice(bytes).map_err(|error| SetupError {
        step,
        detail: format!("{}: {error}", file::SPEC),
        source: Errno::EINVAL,
    })?;
    spec.check().map_err(|error| SetupError {
        step,
        detail: format!("{}: {error}", file::SPEC),
        source: Errno::EINVAL,
    })?;
    Ok(spec)
}

fn describe(running: &Running) -> Result<Started, SetupError> {
    let step = Step::Report;
    let own = std::process::id() as i32;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").at(step, "boot_id")?;
    Ok(Started {
        version: Versions::OURS.newest,
        oldest: Versions::OURS.oldest,
        shim_pid: own,
        shim_start_time: start_time(own).at(step, "/proc/PID/stat of the shim")?,
        init_pid: running.init.pid,
        init_start_time: start_time(running.init.pid).at(step, "/proc/PID/stat of init")?,
        boot_id: boot_id.trim().to_owned(),
        at_us: clock::now_us(),
    })
}

/// Field 22 of `/proc/PID/stat`; the second field ends with the last parenthesis (proc_pid_stat(5)). A process
/// that has ended and was not waited for still has it.
fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    stat.rsplit_once(") ")
        .and_then(|(_, fields)| fields.split(' ').nth(19)?.parse().ok())
        .ok_or_else(|| Errno::EPROTO.into())
}

fn report(report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()?;
    let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
    Ok(dup2_stdout(&null)?)
}
