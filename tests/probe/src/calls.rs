//! System calls by number: what a container must be refused, whatever its libc offers.
//!
//! Arguments are such that a kernel that lets the call through fails it later (`EINVAL`, `EFAULT`), or does
//! something to the calling process alone; the answer tells the two apart.

use nix::errno::Errno;

use crate::check::{Answer, Check, name};
use crate::raw::{self, Arg};

use Arg::{Number as N, Page, Text};

const MOUNTS: &str = "user namespaces, mounts";
const KERNEL: &str = "kernel interfaces";
const OTHERS: &str = "other processes";
const HOST: &str = "host state";
const UNCHARGED: &str = "kernel memory that nobody is charged for";

/// Threat, name, number, arguments.
type Row = (&'static str, &'static str, i64, &'static [Arg]);

const REFUSED: &[Row] = &[
    (MOUNTS, "unshare_user", libc::SYS_unshare, &[N(libc::CLONE_NEWUSER as i64)]),
    (MOUNTS, "unshare_mount", libc::SYS_unshare, &[N(libc::CLONE_NEWNS as i64)]),
    (MOUNTS, "unshare_pid", libc::SYS_unshare, &[N(libc::CLONE_NEWPID as i64)]),
    (MOUNTS, "unshare_net", libc::SYS_unshare, &[N(libc::CLONE_NEWNET as i64)]),
    (MOUNTS, "unshare_ipc", libc::SYS_unshare, &[N(libc::CLONE_NEWIPC as i64)]),
    (MOUNTS, "unshare_uts", libc::SYS_unshare, &[N(libc::CLONE_NEWUTS as i64)]),
    (MOUNTS, "unshare_cgroup", libc::SYS_unshare, &[N(libc::CLONE_NEWCGROUP as i64)]),
    (MOUNTS, "unshare_time", libc::SYS_unshare, &[N(0x80)]),
    (MOUNTS, "unshare_everything", libc::SYS_unshare, &[N(0x7e02_0080)]),
    // No file system of that name, no such source: nothing is mounted where it is let through.
    (MOUNTS, "mount", libc::SYS_mount, &[Text(c"none"), Text(c"/tmp"), Text(c"nosuchfs"), N(0), Page]),
    (MOUNTS, "mount_bind", libc::SYS_mount, &[Text(c"/none"), Text(c"/tmp"), Page, N(libc::MS_BIND as i64)]),
    (
        MOUNTS,
        "mount_cgroup",
        libc::SYS_mount,
        &[Text(c"c"), Text(c"/tmp"), Text(c"cgroup"), N(0), Text(c"none")],
    ),
    (MOUNTS, "remount", libc::SYS_mount, &[Page, Text(c"/etc"), Page, N(libc::MS_REMOUNT as i64), Page]),
    (MOUNTS, "umount", libc::SYS_umount2, &[Text(c"/etc"), N(0)]),
    (MOUNTS, "pivot_root", libc::SYS_pivot_root, &[Text(c"."), Text(c".")]),
    (MOUNTS, "chroot", libc::SYS_chroot, &[Text(c"/")]),
    (MOUNTS, "fsopen", libc::SYS_fsopen, &[Text(c"tmpfs"), N(0)]),
    (MOUNTS, "fspick", libc::SYS_fspick, &[N(libc::AT_FDCWD as i64), Text(c"/"), N(0)]),
    (MOUNTS, "fsmount", libc::SYS_fsmount, &[N(0), N(0), N(0)]),
    (MOUNTS, "open_tree", libc::SYS_open_tree, &[N(libc::AT_FDCWD as i64), Text(c"/"), N(1)]),
    (MOUNTS, "move_mount", libc::SYS_move_mount, &[N(0), Page, N(0), Page, N(0)]),
    (MOUNTS, "mount_setattr", libc::SYS_mount_setattr, &[N(0), Page, N(0), Page, N(32)]),
    (MOUNTS, "open_by_handle_at", libc::SYS_open_by_handle_at, &[N(0), Page, N(0)]),
    (MOUNTS, "name_to_handle_at", libc::SYS_name_to_handle_at, &[N(-100), Text(c"/"), Page, Page, N(0)]),
    (KERNEL, "bpf", libc::SYS_bpf, &[N(0), Page, N(64)]),
    (KERNEL, "userfaultfd", libc::SYS_userfaultfd, &[N(1)]),
    (KERNEL, "io_uring_setup", libc::SYS_io_uring_setup, &[N(1), Page]),
    (KERNEL, "io_uring_enter", libc::SYS_io_uring_enter, &[N(-1)]),
    (KERNEL, "io_uring_register", libc::SYS_io_uring_register, &[N(-1)]),
    (KERNEL, "keyctl", libc::SYS_keyctl, &[N(0), N(-3), N(0)]),
    (KERNEL, "add_key", libc::SYS_add_key, &[Text(c"user"), Text(c"a"), Text(c"b"), N(1), N(-1)]),
    (KERNEL, "request_key", libc::SYS_request_key, &[Text(c"user"), Text(c"a"), N(0), N(0)]),
    (KERNEL, "kexec_load", libc::SYS_kexec_load, &[N(0), N(0), N(0), N(0)]),
    (KERNEL, "kexec_file_load", libc::SYS_kexec_file_load, &[N(-1), N(-1), N(0), N(0), N(0)]),
    (KERNEL, "init_module", libc::SYS_init_module, &[N(0), N(0), N(0)]),
    (KERNEL, "finit_module", libc::SYS_finit_module, &[N(-1), N(0), N(0)]),
    (KERNEL, "delete_module", libc::SYS_delete_module, &[N(0), N(0)]),
    (KERNEL, "fanotify_init", libc::SYS_fanotify_init, &[N(4), N(0)]),
    (KERNEL, "modify_ldt", libc::SYS_modify_ldt, &[N(0), Page, N(16)]),
    (KERNEL, "iopl", libc::SYS_iopl, &[N(3)]),
    (KERNEL, "ioperm", libc::SYS_ioperm, &[N(0x80), N(1), N(1)]),
    (KERNEL, "memfd_secret", libc::SYS_memfd_secret, &[N(0)]),
    (KERNEL, "seccomp", libc::SYS_seccomp, &[N(2), N(0), Page]),
    (KERNEL, "personality_no_aslr", libc::SYS_personality, &[N(0x004_0000)]),
    (KERNEL, "set_mempolicy", libc::SYS_set_mempolicy, &[N(0), N(0), N(0)]),
    (KERNEL, "quotactl", libc::SYS_quotactl, &[N(0), N(0), N(0), N(0)]),
    (KERNEL, "number_beyond_all_lists", 500, &[]),
    (KERNEL, "x32_getpid", 0x4000_0000 | libc::SYS_getpid, &[]),
    (KERNEL, "x32_execve", 0x4000_0000 | 520, &[]),
    (OTHERS, "ptrace_traceme", libc::SYS_ptrace, &[N(0)]),
    (OTHERS, "kcmp", libc::SYS_kcmp, &[N(1), N(1), N(0), N(0), N(0)]),
    (OTHERS, "pidfd_getfd", libc::SYS_pidfd_getfd, &[N(0), N(0), N(0)]),
    (OTHERS, "process_madvise", libc::SYS_process_madvise, &[N(-1), Page, N(1), N(4), N(0)]),
    (OTHERS, "process_mrelease", libc::SYS_process_mrelease, &[N(-1), N(0)]),
    (OTHERS, "move_pages", libc::SYS_move_pages, &[N(1), N(0), N(0), N(0), N(0), N(0)]),
    (OTHERS, "migrate_pages", libc::SYS_migrate_pages, &[N(1), N(0), N(0), N(0)]),
    (HOST, "sync", libc::SYS_sync, &[]),
    (HOST, "settimeofday", libc::SYS_settimeofday, &[N(0), N(0)]),
    (HOST, "reboot", libc::SYS_reboot, &[N(0), N(0), N(0), N(0)]),
    (HOST, "swapon", libc::SYS_swapon, &[N(0), N(0)]),
    (HOST, "swapoff", libc::SYS_swapoff, &[N(0)]),
    (HOST, "acct", libc::SYS_acct, &[Text(c"/nonexistent")]),
    (HOST, "syslog_size", libc::SYS_syslog, &[N(10), N(0), N(0)]),
    (HOST, "syslog_read_all", libc::SYS_syslog, &[N(3), Page, N(4096)]),
    (HOST, "sethostname", libc::SYS_sethostname, &[Text(c"probe"), N(5)]),
    (HOST, "setdomainname", libc::SYS_setdomainname, &[Text(c"probe"), N(5)]),
    (HOST, "lookup_dcookie", libc::SYS_lookup_dcookie, &[N(0), Page, N(4096)]),
    (
        "device nodes",
        "mknod_character",
        libc::SYS_mknodat,
        &[N(-100), Text(c"/tmp/c"), N(0o20_600), N(0x101)],
    ),
    ("device nodes", "mknod_block", libc::SYS_mknodat, &[N(-100), Text(c"/tmp/b"), N(0o60_600), N(0x700)]),
    ("device nodes", "mknod_old_call", libc::SYS_mknod, &[Text(c"/tmp/o"), N(0o60_600), N(0x700)]),
];

/// Options that the kernel keeps for a socket and charges to nobody, by family (1 Unix, 2 IPv4, 10 IPv6), level and
/// number.
const OPTIONS: [(&str, [i64; 3]); 9] = [
    ("filter_of_a_unix_socket", [1, 1, 26]),
    ("filter_of_a_group_of_sockets", [2, 1, 51]),
    ("tcp_md5_key", [2, 6, 14]),
    ("tcp_protocol_on_top", [2, 6, 31]),
    ("ipv4_group", [2, 0, 35]),
    ("ipv4_groups_of_sources", [2, 0, 48]),
    ("ipv6_control_messages", [10, 41, 6]),
    ("ipv6_group", [10, 41, 20]),
    ("ipv6_flow_label", [10, 41, 32]),
];

/// Flags of `clone` that make namespaces.
const NAMESPACES: [(&str, i32); 7] = [
    ("clone_user", libc::CLONE_NEWUSER),
    ("clone_mount", libc::CLONE_NEWNS),
    ("clone_pid", libc::CLONE_NEWPID),
    ("clone_net", libc::CLONE_NEWNET),
    ("clone_ipc", libc::CLONE_NEWIPC),
    ("clone_uts", libc::CLONE_NEWUTS),
    ("clone_cgroup", libc::CLONE_NEWCGROUP),
];

pub(crate) fn checks() -> Vec<Check> {
    let rows = REFUSED.iter().map(|&(threat, name, number, arguments)| {
        Check::new(threat, name, move || Answer::refused(raw::call(number, arguments)))
    });
    let clones = NAMESPACES.iter().map(|&(name, flag)| Check::new(MOUNTS, name, move || clone(flag)));
    let options = OPTIONS.iter().map(|&(name, option)| Check::new(UNCHARGED, name, move || keep(option)));
    let more = [
        Check::new(UNCHARGED, "locks_of_file_descriptions", || {
            // F_OFD_SETLK with an empty `struct flock`: a lock that no process can be found by.
            Answer::refused(raw::call(libc::SYS_fcntl, &[N(0), N(37), Page]))
        }),
        Check::new(UNCHARGED, "splice", || {
            // EINVAL as of descriptors that have none; EBADF from a kernel that is asked.
            match raw::call(libc::SYS_splice, &[N(-1), N(0), N(-1), N(0), N(1), N(0)]) {
                Err(errno @ Errno::EINVAL) => Answer::held(name(errno)),
                result => Answer::refused(result),
            }
        }),
        Check::new(UNCHARGED, "lease", || {
            // F_SETLEASE, F_UNLCK: there is none to give up.
            Answer::refused(raw::call(libc::SYS_fcntl, &[N(0), N(1024), N(2)]))
        }),
        Check::new(UNCHARGED, "long_access_list", || {
            let list = [Text(c"/tmp"), Text(c"system.posix_acl_access"), Page, N(4096), N(0)];
            Answer::refused(raw::call(libc::SYS_setxattr, &list))
        }),
        Check::new(MOUNTS, "clone3_answers_enosys", clone3),
        Check::new(KERNEL, "perf_event_open", perf_event_open),
        Check::new(KERNEL, "i386_entry", || match raw::i386_getpid() {
            errno if errno < 0 => Answer::held(name(Errno::from_raw(-errno))),
            _ => Answer::broken("allowed"),
        }),
    ];
    rows.chain(clones).chain(options).chain(more).collect()
}

/// An option of a new socket, of a page's length.
fn keep([family, level, option]: [i64; 3]) -> Answer {
    let socket = match raw::call(libc::SYS_socket, &[N(family), N(1), N(0)]) {
        Ok(socket) => socket,
        Err(errno) => return Answer::senseless(name(errno)),
    };
    let answer = raw::call(libc::SYS_setsockopt, &[N(socket), N(level), N(option), Page, N(4096)]);
    let _ = raw::call(libc::SYS_close, &[N(socket)]);
    Answer::refused(answer)
}

/// A child that ends at once, when there is one: it shares nothing with its parent but copies.
fn clone(flag: i32) -> Answer {
    match raw::call(libc::SYS_clone, &[N(i64::from(flag | libc::SIGCHLD))]) {
        Ok(0) => std::process::exit(0),
        Ok(_) => {
            let _ = nix::sys::wait::wait();
            Answer::broken("allowed")
        }
        result => Answer::refused(result),
    }
}

/// libc must take it for a kernel without clone3 and fall back on clone, whose flags a filter can see.
fn clone3() -> Answer {
    // An empty struct clone_args of the first version's size.
    match raw::call(libc::SYS_clone3, &[Page, N(64)]) {
        Ok(0) => std::process::exit(0),
        Err(Errno::ENOSYS) => Answer::held("ENOSYS"),
        Ok(_) => {
            let _ = nix::sys::wait::wait();
            Answer::broken("allowed")
        }
        Err(errno) => Answer::broken(name(errno)),
    }
}

fn perf_event_open() -> Answer {
    // An empty struct perf_event_attr: hardware cycles, size 0 for the first version. The kernel looks at
    // the permission before it looks for such a counter.
    match raw::call(libc::SYS_perf_event_open, &[Page, N(-1), N(0), N(-1), N(0)]) {
        Err(errno @ (Errno::EPERM | Errno::EACCES | Errno::ENOSYS)) => Answer::held(name(errno)),
        Ok(_) => Answer::broken("allowed"),
        Err(errno) => Answer::broken(format!("reached: {}", name(errno))),
    }
}
