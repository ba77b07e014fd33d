//! Files: what may be written, and what the mounts tell of the host.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::MntFlags;
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::check::{Answer, Check};
use crate::raw::{self, Arg};

const TENANTS: &str = "other tenants";
const RACE: &str = "mount target races, host paths";
const SETUID: &str = "setuid binaries";
/// Paths of the host that the operator of the test names, a colon between; none may be told inside.
const HOST_PATHS: &str = "PROBE_HOST_PATHS";
/// Where a tenant writes: its directory, and what is made fresh for each container.
const WRITABLE: [&str; 7] = ["/app", "/tmp", "/dev/shm", "/dev/pts", "/output", "/proc", "/run"];
/// What the kernel shows for an id that the namespace does not map.
const UNMAPPED: u32 = 65_534;
const ENTRIES: usize = 20_000;

pub(crate) fn checks() -> Vec<Check> {
    let nosuid = ["/", "/tmp", "/app", "/dev/shm", "/proc"].map(|path| {
        Check::new(SETUID, format!("nosuid_{}", path.trim_start_matches('/').replace('/', "_")), move || {
            flag(path, FsFlags::ST_NOSUID)
        })
    });
    let nodev = ["/", "/tmp", "/app", "/dev/shm"].map(|path| {
        Check::new(
            "device nodes",
            format!("nodev_{}", path.trim_start_matches('/').replace('/', "_")),
            move || flag(path, FsFlags::ST_NODEV),
        )
    });
    let more = [
        Check::new(TENANTS, "image_is_not_writable", image),
        Check::new(TENANTS, "image_belongs_to_mapped_ids", owners),
        Check::new(TENANTS, "trusted_attributes", || {
            let _ = fs::write("/tmp/trusted", "");
            let set = raw::call(
                libc::SYS_setxattr,
                &[
                    Arg::Text(c"/tmp/trusted"),
                    Arg::Text(c"trusted.overlay.opaque"),
                    Arg::Text(c"y"),
                    Arg::Number(1),
                ],
            );
            let _ = fs::remove_file("/tmp/trusted");
            Answer::fails(set)
        }),
        Check::new(RACE, "mounts_name_no_host_directory", host_paths),
        Check::new(RACE, "proc_cannot_be_unmounted", || {
            // Not a mount point by that name where /proc is none: the answer is an error in any case.
            Answer::fails(nix::mount::umount2("/proc/self", MntFlags::MNT_EXPIRE))
        }),
        Check::new(RACE, "magic_link_out_of_the_root", || {
            let out =
                ["/proc/1/root/etc/shadow", "/proc/1/cwd/etc/shadow"].map(|path| fs::metadata(path).ok());
            let own = fs::metadata("/etc/shadow").ok().map(|meta| (meta.dev(), meta.ino()));
            let out = out.iter().flatten().any(|meta| Some((meta.dev(), meta.ino())) != own);
            Answer::when(!out, "no way through /proc/1/root")
        }),
    ];
    nosuid.into_iter().chain(nodev).chain(more).collect()
}

fn flag(path: &str, wanted: FsFlags) -> Answer {
    match statvfs(path) {
        Ok(found) => Answer::when(found.flags().contains(wanted), format!("{:?}", found.flags())),
        Err(errno) => Answer::senseless(crate::check::name(errno)),
    }
}

/// Walks the image; what a tenant may write is below a few directories.
fn image() -> Answer {
    let mut found = Vec::new();
    let seen = walk(|path, meta| {
        let known = WRITABLE.iter().any(|known| path.starts_with(known));
        if !known && meta.is_file() && OpenOptions::new().write(true).open(path).is_ok() {
            found.push(path.display().to_string());
        }
    });
    Answer::none_of(&found, format!("{seen} entries"))
}

/// A file whose owner is not mapped was not made for this container.
fn owners() -> Answer {
    let mut found = Vec::new();
    let seen = walk(|path, meta| {
        if !path.starts_with("/dev") && (meta.uid() == UNMAPPED || meta.gid() == UNMAPPED) {
            found.push(path.display().to_string());
        }
    });
    Answer::none_of(&found, format!("{seen} entries"))
}

fn walk(mut visit: impl FnMut(&Path, &fs::Metadata)) -> usize {
    let mut open = vec![PathBuf::from("/")];
    let mut seen = 0;
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = path.symlink_metadata() else { continue };
            seen += 1;
            if seen > ENTRIES || path.starts_with("/proc") || path.starts_with("/sys") {
                continue;
            }
            visit(&path, &meta);
            if meta.is_dir() {
                open.push(path);
            }
        }
    }
    seen
}

fn host_paths() -> Answer {
    let names = std::env::var(HOST_PATHS).unwrap_or_default();
    let texts = ["self/mountinfo", "self/mounts", "self/mountstats", "self/maps", "self/cgroup", "1/cmdline"]
        .map(|file| fs::read(format!("/proc/{file}")).unwrap_or_default());
    let told = |name: &str| {
        texts.iter().any(|text| text.windows(name.len()).any(|window| window == name.as_bytes()))
    };
    let found: Vec<String> =
        names.split(':').filter(|name| !name.is_empty() && told(name)).map(ToOwned::to_owned).collect();
    if names.is_empty() {
        return Answer::senseless(format!("{HOST_PATHS} is not set"));
    }
    Answer::none_of(&found, "none")
}
