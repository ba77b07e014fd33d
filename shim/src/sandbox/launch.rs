//! The child of the shim from its clone to the exec of the program: made, limited, held while its root is
//! put together, released, and seen to become the program.
//!
//! It exists before its root does because its user namespace maps the ids of the layers. Invariant: a child
//! that has not become the program is ended when its handle goes, and with it everything in its PID namespace.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{fchown, read, write};

use super::child::{self, Message};
use super::program::Program;
use super::{Pipe, Running};
use crate::spec::Spec;
use crate::spec::check::IDS;
use crate::step::{At, SetupError, Step};
use crate::sys::clone::{self, Child};
use crate::sys::command_line::CommandLine;
use crate::sys::{limit, owner, pidfd};

/// From the release of the child to its exec; a mount may have to wait for a slow disk.
const START_MS: u16 = 60_000;
/// A child is preferred over anything of the host's when the kernel has to kill for memory.
pub(super) const OOM_SCORE: &str = "200";
/// Bytes a container may lock in memory; libraries that keep secrets need a few pages.
const LOCKED_BYTES: u64 = 8 << 20;

/// What every attempt at a child has in common.
pub(super) struct Launch<'a> {
    pub(super) spec: &'a Spec,
    /// Its directory in the v2 tree.
    pub(super) cgroup: OwnedFd,
    /// It gets a network namespace of its own, rather than the shim's.
    pub(super) own_network: bool,
    pub(super) program: &'a Program,
}

/// How the child gets into its cgroup of the v2 tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// At the clone, without a lock that all of the host's forks share.
    Born,
    /// Moved before it is released.
    Moved,
}

/// Why a child did not go on.
pub(super) enum Refusal {
    /// A step failed.
    Step(SetupError),
    /// It was killed; the error is how that was noticed.
    Killed(SetupError),
}

impl Refusal {
    pub(super) fn into_error(self) -> SetupError {
        match self {
            Self::Step(error) | Self::Killed(error) => error,
        }
    }
}

impl From<SetupError> for Refusal {
    fn from(error: SetupError) -> Self {
        Self::Step(error)
    }
}

/// A child that is ended when this goes.
pub(super) struct Unfinished(pub(super) Option<Child>);

