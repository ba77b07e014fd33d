//! Loop devices (loop(4)): a file as a block device that frees itself with its last user.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Between asking for a free device and taking it another process may take it; as many times at most.
const ATTEMPTS: usize = 32;

/// A device that shows a file. It is freed when neither this nor a mount of it is left.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its path on the host, `/dev/loopN`.
    pub path: String,
    /// Keeps the device while nothing is mounted from it.
    _device: File,
}

const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

impl LoopDevice {
    /// Makes a device that shows `file`.
    ///
    /// # Errors
    /// `EBUSY` when each free device was taken by another before us; those of open(2) and loop(4).
    pub fn new(file: impl AsFd) -> Result<Self, Errno> {
        let control = open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            // SAFETY: the request takes no argument and returns a number (loop(4)).
            let number = Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) })?;
            let path = format!("/dev/loop{number}");
            let device = open(&path)?;
            // SAFETY: all zeroes is a valid loop_config: integers and byte arrays.
            let mut config: LoopConfig = unsafe { std::mem::zeroed() };
            config.fd = file.as_fd().as_raw_fd() as u32;
            config.info.flags = LO_FLAGS_AUTOCLEAR;
            // SAFETY: LOOP_CONFIGURE reads one loop_config, which lives here; its size is asserted above.
            match Errno::result(unsafe {
                libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config)
            }) {
                Ok(_) => return Ok(Self { path, _device: device }),
                Err(Errno::EBUSY) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EBUSY)
    }
}

fn open(path: &str) -> Result<File, Errno> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))
}
