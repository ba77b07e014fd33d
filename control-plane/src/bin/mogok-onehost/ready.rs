//! Waiting for a part to accept connections.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::layout::Ready;

/// Does it accept a connection now?
pub(crate) fn is_ready(ready: &Ready) -> bool {
    match ready {
        Ready::Socket(path) => UnixStream::connect(path).is_ok(),
        Ready::Address(address) => TcpStream::connect_timeout(address, Duration::from_millis(500)).is_ok(),
    }
}
