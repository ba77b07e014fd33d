//! Container create -> program executed -> exit -> removed, alone and in parallel, without and with a network, and
//! exec into one, against `runc run`, `lxc-execute` and `bwrap` in the same run; memory of an idle shim; start-up of the
//! `mogok` command.
//!
//! Everything runs in a network namespace of the benchmark's own. In a virtual machine (`make bench-vm`) the first
//! figure alone is measured, against `crun` and `runc`.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use mogok_agent::network::{Demand, Egress, Network, NetworkConfig};
use mogok_api::id::InstanceId;
use mogok_api::instance::ContainerKind;
use mogok_shim::sealed::Sealed;
use mogok_shim::spec::file;
use mogok_tests::bench::{self, Row, median, milliseconds};
use mogok_tests::network::enter_own_namespace;
use mogok_tests::platform::bin_dir;
use mogok_tests::program::{wait_until, wait_until_idle};
use mogok_tests::vm;
use nix::sched::{CloneFlags, unshare};

mod engine;
mod machine;
mod peers;

use engine::Engine;
use peers::Peers;

const ROUNDS: usize = 60;
/// At the same time, and how many in all.
const PARALLEL: u32 = 8;
const SUSTAINED: usize = 1600;
const NAME: &str = "mogok-bench";

fn main() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this benchmark makes containers: run it as root");
    enter_own_namespace()?;
    let dir = tempfile::Builder::new().prefix(NAME).tempdir()?;
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let rootfs = engine::rootfs(dir.path())?;
    let engine = Engine::new(dir.path(), &rootfs, NAME)?;
    let peers = Peers::new(dir.path(), &rootfs, NAME)?;
    if std::env::var_os(vm::bench::HERE).is_some() {
        let rows = machine::rows(&engine, &peers)?;
        engine.finish();
        return vm::bench::tell(&rows);
    }
    let mut rows = without_network(&engine, &peers)?;
    rows.extend(with_network(&engine, &peers, dir.path())?);
    rows.push(in_parallel(dir.path(), &rootfs)?);
    rows.extend(exec(&engine, &peers)?);
    rows.extend(idle_shim(&engine)?);
    rows.push(command_start()?);
    engine.finish();
    bench::report("container", &rows)
}

fn without_network(engine: &Engine, peers: &Peers) -> Result<Vec<Row>> {
    // As the agent has them: made while nobody waits.
    let mut ready = (0..ROUNDS).map(|_| namespace()).collect::<Result<Vec<_>>>()?;
    let (mut ours, mut own, mut lxc, mut runc, mut bwrap) = (vec![], vec![], vec![], vec![], vec![]);
    let (mut cgroups, mut shim, mut kernel) = (vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        let netns = ready.pop().context("no namespace is left")?;
        ours.push(milliseconds(|| engine.once(Some(netns.as_fd())))?);
        own.push(milliseconds(|| engine.once(None))?);
        lxc.push(milliseconds(|| peers.lxc(&format!("plain-{round}")))?);
        runc.push(milliseconds(|| peers.bundle("runc", &format!("{round}")))?);
        bwrap.push(milliseconds(|| peers.bwrap())?);
        cgroups.push(milliseconds(|| engine.cgroups_alone())?);
        shim.push(milliseconds(engine::shim_alone)?);
        kernel.push(milliseconds(|| peers.namespaces())?);
    }
    let (ours, own) = (median(&mut ours), median(&mut own));
    let figure = "create -> exec -> exit -> removed, no network";
    Ok(vec![
        Row::alone(figure, "ms", ours, 3.0),
        Row::against(figure, "ms", ours, "lxc-execute", median(&mut lxc), 0.25),
        Row::against(figure, "ms", ours, "runc", median(&mut runc), 0.125),
        Row::against(figure, "ms", ours, "bwrap", median(&mut bwrap), 1.0),
        Row::alone("the same, network namespace made on the way", "ms", own, 3.0),
        Row::part("cgroups with limits, made and removed", "ms", median(&mut cgroups)),
        Row::part("the shim executed, to its usage message", "ms", median(&mut shim)),
        Row::part("unshare(1): the namespaces and nothing else", "ms", median(&mut kernel)),
    ])
}

