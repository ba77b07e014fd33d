//! Descriptors that travel over a Unix socket (unix(7), `SCM_RIGHTS`), also between clone and exec: the
//! control data lies on the stack. Invariant: what is received is owned at once and close-on-exec.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Descriptors of one message, at most.
pub const MOST: usize = 4;

/// Control data of one `SCM_RIGHTS` message, aligned as a `cmsghdr` has to be.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    fds: [libc::c_int; MOST],
}

/// No message yet.
fn no_control() -> Control {
    // SAFETY: all zeroes is a valid cmsghdr, which has only integers, and they are valid descriptors' numbers.
    unsafe { std::mem::zeroed() }
}

/// Sends bytes, at least one, with descriptors, at most [`MOST`]; the bytes that were taken. Raises no SIGPIPE.
///
/// # Errors
/// `EINVAL` for too many descriptors; those of sendmsg(2).
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let mut control = no_control();
    for (number, fd) in control.fds.get_mut(..fds.len()).ok_or(Errno::EINVAL)?.iter_mut().zip(fds) {
        *number = fd.as_raw_fd();
    }
    let length = size_of::<libc::cmsghdr>() + fds.len() * size_of::<libc::c_int>();
    // Of another integer type in each C library.
    control.header.cmsg_len = length as _;
    control.header.cmsg_level = libc::SOL_SOCKET;
    control.header.cmsg_type = libc::SCM_RIGHTS;
    let mut data = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all zeroes is a valid msghdr: null pointers and lengths of 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = length as _;
    }
    // SAFETY: everything the message points to lives through the call, which writes to none of it; `control`
    // is one cmsghdr directly followed by its descriptors, as CMSG_DATA lies on 64-bit machines (cmsg(3)).
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    Errno::result(sent).map(|sent| sent as usize)
}

/// Receives bytes and, behind those in `fds`, the descriptors that came with them; the number of bytes, 0 at the
/// end.
///
/// # Errors
/// `EMSGSIZE` when there were more descriptors than there is room for; those of recvmsg(2).
pub fn receive(socket: impl AsFd, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
    let mut control = no_control();
    let mut data = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: as above.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: the kernel writes at most the given lengths to `bytes` and `control`, which live through the call.
    let received =
        unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let received = Errno::result(received)? as usize;
    let header = control.header;
    if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
        let length: usize = header.cmsg_len as _;
        let count = length.saturating_sub(size_of::<libc::cmsghdr>()) / size_of::<libc::c_int>();
        for &fd in control.fds.iter().take(count) {
            // SAFETY: the kernel has just installed this descriptor for us, so nobody else owns it.
            fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(Errno::EMSGSIZE);
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_bytes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        assert_eq!(send(&ours, b"hello", &[writer.as_fd(), ours.as_fd()]), Ok(5));
        assert_eq!(send(&ours, b"", &[ours.as_fd(); MOST + 1]), Err(Errno::EINVAL));
        drop(writer);
        let (mut bytes, mut fds) = ([0; 8], Vec::new());
        assert_eq!(receive(&theirs, &mut bytes, &mut fds), Ok(5));
        assert_eq!((&bytes[..5], fds.len()), (&b"hello"[..], 2));
        std::fs::File::from(fds.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        drop((ours, fds));
        assert_eq!(receive(&theirs, &mut bytes, &mut Vec::new()), Ok(0));
        assert_eq!(send(&theirs, b"x", &[]), Err(Errno::EPIPE));
    }
}
