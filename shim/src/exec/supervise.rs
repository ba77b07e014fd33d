//! What the helper does once the program runs: hands signals on, tells the agent how the program ended,
//! and ends it when the agent is gone.
//!
//! ```text
//! running --agent hangs up--> SIGHUP --5 s--> SIGKILL        any --program ends--> its end is told --> gone
//! ```
//! Invariant: nothing but poll(2) is waited for before the program is reaped, for a container's PID namespace
//! does not end before all that was joined into it is.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::protocol::exec::{self, ExecEnd, ExecOrder};
use crate::protocol::frame::{self, HEADER};
use crate::sys::clone::Child;
use crate::sys::signal::LAST;
use crate::sys::{pidfd, signal};

/// From the hang-up to the kill.
const HANG_UP: Duration = Duration::from_secs(5);
/// Bytes of the largest order.
const ORDER: usize = 256;

/// Stays until the program has ended.
pub(super) fn run(socket: UnixStream, program: &Child) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let mut agent = Some(Agent { socket, input: Vec::new() });
    let mut kill_at: Option<Instant> = None;
    loop {
        let (ended, heard) = wait(program, agent.as_ref(), kill_at)?;
        if ended {
            break;
        }
        if heard
            && let Some(orders) = &mut agent
            && orders.take(program).is_err()
        {
            agent = None;
            fail_point!("exec/hung_up");
            // All that it has in its foreground; a stopped process hears it only when it goes on.
            to_group(program, libc::SIGHUP);
            to_group(program, libc::SIGCONT);
            kill_at = Some(Instant::now() + HANG_UP);
        }
        if kill_at.is_some_and(|at| at <= Instant::now()) {
            to_group(program, libc::SIGKILL);
            // Again, should it have left its group; the wait for its end has no bound then but the kernel's.
            let _ = pidfd::send_signal(&program.pidfd, libc::SIGKILL);
            kill_at = Some(Instant::now() + HANG_UP);
        }
    }
    fail_point!("exec/program_ended");
    if agent.is_none() {
        to_group(program, libc::SIGKILL);
    }
    let ended = pidfd::try_wait(&program.pidfd)?.ok_or(Errno::ECHILD)?;
    if let Some(Agent { socket, .. }) = agent {
        socket.set_nonblocking(false)?;
        // An agent that hangs up at this moment does not want to know.
        drop(exec::send(&socket, &ExecEnd { code: ended.code, signal: ended.signal }, &[]));
    }
    fail_point!("exec/end_told");
    Ok(())
}

/// To the process group that the program leads. Its number is nobody else's as long as the program was not
/// waited for.
fn to_group(program: &Child, number: i32) {
    // A group without processes is none to signal.
    let _ = signal::send(-program.pid, number);
}

/// Has the program ended, has the agent spoken?
fn wait(program: &Child, agent: Option<&Agent>, until: Option<Instant>) -> Result<(bool, bool), Errno> {
    let mut fds = vec![PollFd::new(program.pidfd.as_fd(), PollFlags::POLLIN)];
    fds.extend(agent.map(|agent| PollFd::new(agent.socket.as_fd(), PollFlags::POLLIN)));
    let timeout = until.map_or(PollTimeout::NONE, |at| {
        let wait = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno),
    }
    let any = |place: usize| fds.get(place).and_then(PollFd::any).unwrap_or(false);
    Ok((any(0), any(1)))
}

struct Agent {
    socket: UnixStream,
    /// The beginning of an order.
    input: Vec<u8>,
}

impl Agent {
    /// Takes what has come and does as told.
    ///
    /// # Errors
    /// When the agent has hung up, or speaks nonsense.
    fn take(&mut self, program: &Child) -> io::Result<()> {
        let mut bytes = [0; ORDER];
        match self.socket.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => self.input.extend_from_slice(&bytes[..read]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        while let Some((order, used)) = first_order(&self.input)? {
            self.input.drain(..used);
            let ExecOrder::Signal(number) = order;
            if (1..=LAST).contains(&number) {
                // It may have ended.
                let _ = pidfd::send_signal(&program.pidfd, number);
            }
        }
        Ok(())
    }
}

/// The order that `bytes` begin with, and its length; `None` while it is not whole.
fn first_order(bytes: &[u8]) -> io::Result<Option<(ExecOrder, usize)>> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = frame::length(*header).map_err(io::Error::other)?;
    if length > ORDER {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let order = frame::decode(body).map_err(io::Error::other)?;
    Ok(Some((order, HEADER + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_may_come_in_pieces_and_nonsense_hangs_up() {
        let frame = frame::encode(&ExecOrder::Signal(2)).unwrap();
        for cut in 0..frame.len() {
            assert_eq!(first_order(&frame[..cut]).unwrap(), None);
        }
        let twice = [frame.clone(), frame.clone()].concat();
        assert_eq!(first_order(&twice).unwrap(), Some((ExecOrder::Signal(2), frame.len())));
        assert!(first_order(&[0xff; 8]).is_err());
        assert!(first_order(&(ORDER as u32 + 1).to_be_bytes()).is_err());
        assert!(first_order(&frame::encode(&"kill").unwrap()).is_err());
    }
}
