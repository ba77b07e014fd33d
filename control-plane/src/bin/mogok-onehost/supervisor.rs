//! Starts the parts in order, starts again what dies, stops them in reverse order.
//!
//! It is the subreaper of all it starts (prctl(2), PR_SET_CHILD_SUBREAPER), so that the shims of an
//! agent that was killed are reaped here and never become somebody else's zombies.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::child::{self, Running};
use crate::layout::{Layout, Part, Ready};
use crate::pidfile::Process;
use crate::ready;

/// How long a part may take until it accepts connections.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a part may take to stop before it is killed.
/// Longer than the router waits for requests in flight (30 s).
const STOP_WITHIN: Duration = Duration::from_secs(40);
/// How long the kernel may take to end a killed part.
const KILL_WITHIN: Duration = Duration::from_secs(10);
/// A part that ran at least this long is started again at once.
const STABLE: Duration = Duration::from_secs(10);
/// What each death of a young part adds to the wait before its next start, and the longest wait.
const WAIT_STEP: Duration = Duration::from_millis(200);
const MAX_WAIT: Duration = Duration::from_secs(10);

struct Platform<'a> {
    layout: &'a Layout,
    running: Vec<Running>,
    /// Parts to start again, and when.
    due: Vec<(Part, Instant)>,
    /// How often in a row each part died young.
    young_deaths: BTreeMap<&'static str, u32>,
}

pub(crate) fn run(layout: &Layout) -> Result<()> {
    ensure!(geteuid().is_root(), "the platform needs root: its agent makes containers; run it with sudo");
    let pidfile = prepare(layout)?;
    nix::sys::prctl::set_child_subreaper(true).context("cannot become the reaper of orphans")?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD]).context("cannot catch signals")?;
    let mut platform =
        Platform { layout, running: Vec::new(), due: Vec::new(), young_deaths: BTreeMap::new() };
    let result = platform.start_all(&mut signals).and_then(|started| {
        if started {
            let (scheme, port) = layout.public();
            println!("{:>13} | ready: {scheme}://api.{}:{port}", "onehost", layout.base_domain);
            platform.watch(&mut signals)?;
        }
        Ok(())
    });
    platform.stop_all();
    let _ = fs::remove_file(pidfile);
    result
}

/// Makes the directories and refuses a second platform in the same place.
fn prepare(layout: &Layout) -> Result<std::path::PathBuf> {
    let run_dir = layout.run_dir();
    for part in layout.parts() {
        let dir = layout.dir(part);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let owner = if layout.privileged(part) { 0 } else { layout.service_id };
        chown(&dir, Some(owner), Some(owner)).with_context(|| format!("cannot own {}", dir.display()))?;
        // Workers of an nginx that started as root go through its directory as another user.
        let mode = if part == Part::Nginx { 0o711 } else { 0o700 };
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode))?;
    }
    fs::create_dir_all(&run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
    // Root writes here, so nobody else may.
    chown(&run_dir, Some(0), Some(0))?;
    fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o711))?;
    let pidfile = run_dir.join("onehost.pid");
    if let Some(process) = Process::read(&pidfile) {
        bail!("the platform of {} runs already (pid {})", run_dir.display(), process.pid);
    }
    if let Some(own) = Process::of(i32::try_from(std::process::id())?) {
        own.write(&pidfile)?;
    }
    Ok(pidfile)
}

impl Platform<'_> {
    /// Starts each part when the one before it is ready; false when told to stop meanwhile.
    fn start_all(&mut self, signals: &mut Signals) -> Result<bool> {
        for (name, address, option) in self.layout.addresses() {
            ensure!(
                !ready::is_ready(&Ready::Address(address)),
                "cannot start {name}: {address} is in use by another program ('ss -ltnp' shows which): stop that, \
                 or give another address with {option}"
            );
        }
        for part in self.layout.parts() {
            self.running.push(child::start(self.layout, part)?);
            let deadline = Instant::now() + READY_WITHIN;
            while !ready::is_ready(&self.layout.ready(part)?) {
                ensure!(
                    self.reap().is_empty(),
                    "{} ended before it was ready: its last lines above say why",
                    part.name()
                );
                ensure!(Instant::now() < deadline, "{} was not ready within 60 s", part.name());
                if signals.pending().any(|signal| signal != SIGCHLD) {
                    return Ok(false);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(true)
    }

    /// Runs until told to stop.
    fn watch(&mut self, signals: &mut Signals) -> Result<()> {
        loop {
            for ended in self.reap() {
                self.schedule(&ended);
            }
            let now = Instant::now();
            let (start, later): (Vec<_>, Vec<_>) = self.due.drain(..).partition(|(_, at)| *at <= now);
            self.due = later;
            for (part, _) in start {
                self.running.push(child::start(self.layout, part)?);
            }
            if signals.pending().any(|signal| signal != SIGCHLD) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn schedule(&mut self, ended: &Running) {
        let name = ended.part.name();
        let deaths = self.young_deaths.entry(name).or_default();
        *deaths = if ended.started.elapsed() >= STABLE { 0 } else { deaths.saturating_add(1) };
        let delay = (WAIT_STEP * *deaths).min(MAX_WAIT) + Duration::from_millis(50);
        println!("{:>13} | {name} ended, starting it again in {} ms", "onehost", delay.as_millis());
        self.due.push((ended.part, Instant::now() + delay));
    }

    /// Reaps every child that ended and returns the parts among them.
    fn reap(&mut self) -> Vec<Running> {
        let mut ended = Vec::new();
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
                Ok(status) => {
                    let pid = status.pid().map(Pid::as_raw);
                    if let Some(index) = self.running.iter().position(|one| Some(one.process.pid) == pid) {
                        let part = self.running.remove(index);
                        // What it left of its process group (nginx's workers) would hold its address.
                        let _ = killpg(Pid::from_raw(part.process.pid), Signal::SIGKILL);
                        ended.push(part);
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// The last started is the first stopped.
    fn stop_all(&mut self) {
        while let Some(part) = self.running.last().map(|one| one.part) {
            let Some(process) = self.running.last().map(|one| one.process) else { return };
            process.signal(if matches!(part, Part::Nginx | Part::Gems) {
                Signal::SIGQUIT
            } else {
                Signal::SIGTERM
            });
            if !ended_within(process, STOP_WITHIN) {
                println!("{:>13} | {} did not stop in time: killed", "onehost", part.name());
                process.signal(Signal::SIGKILL);
                ended_within(process, KILL_WITHIN);
            }
            self.reap();
            self.running.retain(|one| one.process != process);
        }
    }
}

/// Waits for the end of a part; false when it did not come in time.
fn ended_within(process: Process, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while process.alive() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}
