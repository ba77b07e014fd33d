//! Disks as the kernel sees them. Mounts are made in a mount namespace of the test's own and vanish
//! with it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking, their helpers too")]

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mogok_agent::disk::{DiskError, Disks};
use mogok_api::id::InstanceId;
use nix::sched::{CloneFlags, unshare};

const MIB: u64 = 1 << 20;
const OWNER: (u32, u32) = (0x0012_3456, 0x0065_4321);

/// Runs `test` where mounts are private. It gets the disks and a directory to mount on.
fn with_disks(test: impl FnOnce(&Disks, &Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS) {
            eprintln!("SKIP: a mount namespace needs root: {errno}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        run("mount", &["--make-rprivate", "/"]);
        let mount = dir.path().join("mount");
        fs::create_dir(&mount).unwrap();
        test(&Disks::open(&dir.path().join("disks")).unwrap(), &mount);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Mounts an image, runs `look`, unmounts, also when `look` panics.
fn mounted(image: &Path, on: &Path, look: impl FnOnce(&Path)) {
    run("mount", &["-o", "loop", image.to_str().unwrap(), on.to_str().unwrap()]);
    let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(on)));
    run("umount", &[on.to_str().unwrap()]);
    looked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn a_disk_is_a_sound_file_system_of_its_owner_with_the_promised_room() {
    with_disks(|disks, mount| {
        for (bytes, inodes) in [(4 * MIB, 100), (64 * MIB, 2000), (1024 * MIB, 65_536), (4096 * MIB, 500_000)]
        {
            let image = disks.create(&InstanceId::new(), bytes, inodes, OWNER).unwrap();
            run("e2fsck", &["-fn", image.to_str().unwrap()]);
            assert!(image.metadata().unwrap().blocks() * 512 < 2 * MIB, "sparse");
            mounted(&image, mount, |root| {
                let metadata = root.metadata().unwrap();
                assert_eq!((metadata.uid(), metadata.gid()), OWNER);
                let stat = nix::sys::statvfs::statvfs(root).unwrap();
                let room = stat.blocks_available() * stat.fragment_size();
                assert!(room >= bytes, "{room} of {bytes}");
                assert!(room < bytes + bytes / 8 + 4 * MIB, "{room} of {bytes}");
                assert!(stat.files_free() >= inodes, "{} of {inodes}", stat.files_free());
            });
            run("e2fsck", &["-fn", image.to_str().unwrap()]);
            assert!(image.metadata().unwrap().blocks() * 512 < 2 * MIB, "sparse after a mount");
        }
    });
}

#[test]
fn size_and_number_of_files_are_capped() {
    with_disks(|disks, mount| {
        let image = disks.create(&InstanceId::new(), 8 * MIB, 50, OWNER).unwrap();
        mounted(&image, mount, |root| {
            let made =
                (0..1000).take_while(|number| File::create(root.join(number.to_string())).is_ok()).count();
            assert!((50..200).contains(&made), "{made} files");
            let mut file = File::options().write(true).open(root.join("0")).unwrap();
            let mut written = 0;
            let error = loop {
                match file.write_all(&vec![1; MIB as usize]).and_then(|()| file.sync_data()) {
                    Ok(()) => written += 1,
                    Err(error) => break error,
                }
                assert!(written < 100, "no cap");
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull);
            assert!((7..12).contains(&written), "{written} MiB");
        });
    });
}

#[test]
fn disks_share_nothing_and_go_without_a_trace() {
    with_disks(|disks, mount| {
        let (one, two) = (InstanceId::new(), InstanceId::new());
        let first = disks.create(&one, 16 * MIB, 100, OWNER).unwrap();
        mounted(&first, mount, |root| fs::write(root.join("secret"), "x").unwrap());
        let second = disks.create(&two, 16 * MIB, 100, (0, 0)).unwrap();
        mounted(&second, mount, |root| {
            assert!(!root.join("secret").exists());
            assert_eq!(root.metadata().unwrap().uid(), 0);
        });
        assert_eq!(disks.create(&one, 16 * MIB, 100, OWNER).unwrap(), first);
        mounted(&first, mount, |root| assert!(!root.join("secret").exists(), "made anew"));
        assert_eq!(disks.list().unwrap().len(), 2);
        disks.remove(&one).unwrap();
        disks.remove(&one).unwrap();
        assert_eq!(disks.list().unwrap(), [two]);
        assert!(!first.exists());
    });
}

#[test]
fn a_full_disk_and_a_senseless_size_are_named() {
    with_disks(|_, mount| {
        run("mount", &["-t", "tmpfs", "-o", "size=3m", "none", mount.to_str().unwrap()]);
        {
            let disks = Disks::open(&mount.join("disks")).unwrap();
            let id = InstanceId::new();
            let error = disks.create(&id, 64 * MIB, 100, OWNER).unwrap_err();
            assert!(matches!(error, DiskError::Full { available, .. } if available <= 3 * MIB), "{error}");
            assert!(matches!(disks.create(&id, 0, 0, OWNER), Err(DiskError::InvalidSize { .. })));
            assert!(disks.list().unwrap().is_empty());
        }
        run("umount", &[mount.to_str().unwrap()]);
    });
}

#[test]
fn what_was_left_half_made_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    drop(Disks::open(dir.path()).unwrap());
    let half = dir.path().join(format!("{}.new", InstanceId::new()));
    File::create(&half).unwrap();
    assert!(Disks::open(dir.path()).unwrap().list().unwrap().is_empty());
    assert!(!half.exists());
}

#[test]
fn figures() {
    let dir = tempfile::tempdir().unwrap();
    let disks = Disks::open(dir.path()).unwrap();
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..50 {
        let id = InstanceId::new();
        let start = Instant::now();
        if let Err(error) = disks.create(&id, 1024 * MIB, 65_536, OWNER) {
            eprintln!("SKIP: {error}");
            return;
        }
        times.push(start.elapsed());
        disks.remove(&id).unwrap();
    }
    eprintln!("disk create, first (formats) {:?}", times[0]);
    times.sort();
    eprintln!("disk create p50 {:?} p99 {:?}", times[25], times[48]);
}
