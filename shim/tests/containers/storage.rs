//! What a container can write, how much of it, and what it sees of the host's files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use mogok_shim::spec::{Bind, BindKind, Writable};

use crate::harness::{Case, USER, skip};

const FILL: &str = "dd if=/dev/zero of=/app/fill bs=64k count=1024 2>&1 | grep -c 'No space left'
    test $(stat -c %s /app/fill) -gt 8000000 && echo filled
    rm /app/fill && echo again > /app/again && cat /app/again";

#[test]
fn a_tmpfs_layer_holds_what_it_may() {
    if skip() {
        return;
    }
    let case = Case::script(FILL);
    assert_eq!(case.run().lines(), ["1", "filled", "again"]);
}

#[test]
fn a_disk_image_holds_what_it_may_and_leaves_no_loop_device() {
    if skip() {
        return;
    }
    let mut case = Case::script(FILL);
    let path = case.disk_image(32 << 20);
    let backing = path.to_str().unwrap().to_owned();
    case.spec.writable = Writable::Image { path };
    let container = case.start();
    container.wait();
    let lines: Vec<_> = container.log().into_iter().map(|(_, line)| line).collect();
    assert_eq!(lines, ["1", "filled", "again"]);
    // Freed with the container, while the shim still serves its exit status.
    crate::harness::until("the loop device is free", || !loop_backings().contains(&backing));
    container.quit();
}

pub(crate) fn loop_backings() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path());
    devices
        .filter_map(|device| fs::read_to_string(device.join("loop/backing_file")).ok())
        .map(|backing| backing.trim().to_owned())
        .collect()
}

#[test]
fn inodes_are_capped() {
    if skip() {
        return;
    }
    let mut case = Case::script("i=0; while [ $i -lt 500 ] && touch /app/$i; do i=$((i+1)); done; echo $i");
    case.spec.writable = Writable::Tmpfs { bytes: 16 << 20, inodes: 200 };
    let outcome = case.run();
    let made: u32 = outcome.stream('O')[0].parse().unwrap_or_else(|_| panic!("{outcome:?}"));
    assert!((100..200).contains(&made), "{outcome:?}");
}

#[test]
fn the_image_is_not_writable_for_the_program_and_never_changes() {
    if skip() {
        return;
    }
    let before = fs::read(crate::harness::image().join("etc/passwd")).unwrap();
    let outcome = Case::script(
        "for f in /etc/passwd /bin/sh /new; do (echo x >> $f) 2>/dev/null && echo wrote $f; done
         echo mine > /app/file; stat -c '%u:%g' /etc/passwd /app /app/file; rm /bin/sh 2>/dev/null && echo removed",
    )
    .run();
    assert_eq!(outcome.stream('O'), ["0:0", "1000:1000", "1000:1000"]);
    assert_eq!(fs::read(crate::harness::image().join("etc/passwd")).unwrap(), before);
    assert!(!crate::harness::image().join("app/file").exists());
}

#[test]
fn binds_show_what_they_should_and_only_the_output_is_writable() {
    if skip() {
        return;
    }
    let mut case = Case::script(
        "cat /source /cache/deep/file; stat -c %u:%g /cache/deep
         (echo x > /source) 2>/dev/null && echo wrote source
         (echo x > /cache/deep/file) 2>/dev/null && echo wrote cache
         rm -f /output 2>/dev/null && echo replaced output
         echo result > /output && stat -c '%u:%g' /output",
    );
    let dir = case.dir.path().join("binds");
    fs::create_dir_all(dir.join("cache/deep")).unwrap();
    fs::write(dir.join("source"), "source\n").unwrap();
    fs::write(dir.join("cache/deep/file"), "cached\n").unwrap();
    fs::write(dir.join("output"), "").unwrap();
    for path in ["cache/deep", "cache/deep/file"] {
        std::os::unix::fs::chown(dir.join(path), Some(USER), Some(USER)).unwrap();
    }
    for (name, kind) in [
        ("source", BindKind::ReadOnlyFile),
        ("cache", BindKind::ReadOnlyDir),
        ("output", BindKind::WritableFile),
    ] {
        case.spec.binds.push(Bind { source: dir.join(name), target: format!("/{name}"), kind });
    }
    let state = case.dir.path().to_owned();
    let container = case.start();
    assert_eq!(container.wait().code, Some(0));
    let lines: Vec<_> = container.log().into_iter().map(|(_, line)| line).collect();
    assert_eq!(lines, ["source", "cached", "1000:1000", "1000:1000"]);
    assert_eq!(fs::read_to_string(state.join("binds/output")).unwrap(), "result\n");
    assert_eq!(fs::metadata(state.join("binds/cache/deep/file")).unwrap().uid(), USER);
}

#[test]
fn set_user_id_bits_and_devices_on_layers_are_void() {
    if skip() {
        return;
    }
    let mut case = Case::script("/setuid/busybox id -u; grep -c nosuid,nodev /proc/mounts");
    let layer = case.dir.path().join("layer/setuid");
    fs::create_dir_all(&layer).unwrap();
    fs::copy("/bin/busybox", layer.join("busybox")).unwrap();
    fs::set_permissions(layer.join("busybox"), fs::Permissions::from_mode(0o6755)).unwrap();
    case.spec.layers.insert(0, case.dir.path().join("layer"));
    let outcome = case.run();
    assert_eq!(outcome.lines()[0], "1000");
    assert!(outcome.lines()[1].parse::<u32>().unwrap() >= 2, "{outcome:?}");
}

#[test]
fn temporary_places_are_there_and_capped_together() {
    if skip() {
        return;
    }
    let outcome = Case::script(
        "for d in /tmp /dev/shm; do dd if=/dev/zero of=$d/x bs=64k count=1024 2>/dev/null; stat -c %s $d/x; done
         rm /tmp/x; for d in /tmp /dev/shm; do cat /bin/busybox > $d/busybox; chmod 755 $d/busybox; $d/busybox true 2>/dev/null && echo runs; rm $d/busybox; done
         (echo x > /sys/x) 2>/dev/null && echo wrote sys; ls /sys | wc -l; stat -c %a /tmp /dev/shm",
    )
    .run();
    assert_eq!(outcome.lines(), ["4194304", "0", "runs", "0", "1777", "1777"]);
}

#[test]
fn nothing_shows_in_the_mount_table_of_the_host() {
    if skip() {
        return;
    }
    let mut case = Case::script("exec sleep 1000");
    case.spec.writable = Writable::Image { path: case.disk_image(32 << 20) };
    let name = case.dir.path().file_name().unwrap().to_str().unwrap().to_owned();
    let container = case.start();
    container.started();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&name) && !table.contains("mogok"), "{table}");
    // Nor does the shim hold any of it.
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", container.shim.id())).unwrap();
    assert!(!table.contains(&name) && !table.contains("overlay"), "{table}");
}
