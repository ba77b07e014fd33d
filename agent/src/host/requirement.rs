//! The requirements of a node, each with the question that decides it. Where the kernel can be asked
//! without leaving a trace it is asked; where not (clone3 and mount_setattr have no such question), its
//! version decides. The network is tried out whole, in a namespace of its own.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use mogok_api::id::InstanceId;
use mogok_api::instance::ContainerKind;
use nix::sched::{CloneFlags, unshare};

use crate::cgroup::watch::{locks, sockets};
use crate::cgroup::{Controller, Hierarchies};
use crate::network::{Demand, Egress, FEATURES, Feature, Network, NetworkConfig, Subnet};

/// Directories of a root user's PATH, which services are often started without.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Overlay on id-mapped layers came with Linux 5.19; clone3 with CLONE_INTO_CGROUP (5.7), `cgroup.kill`
/// (5.14), mount_setattr (5.12) and pidfds are older.
const KERNEL: (u32, u32) = (5, 19);

/// Of the agent and the shims it starts.
const CAPABILITIES: [Capability; 12] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_KILL,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_SYS_PTRACE,
];

/// One thing a node needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// What is needed.
    pub name: &'static str,
    /// Why it is not there, and what to do about it; absent when it is there.
    pub missing: Option<String>,
}

type Question = fn() -> Result<(), String>;

/// Asks for everything, so that one run names all that is missing. Changes nothing on the host; takes
/// about a tenth of a second. May block.
#[must_use]
pub fn check() -> Vec<Requirement> {
    if !nix::unistd::geteuid().is_root() {
        // What the kernel answers to others is about them, not about the host.
        let missing = Some("the agent must run as root: check again as root for the rest".to_owned());
        return vec![Requirement { name: "root", missing }];
    }
    let checks: [(&'static str, Question); 12] = [
        ("root", root),
        ("kernel", kernel),
        ("namespaces", namespaces),
        ("overlay and ext4", file_systems),
        ("seccomp", seccomp),
        ("loop devices", loop_devices),
        ("mkfs.ext4", || program("mkfs.ext4", "e2fsprogs")),
        ("nft", || program("nft", "nftables")),
        ("cgroups", cgroups),
        ("network", network),
        ("socket memory", socket_memory),
        ("file locks", file_locks),
    ];
    let mut found: Vec<Requirement> =
        checks.into_iter().map(|(name, ask)| Requirement { name, missing: ask().err() }).collect();
    found.extend(features());
    found
}

fn socket_memory() -> Result<(), String> {
    sockets::check().map_err(|error| {
        format!("the kernel does not tell what sockets hold, so a container could have it hold more than its memory: load the modules tcp_diag and udp_diag ({error})")
    })
}

fn file_locks() -> Result<(), String> {
    locks::check().map_err(|error| {
        format!("the kernel does not tell how many locks of files there are, so a container could fill its memory with them: it takes a kernel with CONFIG_SLUB_DEBUG, and sysfs at /sys ({error})")
    })
}

fn root() -> Result<(), String> {
    let missing: Vec<String> = CAPABILITIES
        .into_iter()
        .filter(|capability| !caps::has_cap(None, CapSet::Effective, *capability).unwrap_or(false))
        .map(|capability| capability.to_string())
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("lacks {}", missing.join(", "))) }
}

fn kernel() -> Result<(), String> {
    let release = super::kernel_release().map_err(|error| error.to_string())?;
    match version(&release) {
        Some(version) if version >= KERNEL => Ok(()),
        _ => Err(format!(
            "{release} is too old: Linux {}.{} or later has overlay on id-mapped mounts",
            KERNEL.0, KERNEL.1
        )),
    }
}

/// Major and minor number of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn namespaces() -> Result<(), String> {
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        if !Path::new("/proc/self/ns").join(kind).exists() {
            return Err(format!("the kernel has no {kind} namespaces"));
        }
    }
    let limit = Path::new("/proc/sys/user/max_user_namespaces");
    match fs::read_to_string(limit) {
        Ok(text) if text.trim() == "0" => {
            Err("user namespaces are turned off: set the sysctl user.max_user_namespaces".into())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(format!("read {}: {error}", limit.display())),
    }
}

fn file_systems() -> Result<(), String> {
    let path = Path::new("/proc/filesystems");
    let known = fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let missing: Vec<&str> = ["overlay", "ext4", "tmpfs"]
        .into_iter()
        .filter(|name| !known.lines().any(|line| line.split_whitespace().last() == Some(name)))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("the kernel has no {0}: modprobe {0}", missing.join(" ")))
}

