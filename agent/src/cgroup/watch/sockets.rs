//! What the sockets of a container hold in the kernel, seen from its network namespace.
//!
//! The cgroup is not charged for all of it: not for connections that nobody has accepted yet, not for what netlink
//! has answered, and on v1 not for the first packet of each connection. Invariant: memory is weighed, not payload:
//! many small packets take more than they carry.
//!
//! Not seen is what sock_diag does not list: sockets that are not bound, and connections that were reset before anybody
//! accepted them, with all that they have received. The kernel only tells how many there are, so each counts as much as one
//! may hold. What else such could keep, options of any size, the container's filter of system calls refuses
//! (`docs/adr/0029`).
//!
//! Sources: sock_diag(7), `include/uapi/linux/{inet_diag,sock_diag}.h`, proc_pid_net(5).

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::sys::time::TimeVal;

/// Bytes in which `sockstat` counts.
const PAGE: u64 = 4096;

/// Fewer hold little, whatever is in them: a socket's buffer has some megabytes at most.
const FEW: u64 = 16;
/// Bytes of a table of `/proc/PID/net` that are read: some 100,000 sockets.
const TABLE: u64 = 16 << 20;
/// Of one answer of the kernel's, which sends 32 KiB at most.
const ANSWER: usize = 64 << 10;
/// Answers of a dump: several millions of sockets.
const ANSWERS: usize = 1 << 15;
const WAIT_SECONDS: i64 = 1;

/// Bytes of a netlink socket, which are charged to nobody either.
const NETLINK: u64 = 2 << 10;

/// Bytes of a socket that is not listed, beside what it has received: `struct tcp_sock` and an inode.
const SOCKET_ITSELF: u64 = 3 << 10;
/// Bytes of the largest receive buffer that a program can ask for; it gets twice as much (socket(7)).
const LARGEST_BUFFER: &str = "/proc/sys/net/core/rmem_max";
/// That of a kernel which does not say.
const USUAL_BUFFER: u64 = 4 << 20;
/// Servers whose clients are all reset at once close their sockets within this.
const UNSEEN_FOR: Duration = Duration::from_secs(1);

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST_AND_DUMP: u16 = 0x301;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const INET_DIAG_SKMEMINFO: u16 = 7;
/// Bytes of `nlmsghdr`, of `inet_diag_req_v2` and of `inet_diag_msg`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const SOCKET: usize = 72;
/// Of `SK_MEMINFO_*`: received, ahead, options, and in the backlog.
const HELD: [usize; 4] = [0, 4, 6, 7];
/// Of them, what is to be sent: all that was allocated for it, and what TCP keeps; mostly the same memory.
const TO_SEND: [usize; 2] = [2, 5];

/// The sockets of one container.
#[derive(Debug)]
pub struct Sockets {
    /// `/proc/PID` of its init, which keeps neither that nor its namespace.
    process: OwnedFd,
    /// Since when there are too many that are not listed.
    unseen_since: Option<Instant>,
}

