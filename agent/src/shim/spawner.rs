//! Executes shims from a thread that has a table of descriptors of its own, a small one. A new process begins with a
//! copy of its parent's table, which it closes at exec, and the agent's has half a dozen entries for every container.
//!
//! Invariant: a shim gets what its request hands over and nothing else; the thread is one of this process, so a shim
//! is the agent's child.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, mpsc};

use mogok_shim::sys::pass;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::spawn::{PosixSpawnFileActions, posix_spawn};
use nix::unistd::Pid;

use super::launch::fresh_session;

/// What to execute. The descriptors come by the socket: those numbered 0 to 2 in the new process, and a fourth that
/// becomes 3.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
}

type Answer = mpsc::SyncSender<Result<Pid, Errno>>;

/// The way to the thread, which ends with it.
#[derive(Debug)]
pub struct Spawner {
    orders: Mutex<(UnixStream, mpsc::Sender<(Request, Answer)>)>,
}

impl Spawner {
    /// Starts the thread. Whatever is open now stays in its table too, so this is done first.
    ///
    /// # Errors
    /// When the kernel gives no thread or no socket.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let (sender, requests) = mpsc::channel();
        let (ready, outcome) = mpsc::sync_channel(1);
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            let unshared = unshare(CloneFlags::CLONE_FILES);
            let failed = unshared.is_err();
            if ready.send(unshared).is_ok() && !failed {
                serve(&theirs, &requests);
            }
        })?;
        outcome.recv().map_err(io::Error::other)??;
        Ok(Self { orders: Mutex::new((ours, sender)) })
    }

    /// Executes a program; returns once it is executed, or was not.
    pub(super) fn spawn(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<Pid, Errno> {
        let (answer, outcome) = mpsc::sync_channel(1);
        {
            // One lock for both ways, so that requests and their descriptors come in the same order.
            let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
            pass::send(&orders.0, &[1], fds)?;
            orders.1.send((request, answer)).map_err(|_| Errno::EPIPE)?;
        }
        outcome.recv().unwrap_or(Err(Errno::EPIPE))
    }
}

/// Until nobody can ask any more.
fn serve(socket: &UnixStream, requests: &mpsc::Receiver<(Request, Answer)>) {
    for (request, answer) in requests {
        let mut fds = Vec::with_capacity(pass::MOST);
        let received = pass::receive(socket, &mut [0], &mut fds);
        // Whoever asked waits for the answer.
        let _ = answer.send(received.and_then(|_| execute(&request, &fds)));
    }
}

fn execute(request: &Request, fds: &[OwnedFd]) -> Result<Pid, Errno> {
    let mut files = PosixSpawnFileActions::init()?;
    // The standard numbers are taken, so none of these has one of them; one may have 3, which is replaced last. All
    // are close-on-exec; a dup2 onto its own number clears that (posix_spawn_file_actions_adddup2(3), glibc 2.29).
    for (number, fd) in (0..).zip(fds) {
        files.add_dup2(fd.as_fd().as_raw_fd(), number)?;
    }
    posix_spawn(&request.program, &files, &fresh_session()?, &request.arguments, &request.environment)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use nix::sys::wait::{WaitStatus, waitpid};

    use super::*;

    fn text(words: &[&str]) -> Vec<CString> {
        words.iter().map(|word| CString::new(*word).unwrap()).collect()
    }

    #[test]
    fn a_program_is_our_child_and_has_what_it_was_handed_and_no_more() {
        let spawner = Spawner::start().unwrap();
        let many: Vec<_> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
        for extra in [false, true] {
            let (mut reader, writer) = io::pipe().unwrap();
            // A descriptor that is not close-on-exec in the agent's table is not in the thread's.
            let inherited = nix::unistd::dup(&many[0]).unwrap();
            nix::fcntl::fcntl(&inherited, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
                .unwrap();
            let request = Request {
                program: "/bin/ls".into(),
                arguments: text(&["ls", "-l", "/proc/self/fd"]),
                environment: vec![],
            };
            let mut fds = vec![many[0].as_fd(), writer.as_fd(), many[1].as_fd()];
            fds.extend(extra.then(|| many[2].as_fd()));
            let pid = spawner.spawn(request, &fds).unwrap();
            drop(writer);
            let mut said = String::new();
            reader.read_to_string(&mut said).unwrap();
            let has = |number: i32, target: &str| said.contains(&format!(" {number} -> {target}"));
            assert!(has(0, "/dev/null") && has(1, "pipe:") && has(2, "/dev/null"), "{said}");
            assert_eq!(has(3, "/dev/null"), extra, "{said}");
            assert!(!has(inherited.as_raw_fd(), "/dev/null"), "{said}");
            assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
        }
    }

    #[test]
    fn what_cannot_be_executed_is_said_to_whom_it_belongs() {
        let spawner = Spawner::start().unwrap();
        let null = File::open("/dev/null").unwrap();
        let try_to = |program: &str| {
            let request = Request { program: program.into(), arguments: text(&["x"]), environment: vec![] };
            spawner.spawn(request, &[null.as_fd(), null.as_fd(), null.as_fd()])
        };
        assert_eq!(try_to("/nonexistent"), Err(Errno::ENOENT));
        let pid = try_to("/bin/true").unwrap();
        assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
        assert_eq!(try_to("/dev/null"), Err(Errno::EACCES));
    }
}
