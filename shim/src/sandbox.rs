//! Makes the sandbox and starts the program in it: one linear function, a step a call, told in prose
//! by `docs/sandbox.md`.
//!
//! The shim assembles the whole root file system in a mount namespace of its own, where nothing shows on
//! the host; the child gets a copy of that namespace in which every mount is locked, keeps the root
//! and detaches the rest. Invariant: when a step fails, nothing of the container is left but this
//! process, whose end removes its namespace with all that is mounted there.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{chdir, fchown, pipe2, read, write};

use crate::spec::Spec;
use crate::spec::check::IDS;
use crate::step::{At, SetupError, Step};
use crate::sys::clone::Child;
use crate::sys::{clone, limit, pidfd};

mod child;
mod devices;
mod init;
mod procfs;
mod program;
mod rootfs;
mod source;
mod target;
mod user_namespace;
mod writable;

use program::Program;
use source::Sources;

pub(crate) use init::{COMMAND, Status, command};

/// From the release of the child to its exec; a mount may have to wait for a slow disk.
const START_MS: u16 = 60_000;
/// A child is preferred over anything of the host's when the kernel has to kill for memory.
const OOM_SCORE: &str = "200";
/// Bytes a container may lock in memory; libraries that keep secrets need a few pages.
const LOCKED_BYTES: u64 = 8 << 20;

/// A container whose program runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) init: Child,
    /// Its output, until the supervisor takes it over.
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Carries [`init::Status`] once the program has ended.
    pub(crate) status: OwnedFd,
    /// Its directory in the v2 tree.
    pub(crate) cgroup: OwnedFd,
}

/// A pipe from the child to the shim or the other way.
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    fn new(what: &str) -> Result<Self, SetupError> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).at(Step::Pipes, what)?;
        Ok(Self { reader, writer })
    }
}

/// Starts the container of `spec`, in the network namespace `netns` or a new one.
pub(crate) fn start(spec: &Spec, state_dir: &Path, netns: Option<OwnedFd>) -> Result<Running, SetupError> {
    let own_network = netns.is_none();
    if let Some(netns) = netns {
        setns(netns, CloneFlags::CLONE_NEWNET).at(Step::JoinNetwork, "setns")?;
    }
    // Unmounts of the host still arrive here, nothing of ours leaves.
    unshare(CloneFlags::CLONE_NEWNS).at(Step::PrivateMounts, "unshare")?;
    let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).at(Step::PrivateMounts, "/")?;

    let cgroup = source::directory(&spec.cgroup, Step::OpenCgroup)?;
    let sources = Sources::open(spec, state_dir)?;
    let ids = user_namespace::make(spec.id_base)?;
    rootfs::build(spec, sources, ids.as_fd())?;
    let container = launch(spec, cgroup, own_network)?;
    // The child's copy is all that keeps the container's mounts from now on.
    umount2(".", MntFlags::MNT_DETACH).at(Step::Scratch, "detach")?;
    chdir("/").at(Step::Scratch, "leave")?;
    Ok(container)
}

/// How the child gets into its cgroup of the v2 tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placement {
    /// At the clone, without a lock that all of the host's forks share.
    Born,
    /// Moved before it is released.
    Moved,
}

/// Clones the child and sees it become the program.
fn launch(spec: &Spec, cgroup: OwnedFd, own_network: bool) -> Result<Running, SetupError> {
    let program = Program::new(spec)?;
    match attempt(spec, &cgroup, own_network, &program, Placement::Born) {
        // Kernels from 6.12 on (seen on 6.18) kill what is cloned into a cgroup whose cgroup.kill was ever
        // written: they compare its count of kills with that of the parent's cgroup.
        Err(Refusal::Killed(_)) => attempt(spec, &cgroup, own_network, &program, Placement::Moved),
        other => other,
    }
    .map(|launched| launched.running(cgroup))
    .map_err(Refusal::into_error)
}

/// Why a child did not become the program.
enum Refusal {
    /// A step failed.
    Step(SetupError),
    /// It was killed; the error is how that was noticed.
    Killed(SetupError),
}

