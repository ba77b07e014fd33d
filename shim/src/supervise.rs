//! What the shim does once the program runs: moves its output to the log, answers the agent, and
//! records how it ended.
//!
//! ```text
//! Running --init ends--> kill the rest, drain, exit.json --> Ended --Quit or 10 quiet minutes--> gone
//! ```
//! One thread, one poll(2). Invariants: the exit is on disk before anyone is told, unless the disk is full; no client and no
//! output of the program can make the shim wait.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{read, write};

use crate::protocol::{Exit, Reply, Request, Started};
use crate::sandbox::{self, Running, Status};
use crate::spec::file;
use crate::state_dir::StateDir;
use crate::sys::signal::LAST;
use crate::sys::{memory, pidfd};

pub(crate) mod clock;
pub(crate) mod control;
mod intake;
pub mod lines;
mod log_files;
pub(crate) mod output;
mod rate;

use control::{Answer, Control};
use intake::Intake;
use output::Output;

/// Without a word from the agent after the exit.
const LINGER: Duration = Duration::from_secs(600);
const RECORD_AGAIN: Duration = Duration::from_secs(1);
/// Signals from here on are queued one by one.
const FIRST_QUEUED: i32 = 32;

pub(crate) struct Supervisor {
    state: StateDir,
    started: Started,
    running: Running,
    intake: Intake,
    output: Output,
    control: Control,
    ended: Option<Exit>,
    /// When the exit is to be written again, because the disk did not take it.
    unrecorded: Option<Instant>,
    /// Of the last request, or of the exit.
    heard: Instant,
    /// Since then only output was handled: there is nothing to give back.
    settled: bool,
}

/// What a poll found.
struct Ready {
    init: bool,
    sources: [bool; 2],
    listener: bool,
    clients: [bool; control::CLIENTS],
}

