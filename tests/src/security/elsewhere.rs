//! Another machine: a network namespace behind a link of this thread's, with a private address and the
//! clouds' metadata address, where something listens.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::program::run;

/// The host's side of the link and the way to the addresses behind it.
const HOST: [&str; 3] =
    ["addr add 10.99.0.1/24 dev out0", "link set out0 up", "route add 169.254.169.254/32 via 10.99.0.2"];
/// Waits for its end of the link, then answers on it; a packet that gets out by mistake finds its way back.
const MACHINE: &str = "echo ready; read go
ip addr add 10.99.0.2/24 dev eth0 && ip addr add 169.254.169.254/32 dev eth0 && ip link set eth0 up &&
ip link set lo up && ip route add 10.91.0.0/24 via 10.99.0.1 && echo up
exec busybox nc -ll -p 7702 -e /bin/true";

pub(super) struct Elsewhere {
    machine: Child,
}

impl Elsewhere {
    pub(super) fn new() -> Result<Self> {
        let machine = Command::new("unshare")
            .args(["--net", "/bin/sh", "-c", MACHINE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        // Ended with the value from here on, whatever fails.
        let mut elsewhere = Self { machine };
        let pid = elsewhere.machine.id().to_string();
        let mut said = BufReader::new(elsewhere.machine.stdout.take().context("no pipe")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        ensure!(line == "ready\n", "no other machine: {line:?}");
        run("ip", &["link", "add", "out0", "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
        for arguments in HOST.map(|line| line.split(' ').collect::<Vec<_>>()) {
            run("ip", &arguments)?;
        }
        elsewhere.machine.stdin.take().context("no pipe")?.write_all(b"go\n")?;
        line.clear();
        said.read_line(&mut line)?;
        ensure!(line == "up\n", "the other machine has no addresses: {line:?}");
        Ok(elsewhere)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.machine.kill();
        let _ = self.machine.wait();
    }
}
