//! The program's streams as the agent reads and writes them, pipes and terminals alike.
//!
//! Invariant: output is read only when it can be passed on, 16 KiB at a time, so a client that does not read
//! makes the program wait and nothing grow.

use std::io;
use std::os::fd::OwnedFd;

use mogok_api::agent::exec::{ExecOutput, MAX_PAYLOAD, TerminalSize};
use rustix::fs::OFlags;
use rustix::termios::Winsize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

use super::helper::Ends;

/// What is passed on after the program's end, when something it left behind goes on writing.
const LAST_BYTES: usize = 1 << 20;
/// Ctrl-D, which ends the input of a terminal.
const END_OF_TRANSMISSION: u8 = 4;

/// Where a piece of output belongs.
pub(super) type Kind = fn(Vec<u8>) -> ExecOutput;

#[derive(Debug)]
pub(super) struct Streams {
    pub(super) input: Input,
    pub(super) outputs: Vec<(Kind, pipe::Receiver)>,
}

/// What the program reads, and the size of its terminal.
#[derive(Debug)]
pub(super) struct Input {
    stdin: Option<pipe::Sender>,
    terminal: Option<OwnedFd>,
}

impl Streams {
    pub(super) fn new(ends: Ends) -> io::Result<Self> {
        match ends {
            Ends::Apart { stdin, stdout, stderr } => Ok(Self {
                input: Input { stdin: Some(pipe::Sender::from_owned_fd(stdin)?), terminal: None },
                outputs: vec![
                    (ExecOutput::Stdout as Kind, pipe::Receiver::from_owned_fd(stdout)?),
                    (ExecOutput::Stderr as Kind, pipe::Receiver::from_owned_fd(stderr)?),
                ],
            }),
            // No pipe, but read, written and waited for in the same way; tokio's general type needs unsafe code.
            Ends::Terminal(master) => {
                rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
                Ok(Self {
                    outputs: vec![(
                        ExecOutput::Stdout as Kind,
                        pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?,
                    )],
                    input: Input {
                        stdin: Some(pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?),
                        terminal: Some(master),
                    },
                })
            }
        }
    }
}

impl Input {
    /// Writes a little of `piece`, which must not be empty; true when all of it is through, or nobody reads any
    /// more. Cancel-safe.
    pub(super) async fn write(&self, piece: &mut Vec<u8>) -> bool {
        let Some(stdin) = &self.stdin else { return true };
        if stdin.writable().await.is_err() {
            return true;
        }
        match stdin.try_write(piece) {
            Ok(written) => {
                piece.drain(..written);
                piece.is_empty()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => true,
        }
    }

    /// What says that there is no more: nothing is left to be written for a pipe, which is closed.
    pub(super) fn end(&mut self) -> Option<Vec<u8>> {
        if self.terminal.is_some() {
            return Some(vec![END_OF_TRANSMISSION]);
        }
        self.stdin = None;
        None
    }

    pub(super) fn resize(&self, size: TerminalSize) {
        if let Some(terminal) = &self.terminal {
            let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
            // The program has ended, if anything.
            let _ = rustix::termios::tcsetwinsize(terminal, size);
        }
    }
}

/// Passes a stream on to its end, or to what it holds when the program has ended. Ends early when nobody listens.
pub(super) async fn pump(
    kind: Kind,
    mut stream: pipe::Receiver,
    mut ended: watch::Receiver<bool>,
    client: mpsc::Sender<ExecOutput>,
) {
    let mut buffer = vec![0; MAX_PAYLOAD];
    loop {
        let read = tokio::select! {
            biased;
            // A terminal without a program is an error to read from.
            read = stream.read(&mut buffer) => read.unwrap_or(0),
            _ = ended.wait_for(|ended| *ended) => break,
        };
        if read == 0 || client.send(kind(buffer[..read].to_vec())).await.is_err() {
            return;
        }
    }
    let mut left = LAST_BYTES;
    // Asked of the kernel itself: what tokio knows of the stream may be older than its last bytes.
    while left > 0
        && let Ok(read @ 1..) = rustix::io::read(&stream, &mut buffer[..])
        && client.send(kind(buffer[..read].to_vec())).await.is_ok()
    {
        left = left.saturating_sub(read);
    }
}