impl Sockets {
    /// Of the network namespace that process `pid` is in. The caller asks afterwards whether it is still the one
    /// that was meant.
    ///
    /// # Errors
    /// `ENOENT` when there is none.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { process: open(format!("/proc/{pid}").as_str(), flags, Mode::empty())?, unseen_since: None })
    }

    /// Is the memory of its sockets more than `limit` bytes? Looks closer only where there are many.
    ///
    /// # Errors
    /// `ESRCH` or `ENOENT` when the process has ended; when the kernel has no answer.
    pub(super) fn hold_more_than(&mut self, limit: u64) -> io::Result<bool> {
        let used = self.count()?;
        if used <= FEW {
            self.unseen_since = None;
            return Ok(false);
        }
        if self.unseen(used)? <= limit {
            self.unseen_since = None;
        } else if self.unseen_since.get_or_insert_with(Instant::now).elapsed() >= UNSEEN_FOR {
            return Ok(true);
        }
        let mut held = self.of_netlink()?;
        for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
            if held <= limit {
                held = held.saturating_add(match self.of(protocol, limit) {
                    // The check of the host tells of a kernel that cannot say.
                    Err(error) if error.kind() == ErrorKind::Unsupported => 0,
                    held => held?,
                });
            }
        }
        Ok(held > limit)
    }

    /// Is it time to look whether those are still there that are not listed?
    pub(super) fn are_suspected(&self, now: Instant) -> bool {
        self.unseen_since.is_some_and(|since| now.saturating_duration_since(since) >= UNSEEN_FOR)
    }

    /// Sockets of any kind and family, also those that no descriptor leads to (`sk_alloc` and `sk_clone_lock` count them).
    fn count(&self) -> io::Result<u64> {
        let sockstat = self.table("net/sockstat")?;
        number_behind(&sockstat, "sockets: used ").ok_or_else(|| ErrorKind::InvalidData.into())
    }

    /// Bytes that the sockets may hold which are not listed, out of `used`: the largest buffer for each, but no more than all TCP
    /// sockets of the host have.
    fn unseen(&self, used: u64) -> io::Result<u64> {
        // Some come and some go between two tables.
        let listed = self.listed()?;
        let sockstat = self.table("net/sockstat")?;
        let unseen =
            number_behind(&sockstat, "sockets: used ").unwrap_or(used).min(used).saturating_sub(listed);
        let all = sockstat.lines().find(|line| line.starts_with("TCP:")).and_then(|line| {
            let (_, pages) = line.split_once(" mem ")?;
            pages.trim().parse::<u64>().ok()?.checked_mul(PAGE)
        });
        let largest = fs::read_to_string(LARGEST_BUFFER).ok().and_then(|text| text.trim().parse().ok());
        let received = unseen.saturating_mul(2 * largest.unwrap_or(USUAL_BUFFER));
        Ok(received.min(all.unwrap_or(u64::MAX)) + unseen * SOCKET_ITSELF)
    }

    /// Those of them that are in the tables of their protocols, and so are listed.
    fn listed(&self) -> io::Result<u64> {
        let protocols = self.table("net/protocols")?;
        let sockets = |line: &str| line.split_whitespace().nth(2)?.parse::<u64>().ok();
        Ok(protocols.lines().filter_map(sockets).sum())
    }

    /// Bytes that its netlink sockets hold; their table tells memory, but not of the sockets themselves.
    fn of_netlink(&self) -> io::Result<u64> {
        let netlink = self.table("net/netlink")?;
        if netlink.len() as u64 == TABLE {
            // So many that not all of them are seen.
            return Ok(u64::MAX);
        }
        let netlink = netlink.lines().skip(1).filter_map(|line| {
            let mut columns = line.split_whitespace().skip(4);
            Some(NETLINK + columns.next()?.parse::<u64>().ok()? + columns.next()?.parse::<u64>().ok()?)
        });
        Ok(netlink.sum())
    }

    fn table(&self, name: &str) -> io::Result<String> {
        let file = openat(&self.process, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut text = String::new();
        File::from(file).take(TABLE).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Bytes that its sockets of a protocol hold, counted until they are more than `enough`.
    fn of(&self, protocol: u8, enough: u64) -> io::Result<u64> {
        let diag = self.diag()?;
        let mut held = 0;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            send(diag.as_raw_fd(), &request(family, protocol), MsgFlags::empty())?;
            let mut answer = vec![0; ANSWER];
            for _ in 0..ANSWERS {
                let length = recv(diag.as_raw_fd(), &mut answer, MsgFlags::empty())?;
                let (bytes, last) = weigh(&answer[..length])?;
                held += bytes;
                if held > enough {
                    return Ok(held);
                }
                if last {
                    break;
                }
            }
        }
        Ok(held)
    }

    /// A socket of its namespace that asks about sockets. The calling thread is back in its own when this returns.
    fn diag(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let home = File::open("/proc/thread-self/ns/net")?;
        setns(openat(&self.process, "ns/net", flags, Mode::empty())?, CloneFlags::CLONE_NEWNET)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let made = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag);
        setns(home, CloneFlags::CLONE_NEWNET)?;
        let made = made?;
        setsockopt(&made, sockopt::ReceiveTimeout, &TimeVal::new(WAIT_SECONDS, 0))?;
        Ok(made)
    }
}

fn number_behind(text: &str, begin: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(begin))?.trim().parse().ok()
}

/// Can the kernel say what sockets hold?
///
/// # Errors
/// `Unsupported` when not.
pub fn check() -> io::Result<()> {
    let own = Sockets::of_process(nix::unistd::gettid().as_raw())?;
    [IPPROTO_TCP, IPPROTO_UDP].into_iter().try_for_each(|protocol| own.of(protocol, 0).map(drop))
}

/// Asks for all sockets of a family and protocol with their memory.
fn request(family: AddressFamily, protocol: u8) -> [u8; HEADER + REQUEST] {
    let mut bytes = [0; HEADER + REQUEST];
    bytes[..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_AND_DUMP.to_ne_bytes());
    bytes[HEADER] = family as u8;
    bytes[HEADER + 1] = protocol;
    bytes[HEADER + 2] = 1 << (INET_DIAG_SKMEMINFO - 1);
    bytes[HEADER + 4..HEADER + 8].copy_from_slice(&u32::MAX.to_ne_bytes());
    bytes
}

