//! A thousand idle containers on one node: how long until they run, what agent and shims take while nothing happens,
//! whether a full node starts slower than an empty one, an agent that is killed, and the removal of all.
//!
//! Every container is a web process with all the app kind has: address, veth pair, host port, firewall entry, ext4
//! disk, limits; the health check has seen it answer. Everything runs in a network namespace of the benchmark's own.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mogok_api::id::InstanceId;
use mogok_tests::bench::{self, Row, in_milliseconds, median};
use mogok_tests::leak;
use mogok_tests::network::enter_own_namespace;
use mogok_tests::program::wait_until;

mod node;

use node::Node;

/// Containers; `MOGOK_DENSITY` is another number, for a look at how things grow.
const CONTAINERS: usize = 1000;
/// Starts of one on the empty node, and on the full one.
const STARTS: usize = 20;
/// Between two of them: what the kernel does for a removal after it, it does until then.
const BETWEEN: Duration = Duration::from_millis(100);
/// After the last start, until all is quiet.
const SETTLE: Duration = Duration::from_secs(10);
/// The agent's longest period is 30 s: there is one of each in it.
const QUIET: Duration = Duration::from_secs(30);
const SHIMS_QUIET: Duration = Duration::from_secs(10);
/// Links go in the background.
const REMOVED: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this benchmark makes containers: run it as root");
    enter_own_namespace()?;
    let containers = match std::env::var("MOGOK_DENSITY") {
        Ok(number) => number.parse().context("MOGOK_DENSITY is no number")?,
        Err(_) => CONTAINERS,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut node = Node::new()?;
    let before = node.look()?;
    let rows = runtime.block_on(measure(&mut node, containers))?;
    node.purge()?;
    before.compare(&leak::Host::look(&["mogok-bench-density"])?)?;
    bench::report("density", &rows)
}

async fn measure(node: &mut Node, containers: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    node.start().await?;
    node.want(vec![]).await?;
    // The first one ever formats a disk.
    node.one().await?;
    let empty = starts(node).await?;
    node.idle(Duration::from_secs(2)).await?;
    let quiet = node.look()?;

    let wanted: Vec<_> = (0..containers).map(|_| node::instance()).collect();
    let begin = Instant::now();
    node.want(wanted).await?;
    node.until_as_wanted().await?;
    let took = begin.elapsed().as_secs_f64();
    rows.push(Row::alone(&format!("{containers} started, until all answer"), "s", took, 10.0));

    node.idle(SETTLE).await?;
    let pids = node.pids().await?;
    let agent = node.agent_pid()?.to_string();
    rows.push(Row::alone("agent, RSS", "MiB", kib(&agent, "Rss:")? / 1024.0, 40.0));
    rows.push(Row::alone("agent, PSS", "MiB", kib(&agent, "Pss:")? / 1024.0, 40.0));
    let ticks = cpu_ticks(&agent)?;
    node.idle(QUIET).await?;
    // A tick is 10 ms.
    let cpu = (cpu_ticks(&agent)? - ticks) / QUIET.as_secs_f64();
    rows.push(Row::alone("agent at rest, CPU of one core", "%", cpu, 0.5));
    let switched = switches(&pids)?;
    node.idle(SHIMS_QUIET).await?;
    let switched = switches(&pids)? - switched;
    rows.push(Row::alone("wake-ups of all shims together in 10 s", "", switched, 0.0));
    rows.push(Row::alone("idle shim among them, PSS, median", "KiB", shim_pss(&pids)?, 400.0));

    let full = starts(node).await?;
    let figure = format!("one start beside {containers}, median of {STARTS}");
    rows.push(Row::against(&figure, "ms", full, "alone", empty, 1.2));

    node.kill()?;
    let adopted = node.start().await?;
    node.until_as_wanted().await?;
    let now = node.pids().await?;
    let other = now.iter().filter(|(id, found)| pids.get(id) != Some(found)).count();
    ensure!(now.len() == pids.len() && other == 0, "{other} of {} are not who they were", pids.len());
    let figure = format!("agent killed, all {containers} taken over again");
    rows.push(Row::alone(&figure, "s", adopted.as_secs_f64(), 1.0));

    let begin = Instant::now();
    node.want(vec![]).await?;
    node.until_as_wanted().await?;
    let took = begin.elapsed().as_secs_f64();
    rows.push(Row::alone(&format!("{containers} stopped and removed"), "s", took, 10.0));
    let mut left = String::new();
    let gone = wait_until("all of them have left the host", REMOVED, || {
        left = node.look().map_or_else(|error| error.to_string(), |now| quiet.more_in(&now));
        left.is_empty()
    });
    gone.with_context(|| left)?;
    Ok(rows)
}

/// The median of single starts, in milliseconds.
async fn starts(node: &mut Node) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        times.push(in_milliseconds(node.one().await?));
        tokio::time::sleep(BETWEEN).await;
    }
    Ok(median(&mut times))
}

/// A figure of a process's memory.
fn kib(pid: &str, name: &str) -> Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find(|line| line.starts_with(name)).context("no such figure")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}

/// User and system time of a process with all its threads, also those that have ended.
fn cpu_ticks(pid: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(") ").context("no stat")?.1;
    Ok(fields.split(' ').skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?)
}

/// Times the shims were put to sleep or made way, so far.
fn switches(pids: &BTreeMap<InstanceId, (i32, i32)>) -> Result<f64> {
    let mut all = 0.0;
    for (_, shim) in pids.values() {
        let status = fs::read_to_string(format!("/proc/{shim}/status"))?;
        let counts = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
        all += counts.map(|(_, count)| count.trim().parse::<f64>()).sum::<Result<f64, _>>()?;
    }
    Ok(all)
}

fn shim_pss(pids: &BTreeMap<InstanceId, (i32, i32)>) -> Result<f64> {
    let sizes = pids.values().map(|(_, shim)| kib(&shim.to_string(), "Pss:"));
    Ok(median(&mut sizes.collect::<Result<Vec<_>>>()?))
}
