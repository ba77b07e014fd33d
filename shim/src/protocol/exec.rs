//! What the agent and `mogok-shim exec` say to each other over one socket, the helper's standard input.
//!
//! The agent sends one [`Exec`] and with it the pidfd of the container's init and, without a terminal, the
//! program's standard input, output and error. The helper answers one [`ExecReport`]; with `Started` come the
//! pidfd of the program's process and, with a terminal, its master. After that come [`ExecOrder`]s one way
//! and at last one [`ExecEnd`] the other. When the agent closes the socket the program is ended. All are frames
//! of [`super::frame`]; descriptors come with the first byte of one.

use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StepFailed;
use super::frame::{self, FrameError, HEADER};
use crate::sys::pass;

/// What is to be executed in a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Absolute path of the program in the container, then its arguments.
    pub command: Vec<String>,
    /// `NAME=value`, over those of the container's spec.
    pub env: Vec<String>,
    /// Working directory in the container; the spec's where absent.
    pub cwd: Option<String>,
    /// User and group inside the container; the spec's where absent.
    pub user: Option<(u32, u32)>,
    pub terminal: Option<Size>,
}

/// Of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// How the start went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecReport {
    Started,
    Failed(StepFailed),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecOrder {
    /// To the program's process.
    Signal(i32),
}

/// How the program ended. `code` and `signal` exclude each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecEnd {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

/// Sends one message with descriptors, at most [`pass::MOST`], over a blocking socket.
///
/// # Errors
/// When it is too long or the socket fails.
pub fn send<T: Serialize>(
    mut socket: &UnixStream,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    let bytes = frame::encode(message)?;
    let sent = retried(|| pass::send(socket, &bytes, fds))?;
    socket.write_all(&bytes[sent..]).map_err(FrameError::Io)
}

/// Receives one message and the descriptors that came with it from a blocking socket.
///
/// # Errors
/// When the socket fails or ends, or the message is none.
pub fn receive<T: DeserializeOwned>(socket: &UnixStream) -> Result<(T, Vec<OwnedFd>), FrameError> {
    let mut fds = Vec::new();
    let mut header = [0; HEADER];
    fill(socket, &mut header, &mut fds)?;
    let mut body = vec![0; frame::length(header)?];
    fill(socket, &mut body, &mut fds)?;
    Ok((frame::decode(&body)?, fds))
}

fn fill(socket: &UnixStream, mut bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<(), FrameError> {
    while !bytes.is_empty() {
        match retried(|| pass::receive(socket, bytes, fds))? {
            0 => return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into())),
            received => bytes = &mut bytes[received..],
        }
        // One sender sends them with one message; a stream of them is an attack on our table.
        if fds.len() > pass::MOST {
            return Err(FrameError::Io(Errno::EMSGSIZE.into()));
        }
    }
    Ok(())
}

fn retried<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, FrameError> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other.map_err(|errno| FrameError::Io(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_message_comes_back_with_its_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let order = ExecOrder::Signal(15);
        send(&ours, &order, &[ours.as_fd(), theirs.as_fd()]).unwrap();
        send(&ours, &order, &[]).unwrap();
        for expected in [2, 0] {
            let (received, fds) = receive::<ExecOrder>(&theirs).unwrap();
            assert_eq!((received, fds.len()), (order, expected));
        }
        send(&ours, &"no order", &[]).unwrap();
        assert!(matches!(receive::<ExecOrder>(&theirs), Err(FrameError::Json(_))));
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(matches!(receive::<ExecOrder>(&theirs), Err(FrameError::Io(_))));
    }
}
