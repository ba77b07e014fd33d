//! What a program finds itself to be, and what it is refused.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Case, skip};

/// The probe, linked without shared libraries; `None` where there is no C compiler.
pub(crate) fn probe(case: &mut Case) -> Option<()> {
    let layer = case.dir.path().join("probe");
    fs::create_dir(&layer).unwrap();
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/containers/probe.c");
    let built =
        Command::new("cc").args(["-static", "-O1", "-o"]).arg(layer.join("probe")).arg(source).status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("SKIP: no C compiler that links statically");
        return None;
    }
    case.spec.layers.insert(0, layer);
    Some(())
}

/// What the probe says on this kernel.
pub(crate) fn refusals() -> String {
    let expected = include_str!("probe.expected").trim_end();
    if kernel() < (6, 6) {
        return expected.replace("fchmodat2: ALLOWED", "fchmodat2: ENOSYS");
    }
    expected.to_owned()
}

/// The kernel's version.
fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn every_dangerous_call_is_refused() {
    if skip() {
        return;
    }
    let mut case = Case::command(&["/probe"]);
    if probe(&mut case).is_none() {
        return;
    }
    let outcome = case.run();
    assert_eq!(outcome.lines().join("\n"), refusals(), "{outcome:#?}");
}

#[test]
fn the_program_has_no_power_and_no_way_to_any() {
    if skip() {
        return;
    }
    let outcome = Case::script(
        "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Sig(Blk|Ign)|Umask)' /proc/self/status; cat /proc/self/setgroups",
    )
    .run();
    let lines: Vec<_> =
        outcome.lines().iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines,
        [
            "Umask: 0022",
            "Uid: 1000 1000 1000 1000",
            "Gid: 1000 1000 1000 1000",
            "Groups:",
            "SigBlk: 0000000000000000",
            "SigIgn: 0000000000000000",
            "CapInh: 0000000000000000",
            "CapPrm: 0000000000000000",
            "CapEff: 0000000000000000",
            "CapBnd: 0000000000000000",
            "CapAmb: 0000000000000000",
            "NoNewPrivs: 1",
            "Seccomp: 2",
            "Seccomp_filters: 1",
            "deny",
        ]
    );
}

#[test]
fn it_has_three_descriptors_and_a_session_of_its_own() {
    if skip() {
        return;
    }
    let outcome = Case::script("ls /proc/$$/fd; cut -d' ' -f1,5,6,7 /proc/$$/stat").run();
    // Pid 2, leader of group and session 2, no terminal.
    assert_eq!(outcome.lines(), ["0", "1", "2", "2 2 2 0"]);
}

#[test]
fn pid_1_is_out_of_reach() {
    if skip() {
        return;
    }
    let outcome = Case::script(
        "cat /proc/1/comm; for f in environ maps mem; do cat /proc/1/$f 2>/dev/null; done | wc -c
         ls /proc/1/fd 2>/dev/null; ls /proc/1/root/ 2>/dev/null; readlink /proc/1/exe; kill -9 1; echo alive
         kill -STOP 1; echo still",
    )
    .run();
    assert_eq!(outcome.lines(), ["mogok-init", "0", "alive", "still"]);
}

#[test]
fn only_its_own_processes_and_names_are_visible() {
    if skip() {
        return;
    }
    let outcome = Case::script(
        "ls /proc | grep -c '^[0-9]'; cat /proc/self/cgroup | grep '^0::'; cat /proc/net/unix | wc -l
         ip addr show lo | grep -c 'LOOPBACK,UP'; cat /proc/net/dev | grep -c :",
    )
    .run();
    let lines = outcome.lines();
    assert!(lines[0].parse::<u32>().unwrap() <= 5, "{lines:?}");
    assert_eq!(lines[1..], ["0::/", "1", "1", "1"]);
}

#[test]
fn the_kernel_is_neither_shown_nor_steered() {
    if skip() {
        return;
    }
    let outcome = Case::script(
        "for f in kcore keys kallsyms timer_list sysrq-trigger kmsg cmdline interrupts modules config.gz diskstats \
             partitions vmstat locks cgroups sys/kernel/random/boot_id; do
             test -e /proc/$f && head -c 1 /proc/$f 2>/dev/null | wc -c; done | sort -u
         ls /proc/scsi /proc/acpi /proc/asound 2>/dev/null | grep -v : | wc -w
         for f in sys/kernel/core_pattern sys/vm/drop_caches sysrq-trigger sys/net/ipv4/ip_forward irq/default_smp_affinity; do
             (echo 1 > /proc/$f) 2>/dev/null && echo wrote $f; done
         grep -q '^proc /proc/sys proc ro' /proc/mounts || echo sys is writable
         ls /proc/irq /proc/bus /proc/fs /proc/tty /proc/driver /proc/pressure 2>/dev/null | grep -v : | wc -w
         dmesg 2>/dev/null | wc -c; cat /proc/sys/kernel/hostname >/dev/null && echo readable",
    )
    .run();
    // Writing to /dev/null in the place of sysrq-trigger works, and does nothing.
    let lines: Vec<_> = outcome.lines().into_iter().filter(|line| *line != "wrote sysrq-trigger").collect();
    assert_eq!(lines, ["0", "0", "0", "0", "readable"]);
}

#[test]
fn mounts_namespaces_devices_and_names_are_refused() {
    if skip() {
        return;
    }
    let outcome = Case::script(
        "mount -t tmpfs none /tmp 2>/dev/null && echo mount; umount /proc/sys 2>/dev/null && echo umount
         unshare -Ur true 2>/dev/null && echo unshare; mknod /tmp/d c 1 3 2>/dev/null && echo mknod
         chroot / true 2>/dev/null && echo chroot; hostname x 2>/dev/null && echo hostname
         chown 0 /app 2>/dev/null && echo chown; ulimit -n 100000 2>/dev/null && echo ulimit
         mkfifo /tmp/fifo && echo fifo",
    )
    .run();
    assert_eq!(outcome.lines(), ["fifo"]);
}

#[test]
fn devices_are_the_few_that_every_program_may_have() {
    if skip() {
        return;
    }
    let outcome = Case::script(
        "ls /dev; echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c
         (echo x > /dev/full) 2>/dev/null || echo full; echo out > /dev/stdout; echo err > /dev/stderr
         (: > /dev/new) 2>/dev/null && echo new; rm /dev/null 2>/dev/null && echo removed
         (exec 3<>/dev/ptmx) && echo terminal; (exec 3<>/dev/tty) 2>/dev/null && echo tty; true",
    )
    .run();
    let expected = [
        "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
        "zero", "3", "3", "full", "out", "terminal",
    ];
    assert_eq!(outcome.lines(), expected);
    assert_eq!(outcome.stream('E'), ["err"]);
}

#[test]
fn the_shim_itself_cannot_be_overwritten() {
    if skip() {
        return;
    }
    let before = fs::read(env!("CARGO_BIN_EXE_mogok-shim")).unwrap();
    // The kernel resolves the interpreter while the caller is still the shim: the shim is executed, inside.
    let mut case = Case::command(&["/app/attack"]);
    let layer = case.dir.path().join("layer");
    fs::create_dir_all(layer.join("app")).unwrap();
    fs::write(layer.join("app/attack"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(layer.join("app/attack"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    case.spec.layers.insert(0, layer);
    let container = case.start();
    if let mogok_shim::protocol::Report::Started(_) = container.report {
        assert_ne!(container.wait().code, Some(0));
    }
    assert_eq!(fs::read(env!("CARGO_BIN_EXE_mogok-shim")).unwrap(), before);
}
