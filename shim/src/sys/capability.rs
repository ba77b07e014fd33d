//! Giving up capabilities between clone and exec (capabilities(7)). The `caps` crate does it too, but
//! builds sets on the heap and reports strings; after the start the shim itself uses that.

use nix::errno::Errno;

/// No capability gives power to uid 0, none survives a change of ids by itself, and no one can change that:
/// `SECBIT_NOROOT`, `SECBIT_NO_CAP_AMBIENT_RAISE` and the locks of all four bits.
const SECURE_BITS: i32 = libc::SECBIT_NOROOT
    | libc::SECBIT_NOROOT_LOCKED
    | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
    | libc::SECBIT_KEEP_CAPS_LOCKED
    | libc::SECBIT_NO_CAP_AMBIENT_RAISE
    | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;

/// `_LINUX_CAPABILITY_VERSION_3`: two 32-bit words per set.
const VERSION_3: u32 = 0x2008_0522;

/// An unused argument of prctl, in the width the kernel looks at.
const NONE: libc::c_ulong = 0;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Empties the bounding set, so that no file can give a capability. Takes `CAP_SETPCAP`.
///
/// # Errors
/// `EPERM`.
pub fn clear_bounding() -> Result<(), Errno> {
    for capability in 0..64 as libc::c_ulong {
        // SAFETY: prctl with integers only (PR_CAPBSET_DROP(2const)).
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, NONE, NONE, NONE) }) {
            Ok(_) => {}
            // The first number that the kernel does not know ends the list.
            Err(Errno::EINVAL) if capability > 0 => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Locks the secure bits: a later uid 0 would have no power either. Takes `CAP_SETPCAP`.
///
/// # Errors
/// `EPERM`.
pub fn lock_secure_bits() -> Result<(), Errno> {
    // SAFETY: prctl with integers only (PR_SET_SECUREBITS(2const)).
    Errno::result(unsafe {
        libc::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS as libc::c_ulong, NONE, NONE, NONE)
    })
    .map(drop)
}

/// Empties the ambient, effective, permitted and inheritable sets.
///
/// # Errors
/// None that is documented.
pub fn clear_all() -> Result<(), Errno> {
    // SAFETY: prctl with integers only (PR_CAP_AMBIENT(2const)).
    let cleared = unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, NONE, NONE, NONE)
    };
    Errno::result(cleared)?;
    let header = Header { version: VERSION_3, pid: 0 };
    let none = [Sets { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: version 3 reads one header and two Sets, both alive here (capset(2)).
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) }).map(drop)
}
