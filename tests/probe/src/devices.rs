//! Device nodes: the few that every program may have, and terminals of the container's own.

use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use crate::check::{Answer, Check, errno, name};
use crate::raw::{self, Arg};

const DEVICES: &str = "device nodes";
const TERMINAL: &str = "TIOCSTI and terminals";
/// `makedev` of null, zero, full, random, urandom, tty, ptmx, as the kernel's documents list them.
const ALLOWED: [u64; 7] = [0x103, 0x105, 0x107, 0x108, 0x109, 0x500, 0x502];
/// Major number of pseudo-terminals.
const PTS: u64 = 136;
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;
const TIOCSETD: u64 = 0x5423;
const TIOCSCTTY: u64 = 0x540e;
const ENTRIES: usize = 4096;

pub(crate) fn checks() -> Vec<Check> {
    let absent =
        ["kmsg", "mem", "port", "kvm", "fuse", "net/tun", "loop-control", "mapper/control", "vda", "console"]
            .map(|name| {
                Check::new(DEVICES, format!("dev_{}", name.replace('/', "_")), move || {
                    opens(&format!("/dev/{name}"))
                })
            });
    let more = [
        Check::new(DEVICES, "only_devices_on_the_list", || listed("/dev")),
        Check::new(DEVICES, "no_device_in_the_image", || listed("/")),
        Check::new(DEVICES, "nothing_is_added_to_dev", || {
            let added = OpenOptions::new().write(true).create_new(true).open("/dev/probe");
            let _ = fs::remove_file("/dev/probe");
            Answer::fails(added.map_err(|error| errno(&error)))
        }),
        Check::new(DEVICES, "dev_null_is_not_replaced", || {
            // To the same name: harmless where it is let through.
            Answer::fails(fs::hard_link("/dev/null", "/dev/null.probe").map_err(|error| errno(&error)))
        }),
        Check::new(TERMINAL, "tiocsti", || on_terminal(TIOCSTI, Arg::Text(c"x"))),
        Check::new(TERMINAL, "tiocsti_with_high_bits", || on_terminal(1 << 32 | TIOCSTI, Arg::Text(c"x"))),
        Check::new(TERMINAL, "tioclinux_paste", || on_terminal(TIOCLINUX, Arg::Text(c"\x03"))),
        Check::new(TERMINAL, "line_discipline", || on_terminal(TIOCSETD, Arg::Bytes(&[15, 0, 0, 0]))),
        Check::new(TERMINAL, "terminals_are_the_containers_own", own_terminals),
        Check::new(TERMINAL, "no_terminal_of_the_hosts", host_terminal),
    ];
    absent.into_iter().chain(more).collect()
}

fn opens(path: &str) -> Answer {
    match fs::File::open(path) {
        Ok(file) => {
            let device = file.metadata().map_or(0, |meta| meta.rdev());
            // A console that is a pseudo-terminal of the container's is what LXC gives.
            Answer::when(device >> 8 == PTS || device == 0x103, format!("device {device:#x} opens"))
        }
        Err(error) => Answer::held(name(errno(&error))),
    }
}

/// Nodes below a directory that are not on the list, whether they open or not.
fn listed(root: &str) -> Answer {
    let mut open = vec![PathBuf::from(root)];
    let (mut seen, mut found) = (0, Vec::new());
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            seen += 1;
            let path = entry.path();
            let Ok(meta) = path.symlink_metadata() else { continue };
            let kind = meta.file_type();
            let elsewhere =
                root == "/" && ["/proc", "/sys", "/dev"].iter().any(|other| path.starts_with(other));
            if seen > ENTRIES || elsewhere {
                continue;
            }
            let allowed = ALLOWED.contains(&meta.rdev()) || meta.rdev() >> 8 == PTS;
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_block_device() || kind.is_char_device() && !allowed {
                found.push(format!("{}={:#x}", path.display(), meta.rdev()));
            }
        }
    }
    Answer::none_of(&found, format!("{seen} entries"))
}

/// A request on the container's own pseudo-terminal, which is made the controlling one first.
fn on_terminal(request: u64, argument: Arg) -> Answer {
    let Ok(master) = OpenOptions::new().read(true).write(true).open("/dev/ptmx") else {
        return Answer::senseless("no pseudo-terminals");
    };
    let _ = nix::unistd::setsid();
    let _ = raw::ioctl(master.as_raw_fd(), TIOCSCTTY, Arg::Number(0));
    Answer::refused(raw::ioctl(master.as_raw_fd(), request, argument))
}

fn own_terminals() -> Answer {
    let Ok(entries) = fs::read_dir("/dev/pts") else { return Answer::held("no /dev/pts") };
    let found: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name != "ptmx")
        .collect();
    // What the runtime gave as standard input or output is among them.
    let given = (0..=2)
        .filter_map(|fd| fs::read_link(format!("/proc/self/fd/{fd}")).ok())
        .any(|path| path.starts_with("/dev/pts") || path.starts_with("/dev/console"));
    Answer::when(found.is_empty() || given, format!("{} terminals", found.len()))
}

fn host_terminal() -> Answer {
    match OpenOptions::new().read(true).open("/dev/tty") {
        Ok(_) => Answer::broken("/dev/tty opens"),
        Err(error) => Answer::held(name(errno(&error))),
    }
}