fn seccomp() -> Result<(), String> {
    let path = Path::new("/proc/sys/kernel/seccomp/actions_avail");
    let actions = fs::read_to_string(path)
        .map_err(|_| "the kernel was built without seccomp filters (CONFIG_SECCOMP_FILTER)".to_owned())?;
    match ["errno", "kill_process"]
        .into_iter()
        .find(|action| !actions.split_whitespace().any(|a| a == *action))
    {
        Some(action) => Err(format!("seccomp has no action {action}")),
        None => Ok(()),
    }
}

fn loop_devices() -> Result<(), String> {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/loop-control") {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("open /dev/loop-control: {error}; modprobe loop")),
    }
}

fn program(name: &str, package: &str) -> Result<(), String> {
    match PATH.into_iter().map(|dir| PathBuf::from(dir).join(name)).find(|path| path.is_file()) {
        Some(_) => Ok(()),
        None => Err(format!("not in {}: install {package}", PATH.join(":"))),
    }
}

fn cgroups() -> Result<(), String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("read {path}: {error}"));
    let (mounts, own) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
    let found = Hierarchies::find(&mounts, &own, "mogok", None).map_err(|error| error.to_string())?;
    let missing: Vec<&str> = Controller::BASE
        .into_iter()
        .filter(|controller| found.place(*controller).is_none())
        .map(Controller::name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("no controller {} in cgroup v2 nor v1: check the kernel's command line", missing.join(", ")))
}

/// What the network's rules need of the kernel, one by one: trying it out whole would not name it.
fn features() -> Vec<Requirement> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ask = |feature: Feature| match &runtime {
        Ok(runtime) => runtime.block_on(feature.ask()).map_err(|error| describe(&error)),
        Err(error) => Err(format!("start a runtime: {error}")),
    };
    FEATURES
        .into_iter()
        .map(|feature| Requirement { name: feature.name, missing: ask(feature).err() })
        .collect()
}

/// Starts a network, attaches a container and stops it, on a thread whose namespace vanishes with it.
fn network() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("cannot be tried out without root".into());
    }
    let tried = std::thread::Builder::new().name("network-check".into()).spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| format!("make a network namespace: {errno}"))?;
        let dir = tempfile::tempdir().map_err(|error| format!("make a temporary directory: {error}"))?;
        let config = NetworkConfig {
            pool: "10.88.0.0/24".parse::<Subnet>().map_err(|error| error.to_string())?,
            ports: (20000, 20000),
            egress: Egress::Internet,
            build_grants: Vec::new(),
            bandwidth: std::num::NonZeroU32::MIN.saturating_add(99_999),
            connections: std::num::NonZeroU32::MIN,
            // Or a host that has none would be told of that here too.
            resolvers: vec![Ipv4Addr::new(192, 0, 2, 53)],
            table: "mogok_check".into(),
            state_dir: dir.path().to_owned(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("start a runtime: {error}"))?;
        runtime.block_on(async {
            let network = Network::start(&config).await.map_err(|error| describe(&error))?;
            let attached = network.attach(InstanceId::new(), Demand::new(ContainerKind::Build, true)).await;
            network.stop().await;
            attached.map(drop).map_err(|error| describe(&error))
        })
    });
    match tried.map(std::thread::JoinHandle::join) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err("trying it out failed".into()),
        Err(error) => Err(format!("start a thread: {error}")),
    }
}

/// An error with its causes, in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_kernel_versions() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5"), None);
        assert!((5, 4) < KERNEL && (6, 1) >= KERNEL);
    }

    #[test]
    fn names_what_is_missing_with_its_remedy() {
        assert_eq!(
            program("no-such-program", "no-such-package").unwrap_err(),
            "not in /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin: install no-such-package"
        );
    }

    #[test]
    fn a_host_that_runs_the_kernel_tests_passes() {
        let missing: Vec<Requirement> =
            check().into_iter().filter(|requirement| requirement.missing.is_some()).collect();
        if missing.is_empty() {
            return;
        }
        assert!(
            missing
                .iter()
                .all(|requirement| requirement.missing.as_ref().is_some_and(|text| !text.is_empty()))
        );
        eprintln!("SKIP: this host cannot be a node: {missing:?}");
    }
}
