//! What a container uses: its cgroups' figures, its network's and its writable layer's.
//!
//! The latter two are seen through its init: `/proc/PID/net/dev` and `net/snmp` (proc_pid_net(5)) show its
//! network namespace, `/proc/PID/root` the file system it runs in. Invariant: a figure is given only when
//! the pid was the container's init all along.

use std::path::PathBuf;

use mogok_api::agent::{DiskUsage, NetworkUsage, Usage};

use crate::ledger::Record;
use crate::node::Ground;
use crate::shim::{self, Process};

/// The container's end of its link.
const INTERFACE: &str = "eth0";

/// None when it does not run. Blocks.
#[must_use]
pub fn of(ground: &Ground, record: &Record) -> Option<Usage> {
    record.run.as_ref()?;
    let id = record.id();
    let mut usage = ground.cgroups.open(&id).usage().ok()?;
    let Some(started) = shim::read_started(&ground.ledger.dir(id)) else { return Some(usage) };
    let proc = PathBuf::from(format!("/proc/{}", started.init_pid));
    let read = |name: &str| std::fs::read_to_string(proc.join(name)).unwrap_or_default();
    let network = network(&read("net/dev"), &read("net/snmp"));
    let disk = disk(&proc.join("root"));
    if matches!(Process::open(started.init_pid, Some(started.init_start_time)), Ok(Some(_))) {
        (usage.network, usage.disk) = (network, disk);
    }
    Some(usage)
}

/// Of the interfaces' table and of the protocols' counters (RFC 1213). Received bytes and packets are the first two columns, sent ones the 9th and 10th.
fn network(table: &str, counters: &str) -> Option<NetworkUsage> {
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(INTERFACE)?.strip_prefix(':'))?;
    let columns: Vec<u64> = line.split_whitespace().map_while(|column| column.parse().ok()).collect();
    Some(NetworkUsage {
        received_bytes: *columns.first()?,
        received_packets: *columns.get(1)?,
        sent_bytes: *columns.get(8)?,
        sent_packets: *columns.get(9)?,
        connections: connections(counters),
    })
}

/// `CurrEstab`: a line of names, then one of values.
fn connections(counters: &str) -> Option<u64> {
    let mut lines = counters.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|name| name == "CurrEstab")?;
    values.split_whitespace().nth(place)?.parse().ok()
}

/// An overlay answers for its writable layer (statvfs(3)).
fn disk(root: &std::path::Path) -> Option<DiskUsage> {
    let stat = nix::sys::statvfs::statvfs(root).ok()?;
    Some(DiskUsage {
        bytes: stat.blocks().saturating_sub(stat.blocks_free()).saturating_mul(stat.fragment_size()),
        inodes: stat.files().saturating_sub(stat.files_free()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_read_off_the_interface() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:       9       1    0    0    0     0          0         0        9       1    0    0    0     0       0          0\n  \
            eth0: 1386312    2371    0    0    0     0          0         0   119201    1893    0    0    0     0       0          0\n";
        let seen = NetworkUsage {
            received_bytes: 1_386_312,
            received_packets: 2371,
            sent_bytes: 119_201,
            sent_packets: 1893,
            connections: None,
        };
        assert_eq!(network(table, ""), Some(seen));
        assert_eq!(network("  eth0: 1 2 3\n", ""), None);
        assert_eq!(network("eth01: 1 2 3 4 5 6 7 8 9 10\n", ""), None);
    }

    #[test]
    fn connections_are_found_by_their_name() {
        let counters = "Ip: Forwarding\nIp: 1\nTcp: RtoMin MaxConn CurrEstab InSegs\nTcp: 200 -1 17 99\n";
        assert_eq!(connections(counters), Some(17));
        assert_eq!(connections("Tcp: RtoMin\nTcp: 200\n"), None);
        assert_eq!(connections(""), None);
        let own = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        assert!(connections(&own).is_some(), "{own}");
    }
}
