//! From the control plane's spec to the shim's: checked here once, so that what reaches the shim is
//! sound. The spec comes from a trusted sender, but its parts come from tenants (command, environment,
//! health path), and a slip in it must be an error with a name, not a strange container.
//!
//! Invariant: a pure function of its inputs.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

pub use crate::network::CONTAINER_PORT as PORT;
use mogok_api::instance::{ContainerKind, InstanceSpec};
use mogok_shim::spec::{Bind, BindKind, DiskLimit, File, Log, Spec, Writable};

/// The user and group of the program inside the container.
pub const APP_ID: u32 = 1000;

const MIB: u64 = 1 << 20;
/// `/tmp` and `/dev/shm` together, at most.
const TMP_BYTES: u64 = 256 * MIB;
const LOG: Log = Log { file_bytes: MIB, files: 4, rate_bytes: MIB };
/// Arguments and environment: what one exec may carry, with room to spare (execve(2)).
const EXEC_BYTES: usize = 512 * 1024;
const MOUNTS: usize = 32;
const GRANTS: usize = 16;
const PATH_BYTES: usize = 1024;
/// Longest grace, boot timeout and the like.
const LONGEST_S: u32 = 24 * 3600;

/// A spec that no container can be made of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    #[error("the command {0:?} does not start with an absolute path")]
    Command(String),
    #[error("the command or the environment holds a NUL byte")]
    Nul,
    #[error("{0:?} is no name of an environment variable")]
    Variable(String),
    #[error("command and environment take {0} bytes, more than {EXEC_BYTES}")]
    ExecTooLarge(usize),
    #[error("{0:?} is not a path that something may be mounted on")]
    MountPath(String),
    #[error("{0} mounts, more than {MOUNTS}")]
    TooManyMounts(usize),
    #[error("the health check's path {0:?} is not a path of printable characters that starts with /")]
    HealthPath(String),
    #[error("{0} grants, more than {GRANTS}")]
    TooManyGrants(usize),
    #[error("{0} is no address and port of a service on the network")]
    Grant(SocketAddrV4),
    #[error("limit {name} is {value}, it must be from {least} to {most}")]
    Limit { name: &'static str, value: u64, least: u64, most: u64 },
}

/// What the node has made for the container before its shim is asked.
#[derive(Debug, Clone)]
pub struct Parts {
    pub layers: Vec<PathBuf>,
    pub disk: PathBuf,
    pub id_base: u32,
    pub cgroup: PathBuf,
    pub cgroups_v1: Vec<PathBuf>,
    /// Files, and what they take behind the number of the disk's device.
    pub disk_limits: Vec<(PathBuf, String)>,
    /// Host path and container path.
    pub blobs: Vec<(PathBuf, String)>,
    pub packages: Vec<(PathBuf, String)>,
    pub output: Option<PathBuf>,
    pub nameservers: Vec<std::net::Ipv4Addr>,
}

