//! Pid 1 of the container: it takes the orphans in, hands signals on to the program and leaves with the
//! program's status, which ends everything else in the PID namespace.
//!
//! It is a forked copy of the shim, as the same user and under the same filter as the program, so that a
//! program need not be a good pid 1 (no default actions, zombies). It allocates nothing and holds one
//! descriptor: the pipe on which it tells the shim how the program ended. Invariant: nothing but that end,
//! or its own kill, ends it.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::unistd::write;

use crate::sys::memory;
use crate::sys::pidfd::{Ended, try_wait_any};
use crate::sys::signal::{self, Taken};

/// The signal that carries an order of the shim's: the highest, which no program sends to pid 1. One that
/// does only reaches processes it could signal itself.
pub(crate) const COMMAND: i32 = signal::LAST;
pub(super) const NAME: &CStr = c"mogok-init";
/// In an order: to every process.
const ALL: i32 = 1 << 8;

/// The number that goes with [`COMMAND`] to send `signal` to the program or to all.
pub(crate) fn command(signal: i32, all: bool) -> i32 {
    signal | if all { ALL } else { 0 }
}

/// How the program ended, as it travels through the status pipe: code or signal, -1 where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

impl Status {
    pub(crate) const BYTES: usize = 8;

    fn encode(self) -> [u8; Self::BYTES] {
        let [a, b, c, d] = self.code.unwrap_or(-1).to_ne_bytes();
        let [e, f, g, h] = self.signal.unwrap_or(-1).to_ne_bytes();
        [a, b, c, d, e, f, g, h]
    }

    pub(crate) fn decode([a, b, c, d, e, f, g, h]: [u8; Self::BYTES]) -> Self {
        let number = |bytes| Some(i32::from_ne_bytes(bytes)).filter(|number| *number >= 0);
        Self { code: number([a, b, c, d]), signal: number([e, f, g, h]) }
    }
}

/// Runs until `program` has ended; returns the status to leave with, as a shell has it.
pub(super) fn run(program: i32, status: BorrowedFd<'_>) -> i32 {
    // A name for ps on the host; nothing depends on it.
    let _ = nix::sys::prctl::set_name(NAME);
    // What walking into the sandbox took is not needed again.
    memory::forget_image();
    loop {
        match signal::take() {
            Ok(Taken { signal: libc::SIGCHLD, .. }) => {
                if let Some(ended) = reap(program) {
                    let ended = Status { code: ended.code, signal: ended.signal };
                    // When the shim is gone there is nobody to tell.
                    let _ = write(status, &ended.encode());
                    return ended.code.unwrap_or_else(|| 128 + ended.signal.unwrap_or(0));
                }
            }
            Ok(Taken { signal: COMMAND, value: Some(order) }) => {
                let target = if order & ALL == 0 { program } else { -1 };
                hand_on(target, order & 0xff);
            }
            Ok(Taken { signal, .. }) => hand_on(program, signal),
            // A stop and a continue.
            Err(_) => {}
        }
    }
}

/// Takes every child that has ended; the program, if it is among them.
fn reap(program: i32) -> Option<Ended> {
    loop {
        match try_wait_any() {
            Ok(Some(ended)) if ended.pid == program => return Some(ended),
            Ok(Some(_)) | Err(Errno::EINTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

fn hand_on(target: i32, signal: i32) {
    // A program that has just ended gets no signal; SIGCHLD is next.
    let _ = signal::send(target, signal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_comes_back() {
        for status in [Status { code: Some(0), signal: None }, Status { code: None, signal: Some(9) }] {
            assert_eq!(Status::decode(status.encode()), status);
        }
    }

    #[test]
    fn an_order_holds_signal_and_target() {
        assert_eq!(command(15, false), 15);
        assert_eq!(command(64, true) & 0xff, 64);
        assert_ne!(command(64, true) & ALL, 0);
    }
}
