//! A blocking client of a shim's control socket, for tests, tools and `spawn_blocking`.
//!
//! It connects through a descriptor of the state directory, so the length of its path does not matter
//! (`sun_path` ends at 107 bytes). Invariant: every exchange has a time limit.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::protocol::frame::{self, FrameError};
use crate::protocol::{Exit, Reply, Request, Started};
use crate::spec::file;

/// A shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to the shim of {dir}", dir = dir.display())]
    Connect { dir: PathBuf, source: io::Error },
    #[error("cannot talk to the shim of {dir}", dir = dir.display())]
    Talk { dir: PathBuf, source: FrameError },
    #[error("the shim of {dir} refuses: {why}", dir = dir.display())]
    Refused { dir: PathBuf, why: String },
    #[error("the shim of {dir} answers something else: {reply:?}", dir = dir.display())]
    Unexpected { dir: PathBuf, reply: Box<Reply> },
}

/// One connection to the shim of one container.
#[derive(Debug)]
pub struct Client {
    dir: PathBuf,
    stream: UnixStream,
}

impl Client {
    /// Connects to the shim of the container in `state_dir`; each later exchange may take `timeout`.
    ///
    /// # Errors
    /// When there is no shim (`NotFound`, `ConnectionRefused`).
    pub fn connect(state_dir: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect { dir: state_dir.to_owned(), source };
        let dir = File::open(state_dir).map_err(failed)?;
        let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), file::SOCKET);
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(timeout)).map_err(failed)?;
        stream.set_write_timeout(Some(timeout)).map_err(failed)?;
        Ok(Self { dir: state_dir.to_owned(), stream })
    }

    /// What the shim reported at its start.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn hello(&mut self) -> Result<Started, ClientError> {
        match self.exchange(&Request::Hello)? {
            Reply::Started(started) => Ok(started),
            reply => Err(self.unexpected(reply)),
        }
    }

    /// Sends `signal` to the program, or to every process of the container.
    ///
    /// # Errors
    /// When the shim refuses (no such signal) or does not answer.
    pub fn signal(&mut self, signal: i32, all: bool) -> Result<(), ClientError> {
        match self.exchange(&Request::Signal { signal, all })? {
            Reply::Done => Ok(()),
            reply => Err(self.unexpected(reply)),
        }
    }

    /// Waits for the end of the program. It uses the connection up: a reply may still be on its way.
    ///
    /// # Errors
    /// When it does not end within `timeout` (`WouldBlock`), or the shim goes away.
    pub fn wait(mut self, timeout: Duration) -> Result<Exit, ClientError> {
        self.stream
            .set_read_timeout(Some(timeout))
            .map_err(|source| ClientError::Connect { dir: self.dir.clone(), source })?;
        match self.exchange(&Request::Wait)? {
            Reply::Exited(exit) => Ok(exit),
            reply => Err(self.unexpected(reply)),
        }
    }

    /// Lets the shim of an ended program go.
    ///
    /// # Errors
    /// When the program runs or the shim does not answer.
    pub fn quit(mut self) -> Result<(), ClientError> {
        match self.exchange(&Request::Quit)? {
            Reply::Done => Ok(()),
            reply => Err(self.unexpected(reply)),
        }
    }

    fn exchange(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let failed = |source| ClientError::Talk { dir: self.dir.clone(), source };
        frame::send(&mut self.stream, request).map_err(failed)?;
        match frame::receive(&mut self.stream).map_err(failed)? {
            Reply::Refused(why) => Err(ClientError::Refused { dir: self.dir.clone(), why }),
            reply => Ok(reply),
        }
    }

    fn unexpected(&self, reply: Reply) -> ClientError {
        ClientError::Unexpected { dir: self.dir.clone(), reply: Box::new(reply) }
    }
}
