//! The child between clone and exec: it walks into the sandbox that the shim has prepared, gives up
//! everything, and forks the program.
//!
//! It neither allocates nor logs nor unwinds; a failed step travels to the shim as two numbers.
//! Invariant: but for joining its v1 cgroups it does nothing before the shim has mapped its ids.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{
    Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fchdir, pivot_root, read, sethostname, setresgid,
    setresuid, setsid, write,
};

use super::program::Program;
use super::{init, procfs, rootfs};
use crate::seccomp;
use crate::step::Step;
use crate::sys::command_line::CommandLine;
use crate::sys::{capability, clone, descriptor, interface, keyring, mount, signal};

/// Bytes of a [`Message`].
pub(super) const MESSAGE: usize = 8;
/// In place of a step: exec is next.
const EXECUTING: u8 = 0xff;
/// In place of a step: the shim may let go of its mounts.
const COPIED: u8 = 0xfe;
/// In place of a step: the program's process was made.
const FORKED: u8 = 0xfd;
/// In place of a step: the message carries a terminal.
const TERMINAL: u8 = 0xfc;

/// What the child says to the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    Failed(Step, Errno),
    Copied,
    Executing,
    /// Of a joining process: the program's process, by its pid on the host.
    Forked(i32),
    /// Of a joining process: its terminal comes along.
    Terminal,
}

impl Message {
    pub(super) fn encode(self) -> [u8; MESSAGE] {
        let (step, number) = match self {
            Self::Failed(step, errno) => (step as u8, errno as i32),
            Self::Copied => (COPIED, 0),
            Self::Executing => (EXECUTING, 0),
            Self::Forked(pid) => (FORKED, pid),
            Self::Terminal => (TERMINAL, 0),
        };
        let [a, b, c, d] = number.to_ne_bytes();
        [step, 0, 0, 0, a, b, c, d]
    }

    pub(super) fn decode([step, _, _, _, a, b, c, d]: [u8; MESSAGE]) -> Option<Self> {
        match step {
            COPIED => Some(Self::Copied),
            EXECUTING => Some(Self::Executing),
            FORKED => Some(Self::Forked(i32::from_ne_bytes([a, b, c, d]))),
            TERMINAL => Some(Self::Terminal),
            step => {
                let step = Step::ALL.get(usize::from(step))?;
                Some(Self::Failed(*step, Errno::from_raw(i32::from_ne_bytes([a, b, c, d]))))
            }
        }
    }
}

/// A step that failed.
pub(super) struct Failed(pub(super) Step, pub(super) Errno);

pub(super) trait During<T> {
    fn during(self, step: Step) -> Result<T, Failed>;
}

impl<T> During<T> for Result<T, Errno> {
    fn during(self, step: Step) -> Result<T, Failed> {
        #[cfg(feature = "failpoints")]
        let this = self.and_then(|value| crate::failpoint::hit_in_child(step).map(|()| value));
        #[cfg(not(feature = "failpoints"))]
        let this = self;
        this.map_err(|errno| Failed(step, errno))
    }
}

/// The child's share of a start: descriptors it keeps, and the program.
pub(super) struct Sandbox<'a> {
    pub(super) cgroups_v1: &'a [OwnedFd],
    pub(super) release: BorrowedFd<'a>,
    pub(super) error: BorrowedFd<'a>,
    pub(super) status: BorrowedFd<'a>,
    pub(super) stdout: BorrowedFd<'a>,
    pub(super) stderr: BorrowedFd<'a>,
    pub(super) own_network: bool,
    pub(super) command_line: &'a CommandLine,
    pub(super) program: &'a Program,
}

