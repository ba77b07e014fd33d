//! The agent's side of a shim: spawning it, talking to it over its socket, and telling how its
//! container ended, through whatever of agent and shim died in between.
//!
//! Invariant: an end is reported only when the shim said so, when `exit.json` says so, or when the
//! shim itself is gone (its pidfd says so); a socket that does not answer is no end.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mogok_shim::protocol::{Exit, MAX_FRAME, Reply, Request, Started, Versions};
use mogok_shim::spec::file;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

mod launch;
mod process;
mod spawner;

pub use launch::{LaunchError, Pending, launch};
pub(crate) use launch::{end_child, fresh_session};
pub use process::{Process, boot_id, name_of, network_namespace_of, shims_below};
pub use spawner::Spawner;

/// A request to a shim that is alive takes microseconds.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Between attempts to reach a shim that does not answer.
const RETRY: Duration = Duration::from_millis(500);

/// A shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    #[error("cannot talk to the shim at {path}", path = path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("the shim at {path} does not answer", path = path.display())]
    Silent { path: PathBuf },
    #[error(
        "the shim speaks {theirs} of the protocol, this agent {}: its container runs on and can be killed, but not asked anything",
        Versions::OURS
    )]
    Version { theirs: Versions },
    #[error("the shim refuses: {0}")]
    Refused(String),
    #[error("the shim answers {request} with {reply}")]
    Unexpected { request: &'static str, reply: String },
}

/// The shim of the container in `dir`.
#[derive(Debug, Clone)]
pub struct Shim {
    dir: PathBuf,
}

impl Shim {
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join(file::SOCKET)
    }

    /// Who it is: the same that its start reported.
    ///
    /// # Errors
    /// When it cannot be reached or does not answer in time.
    pub async fn hello(&self) -> Result<Started, ShimError> {
        match self.ask(&Request::Hello).await? {
            Reply::Started(started) => Ok(started),
            other => Err(ShimError::Unexpected { request: "hello", reply: format!("{other:?}") }),
        }
    }

    /// Sends a signal to every process of the container.
    ///
    /// # Errors
    /// When it cannot be reached or refuses.
    pub async fn signal_all(&self, signal: i32) -> Result<(), ShimError> {
        match self.ask(&Request::Signal { signal, all: true }).await? {
            Reply::Done | Reply::Exited(_) => Ok(()),
            other => Err(ShimError::Unexpected { request: "signal", reply: format!("{other:?}") }),
        }
    }

    /// Lets it go; the container must have ended.
    ///
    /// # Errors
    /// When it cannot be reached or refuses.
    pub async fn quit(&self) -> Result<(), ShimError> {
        self.ask(&Request::Quit).await.map(drop)
    }

    /// How the program ended, once it has. `None`: the shim is gone and left no word about it; the caller
    /// has to make sure that nothing of the container runs on.
    pub async fn ended(&self, process: Option<&Process>) -> Option<Exit> {
        loop {
            let gone = async {
                if let Some(process) = process {
                    process.ended().await;
                }
            };
            tokio::select! {
                reply = self.wait() => match reply {
                    Ok(exit) => return Some(exit),
                    Err(error) => tracing::debug!(dir = %self.dir.display(), %error, "a shim cannot be waited on"),
                },
                () = gone => return read_exit(&self.dir),
            }
            if let Some(exit) = read_exit(&self.dir) {
                return Some(exit);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// A shim that has not told its version yet has not started anything, and is one of this agent's.
    fn understood(&self) -> Result<(), ShimError> {
        let theirs = read_started(&self.dir).map_or(Versions::OURS, |started| started.versions());
        Versions::OURS.common(theirs).map(drop).ok_or(ShimError::Version { theirs })
    }

    async fn wait(&self) -> Result<Exit, ShimError> {
        self.understood()?;
        let path = self.socket();
        let failed = |source| ShimError::Socket { path: path.clone(), source };
        let mut stream = connect(&path).await?;
        send(&mut stream, &Request::Wait).await.map_err(failed)?;
        // The only unbounded read: it lasts as long as the program runs, and the caller watches the pidfd.
        match receive(&mut stream).await.map_err(failed)? {
            Reply::Exited(exit) => Ok(exit),
            Reply::Refused(why) => Err(ShimError::Refused(why)),
            other => Err(ShimError::Unexpected { request: "wait", reply: format!("{other:?}") }),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Reply, ShimError> {
        self.understood()?;
        let path = self.socket();
        let exchange = async {
            let mut stream = connect(&path).await?;
            let failed = |source| ShimError::Socket { path: path.clone(), source };
            send(&mut stream, request).await.map_err(failed)?;
            match receive(&mut stream).await.map_err(failed)? {
                Reply::Refused(why) => Err(ShimError::Refused(why)),
                reply => Ok(reply),
            }
        };
        tokio::time::timeout(REQUEST_DEADLINE, exchange)
            .await
            .unwrap_or_else(|_| Err(ShimError::Silent { path: path.clone() }))
    }
}

async fn connect(path: &Path) -> Result<UnixStream, ShimError> {
    match tokio::time::timeout(REQUEST_DEADLINE, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(ShimError::Socket { path: path.to_owned(), source }),
        Err(_) => Err(ShimError::Silent { path: path.to_owned() }),
    }
}

async fn send(stream: &mut UnixStream, request: &Request) -> io::Result<()> {
    let body = serde_json::to_vec(request)?;
    let length = u32::try_from(body.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    stream.write_all(&frame).await
}

async fn receive(stream: &mut UnixStream) -> io::Result<Reply> {
    let length = stream.read_u32().await? as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame is larger than any reply"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}

/// What `started.json` says, once it is there.
#[must_use]
pub fn read_started(dir: &Path) -> Option<Started> {
    read_file(&dir.join(file::STARTED))
}

/// What `exit.json` says, once it is there.
#[must_use]
pub fn read_exit(dir: &Path) -> Option<Exit> {
    read_file(&dir.join(file::EXIT))
}

/// Removes what an earlier run left, so that it cannot be taken for this one's.
///
/// # Errors
/// When a file is there and cannot be removed.
pub fn forget(dir: &Path) -> io::Result<()> {
    for name in [file::STARTED, file::EXIT, file::SOCKET] {
        match std::fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn read_file<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = std::fs::read(path).ok()?;
    serde_json::from_slice(&bytes)
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "a file of a shim is not readable"),
        )
        .ok()
}

#[cfg(test)]
mod tests;