impl Unfinished {
    /// Has it, though it was not released? Something that hit it is given a moment to take effect.
    fn has_ended(&self) -> bool {
        self.0.as_ref().is_none_or(|child| {
            let mut fds = [PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
            matches!(poll(&mut fds, PollTimeout::from(100_u16)), Ok(1))
        })
    }

    /// It has become the program.
    pub(super) fn finished(mut self) -> Option<Child> {
        self.0.take()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(child) = &self.0
            && pidfd::send_signal(&child.pidfd, libc::SIGKILL).is_ok()
        {
            let mut fds = [PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
            // It cannot refuse; the bound is for a mount that hangs in the kernel.
            while poll(&mut fds, PollTimeout::from(10_000_u16)) == Err(Errno::EINTR) {}
            // Nothing to do about a status that cannot be had: the process ends next.
            let _ = pidfd::try_wait(&child.pidfd);
        }
    }
}

/// A child that is not the program yet.
pub(super) struct Held {
    child: Unfinished,
    user_namespace: File,
    /// Our end, which is also how the child sees, once, that the shim lives: it stays open until exec.
    release: OwnedFd,
    error: OwnedFd,
    status: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Held {
    /// Maps the container's ids.
    pub(super) fn user_namespace(&self) -> BorrowedFd<'_> {
        self.user_namespace.as_fd()
    }

    fn release(self, spec: &Spec) -> Result<Self, Refusal> {
        let released = write(&self.release, &[1]).at(Step::Release, "write").map(drop);
        released.map_err(Refusal::Killed).and_then(|()| self.await_message(spec, Message::Copied))?;
        Ok(self)
    }

    fn await_message(&self, spec: &Spec, expected: Message) -> Result<(), Refusal> {
        match self.next_message(spec)? {
            Some(message) if message == expected => Ok(()),
            Some(_) => Err(Errno::EPROTO).at(Step::Report, "a message out of turn").map_err(Refusal::Step),
            None => {
                let killed = Err(Errno::ESRCH).at(Step::Report, "the child was killed before exec");
                killed.map_err(Refusal::Killed)
            }
        }
    }

    /// What the child says of itself next; `None` at the end of the pipe.
    fn next_message(&self, spec: &Spec) -> Result<Option<Message>, SetupError> {
        let mut fds = [PollFd::new(self.error.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::from(START_MS)) {
                Ok(0) => return Err(Errno::ETIMEDOUT).at(Step::Report, "the child is silent"),
                Err(Errno::EINTR) => {}
                other => {
                    other.at(Step::Report, "poll")?;
                    break;
                }
            };
        }
        let mut message = [0; child::MESSAGE];
        if read(&self.error, &mut message).at(Step::Report, "read")? == 0 {
            return Ok(None);
        }
        match Message::decode(message) {
            Some(Message::Failed(step, errno)) => Err(errno).at(step, subject(spec, step)),
            Some(message) => Ok(Some(message)),
            None => Err(Errno::EPROTO).at(Step::Report, "no message of the child's"),
        }
    }
}

impl Launch<'_> {
    /// A child that waits for its root.
    pub(super) fn hold(&self) -> Result<Held, SetupError> {
        match self.clone_child(Placement::Born) {
            Err(Refusal::Killed(_)) => self.clone_child(Placement::Moved),
            other => other,
        }
        .map_err(Refusal::into_error)
    }

    /// The root is ready: sees the child take its copy of the mounts.
    pub(super) fn release(&self, child: Held) -> Result<Held, SetupError> {
        match child.release(self.spec) {
            // Kernels from 6.12 on (seen on 6.18) kill what is cloned into a cgroup whose cgroup.kill was ever
            // written: they compare its count of kills with that of the parent's cgroup. The user namespace
            // that the layers are mapped through outlives that child.
            Err(Refusal::Killed(_)) => {
                self.clone_child(Placement::Moved).and_then(|child| child.release(self.spec))
            }
            other => other,
        }
        .map_err(Refusal::into_error)
    }

    /// Sees the child become the program: it says so, and then exec closes its pipe.
    pub(super) fn await_exec(self, child: Held) -> Result<Running, SetupError> {
        child.await_message(self.spec, Message::Executing).map_err(Refusal::into_error)?;
        if child.next_message(self.spec)?.is_some() {
            return Err(Errno::EPROTO).at(Step::Report, "a message out of turn");
        }
        let Held { child, status, stdout, stderr, .. } = child;
        let init = child.finished().ok_or(Errno::ESRCH).at(Step::Report, "no child")?;
        Ok(Running { init, stdout: Some(stdout), stderr: Some(stderr), status, cgroup: self.cgroup })
    }

    fn clone_child(&self, placement: Placement) -> Result<Held, Refusal> {
        let Self { spec, cgroup, own_network, program } = self;
        let [release, error, status] = [Pipe::new("release")?, Pipe::new("error")?, Pipe::new("status")?];
        let [stdout, stderr] = [Pipe::new("stdout")?, Pipe::new("stderr")?];
        for pipe in [&stdout, &stderr] {
            // Programs open /dev/stdout by name, which takes the ownership of the pipe.
            let (uid, gid) = (spec.id_base + spec.uid, spec.id_base + spec.gid);
            fchown(&pipe.writer, Some(uid.into()), Some(gid.into())).at(Step::Pipes, "fchown")?;
        }
        let cgroups_v1 = open_v1(&spec.cgroups_v1)?;
        #[cfg(feature = "failpoints")]
        crate::failpoint::lend();
        let command_line = CommandLine::own().at(Step::Clone, "/proc/self/stat")?;
        let sandbox = child::Sandbox {
            cgroups_v1: &cgroups_v1,
            release: release.reader.as_fd(),
            error: error.writer.as_fd(),
            status: status.writer.as_fd(),
            stdout: stdout.writer.as_fd(),
            stderr: stderr.writer.as_fd(),
            own_network: *own_network,
            command_line: &command_line,
            program,
        };
        let mut namespaces = CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS;
        if *own_network {
            namespaces |= CloneFlags::CLONE_NEWNET;
        }
        let born_in = (placement == Placement::Born).then(|| cgroup.as_fd());
        // Each container's own, so that none uses up what the kernel grants to a user.
        let owner = Some(spec.id_base);
        let child = clone::child(namespaces, born_in, owner, || sandbox.run())
            .at(Step::Clone, spec.cgroup.display())?;
        drop((release.reader, error.writer, status.writer, stdout.writer, stderr.writer));
        let (pid, child) = (child.pid, Unfinished(Some(child)));
        let moved = (placement == Placement::Moved).then_some(&spec.cgroup);
        let user_namespace = match prepare(spec, pid, moved) {
            Ok(user_namespace) => user_namespace,
            Err(error) if child.has_ended() => return Err(Refusal::Killed(error)),
            Err(error) => return Err(Refusal::Step(error)),
        };
        Ok(Held {
            child,
            user_namespace,
            release: release.writer,
            error: error.reader,
            status: status.reader,
            stdout: stdout.reader,
            stderr: stderr.reader,
        })
    }
}

/// Files of the v1 cgroups through which a thread moves itself. Moving `0` there takes no lock that all of
/// the host's forks share, moving another's pid does (kernel/cgroup/cgroup.c, `cgroup_procs_write_start`);
/// the kernel asks for the opener's rights, not the writer's.
pub(super) fn open_v1(cgroups: &[PathBuf]) -> Result<Vec<OwnedFd>, SetupError> {
    let open = |cgroup: &PathBuf| {
        let tasks = cgroup.join("tasks");
        // An existing file only: a plain directory that was taken for a cgroup must not get one.
        let file = fs::OpenOptions::new().write(true).open(&tasks).at(Step::JoinCgroups, tasks.display())?;
        Ok(file.into())
    };
    cgroups.iter().map(open).collect()
}

/// What only the host's root can do for the child, before it does anything itself. Its user namespace, mapped.
fn prepare(spec: &Spec, pid: i32, cgroup: Option<&PathBuf>) -> Result<File, SetupError> {
    if let Some(cgroup) = cgroup {
        let procs = cgroup.join("cgroup.procs");
        // An existing file only: a plain directory that was taken for a cgroup must not get one.
        let mut file =
            fs::OpenOptions::new().write(true).open(&procs).at(Step::JoinCgroups, procs.display())?;
        file.write_all(pid.to_string().as_bytes()).at(Step::JoinCgroups, procs.display())?;
    }
    map_ids(pid, spec.id_base).at(Step::MapIds, spec.id_base)?;
    fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE).at(Step::OomScore, OOM_SCORE)?;
    // For limits of another process it takes a capability in its user namespace.
    let set = owner::acting_for(spec.id_base, || limits(spec, pid)).at(Step::Limits, spec.id_base)?;
    let resource = set.as_ref().err().map(|(resource, _)| *resource);
    set.map_err(|(_, errno)| errno).at(Step::Limits, format_args!("{resource:?}"))?;
    File::open(format!("/proc/{pid}/ns/user")).at(Step::UserNamespace, "open")
}

