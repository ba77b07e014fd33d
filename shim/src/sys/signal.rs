//! Signals as pid 1 needs them: all blocked and taken one by one with the number they carry, none
//! delivered to a handler (sigwaitinfo(2)); and all as after a fresh start for the program.

use nix::errno::Errno;

/// A signal that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub signal: i32,
    /// What it carries, when it was queued with a number (`SI_QUEUE`).
    pub value: Option<i32>,
}

/// Bytes of the kernel's signal set on 64-bit machines, which is not that of the C library.
const KERNEL_SET: usize = 8;
/// The highest signal number.
pub const LAST: i32 = 64;

/// Blocks every signal that can be blocked.
///
/// # Errors
/// None that is documented.
pub fn block_all() -> Result<(), Errno> {
    set_mask(u64::MAX)
}

/// Blocks none.
///
/// # Errors
/// None that is documented.
pub fn unblock_all() -> Result<(), Errno> {
    set_mask(0)
}

fn set_mask(mask: u64) -> Result<(), Errno> {
    // SAFETY: `mask` lives through the call and has the size that is passed (rt_sigprocmask(2)).
    let set = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            std::ptr::null::<u64>(),
            KERNEL_SET,
        )
    };
    Errno::result(set).map(drop)
}

/// Gives every signal its default action: an ignored one would stay ignored after exec.
pub fn default_all() {
    /// The kernel's struct sigaction; all zeroes is SIG_DFL without flags.
    #[repr(C)]
    struct Action([u64; 4]);
    let default = Action([0; 4]);
    for signal in 1..=LAST {
        // Not by the C library, which refuses the two that it uses itself, though these are inherited too.
        // SAFETY: `default` lives through the call and has the layout and set size of the kernel's
        // (rt_sigaction(2)); it installs no handler. SIGKILL and SIGSTOP are refused, and never ignored.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                std::ptr::null_mut::<Action>(),
                KERNEL_SET,
            )
        };
    }
}

/// kill(2) for any number, real-time signals included; pid -1 is every process but pid 1 and the caller.
///
/// # Errors
/// `ESRCH`, `EPERM`, `EINVAL`.
pub fn send(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: integers only.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Waits for a signal that is blocked and takes it.
///
/// # Errors
/// `EINTR` when a stop and continue came in between.
pub fn take() -> Result<Taken, Errno> {
    let every = u64::MAX;
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: set and info live through the call, a null time limit means none, and the size is that of
    // the kernel's set (rt_sigtimedwait(2)).
    let signal = unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const every,
            info.as_mut_ptr(),
            std::ptr::null::<libc::timespec>(),
            KERNEL_SET,
        )
    };
    let signal = Errno::result(signal)? as i32;
    // SAFETY: all zeroes is a valid siginfo_t, and the kernel has filled it in.
    let info = unsafe { info.assume_init() };
    // SAFETY: with SI_QUEUE the union holds the sender's sigval (sigaction(2)).
    let value =
        (info.si_code == libc::SI_QUEUE).then(|| unsafe { info.si_value() }.sival_ptr as isize as i32);
    Ok(Taken { signal, value })
}

/// The siginfo_t of a queued signal that carries `value`.
pub(super) fn queued(signal: i32, value: i32) -> libc::siginfo_t {
    /// The head of the kernel's siginfo_t with `_rt` chosen of its union (asm-generic/siginfo.h).
    #[repr(C)]
    struct Queued {
        signo: i32,
        errno: i32,
        code: i32,
        pad: i32,
        pid: i32,
        uid: u32,
        value: isize,
    }
    const { assert!(size_of::<Queued>() <= size_of::<libc::siginfo_t>()) };
    const { assert!(align_of::<Queued>() <= align_of::<libc::siginfo_t>()) };
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let head = Queued {
        signo: signal,
        errno: 0,
        code: libc::SI_QUEUE,
        pad: 0,
        pid: 0,
        uid: 0,
        value: value as isize,
    };
    // SAFETY: the two assertions above: it fits and is aligned; zeroes are valid for the rest.
    unsafe {
        info.as_mut_ptr().cast::<Queued>().write(head);
        info.assume_init()
    }
}
