//! A copy of the shim's program that nobody can write, whatever their rights: memory without a name, sealed
//! against writes, growth and unsealing (memfd_create(2), `F_ADD_SEALS` of fcntl(2)).
//!
//! A process that joins a container executes from it, so that nothing that a tenant reaches through
//! `/proc/PID/exe` is a file of the host's (CVE-2019-5736). Invariant: [`Sealed`] holds every seal.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// `MFD_EXEC` of linux/memfd.h, Linux 6.3: it may be executed, whatever `vm.memfd_noexec` has as default.
const EXECUTABLE: MFdFlags = MFdFlags::from_bits_retain(0x10);

/// How often it is tried; each time the kernel waits up to 150 ms.
const SEALINGS: u32 = 10;

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

/// A sealed copy; its memory is freed with the last process that executes from it.
#[derive(Debug)]
pub struct Sealed(OwnedFd);

impl Sealed {
    /// Copies the program at `path`, a few hundred KiB.
    ///
    /// # Errors
    /// When it cannot be read, or the kernel gives no such memory (`vm.memfd_noexec` = 2).
    pub fn copy_of(path: &Path) -> io::Result<Self> {
        let mut program = File::open(path)?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let memory = match memfd_create(c"mogok-shim", flags | EXECUTABLE) {
            // A kernel that does not know the flag needs none.
            Err(Errno::EINVAL) => memfd_create(c"mogok-shim", flags),
            other => other,
        }?;
        let mut copy = File::from(memory);
        io::copy(&mut program, &mut copy)?;
        let mut tries = 1;
        loop {
            match fcntl(&copy, FcntlArg::F_ADD_SEALS(seals())) {
                // The kernel has a page in hand at this moment, to move it or to merge it.
                Err(Errno::EBUSY) if tries < SEALINGS => tries += 1,
                sealed => return Ok(sealed.map(|_| Self(copy.into()))?),
            }
        }
    }

    /// Where this process, and a child of it before its exec, finds it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// Does `file` hold every seal?
pub(crate) fn is_sealed(file: impl AsFd) -> bool {
    fcntl(file, FcntlArg::F_GET_SEALS).is_ok_and(|bits| SealFlag::from_bits_truncate(bits).contains(seals()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_writes_to_the_copy() {
        let sealed = Sealed::copy_of(Path::new("/proc/self/exe")).unwrap();
        assert!(is_sealed(&sealed.0));
        assert_eq!(nix::unistd::write(&sealed.0, b"x"), Err(Errno::EPERM));
        assert_eq!(nix::unistd::ftruncate(&sealed.0, 0), Err(Errno::EPERM));
        // Not even through a new descriptor.
        let opened = File::options().write(true).open(sealed.path());
        if let Ok(opened) = opened {
            assert_eq!(nix::unistd::write(&opened, b"x"), Err(Errno::EPERM));
        }
        assert!(!is_sealed(File::open("/proc/self/exe").unwrap()));
    }
}
