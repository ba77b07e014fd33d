//! Sockets and what they reach: families, protocols, the host's services, other tenants, private ranges.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::time::Duration;

use nix::errno::Errno;

use crate::check::{Answer, Check, errno, name};
use crate::raw::{self, Arg};

const FAMILIES: &str = "socket families";
const REACH: &str = "host services, other tenants, private ranges";
const ABSTRACT: &str = "abstract sockets of the host";
/// What must not answer: `name=ADDRESS:PORT`, a space between. The operator of the test has heard them answer.
const TARGETS: &str = "PROBE_TARGETS";
/// The name of an abstract socket that listens on the host.
const SOCKET: &str = "PROBE_ABSTRACT";
/// The path of the agent's socket on the host.
const AGENT: &str = "PROBE_AGENT";
/// A connection that is dropped and not refused costs this much.
const PATIENCE: Duration = Duration::from_secs(2);

const NAMED: [(&str, i64, i64, i64); 16] = [
    ("packet", 17, 3, 0),
    ("packet_datagram", 17, 2, 0x300),
    ("vsock", 40, 1, 0),
    ("alg", 38, 5, 0),
    ("raw_ip", 2, 3, 255),
    ("raw_icmp", 2, 3, 1),
    ("ping", 2, 2, 1),
    ("raw_ipv6", 10, 3, 58),
    ("sctp", 2, 1, 132),
    ("mptcp", 2, 1, 262),
    ("dccp", 2, 6, 33),
    ("udplite", 2, 2, 136),
    ("xdp", 44, 3, 0),
    ("can", 29, 3, 1),
    ("tipc", 30, 1, 0),
    ("bluetooth", 31, 3, 1),
];

/// AF_UNIX, AF_INET, AF_INET6, AF_NETLINK.
const OPEN_FAMILIES: [i64; 4] = [1, 2, 10, 16];
/// Names the operator may give; a check for each, so that the table has a row for each.
const NAMES: [&str; 7] = [
    "host_loopback",
    "gateway",
    "host_link",
    "metadata",
    "private_range",
    "other_tenant",
    "other_tenant_port",
];

pub(crate) fn checks() -> Vec<Check> {
    let named = NAMED.iter().map(|&(what, family, kind, protocol)| {
        Check::new(FAMILIES, format!("socket_{what}"), move || Answer::fails(socket(family, kind, protocol)))
    });
    let targets = NAMES
        .map(|target| Check::new(REACH, format!("{target}_does_not_answer"), move || unreachable(target)));
    let more = [
        Check::new(FAMILIES, "every_other_family", || {
            let families = (0..64).filter(|family| !OPEN_FAMILIES.contains(family));
            let open = families.flat_map(|family| [1, 2, 3, 5].map(|kind| (family, kind)));
            found(open.filter(|(family, kind)| socket(*family, *kind, 0).is_ok()).map(|(family, _)| family))
        }),
        Check::new(FAMILIES, "every_netlink_protocol_but_route", || {
            found((1..=22).filter(|protocol| socket(16, 3, *protocol).is_ok()))
        }),
        Check::new(FAMILIES, "netlink_adds_no_link", new_link),
        Check::new(FAMILIES, "foreign_source_address", || {
            // IP_TRANSPARENT of linux/in.h.
            socket(2, 2, 0).map_or_else(
                |errno| Answer::senseless(name(errno)),
                |fd| {
                    let set = [
                        Arg::Number(fd),
                        Arg::Number(0),
                        Arg::Number(19),
                        Arg::Bytes(&[1, 0, 0, 0]),
                        Arg::Number(4),
                    ];
                    Answer::refused(raw::call(libc::SYS_setsockopt, &set))
                },
            )
        }),
        Check::new(ABSTRACT, "abstract_socket_of_the_host", abstract_socket),
        Check::new(ABSTRACT, "no_socket_of_the_host_is_listed", || {
            let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
            let host: Vec<String> = table
                .lines()
                .skip(1)
                .filter(|line| line.contains('@') || line.contains('/'))
                .map(|line| line.split(' ').next_back().unwrap_or_default().to_owned())
                .collect();
            Answer::none_of(&host, "none")
        }),
        Check::new(REACH, "agent_socket_is_not_there", || match std::env::var(AGENT) {
            Ok(path) => Answer::fails(UnixStream::connect(path).map_err(|error| errno(&error))),
            Err(_) => Answer::senseless("not tried"),
        }),
        Check::new(REACH, "only_own_links", || {
            let table = fs::read_to_string("/proc/net/dev").unwrap_or_default();
            let links: Vec<&str> =
                table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
            Answer::when(links.len() <= 2 && links.contains(&"lo"), links.join(" "))
        }),
    ];
    named.chain(targets).chain(more).collect()
}

fn socket(family: i64, kind: i64, protocol: i64) -> Result<i64, Errno> {
    raw::call(libc::SYS_socket, &[Arg::Number(family), Arg::Number(kind), Arg::Number(protocol)])
}

fn found(numbers: impl Iterator<Item = i64>) -> Answer {
    let found: Vec<String> = numbers.map(|number| number.to_string()).collect();
    Answer::none_of(&found, "none opens")
}

/// RTM_NEWLINK of a dummy link, refused before the kernel looks at what kind it is to be.
fn new_link() -> Answer {
    let fd = match socket(16, 3, 0) {
        Ok(fd) => fd,
        Err(errno) => return Answer::held(name(errno)),
    };
    // nlmsghdr (32 bytes, RTM_NEWLINK, request with acknowledgement) and an empty ifinfomsg.
    let request = b"\x20\0\0\0\x10\0\x05\x04\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let sent = raw::call(
        libc::SYS_sendto,
        &[
            Arg::Number(fd),
            Arg::Bytes(request),
            Arg::Number(32),
            Arg::Number(0),
            Arg::Number(0),
            Arg::Number(0),
        ],
    );
    if let Err(errno) = sent {
        return Answer::held(name(errno));
    }
    let mut reply = [0; 64];
    let Ok(length) = nix::sys::socket::recv(fd as i32, &mut reply, nix::sys::socket::MsgFlags::MSG_DONTWAIT)
    else {
        return Answer::broken("no reply");
    };
    // nlmsgerr: the negative error number behind the header.
    let error = i32::from_ne_bytes([reply[16], reply[17], reply[18], reply[19]]);
    match Errno::from_raw(-error) {
        _ if length < 20 => Answer::broken("a short reply"),
        Errno::EPERM => Answer::held("EPERM"),
        errno => Answer::broken(format!("reached: {}", name(errno))),
    }
}

fn unreachable(target: &str) -> Answer {
    let targets = std::env::var(TARGETS).unwrap_or_default();
    let given = targets.split(' ').find_map(|item| item.strip_prefix(target)?.strip_prefix('='));
    let Some(address) = given.and_then(|address| address.parse::<SocketAddr>().ok()) else {
        return Answer::senseless("not tried");
    };
    match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(_) => Answer::broken(format!("{address} answers")),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Answer::held("dropped"),
        Err(error) => Answer::held(name(errno(&error))),
    }
}

fn abstract_socket() -> Answer {
    let Ok(wanted) = std::env::var(SOCKET) else { return Answer::senseless("not tried") };
    let address = match UnixAddress::from_abstract_name(&wanted) {
        Ok(address) => address,
        Err(error) => return Answer::senseless(error),
    };
    match UnixStream::connect_addr(&address) {
        Ok(stream) => Answer::broken(format!("connected as {}", stream.as_raw_fd())),
        Err(error) => Answer::held(name(errno(&error))),
    }
}
