/* Makes system calls that a container must not get through, by number, and prints how each one failed.
   What it prints is held against probe.expected. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static void show(const char *what, long result) {
    if (result >= 0) printf("%s: ALLOWED\n", what);
    else printf("%s: %s\n", what, strerrorname_np(errno));
    fflush(stdout);
}

#define TRY(name, ...) show(#name, syscall(SYS_##name, ##__VA_ARGS__))

static void stop(int signal) {
    (void)signal;
    _exit(9);
}

/* Fills its user's queue of signals, which pid 1 shares, and waits for SIGTERM. */
static int fill_queue(void) {
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &blocked, 0);
    signal(SIGTERM, stop);
    union sigval none = {0};
    while (sigqueue(getpid(), SIGRTMIN, none) == 0) continue;
    puts("full");
    fflush(stdout);
    for (;;) pause();
}

int main(int count, char **arguments) {
    if (count > 1 && strcmp(arguments[1], "queue") == 0) return fill_queue();
    TRY(unshare, CLONE_NEWUSER);
    TRY(setns, 0, 0);
    TRY(mount, "none", "/tmp", "tmpfs", 0, "");
    TRY(umount2, "/proc/sys", 2);
    TRY(pivot_root, ".", ".");
    TRY(chroot, "/");
    TRY(fsopen, "tmpfs", 0);
    TRY(open_tree, AT_FDCWD, "/", 1);
    TRY(move_mount, 0, "", 0, "", 0);
    TRY(mount_setattr, 0, "", 0, 0, 0);
    TRY(bpf, 0, 0, 0);
    TRY(perf_event_open, 0, 0, 0, 0, 0);
    TRY(userfaultfd, 0);
    TRY(io_uring_setup, 1, 0);
    TRY(keyctl, 0, 0, 0, 0, 0);
    TRY(add_key, "user", "a", "b", 1, -1);
    TRY(request_key, "user", "a", 0, 0);
    TRY(ptrace, 0, 0, 0, 0);
    TRY(process_vm_readv, 1, 0, 0, 0, 0, 0);
    TRY(process_vm_writev, 1, 0, 0, 0, 0, 0);
    TRY(pidfd_getfd, 0, 0, 0);
    TRY(kcmp, 1, 1, 0, 0, 0);
    TRY(kexec_load, 0, 0, 0, 0);
    TRY(kexec_file_load, 0, 0, 0, 0, 0);
    TRY(init_module, 0, 0, 0);
    TRY(finit_module, 0, 0, 0);
    TRY(delete_module, 0, 0);
    TRY(reboot, 0, 0, 0, 0);
    TRY(swapon, 0, 0);
    TRY(syslog, 3, 0, 0);
    TRY(acct, 0);
    TRY(quotactl, 0, 0, 0, 0);
    TRY(iopl, 3);
    TRY(modify_ldt, 0, 0, 0);
    TRY(settimeofday, 0, 0);
    TRY(clock_settime, 0, 0);
    TRY(adjtimex, 0);
    TRY(open_by_handle_at, 0, 0, 0);
    TRY(name_to_handle_at, 0, "", 0, 0, 0);
    TRY(fanotify_init, 0, 0);
    TRY(seccomp, 0, 0, 0);
    TRY(clone3, 0, 0);
    TRY(sethostname, "x", 1);
    TRY(personality, 0x0040000);
    TRY(memfd_secret, 0);
    TRY(sync);
    show("future call 500", syscall(500));
    show("x32 getpid", syscall(0x40000000 + SYS_getpid));
    show("clone NEWUSER", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    show("clone NEWNET", syscall(SYS_clone, CLONE_NEWNET | SIGCHLD, 0, 0, 0, 0));
    show("mknod block", syscall(SYS_mknodat, AT_FDCWD, "/tmp/b", S_IFBLK | 0600, makedev(7, 0)));
    show("socket PACKET", socket(17, SOCK_RAW, 0));
    show("socket VSOCK", socket(40, SOCK_STREAM, 0));
    show("socket ALG", socket(38, SOCK_SEQPACKET, 0));
    show("socket NETFILTER", socket(16, SOCK_RAW, 12));
    show("socket raw", socket(2, SOCK_RAW, 1));
    show("socket SCTP", socket(2, SOCK_STREAM, 132));
    show("ioctl TIOCSTI", ioctl(0, TIOCSTI, "x"));
    show("ioctl TIOCLINUX", ioctl(0, TIOCLINUX, "\2"));
    show("prctl SECCOMP", prctl(PR_SET_SECCOMP, 2, 0, 0, 0));
    show("setuid 0", setuid(0));
    show("setgroups", syscall(SYS_setgroups, 0, 0));
    show("cwd is inside", access("/bin/busybox", F_OK));
    show("proc/1/exe", open("/proc/1/exe", O_RDONLY));
    /* The i386 entry ends the process. */
    pid_t child = fork();
    if (child == 0) {
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory");
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    printf("i386 getpid: %s\n", WIFSIGNALED(status) ? "killed" : "ALLOWED");
    /* What must work. */
    show("socket UNIX", socket(1, SOCK_STREAM | SOCK_CLOEXEC, 0));
    show("socket TCP", socket(10, SOCK_STREAM | SOCK_NONBLOCK, 6));
    show("socket route", socket(16, SOCK_RAW | SOCK_CLOEXEC, 0));
    show("mkfifo", mkfifo("/tmp/fifo", 0600));
    show("fchmodat2", syscall(452, AT_FDCWD, "/tmp/fifo", 0644, 0));
    return 0;
}
