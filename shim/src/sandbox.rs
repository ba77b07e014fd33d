//! Makes the sandbox and starts the program in it: one linear function, a step a call, told in prose
//! by `docs/sandbox.md`.
//!
//! The shim assembles the whole root file system in a mount namespace of its own, where nothing shows on
//! the host; the child gets a copy of that namespace in which every mount is locked, keeps the root
//! and detaches the rest. Invariant: when a step fails, nothing of the container is left but this
//! process, whose end removes its namespace with all that is mounted there.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chdir, pipe2};

use crate::privilege;
use crate::spec::Spec;
use crate::step::{At, SetupError, Step};
use crate::sys::clone::Child;

mod child;
mod devices;
mod init;
mod join;
mod launch;
mod procfs;
mod program;
mod rootfs;
mod source;
mod target;
mod writable;

use launch::Launch;
use program::Program;
use rootfs::Scratch;
use source::Sources;

pub(crate) use init::{COMMAND, Status, command};
pub(crate) use join::{Joined, Streams, Target, join};

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

/// Starts the container of `spec`, in the network namespace `netns` or a new one. The shim itself keeps only
/// what supervision takes.
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
    let scratch = Scratch::new(Sources::open(spec, state_dir)?, spec)?;
    let program = Program::new(spec)?;
    let launch = Launch { spec, cgroup, own_network, program: &program };
    let child = launch.hold()?;
    rootfs::build(spec, scratch, child.user_namespace())?;
    let child = launch.release(child)?;
    // It has its own copy of the mounts: all this is done while it is on its way to the program.
    umount2(".", MntFlags::MNT_DETACH).at(Step::Scratch, "detach")?;
    chdir("/").at(Step::Scratch, "leave")?;
    privilege::shed()?;
    launch.await_exec(child)
}

/// Host ids of the container's root.
fn root_of(id_base: u32) -> (Option<nix::unistd::Uid>, Option<nix::unistd::Gid>) {
    (Some(id_base.into()), Some(id_base.into()))
}
