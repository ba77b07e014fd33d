//! What the shim makes of itself: at the start a process of its own that outlives the agent, and once
//! the program runs one that can do nothing but supervise it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{setgroups, setsid};
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::step::{At, SetupError, Step};

/// When the host runs out of memory the containers go first; their shims keep the exit status and the log.
const OOM_SCORE: &str = "-900";
/// A supervisor ends only when it is told so over its socket, or by SIGKILL.
const SURVIVED: [i32; 7] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGALRM, SIGUSR1, SIGUSR2];

/// Cuts the ties to whoever started the shim.
pub(crate) fn settle() -> Result<(), SetupError> {
    let step = Step::Settle;
    match setsid() {
        // It leads a session or a group already.
        Ok(_) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno).at(step, "setsid"),
    }
    SigSet::empty().thread_set_mask().at(step, "signal mask")?;
    // A handler survives a signal as well as SIG_IGN does, and is not inherited by the program through exec.
    // SIGPIPE is ignored already, by Rust's start-up code.
    for signal in SURVIVED {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false))).at(step, "signal handler")?;
    }
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    // The container inherits this empty list, and its own /proc/PID/setgroups is set to deny.
    setgroups(&[]).at(step, "setgroups")?;
    match std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        // On a host that itself lacks CAP_SYS_RESOURCE (a container) the shim keeps the score it has.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        other => other.at(step, "oom_score_adj")?,
    }
    // No core, no ptrace, and /proc/PID out of reach for the container's user, in the children too.
    prctl::set_dumpable(false).at(step, "dumpable")
}

/// Gives up every capability but the two that supervision takes, and by no_new_privs the way back to the others:
/// no file that it might execute gives any.
pub(crate) fn shed() -> Result<(), SetupError> {
    // CAP_KILL to signal another user's process, CAP_DAC_OVERRIDE to write to a state directory whoever owns it.
    keep(&[Capability::CAP_KILL, Capability::CAP_DAC_OVERRIDE])
}

/// The same for any capabilities.
pub(crate) fn keep(kept: &[Capability]) -> Result<(), SetupError> {
    let kept: CapsHashSet = kept.iter().copied().collect();
    let shed = || {
        caps::clear(None, CapSet::Ambient)?;
        caps::clear(None, CapSet::Inheritable)?;
        caps::set(None, CapSet::Effective, &kept)?;
        caps::set(None, CapSet::Permitted, &kept)
    };
    shed().map_err(|error| SetupError {
        step: Step::ShedPrivileges,
        detail: error.to_string(),
        source: Errno::EPERM,
    })?;
    prctl::set_no_new_privs().at(Step::ShedPrivileges, "no_new_privs")
}
