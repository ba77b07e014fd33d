//! The joiner between clone and exec: it enters the container's cgroups and namespaces, gives up
//! everything, and forks the program, which is the first that the container sees of it.
//!
//! It neither allocates nor logs nor unwinds; a failed step travels to the helper as two numbers. Invariant:
//! from the moment it has joined it holds the streams, the message socket and the pidfd of init, which it
//! drops at once; nothing of the host's file systems.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, setresgid, setresuid, setsid, write};

use super::super::child::{During, Failed, Message, enter_directory, give_up_powers};
use super::super::launch::{OOM_SCORE, limits};
use super::super::program::Program;
use super::{Streams, Target};
use crate::protocol::exec::Size;
use crate::seccomp;
use crate::spec::Spec;
use crate::step::Step;
use crate::sys::{clone, descriptor, keyring, pass, pidfd, signal, terminal};

/// Where terminals of the container are made.
pub(super) const TERMINALS: &str = "/dev/pts/ptmx";
/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS: FsType = FsType(0x1cd1);

pub(super) struct Joiner<'a> {
    /// `cgroup.procs` of the v2 cgroup, where it was not born there.
    pub(super) cgroup: Option<BorrowedFd<'a>>,
    pub(super) cgroups_v1: &'a [OwnedFd],
    pub(super) messages: BorrowedFd<'a>,
    pub(super) target: &'a Target,
    pub(super) spec: &'a Spec,
    pub(super) program: &'a Program,
}

impl Joiner<'_> {
    /// Forks the program into the container; returns an exit status that nobody looks at.
    pub(super) fn run(&self) -> i32 {
        match self.enter() {
            Ok(pid) => self.say(Message::Forked(pid)).is_err().into(),
            Err(failed) => self.report(failed),
        }
    }

    fn enter(&self) -> Result<i32, Failed> {
        for tasks in self.cgroup.into_iter().chain(self.cgroups_v1.iter().map(AsFd::as_fd)) {
            write(tasks, b"0").during(Step::JoinCgroups)?;
        }
        self.keep_streams(self.target.init.as_fd()).during(Step::Descriptors)?;
        self.expendable().during(Step::OomScore)?;
        // Inherited by the program. Here, where nothing else has to be opened with so few descriptors.
        limits(self.spec, 0).map_err(|(_, errno)| errno).during(Step::Limits)?;
        self.join_namespaces().during(Step::JoinNamespaces)?;
        // Root of the user namespace, with all capabilities in it and none outside.
        setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).during(Step::BecomeRoot)?;
        setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).during(Step::BecomeRoot)?;
        keyring::join_new_session().during(Step::Keyring)?;
        give_up_powers(self.program)?;
        let terminal = match &self.target.streams {
            Streams::Apart(_) => None,
            Streams::Terminal(size) => Some(self.make_terminal(*size).during(Step::Terminal)?),
        };
        enter_directory(self.program)?;
        crate::sys::seccomp::install(seccomp::FILTER).during(Step::Seccomp)?;
        // Not `during`: from here on fail points are the program's process's.
        clone::sibling(|| self.execute(terminal.as_ref())).map_err(|errno| Failed(Step::Fork, errno))
    }

    fn expendable(&self) -> Result<(), Errno> {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let score = open(c"/proc/self/oom_score_adj", flags, Mode::empty())?;
        write(&score, OOM_SCORE.as_bytes()).map(drop)
    }

    /// Closes all but the message socket, `also` and what the program gets.
    fn keep_streams(&self, also: BorrowedFd<'_>) -> Result<(), Errno> {
        #[cfg(not(feature = "failpoints"))]
        use descriptor::keep_only;

        #[cfg(feature = "failpoints")]
        use crate::failpoint::keep_only;
        match &self.target.streams {
            Streams::Apart([stdin, stdout, stderr]) => {
                keep_only(&[self.messages, also, stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
            }
            Streams::Terminal(_) => keep_only(&[self.messages, also]),
        }
    }

    /// All at once and by pidfd: no pid that may be another's, nothing half joined.
    fn join_namespaces(&self) -> Result<(), Errno> {
        let namespaces = CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        pidfd::join(&self.target.init, namespaces)?;
        self.keep_streams(self.messages)
    }

    /// As the program's user, who then owns it. The container cannot mount, so what it finds there is the
    /// sandbox's; that it is a devpts is checked all the same.
    fn make_terminal(&self, size: Size) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let master = openat2(AT_FDCWD, c"/dev/pts/ptmx", how)?;
        if fstatfs(&master)?.filesystem_type() != DEVPTS {
            return Err(Errno::ENODEV);
        }
        terminal::unlock(&master)?;
        terminal::resize(&master, size.rows, size.columns)?;
        let other_side = terminal::other_side(&master)?;
        pass::send(self.messages, &Message::Terminal.encode(), &[master.as_fd()])?;
        Ok(other_side)
    }

    /// The program's process: all defaults, three descriptors, exec.
    fn execute(&self, terminal: Option<&OwnedFd>) -> i32 {
        let failed = match self.prepare_exec(terminal) {
            Ok(()) => Failed(Step::Execute, self.program.image.execute()),
            Err(failed) => failed,
        };
        self.report(failed)
    }

    fn prepare_exec(&self, terminal: Option<&OwnedFd>) -> Result<(), Failed> {
        // Not inherited by fork. The helper may have died before: then its end of the socket is gone.
        prctl::set_pdeathsig(Signal::SIGKILL).during(Step::DeathSignal)?;
        self.helper_lives().during(Step::DeathSignal)?;
        setsid().during(Step::Session)?;
        if let Some(terminal) = terminal {
            terminal::control(terminal).during(Step::Session)?;
        }
        let [stdin, stdout, stderr] = match (&self.target.streams, terminal) {
            (Streams::Apart(streams), _) => streams.each_ref().map(AsFd::as_fd),
            (_, Some(terminal)) => [terminal.as_fd(); 3],
            (Streams::Terminal(_), None) => return Err(Failed(Step::Stdio, Errno::EBADF)),
        };
        dup2_stdin(stdin).and(dup2_stdout(stdout)).and(dup2_stderr(stderr)).during(Step::Stdio)?;
        descriptor::close_on_exec().during(Step::Stdio)?;
        signal::default_all();
        signal::unblock_all().during(Step::Execute)?;
        self.say(Message::Executing).during(Step::Report)
    }

    fn helper_lives(&self) -> Result<(), Errno> {
        let mut fds = [PollFd::new(self.messages, PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO)?;
        match fds[0].revents() {
            Some(events) if events.contains(PollFlags::POLLHUP) => Err(Errno::ESRCH),
            _ => Ok(()),
        }
    }

    fn report(&self, Failed(step, errno): Failed) -> i32 {
        // When the helper is gone there is nobody to tell.
        let _ = self.say(Message::Failed(step, errno));
        1
    }

    fn say(&self, message: Message) -> Result<(), Errno> {
        pass::send(self.messages, &message.encode(), &[]).map(drop)
    }
}
