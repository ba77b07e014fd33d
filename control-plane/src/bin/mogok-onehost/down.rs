//! Stops a platform from outside: its supervisor, whatever a killed supervisor left, and then every
//! container with all it has on the host. Doing it twice does no harm.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use crate::layout::Layout;
use crate::pidfile::Process;

/// Longer than the supervisor gives all parts together.
const SUPERVISOR_WITHIN: Duration = Duration::from_secs(240);
const PART_WITHIN: Duration = Duration::from_secs(40);

pub(crate) fn down(layout: &Layout) -> Result<()> {
    ensure!(geteuid().is_root(), "stopping the platform needs root: run it with sudo");
    let run_dir = layout.run_dir();
    if !run_dir.is_dir() {
        println!("nothing to stop: {} does not exist", run_dir.display());
        return Ok(());
    }
    if let Some(supervisor) = Process::read(&run_dir.join("onehost.pid")) {
        supervisor.signal(Signal::SIGTERM);
        wait(supervisor, SUPERVISOR_WITHIN, "mogok-onehost")?;
    }
    for part in layout.parts() {
        if let Some(process) = Process::read(&run_dir.join(format!("{}.pid", part.name()))) {
            process.signal(Signal::SIGTERM);
            if wait(process, PART_WITHIN, part.name()).is_err() {
                process.signal(Signal::SIGKILL);
                wait(process, PART_WITHIN, part.name())?;
            }
        }
    }
    let status = layout.purge()?.status().context("cannot run mogok-agent purge")?;
    ensure!(status.success(), "mogok-agent purge failed: run it again, its message names what is left");
    fs::remove_dir_all(&run_dir).with_context(|| format!("cannot remove {}", run_dir.display()))?;
    println!("stopped");
    Ok(())
}

fn wait(process: Process, within: Duration, name: &str) -> Result<()> {
    let deadline = Instant::now() + within;
    while process.alive() {
        if Instant::now() > deadline {
            bail!("{name} (pid {}) does not stop", process.pid);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
