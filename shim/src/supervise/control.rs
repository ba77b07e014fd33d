//! The control socket: a few clients, each answered in order, none waited for.
//!
//! Invariants: only uid 0 is heard; a client holds at most one frame each way; there are at most
//! [`CLIENTS`], and a new one takes the place of the oldest.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::{Mode, umask};
use serde::de::IgnoredAny;

use crate::protocol::frame::{self, HEADER};
use crate::protocol::{MAX_FRAME, Reply, Request, Versions};
use crate::spec::file;
use crate::state_dir::StateDir;

/// Clients at a time.
pub(crate) const CLIENTS: usize = 8;

/// What a client asks.
enum Asked {
    Known(Request),
    /// Of another version than this shim's.
    Unknown,
}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Reply),
    /// When the program ends.
    Later,
    /// And then the shim leaves.
    Last(Reply),
}

#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    /// The oldest first.
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    waiting: bool,
}

impl Control {
    /// Listens in the state directory, in place of what an earlier shim left there.
    pub(crate) fn listen(state: &StateDir) -> std::io::Result<Self> {
        state.remove(file::SOCKET)?;
        let before = umask(Mode::S_IRWXG | Mode::S_IRWXO | Mode::S_IXUSR);
        let bound = UnixListener::bind(state.short_path(file::SOCKET));
        umask(before);
        let listener = bound?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, clients: Vec::new() })
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// One for each client, in the order that [`Self::serve`] expects.
    pub(crate) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.clients.iter().map(|client| {
            let mut events = PollFlags::POLLIN;
            if !client.output.is_empty() {
                events = PollFlags::POLLOUT;
            }
            PollFd::new(client.stream.as_fd(), events)
        })
    }

    /// Takes one new client.
    pub(crate) fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        let root = getsockopt(&stream, PeerCredentials).is_ok_and(|peer| peer.uid() == 0);
        if !root || stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.clients.len() == CLIENTS {
            self.clients.remove(0);
        }
        self.clients.push(Client { stream, input: Vec::new(), output: Vec::new(), waiting: false });
    }

    /// Goes on with the clients that are ready; true when one of them ended it all.
    pub(crate) fn serve(
        &mut self,
        ready: &[bool; CLIENTS],
        answer: &mut impl FnMut(Request) -> Answer,
    ) -> bool {
        let mut last = false;
        let mut place = 0;
        self.clients.retain_mut(|client| {
            let ready = ready.get(place).copied().unwrap_or(false);
            place += 1;
            !ready || client.go_on(answer, &mut last)
        });
        last
    }

    /// The reply to every pending [`Request::Wait`].
    pub(crate) fn tell_waiting(&mut self, reply: &Reply) {
        self.clients.retain_mut(|client| {
            if !std::mem::take(&mut client.waiting) {
                return true;
            }
            client.queue(reply) && client.send()
        });
    }
}

impl Client {
    /// Reads, answers and writes what can be without waiting; false when it is to be dropped.
    fn go_on(&mut self, answer: &mut impl FnMut(Request) -> Answer, last: &mut bool) -> bool {
        if !self.send() {
            return false;
        }
        let open = self.receive();
        // One thing at a time: the next request is looked at when the last was answered. There are at most
        // as many as the input holds.
        while !self.waiting && self.output.is_empty() {
            let answered = match self.next_request() {
                Ok(Some(Asked::Known(request))) => answer(request),
                Ok(Some(Asked::Unknown)) if !cfg!(feature = "protocol-1") => Answer::Reply(Reply::Refused(
                    format!("no request of this shim's, which speaks {}", Versions::OURS),
                )),
                Ok(Some(Asked::Unknown)) | Err(()) => return false,
                Ok(None) => break,
            };
            let queued = match answered {
                Answer::Reply(reply) => self.queue(&reply),
                Answer::Later => {
                    self.waiting = true;
                    true
                }
                Answer::Last(reply) => {
                    *last = true;
                    self.queue(&reply)
                }
            };
            if !queued || !self.send() {
                return false;
            }
        }
        open
    }

    /// False at the end of the stream, or when it holds more than it may.
    fn receive(&mut self) -> bool {
        let mut chunk = [0; 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(bytes) if self.input.len() + bytes <= HEADER + MAX_FRAME => {
                    self.input.extend_from_slice(&chunk[..bytes]);
                }
                Ok(_) => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }

    /// The request in the next whole frame; an error when it is not even JSON.
    fn next_request(&mut self) -> Result<Option<Asked>, ()> {
        let Some(header) = self.input.first_chunk::<HEADER>() else { return Ok(None) };
        let end = HEADER + frame::length(*header).map_err(drop)?;
        let Some(body) = self.input.get(HEADER..end) else { return Ok(None) };
        let request = match frame::decode(body) {
            Ok(request) => Asked::Known(request),
            Err(_) => frame::decode::<IgnoredAny>(body).map(|_| Asked::Unknown).map_err(drop)?,
        };
        self.input.drain(..end);
        self.input.shrink_to(1024);
        Ok(Some(request))
    }

    fn queue(&mut self, reply: &Reply) -> bool {
        match frame::encode(reply) {
            Ok(frame) => {
                self.output.extend(frame);
                true
            }
            Err(_) => false,
        }
    }

    /// Writes what is queued as far as it goes; false when the client is gone.
    fn send(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(bytes) => drop(self.output.drain(..bytes)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        self.output = Vec::new();
        true
    }
}