impl Refusal {
    fn into_error(self) -> SetupError {
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

/// A child that became the program, and our ends of its pipes.
struct Launched {
    init: Child,
    stdout: OwnedFd,
    stderr: OwnedFd,
    status: OwnedFd,
}

impl Launched {
    fn running(self, cgroup: OwnedFd) -> Running {
        let Self { init, stdout, stderr, status } = self;
        Running { init, stdout: Some(stdout), stderr: Some(stderr), status, cgroup }
    }
}

fn attempt(
    spec: &Spec,
    cgroup: &OwnedFd,
    own_network: bool,
    program: &Program,
    placement: Placement,
) -> Result<Launched, Refusal> {
    let [release, error, status] = [Pipe::new("release")?, Pipe::new("error")?, Pipe::new("status")?];
    let [stdout, stderr] = [Pipe::new("stdout")?, Pipe::new("stderr")?];
    for pipe in [&stdout, &stderr] {
        // Programs open /dev/stdout by name, which takes the ownership of the pipe.
        let (uid, gid) = (spec.id_base + spec.uid, spec.id_base + spec.gid);
        fchown(&pipe.writer, Some(uid.into()), Some(gid.into())).at(Step::Pipes, "fchown")?;
    }
    let cgroups_v1 = open_v1(&spec.cgroups_v1)?;
    let sandbox = child::Sandbox {
        cgroups_v1: &cgroups_v1,
        release: release.reader.as_fd(),
        error: error.writer.as_fd(),
        status: status.writer.as_fd(),
        stdout: stdout.writer.as_fd(),
        stderr: stderr.writer.as_fd(),
        own_network,
        program,
    };
    let mut namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if own_network {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    let born_in = (placement == Placement::Born).then_some(cgroup.as_fd());
    let init = clone::child(namespaces, born_in, || sandbox.run()).at(Step::Clone, spec.cgroup.display())?;
    drop((release.reader, error.writer, status.writer, stdout.writer, stderr.writer));

    let moved = (placement == Placement::Moved).then_some(&spec.cgroup);
    // Our end of the release pipe is how the child sees, once, that the shim lives: it stays open until exec.
    let started = prepare(spec, init.pid, moved)
        .and_then(|()| write(&release.writer, &[1]).at(Step::Release, "write").map(drop))
        .map_err(|error| if has_ended(&init) { Refusal::Killed(error) } else { Refusal::Step(error) })
        .and_then(|()| await_exec(spec, error.reader.as_fd()));
    if let Err(refusal) = started {
        kill(&init);
        return Err(refusal);
    }
    Ok(Launched { init, stdout: stdout.reader, stderr: stderr.reader, status: status.reader })
}

/// Files of the v1 cgroups through which a thread moves itself. Moving `0` there takes no lock that all of
/// the host's forks share, moving another's pid does (kernel/cgroup/cgroup.c, `cgroup_procs_write_start`);
/// the kernel asks for the opener's rights, not the writer's.
fn open_v1(cgroups: &[PathBuf]) -> Result<Vec<OwnedFd>, SetupError> {
    let open = |cgroup: &PathBuf| {
        let tasks = cgroup.join("tasks");
        // An existing file only: a plain directory that was taken for a cgroup must not get one.
        let file = fs::OpenOptions::new().write(true).open(&tasks).at(Step::JoinCgroups, tasks.display())?;
        Ok(file.into())
    };
    cgroups.iter().map(open).collect()
}

/// What only the host's root can do for the child, before it does anything itself.
fn prepare(spec: &Spec, pid: i32, cgroup: Option<&PathBuf>) -> Result<(), SetupError> {
    if let Some(cgroup) = cgroup {
        let procs = cgroup.join("cgroup.procs");
        // An existing file only: a plain directory that was taken for a cgroup must not get one.
        let mut file =
            fs::OpenOptions::new().write(true).open(&procs).at(Step::JoinCgroups, procs.display())?;
        file.write_all(pid.to_string().as_bytes()).at(Step::JoinCgroups, procs.display())?;
    }
    user_namespace::map(pid, spec.id_base)?;
    fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE).at(Step::OomScore, OOM_SCORE)?;
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
        set_limit(pid, resource, soft, hard).at(Step::Limits, format_args!("{resource:?}"))?;
    }
    Ok(())
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

/// Reads what the child says of itself: the mark before exec and then the end of the pipe, which exec closes.
fn await_exec(spec: &Spec, error: BorrowedFd<'_>) -> Result<(), Refusal> {
    let mut about_to_execute = false;
    loop {
        let mut fds = [PollFd::new(error, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(START_MS)) {
            Ok(0) => Err(Errno::ETIMEDOUT).at(Step::Report, "the child is silent")?,
            Err(Errno::EINTR) => continue,
            other => other.at(Step::Report, "poll").map(drop)?,
        }
        let mut message = [0; child::MESSAGE];
        match read(error, &mut message).at(Step::Report, "read")? {
            0 if about_to_execute => return Ok(()),
            0 => {
                let killed = Err(Errno::ESRCH).at(Step::Report, "the child was killed before exec");
                return killed.map_err(Refusal::Killed);
            }
            _ => match child::Message::decode(message) {
                Some(child::Message::Executing) => about_to_execute = true,
                Some(child::Message::Failed(step, errno)) => Err(errno).at(step, subject(spec, step))?,
                None => Err(Errno::EPROTO).at(Step::Report, "no message of the child's")?,
            },
        }
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

/// Has it, though it was not released? Something that hit it is given a moment to take effect.
fn has_ended(init: &Child) -> bool {
    let mut fds = [PollFd::new(init.pidfd.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::from(100_u16)), Ok(1))
}

/// Ends a child that has not become the program, and everything in its PID namespace.
fn kill(init: &Child) {
    if pidfd::send_signal(&init.pidfd, libc::SIGKILL).is_ok() {
        let mut fds = [PollFd::new(init.pidfd.as_fd(), PollFlags::POLLIN)];
        // It cannot refuse; the bound is for a mount that hangs in the kernel.
        while poll(&mut fds, PollTimeout::from(10_000_u16)) == Err(Errno::EINTR) {}
        // Nothing to do about a status that cannot be had: the process ends next.
        let _ = pidfd::try_wait(&init.pidfd);
    }
}

/// One line of a map file: the whole range of a container.
fn id_map(id_base: u32) -> String {
    format!("0 {id_base} {IDS}\n")
}

/// Host ids of the container's root.
fn root_of(id_base: u32) -> (Option<nix::unistd::Uid>, Option<nix::unistd::Gid>) {
    (Some(id_base.into()), Some(id_base.into()))
}

/// A file's `write` in one call, for the files of /proc that take no second.
fn write_once(path: &str, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}