/// Is this a spec that a container can be made of?
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check(spec: &InstanceSpec) -> Result<(), InvalidSpec> {
    let program = spec.command.first().map_or("", String::as_str);
    if !program.starts_with('/') {
        return Err(InvalidSpec::Command(shown(program)));
    }
    if spec.command.iter().chain(spec.env.values()).any(|text| text.contains('\0')) {
        return Err(InvalidSpec::Nul);
    }
    if let Some(name) = spec.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(InvalidSpec::Variable(shown(name)));
    }
    let bytes = spec.command.iter().map(|text| text.len() + 1).sum::<usize>()
        + spec.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>();
    if bytes > EXEC_BYTES {
        return Err(InvalidSpec::ExecTooLarge(bytes));
    }
    let mounts: Vec<&str> = spec
        .blobs
        .iter()
        .map(|mount| mount.path.as_str())
        .chain(spec.package_mounts.iter().map(|mount| mount.path.as_str()))
        .chain(spec.output.iter().map(|output| output.path.as_str()))
        .collect();
    if mounts.len() > MOUNTS {
        return Err(InvalidSpec::TooManyMounts(mounts.len()));
    }
    if let Some(path) = mounts.iter().find(|path| !mountable(path)) {
        return Err(InvalidSpec::MountPath(shown(path)));
    }
    if let Some(path) = &spec.health.path
        && !(path.starts_with('/') && path.len() <= PATH_BYTES && path.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err(InvalidSpec::HealthPath(shown(path)));
    }
    if spec.grants.len() > GRANTS {
        return Err(InvalidSpec::TooManyGrants(spec.grants.len()));
    }
    let nowhere = |to: &&SocketAddrV4| {
        let ip = to.ip();
        to.port() == 0 || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast()
    };
    if let Some(grant) = spec.grants.iter().find(nowhere) {
        return Err(InvalidSpec::Grant(*grant));
    }
    let limits = &spec.limits;
    let quota = u64::from(limits.cpu_millis) * 100;
    let io = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    for (name, value, least, most) in [
        ("memory_bytes", limits.memory_bytes, 4 * MIB, 1 << 44),
        ("cpu_weight", u64::from(limits.cpu_weight), 1, 10_000),
        ("cpu_millis", u64::from(limits.cpu_millis), 10, 1_000_000),
        ("cpu_burst_usec", u64::from(limits.cpu_burst_usec), 0, quota),
        ("memory_high_bytes", limits.memory_high(), MIB, limits.memory_bytes),
        ("memory_swap_bytes", limits.memory_swap_bytes, 0, 1 << 44),
        // Less would be a container that cannot even read its program.
        ("io.read_bytes", io(limits.io.read_bytes), 64 << 10, u64::MAX),
        ("io.write_bytes", io(limits.io.write_bytes), 64 << 10, u64::MAX),
        ("io.read_ops", io(limits.io.read_ops), 10, u64::MAX),
        ("io.write_ops", io(limits.io.write_ops), 10, u64::MAX),
        ("io.weight", u64::from(limits.io.weight.unwrap_or(100)), 1, 10_000),
        // Its init and its program.
        ("pids", u64::from(limits.pids), 2, 1 << 22),
        ("disk_bytes", limits.disk_bytes, 4 * MIB, 1 << 44),
        ("disk_inodes", limits.disk_inodes, 64, 1 << 32),
        ("open_files", limits.open_files, 16, 1 << 20),
        ("stop_grace_s", u64::from(spec.stop_grace_s), 0, u64::from(LONGEST_S)),
        ("boot_timeout_s", u64::from(spec.health.boot_timeout_s), 1, u64::from(LONGEST_S)),
    ] {
        if !(least..=most).contains(&value) {
            return Err(InvalidSpec::Limit { name, value, least, most });
        }
    }
    Ok(())
}