impl Supervisor {
    pub(crate) fn new(
        state: StateDir,
        started: Started,
        mut running: Running,
        output: Output,
        control: Control,
    ) -> Result<Self, Errno> {
        let intake = Intake::new(running.stdout.take(), running.stderr.take())?;
        fcntl(&running.status, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let heard = Instant::now();
        Ok(Self {
            state,
            started,
            running,
            intake,
            output,
            control,
            ended: None,
            unrecorded: None,
            heard,
            settled: false,
        })
    }

    /// Supervises to the end.
    ///
    /// # Errors
    /// When poll(2) or the exit file fails; the container is killed by the death of this process then.
    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            let ready = self.poll()?;
            for (place, ready) in ready.sources.into_iter().enumerate() {
                if ready {
                    self.intake.read(place, &mut self.output);
                }
            }
            self.output.tick();
            self.intake.tick(Instant::now(), &mut self.output);
            if ready.init && self.ended.is_none() {
                self.end()?;
            }
            self.record_again()?;
            if self.serve(&ready.clients) || self.forgotten() {
                fail_point!("shim/quit");
                return Ok(());
            }
            // Last, because it may move the clients to other places.
            if ready.listener {
                self.control.accept();
            }
        }
    }

    fn poll(&mut self) -> Result<Ready, Errno> {
        let now = Instant::now();
        let timeout = self.timeout(now);
        let mut fds: Vec<PollFd> = Vec::with_capacity(4 + control::CLIENTS);
        fds.push(PollFd::new(self.control.listener(), PollFlags::POLLIN));
        fds.extend(self.control.poll_fds());
        let clients = fds.len() - 1;
        let init = self.ended.is_none().then_some(fds.len());
        if self.ended.is_none() {
            fds.push(PollFd::new(self.running.init.pidfd.as_fd(), PollFlags::POLLIN));
        }
        let mut places = [None; 2];
        for (place, pipe) in places.iter_mut().zip(self.intake.pipes(now)) {
            if let Some(pipe) = pipe {
                *place = Some(fds.len());
                fds.push(PollFd::new(pipe, PollFlags::POLLIN));
            }
        }
        // Before an idle shim sleeps: after the start, and after what the agent asked for.
        if timeout.is_none() && !std::mem::replace(&mut self.settled, true) {
            memory::give_back();
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let any = |place: usize| fds[place].any().unwrap_or(false);
        let mut ready = Ready {
            init: init.is_some_and(any),
            sources: places.map(|place| place.is_some_and(any)),
            listener: any(0),
            clients: [false; control::CLIENTS],
        };
        for (place, client) in ready.clients.iter_mut().enumerate().take(clients) {
            *client = any(place + 1);
        }
        Ok(ready)
    }

    fn timeout(&self, now: Instant) -> PollTimeout {
        let linger = self.ended.as_ref().map(|_| self.heard + LINGER);
        let next =
            [linger, self.unrecorded, self.intake.due(), self.output.due()].into_iter().flatten().min();
        next.map_or(PollTimeout::NONE, |at| {
            // Rounded up, or the last fraction of a millisecond would be spent spinning.
            let wait = at.saturating_duration_since(now) + Duration::from_millis(1);
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        })
    }

    /// The program has ended: takes its status, the rest of the container and the last output.
    fn end(&mut self) -> io::Result<()> {
        let Some(ended) = pidfd::try_wait(&self.running.init.pidfd)? else { return Ok(()) };
        let mut told = [0; Status::BYTES];
        // Init tells how the program ended, which its own exit status cannot (a signal); when it was itself
        // killed it told nothing.
        let status = match read(&self.running.status, &mut told) {
            Ok(Status::BYTES) => Status::decode(told),
            _ => Status { code: ended.code, signal: ended.signal },
        };
        let at_us = clock::now_us();
        fail_point!("shim/program_ended");
        self.kill_rest();
        fail_point!("shim/rest_killed");
        self.intake.drain(&mut self.output);
        self.output.end();
        fail_point!("shim/output_drained");
        let exit = Exit { code: status.code, signal: status.signal, at_us };
        self.record(&exit)?;
        fail_point!("shim/exit_recorded");
        self.control.tell_waiting(&Reply::Exited(exit.clone()));
        self.ended = Some(exit);
        self.heard = Instant::now();
        Ok(())
    }

    /// Writes how the program ended. On a full disk it is told all the same, and written when there is room.
    fn record(&mut self, exit: &Exit) -> io::Result<()> {
        let written = self.state.write(file::EXIT, &serde_json::to_vec(exit)?);
        self.unrecorded = written.is_err().then(|| Instant::now() + RECORD_AGAIN);
        Ok(())
    }

    fn record_again(&mut self) -> io::Result<()> {
        match (self.unrecorded, self.ended.clone()) {
            (Some(due), Some(exit)) if due <= Instant::now() => self.record(&exit),
            _ => Ok(()),
        }
    }

    /// The end of init took its PID namespace along; this is for processes that were put into the cgroup from
    /// outside. A cgroup that is gone holds none, and one that is empty is spared (see `sandbox::launch`).
    fn kill_rest(&self) {
        let open = |name, flags| openat(&self.running.cgroup, name, flags | OFlag::O_CLOEXEC, Mode::empty());
        let populated = open("cgroup.procs", OFlag::O_RDONLY)
            .and_then(|procs| read(procs, &mut [0; 1]))
            .is_ok_and(|bytes| bytes > 0);
        if populated && let Ok(kill) = open("cgroup.kill", OFlag::O_WRONLY) {
            let _ = write(kill, b"1");
        }
    }

    /// Answers clients; true when one of them said that this shim may go.
    fn serve(&mut self, ready: &[bool; control::CLIENTS]) -> bool {
        let Self { control, started, running, ended, heard, settled, .. } = self;
        control.serve(ready, &mut |request| {
            *heard = Instant::now();
            *settled = false;
            answer(&request, started, running, ended.as_ref())
        })
    }

    fn forgotten(&self) -> bool {
        self.ended.is_some() && self.heard.elapsed() >= LINGER
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // A socket without a shim would only be refused; nothing to do when that fails.
        let _ = self.state.remove(file::SOCKET);
    }
}

fn answer(request: &Request, started: &Started, running: &Running, ended: Option<&Exit>) -> Answer {
    match (request, ended) {
        (Request::Hello, _) => Answer::Reply(Reply::Started(started.clone())),
        (Request::Wait, Some(exit)) => Answer::Reply(Reply::Exited(exit.clone())),
        (Request::Wait, None) => Answer::Later,
        (Request::Quit, Some(_)) => Answer::Last(Reply::Done),
        (Request::Quit, None) => Answer::Reply(Reply::Refused("the program runs: end it first".into())),
        // Its end is what a signal asks for.
        (Request::Signal { .. }, Some(exit)) => Answer::Reply(Reply::Exited(exit.clone())),
        (Request::Signal { signal, all }, None) => Answer::Reply(match send(running, *signal, *all) {
            Ok(()) => Reply::Done,
            Err(errno) => Reply::Refused(format!("signal {signal}: {}", errno.desc())),
        }),
    }
}

fn send(running: &Running, signal: i32, all: bool) -> Result<(), Errno> {
    fail_point!("shim/signal");
    let init = &running.init.pidfd;
    match signal {
        // Init cannot be asked to do that to itself; the kernel does it, to everything in its namespace.
        libc::SIGKILL => pidfd::send_signal(init, signal),
        1..=LAST => match pidfd::queue_signal(init, sandbox::COMMAND, sandbox::command(signal, all)) {
            // The container's user has filled its queue of signals. The old ones need no place there, and init
            // hands them on to the program at least.
            Err(Errno::EAGAIN) if signal < FIRST_QUEUED && signal != libc::SIGSTOP => {
                pidfd::send_signal(init, signal)
            }
            other => other,
        },
        _ => Err(Errno::EINVAL),
    }
}