/// The memory of the sockets in an answer, and whether it is the last one.
fn weigh(mut answer: &[u8]) -> io::Result<(u64, bool)> {
    let mut held = 0;
    while let Some((message, kind, rest)) = next(answer, 4, 4) {
        match kind {
            NLMSG_DONE => return Ok((held, true)),
            NLMSG_ERROR => {
                let code = message.get(HEADER..HEADER + 4).and_then(number).unwrap_or(0);
                let errno = Errno::from_raw((code as i32).wrapping_neg());
                // The module that would answer.
                let absent = errno == Errno::ENOENT;
                return Err(if absent { ErrorKind::Unsupported.into() } else { errno.into() });
            }
            SOCK_DIAG_BY_FAMILY => {
                let mut attributes = message.get(HEADER + SOCKET..).unwrap_or_default();
                while let Some((attribute, kind, rest)) = next(attributes, 2, 2) {
                    if kind == INET_DIAG_SKMEMINFO {
                        let words: Vec<u32> = attribute[4..].chunks_exact(4).filter_map(number).collect();
                        let word = |at: &usize| words.get(*at).copied().map_or(0, u64::from);
                        held += HELD.iter().map(word).sum::<u64>();
                        held += TO_SEND.iter().map(word).max().unwrap_or(0);
                    }
                    attributes = rest;
                }
            }
            _ => {}
        }
        answer = rest;
    }
    Ok((held, false))
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// The first message (netlink(7)) or attribute with its header, its kind, and what follows. Its length, of which the
/// first `length` bytes of the header are, is rounded up to four; the kind stands at `kind`.
fn next(bytes: &[u8], length: usize, kind: usize) -> Option<(&[u8], u16, &[u8])> {
    let kind = u16::from_ne_bytes(bytes.get(kind..kind + 2)?.try_into().ok()?);
    let size = match length {
        2 => u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?).into(),
        _ => u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize,
    };
    if size < 4 {
        return None;
    }
    let rest = bytes.get(size.next_multiple_of(4)..).unwrap_or_default();
    Some((bytes.get(..size)?, kind, rest))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use nix::sys::socket::{SockaddrIn, sendto};
    use proptest::prelude::*;

    use super::*;

    /// The sockets of a namespace of this thread's own; `None`, said aloud, where it may have none.
    fn own() -> Option<Sockets> {
        if let Err(errno) = nix::sched::unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIP: cannot make a network namespace: {errno}");
            return None;
        }
        std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        Some(Sockets::of_process(nix::unistd::gettid().as_raw()).unwrap())
    }

    #[test]
    fn what_nobody_has_accepted_is_weighed() {
        std::thread::spawn(|| {
            let Some(mut sockets) = own() else { return };
            assert!(!sockets.hold_more_than(0).unwrap());
            let listener = TcpListener::bind("[::1]:0").unwrap();
            for _ in 0..100 {
                let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                stream.write_all(&[1; 40_000]).unwrap();
            }
            // The listener is the only one that a descriptor leads to.
            assert!(sockets.count().unwrap() > 100);
            let held = sockets.of(IPPROTO_TCP, u64::MAX).unwrap();
            assert!((4_000_000..20_000_000).contains(&held), "{held}");
            assert!(sockets.hold_more_than(3_000_000).unwrap());
            assert!(!sockets.hold_more_than(1 << 30).unwrap());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_is_held_back_from_being_sent_is_weighed() {
        std::thread::spawn(|| {
            let Some(mut sockets) = own() else { return };
            let corked: Vec<_> = (0..30)
                .map(|_| {
                    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                    let to = SockaddrIn::new(127, 0, 0, 1, 9);
                    sendto(socket.as_raw_fd(), &[1; 60_000], &to, MsgFlags::from_bits_retain(libc::MSG_MORE))
                        .unwrap();
                    socket
                })
                .collect();
            assert!(sockets.hold_more_than(30 * 60_000).unwrap());
            drop(corked);
            assert!(!sockets.hold_more_than(0).unwrap());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn datagrams_are_weighed_with_all_that_they_take() {
        std::thread::spawn(|| {
            let Some(mut sockets) = own() else { return };
            let datagrams: Vec<_> = (0..30).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
            // Beside what the kernel has of netlink in each namespace.
            assert!(!sockets.hold_more_than(100_000).unwrap());
            for socket in &datagrams {
                for _ in 0..100 {
                    socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
                }
            }
            assert!(sockets.hold_more_than(30 * 100 * 500).unwrap());
            drop(datagrams);
            assert!(!sockets.hold_more_than(0).unwrap());
        })
        .join()
        .unwrap();
    }

    /// Reset before anybody accepted them: in no table, with what they have received.
    #[test]
    fn what_was_reset_and_is_not_accepted_counts_as_what_it_may_hold() {
        std::thread::spawn(|| {
            let Some(mut sockets) = own() else { return };
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            for _ in 0..100 {
                let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                stream.write_all(&[1; 40_000]).unwrap();
                setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
            }
            assert!(sockets.of(IPPROTO_TCP, u64::MAX).unwrap() < 1_000_000);
            // Not at once: a server may be about to close them.
            assert!(!sockets.hold_more_than(4_000_000).unwrap());
            std::thread::sleep(UNSEEN_FOR);
            assert!(!sockets.hold_more_than(1 << 30).unwrap());
            assert!(!sockets.hold_more_than(4_000_000).unwrap());
            std::thread::sleep(UNSEEN_FOR);
            assert!(sockets.hold_more_than(4_000_000).unwrap());
            drop(listener);
            assert!(!sockets.hold_more_than(0).unwrap());
        })
        .join()
        .unwrap();
    }

    proptest! {
        #[test]
        fn no_answer_breaks_the_reader(answer in prop::collection::vec(any::<u8>(), 0..400), length in any::<u8>()) {
            let _ = weigh(&answer);
            let mut framed = u32::from(length).to_ne_bytes().to_vec();
            framed.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            framed.extend(&answer);
            let _ = weigh(&framed);
        }
    }
}
