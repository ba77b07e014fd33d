//! A netlink socket to nf_tables, for what changes with every container: elements of sets and maps.
//! The table itself is made by `nft` (`nft.rs`), which is readable and runs once.
//!
//! Invariant: a batch is one transaction, all of it takes effect or nothing, as with a script of nft.
//! The kernel works inside sendto(2), so nothing here waits for more than a commit. The format is that
//! of `linux/netfilter/nfnetlink.h` and `nf_tables.h`; `element.rs` makes the messages.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::NetworkError;
use super::element::Batch;

/// The answers are there when sendto(2) returns; a kernel that owes one is not waited for for ever.
const TIMEOUT_S: i64 = 10;
/// Of an answer: header, error, and the message that is answered.
const ANSWER: usize = 16 * 1024;
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
/// Datagrams read for one answer; each message of a batch has one at most.
const ANSWERS: usize = 4096;

#[derive(Debug)]
pub(super) struct Nfnetlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Nfnetlink {
    /// A socket in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, NetworkError> {
        let open = || {
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkNetFilter,
            )?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(TIMEOUT_S))?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            Ok::<_, Errno>(socket)
        };
        let socket = open().map_err(|errno| failed("open nfnetlink")(errno.into()))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends what `fill` put into the batch, if anything, as one transaction and waits for its outcome.
    pub(super) fn commit(
        &mut self,
        operation: &'static str,
        fill: impl FnOnce(&mut Batch),
    ) -> Result<(), NetworkError> {
        let first = self.sequence.wrapping_add(1);
        let mut batch = Batch::new(first);
        fill(&mut batch);
        let Some((bytes, last)) = batch.finish() else { return Ok(()) };
        // The number after the answered one is that of the batch's end.
        self.sequence = last.wrapping_add(1);
        self.exchange(&bytes, first, last).map_err(failed(operation))
    }

    /// Is this chain there?
    pub(super) fn probe(&mut self, table: &str, chain: &str) -> Result<(), NetworkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = Batch::get_chain(self.sequence, table, chain);
        self.exchange(&message, self.sequence, self.sequence).map_err(failed("look for the table"))
    }

    /// Any error between `first` and `last` is one of the whole; the answer to `last` is the end.
    fn exchange(&self, bytes: &[u8], first: u32, last: u32) -> io::Result<()> {
        let socket = self.socket.as_raw_fd();
        sendto(socket, bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut buffer = vec![0; ANSWER];
        let mut outcome = Ok(());
        for _ in 0..ANSWERS {
            let read = recv(socket, &mut buffer, MsgFlags::empty())?;
            for (sequence, error) in answers(&buffer[..read]) {
                // Of an exchange before this one, which was given up.
                if sequence.wrapping_sub(first) > last.wrapping_sub(first) {
                    continue;
                }
                if error != 0 && outcome.is_ok() {
                    outcome = Err(io::Error::from_raw_os_error(-error));
                }
                if sequence == last {
                    return outcome;
                }
            }
        }
        Err(io::Error::other("more answers than messages"))
    }
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Netlink { operation, subject: "nftables".into(), source }
}

/// Sequence number and error (0 or a negative errno) of every acknowledgement in a datagram.
fn answers(datagram: &[u8]) -> Vec<(u32, i32)> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while let Some(header) = rest.first_chunk::<HEADER>() {
        let [a, b, c, d, e, f, _, _, i, j, k, l, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length < HEADER || length > rest.len() {
            break;
        }
        if u16::from_ne_bytes([e, f]) == NLMSG_ERROR
            && let Some(error) = rest[HEADER..length].first_chunk::<4>()
        {
            found.push((u32::from_ne_bytes([i, j, k, l]), i32::from_ne_bytes(*error)));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, sequence: u32, error: i32) -> Vec<u8> {
        let mut bytes = 20u32.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0, 0]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(error.to_ne_bytes());
        bytes
    }

    #[test]
    fn acknowledgements_are_read_and_torn_ones_are_not() {
        let bytes = [answer(NLMSG_ERROR, 7, 0), answer(0x0a03, 8, 5), answer(NLMSG_ERROR, 9, -2)].concat();
        assert_eq!(answers(&bytes), [(7, 0), (9, -2)]);
        assert_eq!(answers(&bytes[..50]), [(7, 0)]);
        assert_eq!(answers(&[0; 40]), []);
        assert_eq!(answers(&[]), []);
    }
}