/// With a veth pair, an address and a firewall entry.
fn with_network(engine: &Engine, peers: &Peers, dir: &Path) -> Result<Vec<Row>> {
    let config = NetworkConfig {
        pool: "10.88.0.0/16".parse()?,
        ports: (20_000, 20_999),
        egress: Egress::Deny,
        build_grants: Vec::new(),
        bandwidth: std::num::NonZeroU32::MIN.saturating_add(99_999),
        connections: std::num::NonZeroU32::MIN.saturating_add(4095),
        resolvers: Vec::new(),
        table: "mogok_bench".to_owned(),
        state_dir: dir.to_owned(),
    };
    let network = engine.block_on(Network::start(&config))?;
    let (mut ours, mut lxc) = (vec![], vec![]);
    for round in 0..ROUNDS {
        ours.push(milliseconds(|| {
            let id = InstanceId::new();
            let attached = engine.block_on(network.attach(id, Demand::new(ContainerKind::App, true)))?;
            engine.once(Some(attached.netns.as_fd()))?;
            drop(attached);
            Ok(engine.block_on(network.detach(id))?)
        })?);
        lxc.push(milliseconds(|| peers.lxc_veth(&format!("veth-{round}")))?);
    }
    engine.block_on(network.stop());
    let ours = median(&mut ours);
    let figure = "the same with private network and firewall entry";
    Ok(vec![
        Row::alone(figure, "ms", ours, 5.0),
        Row::against(figure, "ms", ours, "lxc-execute with a veth pair", median(&mut lxc), 0.25),
    ])
}

/// Starts a second of several threads that each make one container after the other.
fn in_parallel(dir: &Path, rootfs: &Path) -> Result<Row> {
    let made = AtomicUsize::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let worker = |number: u32| {
            let made = &made;
            move || -> Result<()> {
                let engine = Engine::new(dir, rootfs, &format!("{NAME}-{number}"))?;
                while made.fetch_add(1, Ordering::Relaxed) < SUSTAINED {
                    engine.once(None)?;
                }
                engine.finish();
                Ok(())
            }
        };
        let workers: Vec<_> = (0..PARALLEL).map(|number| scope.spawn(worker(number))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
    })?;
    let rate = SUSTAINED as f64 / begin.elapsed().as_secs_f64();
    Ok(Row::at_least(
        &format!("{PARALLEL} in parallel, sustained, teardown included"),
        "starts/s",
        rate,
        500.0,
    ))
}

/// Into a running container.
fn exec(engine: &Engine, peers: &Peers) -> Result<Vec<Row>> {
    let container = engine.start(&["/bin/sleep", "600"], None)?;
    let program = Sealed::copy_of(&bin_dir().join("mogok-shim"))?;
    let (mut executed, mut ours, mut runc) = (vec![], vec![], vec![]);
    peers.with_idle_runc(|name| {
        for _ in 0..ROUNDS {
            ours.push(milliseconds(|| {
                executed.push(bench::in_milliseconds(engine.exec(&container, &program)?));
                Ok(())
            })?);
            runc.push(milliseconds(|| peers.runc_exec(name))?);
        }
        Ok(())
    })?;
    container.cgroup.kill()?;
    engine.end(container)?;
    Ok(vec![
        Row::alone("exec into a running container -> executed", "ms", median(&mut executed), 2.0),
        Row::against("the same to its end", "ms", median(&mut ours), "runc exec", median(&mut runc), 1.0),
    ])
}

fn namespace() -> Result<OwnedFd> {
    let made = std::thread::spawn(|| -> Result<OwnedFd> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(fs::File::open("/proc/thread-self/ns/net")?.into())
    });
    made.join().map_err(|_| anyhow!("the thread of a namespace panicked"))?
}

/// Memory of a shim that holds an idle container.
fn idle_shim(engine: &Engine) -> Result<Vec<Row>> {
    let container = engine.start(&["/bin/sleep", "600"], None)?;
    wait_until("the container runs", Duration::from_secs(10), || {
        container.state.join(file::STARTED).exists()
    })?;
    wait_until_idle(u32::try_from(container.process.pid())?, Duration::from_secs(10))?;
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", container.process.pid()))?;
    container.cgroup.kill()?;
    engine.end(container)?;
    let kib = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|number| number.parse::<f64>().ok()).unwrap_or(f64::NAN)
    };
    Ok(vec![
        Row::alone("idle shim, PSS", "KiB", kib("Pss:"), 400.0),
        Row::alone("idle shim, RSS", "KiB", kib("Rss:"), 2048.0),
        Row::alone("idle shim, private anonymous", "KiB", kib("Anonymous:"), 150.0),
    ])
}

/// The command alone, without the platform: usage, parsing, files.
fn command_start() -> Result<Row> {
    let program = bin_dir().join("mogok");
    let home = tempfile::tempdir()?;
    let start = |program: &Path| -> Result<()> {
        let mut command = Command::new(program);
        command.args(["completion", "bash"]).env("HOME", home.path()).stdout(Stdio::null());
        ensure!(command.status()?.success(), "mogok failed");
        Ok(())
    };
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(milliseconds(|| start(&program))?);
    }
    Ok(Row::alone("mogok command, without the platform", "ms", median(&mut times), 10.0))
}