/// Sets every resource limit of the container's programs; a `pid` of 0 is the caller. Allocates nothing.
pub(super) fn limits(spec: &Spec, pid: i32) -> Result<(), (Resource, Errno)> {
    let file_bytes = spec.file_bytes.unwrap_or(u64::MAX);
    for (resource, soft, hard) in [
        (Resource::RLIMIT_NOFILE, spec.open_files, spec.open_files),
        (Resource::RLIMIT_FSIZE, file_bytes, file_bytes),
        (Resource::RLIMIT_CORE, 0, 0),
        (Resource::RLIMIT_MEMLOCK, LOCKED_BYTES, LOCKED_BYTES),
        (Resource::RLIMIT_STACK, 8 << 20, u64::MAX),
        (Resource::RLIMIT_SIGPENDING, 4096, 4096),
        (Resource::RLIMIT_MSGQUEUE, 819_200, 819_200),
        (Resource::RLIMIT_RTPRIO, 0, 0),
        (Resource::RLIMIT_NICE, 0, 0),
        // The cgroup limits processes; these are the host's business and not to be inherited from the agent.
        (Resource::RLIMIT_NPROC, u64::MAX, u64::MAX),
        (Resource::RLIMIT_CPU, u64::MAX, u64::MAX),
        (Resource::RLIMIT_AS, u64::MAX, u64::MAX),
        (Resource::RLIMIT_DATA, u64::MAX, u64::MAX),
    ] {
        set_limit(pid, resource, soft, hard).map_err(|errno| (resource, errno))?;
    }
    Ok(())
}

/// The container's ids 0..65535 are a range of the host's that belongs to nobody else.
fn map_ids(pid: i32, id_base: u32) -> io::Result<()> {
    let map = format!("0 {id_base} {IDS}\n");
    write_once(&format!("/proc/{pid}/setgroups"), "deny")?;
    write_once(&format!("/proc/{pid}/gid_map"), &map)?;
    write_once(&format!("/proc/{pid}/uid_map"), &map)
}

/// A file's `write` in one call, for the files of /proc that take no second.
fn write_once(path: &str, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// Sets a limit, or the host's own where that is lower and cannot be raised.
fn set_limit(pid: i32, resource: Resource, soft: u64, hard: u64) -> Result<(), Errno> {
    match limit::set(pid, resource, soft, hard) {
        Err(Errno::EPERM) => {
            let (_, own) = getrlimit(resource)?;
            limit::set(pid, resource, soft.min(own), hard.min(own))
        }
        other => other,
    }
}

/// What a step of the child was about.
fn subject(spec: &Spec, step: Step) -> &str {
    match step {
        Step::Execute => &spec.command[0],
        Step::WorkingDirectory => &spec.cwd,
        Step::Hostname => &spec.hostname,
        _ => "",
    }
}