impl Sandbox<'_> {
    /// Becomes pid 1 of the container; returns its exit status.
    pub(super) fn run(&self) -> i32 {
        match self.enter() {
            Ok(program) => init::run(program, self.status),
            Err(failed) => self.report(failed),
        }
    }

    fn enter(&self) -> Result<i32, Failed> {
        // The shim's would tell the program a path of the host.
        self.command_line.replace(init::NAME);
        for tasks in self.cgroups_v1 {
            write(tasks, b"0").during(Step::JoinCgroups)?;
        }
        let kept = [self.release, self.error, self.status, self.stdout, self.stderr];
        #[cfg(not(feature = "failpoints"))]
        descriptor::keep_only(&kept).during(Step::Descriptors)?;
        #[cfg(feature = "failpoints")]
        crate::failpoint::keep_only(&kept).during(Step::Descriptors)?;
        self.await_release().during(Step::Release)?;
        // The working directory, the scratch file system that the root stands on, is in the copy as well.
        unshare(CloneFlags::CLONE_NEWNS).during(Step::MountNamespace)?;
        self.say(Message::Copied).during(Step::MountNamespace)?;
        // Root of the user namespace, with all capabilities in it and none outside.
        setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).during(Step::BecomeRoot)?;
        setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).during(Step::BecomeRoot)?;
        setsid().during(Step::Session)?;
        keyring::join_new_session().during(Step::Keyring)?;
        // Not at the clone: there the parent's cgroup would become the root of what the container sees.
        unshare(CloneFlags::CLONE_NEWCGROUP).during(Step::CgroupNamespace)?;
        if self.own_network {
            interface::loopback_up().during(Step::Loopback)?;
        }
        self.enter_root()?;
        sethostname(&self.program.hostname).during(Step::Hostname)?;
        let null = open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).during(Step::Stdio)?;
        dup2_stdin(&null).and(dup2_stdout(&null)).and(dup2_stderr(&null)).during(Step::Stdio)?;
        drop(null);
        self.give_up()?;
        // Not `during`: from here on fail points are the program's process's.
        let program = clone::grandchild(|| self.execute()).map_err(|errno| Failed(Step::Fork, errno))?;
        descriptor::keep_only(&[self.status]).during(Step::Descriptors)?;
        Ok(program)
    }

    fn await_release(&self) -> Result<(), Errno> {
        let mut byte = [0];
        loop {
            match read(self.release, &mut byte) {
                Ok(1) => return Ok(()),
                Ok(_) => return Err(Errno::ESRCH),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Makes the prepared root the root, and leaves nothing else of the host's mounts.
    fn enter_root(&self) -> Result<(), Failed> {
        let proc = procfs::mount().during(Step::MountProc)?;
        // In this copy of the shim's namespace the root is locked to what it is mounted on; a copy of it with all
        // that is mounted there is not, while those mounts stay locked to it.
        let root = mount::copy(AT_FDCWD, rootfs::ROOT, true).during(Step::PivotRoot)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let place = openat(AT_FDCWD, rootfs::ROOT, flags, Mode::empty()).during(Step::PivotRoot)?;
        mount::attach(&root, &place).during(Step::PivotRoot)?;
        fchdir(&root).during(Step::PivotRoot)?;
        pivot_root(c".", c".").during(Step::PivotRoot)?;
        // The old root now lies on top of the new one (pivot_root(2)).
        umount2(c".", MntFlags::MNT_DETACH).during(Step::DetachHost)?;
        chdir(c"/").during(Step::DetachHost)?;
        procfs::attach(proc.as_fd()).during(Step::AttachProc)?;
        procfs::mask(proc.as_fd()).during(Step::MaskProc)
    }

    /// From root of the namespace to a user who can become nothing else.
    fn give_up(&self) -> Result<(), Failed> {
        give_up_powers(self.program)?;
        enter_directory(self.program)?;
        // After the change of ids, which clears it. The shim may have died before: then its end of the pipe is gone.
        prctl::set_pdeathsig(Signal::SIGKILL).during(Step::DeathSignal)?;
        self.shim_lives().during(Step::DeathSignal)?;
        // Before there is a child that could end: pid 1 takes signals one by one.
        signal::block_all().during(Step::Fork)?;
        crate::sys::seccomp::install(seccomp::FILTER).during(Step::Seccomp)
    }

    fn shim_lives(&self) -> Result<(), Errno> {
        let mut fds = [PollFd::new(self.release, PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO)?;
        match fds[0].revents() {
            Some(events) if events.contains(PollFlags::POLLHUP) => Err(Errno::ESRCH),
            _ => Ok(()),
        }
    }

    /// The program's process: all defaults, three descriptors, exec.
    fn execute(&self) -> i32 {
        let failed = match self.prepare_exec() {
            Ok(()) => Failed(Step::Execute, self.program.image.execute()),
            Err(failed) => failed,
        };
        self.report(failed)
    }

    fn prepare_exec(&self) -> Result<(), Failed> {
        setsid().during(Step::Execute)?;
        dup2_stdout(self.stdout).and(dup2_stderr(self.stderr)).during(Step::Stdio)?;
        descriptor::close_on_exec().during(Step::Stdio)?;
        signal::default_all();
        signal::unblock_all().during(Step::Execute)?;
        self.say(Message::Executing).during(Step::Report)
    }

    fn report(&self, Failed(step, errno): Failed) -> i32 {
        // When the shim is gone there is nobody to tell.
        let _ = self.say(Message::Failed(step, errno));
        1
    }

    fn say(&self, message: Message) -> Result<(), Errno> {
        write(self.error, &message.encode()).map(drop)
    }
}

/// Leaves all ids and capabilities of the namespace for those of the program, for good.
pub(super) fn give_up_powers(program: &Program) -> Result<(), Failed> {
    let Program { uid, gid, .. } = program;
    capability::clear_bounding().during(Step::BoundingSet)?;
    capability::lock_secure_bits().during(Step::SecureBits)?;
    setresgid(*gid, *gid, *gid).during(Step::BecomeUser)?;
    setresuid(*uid, *uid, *uid).during(Step::BecomeUser)?;
    capability::clear_all().during(Step::Capabilities)?;
    // The change of ids may have undone it (fs.suid_dumpable).
    prctl::set_dumpable(false).during(Step::Capabilities)?;
    prctl::set_no_new_privs().during(Step::NoNewPrivileges)
}

/// Goes to the working directory as the program's user, never through a magic link such as /proc/self/fd/N.
pub(super) fn enter_directory(program: &Program) -> Result<(), Failed> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let cwd = openat2(AT_FDCWD, program.cwd.as_c_str(), how).during(Step::WorkingDirectory)?;
    fchdir(&cwd).during(Step::WorkingDirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        let failed = Message::Failed(Step::MaskProc, Errno::EPERM);
        for message in
            [Message::Copied, Message::Executing, Message::Terminal, Message::Forked(1 << 20), failed]
        {
            assert_eq!(Message::decode(message.encode()), Some(message));
        }
        assert_eq!(Message::decode([0xf0; MESSAGE]), None);
    }
}
