//! `/proc`, `/sys` and the cgroup trees: what shows the host or the kernel, and what steers them.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

use crate::check::{Answer, Check, errno, name};

const SHOWN: &str = "kernel logs, memory, hardware, host load";
const STEERED: &str = "core_pattern, sysrq, /proc/sys, release_agent";
const REAL: &str = "masks and /proc of a hostile image";
/// Files that a sweep looks at, at most.
const SWEEP: usize = 50_000;

/// Show the kernel's memory, symbols, keys and logs, the machine's hardware, or what other tenants do.
const COVERED: &[&str] = &[
    "acpi",
    "asound",
    "allocinfo",
    "bootconfig",
    "buddyinfo",
    "bus",
    "cgroups",
    "cmdline",
    "config.gz",
    "consoles",
    "crypto",
    "devices",
    "diskstats",
    "dma",
    "driver",
    "dynamic_debug",
    "execdomains",
    "fb",
    "fs",
    "interrupts",
    "iomem",
    "ioports",
    "irq",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "locks",
    "mdstat",
    "misc",
    "modules",
    "mtd",
    "mtrr",
    "pagetypeinfo",
    "partitions",
    "pressure",
    "sched_debug",
    "schedstat",
    "scsi",
    "slabinfo",
    "softirqs",
    "swaps",
    "sysrq-trigger",
    "timer_list",
    "tty",
    "vmallocinfo",
    "vmstat",
    "zoneinfo",
    "sys/kernel/random/boot_id",
];

/// What every entry of `/proc` that is readable is for; `docs/security-report.md` says why.
const READABLE: &[&str] = &[
    "cpuinfo",
    "filesystems",
    "loadavg",
    "meminfo",
    "mounts",
    "net",
    "self",
    "stat",
    "sys",
    "sysvipc",
    "thread-self",
    "uptime",
    "version",
];

const STEERING: &[&str] = &[
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/mtrr",
    "/proc/timer_list",
    "/proc/acpi/wakeup",
    "/proc/fs/nfsd/threads",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/mm/ksm/run",
    "/sys/kernel/debug/sched/features",
    "/sys/power/state",
    "/sys/module/kernel/parameters/panic",
    "/sys/devices/system/cpu/cpu0/online",
];

pub(crate) fn checks() -> Vec<Check> {
    let covered = COVERED.iter().map(|&name| {
        Check::new(SHOWN, format!("proc_{}", name.replace('/', "_")), move || {
            shows(&Path::new("/proc").join(name))
        })
    });
    let sys = ["/sys/firmware", "/sys/kernel", "/sys/class", "/sys/block", "/sys/devices", "/sys/fs/bpf"]
        .map(|path| Check::new(SHOWN, path[1..].replace('/', "_"), move || shows(Path::new(path))));
    let steering = STEERING.iter().map(|&path| {
        Check::new(STEERED, format!("write_{}", path[1..].replace('/', "_")), move || {
            writable(Path::new(path))
        })
    });
    let more = [
        Check::new(SHOWN, "proc_shows_only_what_is_on_record", record),
        Check::new(STEERED, "nothing_of_proc_opens_for_writing", || sweep("/proc")),
        Check::new(STEERED, "nothing_of_sys_opens_for_writing", || sweep("/sys")),
        Check::new(STEERED, "no_release_agent", release_agents),
        Check::new(REAL, "proc_is_a_procfs", || match statfs("/proc") {
            Ok(found) if found.filesystem_type() == PROC_SUPER_MAGIC => Answer::held("procfs"),
            Ok(found) => Answer::broken(format!("{:?}", found.filesystem_type())),
            Err(errno) => Answer::broken(name(errno)),
        }),
        Check::new(REAL, "dev_null_is_the_device", || match fs::symlink_metadata("/dev/null") {
            Ok(meta) => Answer::when(
                meta.file_type().is_char_device() && meta.rdev() == 0x103,
                format!("mode {:o}, device {:#x}", meta.mode(), meta.rdev()),
            ),
            Err(error) => Answer::broken(error),
        }),
    ];
    covered.chain(sys).chain(steering).chain(more).collect()
}

/// Is it a mask: the null device, or an empty directory?
fn shows(path: &Path) -> Answer {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => return Answer::held(name(errno(&error))),
    };
    if meta.is_dir() {
        return match fs::read_dir(path) {
            Ok(entries) => match entries.count() {
                0 => Answer::held("empty"),
                count => Answer::broken(format!("{count} entries")),
            },
            Err(error) => Answer::held(name(errno(&error))),
        };
    }
    if meta.file_type().is_char_device() {
        return Answer::when(meta.rdev() == 0x103, "null device");
    }
    match File::open(path).and_then(|mut file| file.read(&mut [0; 512])) {
        Ok(0) => Answer::held("empty"),
        Ok(bytes) => Answer::broken(format!("{bytes} bytes read")),
        Err(error) => Answer::held(name(errno(&error))),
    }
}

/// Opened, never written.
fn writable(path: &Path) -> Answer {
    match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_char_device() && meta.rdev() == 0x103 => {
            return Answer::held("null device");
        }
        Ok(_) => {}
        Err(error) => return Answer::held(name(errno(&error))),
    }
    match OpenOptions::new().write(true).open(path) {
        Ok(_) => Answer::broken("opened for writing"),
        Err(error) => Answer::held(name(errno(&error))),
    }
}

/// What of `/proc` shows anything, beside the processes.
fn record() -> Answer {
    let Ok(entries) = fs::read_dir("/proc") else { return Answer::broken("/proc cannot be read") };
    let found: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.parse::<u32>().is_err() && !READABLE.contains(&name.as_str()))
        .filter(|name| shows(&Path::new("/proc").join(name)).is_broken())
        .collect();
    Answer::none_of(&found, format!("{} entries", READABLE.len()))
}

/// Every file of a tree that opens for writing. Processes are left out: what is theirs is checked by name.
fn sweep(root: &str) -> Answer {
    let mut open = vec![PathBuf::from(root)];
    let (mut seen, mut found) = (0, Vec::new());
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let process = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
            let Ok(kind) = entry.file_type() else { continue };
            seen += 1;
            if seen > SWEEP || kind.is_symlink() || process && root == "/proc" && dir == Path::new(root) {
                continue;
            }
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file() && writable(&path).is_broken() {
                found.push(path.display().to_string());
            }
        }
    }
    Answer::none_of(&found, format!("{seen} entries"))
}

/// Any release_agent of a v1 hierarchy, in what is mounted already. Mounting one is a check of its own.
fn release_agents() -> Answer {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let cgroups = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (place, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup").then(|| PathBuf::from(place))
    });
    let mut found = Vec::new();
    for place in cgroups {
        let agent = place.join("release_agent");
        if OpenOptions::new().write(true).open(&agent).is_ok() {
            found.push(agent.display().to_string());
        }
    }
    Answer::none_of(&found, "no v1 hierarchy is mounted, or none opens")
}
