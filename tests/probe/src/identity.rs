//! Who the program is: ids, capabilities, descriptors, limits, and that nothing makes it more.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::{Command, ExitCode};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{geteuid, getuid, setgroups, setresuid};

use crate::check::{Answer, Check, errno};
use crate::raw::{self, Arg};

const IDENTITY: &str = "inheritable capabilities, ids";
const SETUID: &str = "setuid binaries";
const LEAKED: &str = "leaked descriptors, cwd";
const LIMITS: &str = "limits cannot be raised";
/// `struct __user_cap_header_struct` of linux/capability.h.
const VERSION_3: &[u8; 8] = b"\x22\x05\x08\x20\0\0\0\0";
/// A copy of this program, owned by root with the set-user-id bit, that the image holds.
const SETUID_COPY: &str = "/bin/setuid-probe";
/// `struct vfs_cap_data` of linux/capability.h: version 2, effective, the first 32 capabilities permitted.
const CAPABLE: &[u8; 20] = b"\x01\0\0\x02\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0";

pub(crate) fn checks() -> Vec<Check> {
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
        .map(|set| Check::new(IDENTITY, format!("{set}_is_empty"), move || empty_set(set)));
    let more = [
        Check::new(IDENTITY, "not_root", || Answer::when(!getuid().is_root(), format!("uid {}", getuid()))),
        Check::new(IDENTITY, "not_an_id_of_the_host", mapped),
        Check::new(IDENTITY, "no_supplementary_groups", groups),
        Check::new(IDENTITY, "become_root", || Answer::fails(setresuid(0.into(), 0.into(), 0.into()))),
        Check::new(IDENTITY, "set_groups", || Answer::fails(setgroups(&[0.into()]))),
        Check::new(IDENTITY, "raise_capabilities", raise),
        Check::new(SETUID, "no_new_privileges", || status_is("NoNewPrivs", "1")),
        Check::new(SETUID, "seccomp_filter", || status_is("Seccomp", "2")),
        Check::new(SETUID, "setuid_root_program_gains_nothing", setuid_program),
        Check::new(SETUID, "set_file_capability", file_capability),
        Check::new(LEAKED, "three_descriptors", descriptors),
        Check::new(LEAKED, "descriptors_lead_nowhere", no_directory),
        Check::new(LEAKED, "cwd_is_inside", cwd),
        Check::new(LEAKED, "nothing_above_the_root", above_root),
        Check::new(LIMITS, "open_files", || raise_limit(Resource::RLIMIT_NOFILE)),
        Check::new(LIMITS, "locked_memory", || raise_limit(Resource::RLIMIT_MEMLOCK)),
        Check::new(LIMITS, "core_file", || raise_limit(Resource::RLIMIT_CORE)),
        Check::new(LIMITS, "priority", || {
            Answer::fails(raw::call(
                libc::SYS_setpriority,
                &[Arg::Number(0), Arg::Number(0), Arg::Number(-1)],
            ))
        }),
        Check::new(LIMITS, "real_time_io", || {
            Answer::fails(raw::call(
                libc::SYS_ioprio_set,
                &[Arg::Number(1), Arg::Number(0), Arg::Number(1 << 13)],
            ))
        }),
        Check::new(LIMITS, "lower_oom_score", || {
            Answer::fails(fs::write("/proc/self/oom_score_adj", "-999").map_err(|error| errno(&error)))
        }),
    ];
    sets.into_iter().chain(more).collect()
}

