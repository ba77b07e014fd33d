//! Hoards of everything finite, in a container beside a neighbour: what ended them, and how the neighbour and
//! the agent answered meanwhile.
//!
//! Held is what was refused or killed by name within its limits, while every answer came in time. Of what sockets hold
//! the kernel refuses less than the limit says, so more than that must be a kill.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mogok_api::app::{Limits, RestartPolicy};
use mogok_api::instance::{ContainerKind, FailureCode, InstanceSpec, InstanceStatus, Phase};

use nix::sys::inotify::{InitFlags, Inotify};

use super::node::{Node, PATIENCE};
use super::{Finding, PROBE};

const BOMBS: &str = "fork, memory, disk and other bombs";
/// An answer that takes longer was none. Generous: the machine has two cores, and the bomb may use them.
const IN_TIME: Duration = Duration::from_secs(10);
const NAMES: [&str; 26] = [
    "fork",
    "memory",
    "tmpfs",
    "shared_memory",
    "locked_memory",
    "disk",
    "inodes",
    "sparse_files",
    "descriptors",
    "log",
    "dentries",
    "inotify",
    "epoll",
    "pipes",
    "sockets",
    "datagram_buffers",
    "stream_buffers",
    "unaccepted_buffers",
    "reset_buffers",
    "netlink_buffers",
    "file_locks",
    "directory_names",
    "terminals",
    "timers",
    "segments",
    "message_queues",
];

pub(super) fn findings(node: &mut Node, kind: ContainerKind) -> Result<Vec<Finding>> {
    let neighbour = InstanceSpec {
        process: "web.1".parse()?,
        listens: true,
        restart: RestartPolicy::Always,
        ..node
            .spec(ContainerKind::App, &["/bin/sh", "-c", "while true; do echo hello | nc -l -p $PORT; done"])
    };
    node.add(&neighbour)?;
    let up = node.until(neighbour.id, |status| status.phase == Phase::Up)?;
    let endpoint = up.endpoint.context("the neighbour has no port")?;
    let mut findings = Vec::new();
    for bomb in NAMES {
        findings.push(explode(node, kind, bomb, endpoint)?);
    }
    node.remove(neighbour.id)?;
    Ok(findings)
}

fn explode(node: &mut Node, kind: ContainerKind, bomb: &str, neighbour: SocketAddr) -> Result<Finding> {
    let mut spec = InstanceSpec { max_runtime_s: Some(40), ..node.spec(kind, &[PROBE, "bomb", bomb]) };
    if bomb == "directory_names" {
        // As an app has: so that the kernel takes them for names and not the disk for files.
        spec.limits.disk_inodes = Limits::app().disk_inodes;
    }
    node.add(&spec)?;
    let begin = Instant::now();
    let (mut slowest, mut agent) = (Duration::ZERO, Duration::ZERO);
    let before = socket_bytes()?;
    let mut scarce = false;
    let mut buffered = 0;
    let status = loop {
        let asked = Instant::now();
        ask(neighbour).with_context(|| format!("the neighbour of the bomb {bomb:?} does not answer"))?;
        slowest = slowest.max(asked.elapsed());
        let asked = Instant::now();
        let status = node.until(spec.id, |_| true)?;
        agent = agent.max(asked.elapsed());
        // What the kernel grants to a user, and every service manager takes.
        scarce |= Inotify::init(InitFlags::IN_CLOEXEC).is_err();
        buffered = buffered.max(socket_bytes()?.saturating_sub(before));
        if status.phase == Phase::Exited {
            break status;
        }
        anyhow::ensure!(begin.elapsed() < PATIENCE, "the bomb {bomb:?} does not end: {status:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    node.remove(spec.id)?;
    let (contained, end) = end(&status, bomb);
    let killed = status.failure.is_some_and(|failure| failure.code == FailureCode::Memory);
    // Of these the kernel refuses none, and charges nobody for them.
    let uncharged =
        ["unaccepted_buffers", "reset_buffers", "netlink_buffers", "file_locks", "directory_names"]
            .contains(&bomb);
    let (contained, end) = if !killed && (uncharged || buffered > spec.limits.memory_bytes) {
        (false, format!("has what nobody is charged for and is not killed: {end}"))
    } else {
        (contained, end)
    };
    let (contained, end) =
        if scarce { (false, format!("uses up what the host's root has: {end}")) } else { (contained, end) };
    let held = contained && slowest < IN_TIME && agent < IN_TIME;
    // Counts and times differ from run to run, so only their order of magnitude is told.
    let answer = format!("{end}; neighbour and agent answer within {}", magnitude(slowest.max(agent)));
    Ok(Finding::new(BOMBS, &format!("bomb_{bomb}"), Some(held), answer))
}

/// What the buffers of all TCP and UDP sockets of the host hold (proc_net(5), `sockstat`; it counts in pages).
fn socket_bytes() -> Result<u64> {
    let path = "/proc/net/sockstat";
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let pages = |protocol: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(protocol))?;
        line.split_once(" mem ")?.1.split(' ').next()?.parse::<u64>().ok()
    };
    let (tcp, udp) = (pages("TCP:"), pages("UDP:"));
    Ok((tcp.context("no line of TCP")? + udp.context("no line of UDP")?) * 4096)
}

/// One word from the neighbour, whose server accepts one connection at a time.
fn ask(neighbour: SocketAddr) -> Result<()> {
    let begin = Instant::now();
    loop {
        let answer = TcpStream::connect_timeout(&neighbour, IN_TIME).and_then(|mut stream| {
            stream.set_read_timeout(Some(IN_TIME))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        });
        match answer {
            Ok(answer) if answer == "hello\n" => return Ok(()),
            // Between two connections nothing listens.
            _ if begin.elapsed() < IN_TIME => std::thread::sleep(Duration::from_millis(5)),
            Ok(answer) => anyhow::bail!("it says {answer:?}"),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What stopped it: a refusal that it tells itself, or a kill that the agent names.
fn end(status: &InstanceStatus, bomb: &str) -> (bool, String) {
    if let Some(failure) = &status.failure {
        let named = failure.code == FailureCode::Memory;
        return (named, if named { "killed: memory".to_owned() } else { failure.message.clone() });
    }
    let begin = format!("probe: {bomb}: ");
    let told = status.last_lines.iter().rev().find_map(|line| line.strip_prefix(&begin));
    match told.and_then(|told| told.split_once(" taken, ")) {
        // These are not refused: the log drops what is too much, names that do not exist are forgotten.
        Some((_, "not refused in time")) => {
            (["log", "dentries", "sparse_files"].contains(&bomb), "goes on within its limits".to_owned())
        }
        Some((_, refusal)) => (true, refusal.to_owned()),
        None => (false, format!("no end: {:?} {:?}", status.exit, status.last_lines)),
    }
}

fn magnitude(time: Duration) -> &'static str {
    match time.as_millis() {
        0..100 => "0.1 s",
        100..1000 => "1 s",
        _ => "10 s",
    }
}
