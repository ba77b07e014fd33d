//! Joins a program into a running container: the helper's side, outside of it.
//!
//! ```text
//! helper ── clone into the cgroup ──> joiner ── setns, ids, terminal, filter ──> leaves
//!   └──────────────── child (CLONE_PARENT) ──────────────── program <── fork ──┘
//! ```
//! The joiner stays in the host's PID namespace, so the first process that the container can see is one that
//! has already given up everything and holds nothing of the host's. Invariant: joiner and program are ended
//! when their handles go.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::unistd::fchown;

use super::child::{MESSAGE, Message};
use super::launch::{Placement, Refusal, Unfinished, open_v1};
use super::program::Program;
use super::source;
use crate::protocol::exec::Size;
use crate::spec::Spec;
use crate::step::{At, SetupError, Step};
use crate::sys::clone::{self, Child};
use crate::sys::{pass, pidfd};

mod joiner;

use joiner::Joiner;

/// From the clone to exec; a frozen container lets nobody in.
const JOIN_MS: u16 = 10_000;

/// What is joined, and with what.
#[derive(Debug)]
pub(crate) struct Target {
    /// pidfd of the container's init.
    pub(crate) init: OwnedFd,
    pub(crate) streams: Streams,
}

/// Where the program reads and writes.
#[derive(Debug)]
pub(crate) enum Streams {
    /// Standard input, output and error.
    Apart([OwnedFd; 3]),
    /// A terminal of the container's, to be made.
    Terminal(Size),
}

/// A program that runs in the container.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) program: Child,
    /// Master of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Executes the command of `spec` in the container.
pub(crate) fn join(spec: &Spec, target: &Target) -> Result<Joined, SetupError> {
    let program = Program::new(spec)?;
    let cgroup = source::directory(&spec.cgroup, Step::OpenCgroup)?;
    let cgroups_v1 = open_v1(&spec.cgroups_v1)?;
    if let Streams::Apart(streams) = &target.streams {
        for stream in streams {
            // Programs open /dev/stdout by name, which takes the ownership of the pipe.
            let (uid, gid) = (spec.id_base + spec.uid, spec.id_base + spec.gid);
            fchown(stream, Some(uid.into()), Some(gid.into())).at(Step::Pipes, "fchown")?;
        }
    }
    match attempt(spec, target, &program, &cgroup, &cgroups_v1, Placement::Born) {
        // See `Launch::release` for kernels that kill what is cloned into a cgroup.
        Err(Refusal::Killed(_)) => attempt(spec, target, &program, &cgroup, &cgroups_v1, Placement::Moved),
        other => other,
    }
    .map_err(Refusal::into_error)
}

fn attempt(
    spec: &Spec,
    target: &Target,
    program: &Program,
    cgroup: &OwnedFd,
    cgroups_v1: &[OwnedFd],
    placement: Placement,
) -> Result<Joined, Refusal> {
    // Messages of the two processes stay apart and whole, and one carries a descriptor.
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .at(Step::Pipes, "socketpair")?;
    let procs = match placement {
        Placement::Born => None,
        Placement::Moved => {
            let procs = spec.cgroup.join("cgroup.procs");
            let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            Some(open(&procs, flags, Mode::empty()).at(Step::JoinCgroups, procs.display())?)
        }
    };
    let joiner = Joiner {
        cgroup: procs.as_ref().map(AsFd::as_fd),
        cgroups_v1,
        messages: theirs.as_fd(),
        target,
        spec,
        program,
    };
    #[cfg(feature = "failpoints")]
    crate::failpoint::lend();
    let born_in = (placement == Placement::Born).then(|| cgroup.as_fd());
    let joining = clone::child(CloneFlags::empty(), born_in, None, || joiner.run())
        .at(Step::Clone, spec.cgroup.display())?;
    let joining = Unfinished(Some(joining));
    drop(theirs);
    let joined = follow(spec, &ours)?;
    // It leaves by itself; this takes its status away.
    drop(joining);
    Ok(joined)
}

/// Reads what joiner and program say of themselves, to the end that exec brings.
fn follow(spec: &Spec, messages: &OwnedFd) -> Result<Joined, Refusal> {
    let (mut program, mut terminal, mut about_to_execute) = (None, None, false);
    loop {
        let mut fds = [PollFd::new(messages.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(JOIN_MS)) {
            Ok(0) => Err(Errno::ETIMEDOUT).at(Step::Report, "the joining process is silent")?,
            Err(Errno::EINTR) => continue,
            other => other.at(Step::Report, "poll").map(drop)?,
        }
        let (mut message, mut passed) = ([0; MESSAGE], Vec::new());
        let received = pass::receive(messages, &mut message, &mut passed).at(Step::Report, "receive")?;
        if received == 0 {
            break;
        }
        match Message::decode(message) {
            Some(Message::Failed(step, errno)) => Err(errno).at(step, subject(spec, step))?,
            // It is our child and was not waited for, so the pid is its own.
            Some(Message::Forked(pid)) => {
                let pidfd = pidfd::open(pid).at(Step::Report, "pidfd_open")?;
                program = Some(Unfinished(Some(Child { pidfd, pid })));
            }
            Some(Message::Terminal) => terminal = passed.pop(),
            Some(Message::Executing) => about_to_execute = true,
            Some(Message::Copied) | None => {
                Err(Errno::EPROTO).at(Step::Report, "no message of a joiner's")?
            }
        }
    }
    match program.and_then(Unfinished::finished) {
        Some(program) if about_to_execute => Ok(Joined { program, terminal }),
        _ => {
            let killed = Err(Errno::ESRCH).at(Step::Report, "the joining process was killed before exec");
            killed.map_err(Refusal::Killed)
        }
    }
}

/// What a step was about.
fn subject(spec: &Spec, step: Step) -> &str {
    match step {
        Step::Execute => &spec.command[0],
        Step::WorkingDirectory => &spec.cwd,
        Step::Terminal => joiner::TERMINALS,
        _ => "",
    }
}