/// A field of `/proc/self/status`.
fn status(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.split(':').next() == Some(name))?;
    Some(line.split_once(':')?.1.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn status_is(name: &str, wanted: &str) -> Answer {
    let found = status(name).unwrap_or_else(|| "absent".to_owned());
    Answer::when(found == wanted, format!("{name} {found}"))
}

fn empty_set(name: &str) -> Answer {
    status_is(name, "0000000000000000")
}

/// The id on the host behind ours; the whole map of the host's own namespace is the identity.
fn mapped() -> Answer {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let first: Vec<u64> = map.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    match first[..] {
        [0, outside, count] => {
            Answer::when(outside >= 65_536 && count <= 65_536, format!("0 is {outside}, {count} ids"))
        }
        _ => Answer::broken(format!("map {map:?}")),
    }
}

fn groups() -> Answer {
    let groups = status("Groups").unwrap_or_default();
    Answer::when(groups.is_empty(), if groups.is_empty() { "none".to_owned() } else { groups })
}

/// capset(2), version 3, this process: every capability effective, permitted and inheritable.
fn raise() -> Answer {
    Answer::fails(raw::call(libc::SYS_capset, &[Arg::Bytes(VERSION_3), Arg::Bytes(&[0xff; 24])]))
}

/// Prints the effective user id: what a set-user-id copy is run for.
pub(crate) fn print_effective_user() -> ExitCode {
    println!("{}", geteuid());
    ExitCode::SUCCESS
}

fn setuid_program() -> Answer {
    let Ok(meta) = fs::metadata(SETUID_COPY) else {
        return Answer::senseless("the image has no such program");
    };
    if meta.mode() & 0o4000 == 0 {
        return Answer::held(format!("the image cannot hold one: mode {:o}", meta.mode() & 0o7777));
    }
    // Root becomes nobody first.
    if getuid().is_root() && setresuid(65_534.into(), 65_534.into(), 65_534.into()).is_err() {
        return Answer::senseless("root without the right to become another");
    }
    let before = geteuid().to_string();
    match Command::new(SETUID_COPY).arg("euid").output() {
        Ok(output) => {
            let after = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            Answer::when(after == before, format!("user {before} stays {after}"))
        }
        Err(error) => Answer::held(crate::check::name(errno(&error))),
    }
}

/// `security.capability` on a file of one's own.
fn file_capability() -> Answer {
    if fs::write("/tmp/capable", "").is_err() {
        return Answer::senseless("no writable /tmp");
    }
    let set = raw::call(
        libc::SYS_setxattr,
        &[
            Arg::Text(c"/tmp/capable"),
            Arg::Text(c"security.capability"),
            Arg::Bytes(CAPABLE),
            Arg::Number(20),
            Arg::Number(0),
        ],
    );
    let _ = fs::remove_file("/tmp/capable");
    Answer::fails(set)
}

fn descriptors() -> Answer {
    let Ok(dir) = fs::read_dir("/proc/self/fd") else {
        return Answer::broken("/proc/self/fd cannot be read");
    };
    let mut numbers: Vec<u32> =
        dir.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    // The directory itself is one while it is read, always the lowest that was free.
    Answer::when(
        numbers == [0, 1, 2, 3],
        format!("{} beside the one that looks", numbers.len().saturating_sub(1)),
    )
}

/// None of 0-2 is a directory, nor a file or device of a file system of the host's.
fn no_directory() -> Answer {
    let mut found = Vec::new();
    for number in 0..=2 {
        let Ok(meta) = fs::metadata(format!("/proc/self/fd/{number}")) else { continue };
        let kind = meta.file_type();
        let null = kind.is_char_device() && meta.rdev() == 0x103;
        if !(kind.is_fifo() || kind.is_socket() || null || kind.is_char_device() && meta.rdev() >> 8 == 136) {
            let target = fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
            found.push(format!("{number}={}", target.display()));
        }
    }
    Answer::none_of(&found, "pipes, sockets, terminals, null")
}

fn cwd() -> Answer {
    match std::env::current_dir() {
        // The kernel says "(unreachable)" of a directory outside of the root.
        Ok(path) => Answer::when(path.is_absolute(), path.display()),
        Err(error) => Answer::broken(error),
    }
}

fn above_root() -> Answer {
    let place = |path: &str| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    Answer::when(place("/").is_some() && place("/") == place("/../../.."), "/.. is /")
}

fn raise_limit(resource: Resource) -> Answer {
    match getrlimit(resource) {
        Ok((_, u64::MAX)) => Answer::broken("unlimited"),
        Ok((soft, hard)) => Answer::fails(setrlimit(resource, soft, hard + 1)),
        Err(errno) => Answer::fails::<()>(Err(errno)),
    }
}