/// The shim's spec of a checked instance.
#[must_use]
pub fn spec(wanted: &InstanceSpec, parts: Parts) -> Spec {
    let hostname = hostname(wanted);
    let mut env: Vec<String> = wanted
        .env
        .iter()
        .filter(|(name, _)| !(wanted.listens && name.as_str() == "PORT"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if wanted.listens {
        env.push(format!("PORT={PORT}"));
    }
    let bind = |kind| move |(source, target)| Bind { source, target, kind };
    let mut binds: Vec<Bind> = parts.blobs.into_iter().map(bind(BindKind::ReadOnlyFile)).collect();
    binds.extend(parts.packages.into_iter().map(bind(BindKind::ReadOnlyDir)));
    if let (Some(source), Some(output)) = (parts.output, &wanted.output) {
        binds.push(Bind { source, target: output.path.clone(), kind: BindKind::WritableFile });
    }
    let nameservers: String =
        parts.nameservers.iter().map(|address| format!("nameserver {address}\n")).collect();
    let files = vec![
        File {
            path: "/etc/hosts".into(),
            content: format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {hostname}\n"),
        },
        File { path: "/etc/resolv.conf".into(), content: nameservers },
        File { path: "/etc/hostname".into(), content: format!("{hostname}\n") },
    ];
    Spec {
        id: wanted.id.to_string(),
        hostname,
        layers: parts.layers,
        writable: Writable::Image { path: parts.disk },
        binds,
        files,
        id_base: parts.id_base,
        uid: APP_ID,
        gid: APP_ID,
        cgroup: parts.cgroup,
        cgroups_v1: parts.cgroups_v1,
        disk_limits: parts.disk_limits.into_iter().map(|(file, limits)| DiskLimit { file, limits }).collect(),
        command: wanted.command.clone(),
        env,
        cwd: "/app".into(),
        open_files: wanted.limits.open_files,
        // The output lies outside the capped disk. One byte more than allowed tells "too large" from "just so".
        file_bytes: wanted.output.as_ref().map(|output| output.max_bytes.saturating_add(1)),
        tmp_bytes: TMP_BYTES.min(wanted.limits.memory_bytes / 2),
        log: LOG,
    }
}

/// `fugafuga-web-1`: a label of at most 63 characters (RFC 1123).
fn hostname(spec: &InstanceSpec) -> String {
    let name = match spec.kind {
        ContainerKind::App => format!("{}-{}-{}", spec.app, spec.process.kind, spec.process.index),
        ContainerKind::Build => format!("{}-build", spec.app),
    };
    let name: String =
        name.chars().map(|c| if c == '_' { '-' } else { c.to_ascii_lowercase() }).take(63).collect();
    name.trim_end_matches('-').to_owned()
}

/// An absolute path without tricks, and not one that the sandbox itself mounts.
fn mountable(path: &str) -> bool {
    let plain = path.len() <= PATH_BYTES
        && path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'))
        });
    plain && !["/proc", "/sys", "/dev", "/tmp"].iter().any(|taken| Path::new(path).starts_with(taken))
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use mogok_api::instance::{BlobMount, OutputFile};

    use super::*;
    use crate::instance::sample_spec;

    fn parts() -> Parts {
        Parts {
            layers: vec!["/s/package".into(), "/s/image".into()],
            disk: "/d".into(),
            id_base: 1 << 20,
            cgroup: "/c".into(),
            cgroups_v1: vec![],
            disk_limits: vec![],
            blobs: vec![],
            packages: vec![],
            output: Some("/o".into()),
            nameservers: vec![],
        }
    }

    #[test]
    fn the_operators_page_tells_what_temporary_files_may_have() {
        let page = include_str!("../../../docs/operations.md");
        let row = format!("| `/tmp` and `/dev/shm` of a container | {} MiB together ", TMP_BYTES / MIB);
        assert!(page.contains(&row), "docs/operations.md has no {row:?}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = sample_spec();
        assert_eq!(check(&good), Ok(()));
        let with = |change: fn(&mut InstanceSpec)| {
            let mut spec = good.clone();
            change(&mut spec);
            check(&spec).unwrap_err()
        };
        assert!(matches!(with(|s| s.command = vec!["sh".into()]), InvalidSpec::Command(_)));
        assert!(matches!(with(|s| s.command.push("a\0".into())), InvalidSpec::Nul));
        assert!(matches!(with(|s| drop(s.env.insert("A=B".into(), "".into()))), InvalidSpec::Variable(_)));
        assert!(matches!(
            with(|s| drop(s.env.insert("A".into(), "x".repeat(600_000)))),
            InvalidSpec::ExecTooLarge(_)
        ));
        assert!(matches!(with(|s| s.limits.pids = 1), InvalidSpec::Limit { name: "pids", .. }));
        assert!(matches!(
            with(|s| s.limits.cpu_burst_usec = 200_001),
            InvalidSpec::Limit { name: "cpu_burst_usec", most: 200_000, .. }
        ));
        assert!(matches!(
            with(|s| s.limits.io.write_ops = Some(1)),
            InvalidSpec::Limit { name: "io.write_ops", .. }
        ));
        assert!(matches!(with(|s| s.health.path = Some("/a b".into())), InvalidSpec::HealthPath(_)));
        assert!(matches!(
            with(|s| s.grants = (1..=17).map(|port| SocketAddrV4::new([10, 0, 0, 5].into(), port)).collect()),
            InvalidSpec::TooManyGrants(17)
        ));
        for nowhere in ["10.0.0.5:0", "0.0.0.0:80", "127.0.0.1:80", "224.0.0.1:80"] {
            let spec = InstanceSpec { grants: [nowhere.parse().unwrap()].into(), ..good.clone() };
            assert!(matches!(check(&spec), Err(InvalidSpec::Grant(_))), "{nowhere}");
        }
        for path in ["", "/", "a", "/a/../b", "/a//b", "/proc/x", "/dev", "/a/\0"] {
            let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
            let blobs = vec![BlobMount { digest, path: path.into() }];
            let spec = InstanceSpec { blobs, ..good.clone() };
            assert!(matches!(check(&spec), Err(InvalidSpec::MountPath(_))), "{path:?}");
        }
    }

    #[test]
    fn the_port_is_the_platforms_and_the_output_is_bounded() {
        let mut wanted = sample_spec();
        wanted.listens = true;
        wanted.env.insert("PORT".into(), "80".into());
        wanted.output = Some(OutputFile { path: "/output".into(), max_bytes: 10 });
        let spec = spec(&wanted, parts());
        assert_eq!(spec.env.iter().filter(|var| var.starts_with("PORT=")).collect::<Vec<_>>(), ["PORT=5000"]);
        assert_eq!(spec.file_bytes, Some(11));
        assert_eq!(spec.binds.last().unwrap().kind, BindKind::WritableFile);
    }

    #[test]
    fn hostnames_are_labels() {
        let mut spec = sample_spec();
        spec.process = format!("{}.1", "W_".repeat(31)).parse().unwrap();
        let name = hostname(&spec);
        assert!(name.len() <= 63 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{name}");
        assert!(!name.ends_with('-'));
    }
}
