//! Hoards of everything that a host has a finite amount of: takes more until it is refused, says what
//! refused it, and keeps what it has for some seconds.
//!
//! Invariant: each ends by itself, and only ever runs in a container that has limits.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{setsockopt, sockopt};

use crate::check::{errno, name};
use crate::raw::{self, Arg};

/// How long what was taken is kept.
const KEPT: Duration = Duration::from_secs(2);
/// The same of what the kernel charges to nobody, which the agent looks for from time to time.
const KEPT_UNCHARGED: Duration = Duration::from_secs(20);
/// No bomb takes longer.
const LONGEST: Duration = Duration::from_secs(15);
/// More than any limit of a container's.
const MANY: usize = 3_000_000;

/// Runs one; its last line is `probe: NAME: COUNT taken, ANSWER`.
pub(crate) fn run(bomb: &str) -> ExitCode {
    println!("probe: {bomb} begins");
    let end = Instant::now() + LONGEST;
    let mut held = Hoard::default();
    let mut taken = 0;
    let mut answer = "not refused in time".to_owned();
    while taken < MANY && Instant::now() < end {
        match held.take(bomb, taken) {
            Ok(()) => taken += 1,
            Err(refusal) => {
                answer = refusal;
                break;
            }
        }
    }
    let uncharged = bomb.ends_with("_buffers") || ["file_locks", "directory_names"].contains(&bomb);
    std::thread::sleep(if uncharged { KEPT_UNCHARGED } else { KEPT });
    println!("probe: {bomb}: {taken} taken, {answer}");
    drop(held);
    ExitCode::SUCCESS
}

#[derive(Default)]
struct Hoard {
    children: Vec<std::process::Child>,
    memory: Vec<Vec<u8>>,
    files: Vec<File>,
    fill: Option<File>,
    datagrams: Vec<UdpSocket>,
    streams: Vec<[TcpStream; 2]>,
    listeners: Vec<TcpListener>,
}

impl Drop for Hoard {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

impl Hoard {
    /// Takes one more.
    fn take(&mut self, bomb: &str, taken: usize) -> Result<(), String> {
        let failed = |error: io::Error| name(errno(&error));
        let number = |result: Result<i64, Errno>| result.map(drop).map_err(name);
        match bomb {
            "fork" => {
                let child = Command::new("/proc/self/exe").arg("wait").stdout(Stdio::null()).spawn();
                self.children.push(child.map_err(failed)?);
            }
            "memory" => self.memory.push(vec![1; 1 << 20]),
            "tmpfs" => self.fill("/tmp/fill")?,
            "shared_memory" => self.fill("/dev/shm/fill")?,
            "disk" => self.fill("/app/fill")?,
            "inodes" => {
                let dir = format!("/app/i/{}", taken / 1000);
                fs::create_dir_all(&dir).map_err(failed)?;
                File::create(format!("{dir}/{taken}")).map_err(failed)?;
            }
            "descriptors" => self.files.push(File::open("/dev/null").map_err(failed)?),
            "log" => {
                let mut out = io::stdout().lock();
                out.write_all(&[b'x'; 4096]).and_then(|()| out.write_all(b"\n")).map_err(failed)?;
            }
            // A name that does not exist is remembered as such by the kernel.
            "dentries" => drop(fs::metadata(format!("/tmp/no-{taken}-{}", "x".repeat(200)))),
            "inotify" => number(raw::call(libc::SYS_inotify_init1, &[]))?,
            "epoll" => number(raw::call(libc::SYS_epoll_create1, &[Arg::Number(0)]))?,
            "pipes" => number(raw::call(libc::SYS_pipe2, &[Arg::Page, Arg::Number(0)]))?,
            "timers" => {
                number(raw::call(libc::SYS_timer_create, &[Arg::Number(1), Arg::Number(0), Arg::Page]))?
            }
            // Segments of the IPC namespace, a megabyte each.
            "segments" => number(raw::call(
                libc::SYS_shmget,
                &[Arg::Number(0), Arg::Number(1 << 20), Arg::Number(0o1600)],
            ))?,
            "message_queues" => number(raw::call(libc::SYS_msgget, &[Arg::Number(0), Arg::Number(0o1600)]))?,
            "sockets" => number(raw::call(
                libc::SYS_socketpair,
                &[Arg::Number(1), Arg::Number(1), Arg::Number(0), Arg::Page],
            ))?,
            "datagram_buffers" => self.datagrams.push(full_of_datagrams().map_err(failed)?),
            "stream_buffers" => self.streams.push(full_stream().map_err(failed)?),
            "unaccepted_buffers" => drop(self.unaccepted(taken).map_err(failed)?),
            // Some gigabytes: the host has to bear it until somebody looks.
            "reset_buffers" if taken >= 1000 => std::thread::sleep(Duration::from_millis(10)),
            "reset_buffers" => {
                let reset = libc::linger { l_onoff: 1, l_linger: 0 };
                let mut stream = self.unaccepted(taken).map_err(failed)?;
                // As much as the listener's buffer takes, which is the largest that there is.
                stream.set_nonblocking(true).map_err(failed)?;
                for _ in 0..40 {
                    if stream.write(&[1; 60_000]).is_err() {
                        break;
                    }
                }
                setsockopt(&stream, sockopt::Linger, &reset).map_err(name)?;
            }
            "directory_names" => self.read_directory(taken).map_err(failed)?,
            "file_locks" => self.lock(taken).map_err(name)?,
            "netlink_buffers" => full_of_answers().map_err(name)?,
            "terminals" => {
                let file = OpenOptions::new().read(true).write(true).open("/dev/ptmx");
                self.files.push(file.map_err(failed)?);
            }
            "locked_memory" => {
                let memory = vec![1_u8; 1 << 20].leak();
                number(raw::call(libc::SYS_mlock, &[Arg::Bytes(memory), Arg::Number(1 << 20)]))?;
            }
            "sparse_files" => {
                let file = File::create(format!("/app/sparse-{taken}")).map_err(failed)?;
                file.set_len(1 << 40).map_err(failed)?;
            }
            other => return Err(format!("there is no bomb {other:?}")),
        }
        Ok(())
    }

    /// A connection that nobody accepts, with all that goes into it; it has no descriptor.
    fn unaccepted(&mut self, taken: usize) -> io::Result<TcpStream> {
        if taken.is_multiple_of(100) {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            setsockopt(&listener, sockopt::RcvBuf, &(16 << 20))?;
            self.listeners.push(listener);
        }
        let listener = self.listeners.last().ok_or(ErrorKind::NotFound)?;
        let mut stream = TcpStream::connect(listener.local_addr()?)?;
        stream.write_all(&[1; 60_000])?;
        Ok(stream)
    }

    /// A descriptor that keeps the names a directory had, which is one of the image's and was changed since the last.
    fn read_directory(&mut self, taken: usize) -> io::Result<()> {
        let name = |number: usize| format!("/app/{number}-{}", "x".repeat(200));
        if taken == 0 {
            for number in 1..=3000 {
                File::create(name(number))?;
            }
        }
        let directory = File::open("/app")?;
        let read = [Arg::Number(directory.as_raw_fd().into()), Arg::Page, Arg::Number(4096)];
        raw::call(libc::SYS_getdents64, &read)?;
        self.files.push(directory);
        File::create(name(0))?;
        fs::remove_file(name(0))
    }

    /// A lock of one byte more of a file, with a gap so that it does not become part of the one before. From the end, and
    /// not too many of one file: the kernel goes through all of its locks.
    fn lock(&mut self, taken: usize) -> Result<(), Errno> {
        const OF_ONE: usize = 5000;
        if taken.is_multiple_of(OF_ONE) {
            let file = File::create(format!("/app/locked-{taken}"));
            self.files.push(file.map_err(|error| errno(&error))?);
        }
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 2 * (OF_ONE - taken % OF_ONE) as libc::off_t,
            l_len: 1,
            l_pid: 0,
        };
        self.files.last().map_or(Ok(()), |file| fcntl(file, FcntlArg::F_SETLK(&lock)).map(drop))
    }

    fn fill(&mut self, path: &str) -> Result<(), String> {
        let failed = |error: io::Error| name(errno(&error));
        if self.fill.is_none() {
            self.fill = Some(File::create(path).map_err(failed)?);
        }
        match &mut self.fill {
            Some(file) => file.write_all(&[1; 1 << 16]).map_err(failed),
            None => Ok(()),
        }
    }
}

/// A socket with as many datagrams of its own as it takes; what is too much is dropped without a word.
fn full_of_datagrams() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(socket.local_addr()?)?;
    socket.set_nonblocking(true)?;
    for _ in 0..8 {
        match socket.send(&[1; 60_000]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(socket)
}

/// Both ends of a connection with as much under way as goes into it; nobody reads.
fn full_stream() -> io::Result<[TcpStream; 2]> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut from = TcpStream::connect(listener.local_addr()?)?;
    let (to, _) = listener.accept()?;
    from.set_nonblocking(true)?;
    for _ in 0..256 {
        match from.write(&[1; 1 << 16]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok([from, to])
}

/// A netlink socket with lists of links (rtnetlink(7)) that nobody reads.
fn full_of_answers() -> Result<(), Errno> {
    // nlmsghdr: length, RTM_GETLINK, REQUEST and DUMP, sequence, port; rtgenmsg: any family. Little-endian.
    const REQUEST: &[u8] = &[17, 0, 0, 0, 18, 0, 1, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    const MEBIBYTE: &[u8] = &[0, 0, 16, 0];
    let fd = raw::call(libc::SYS_socket, &[Arg::Number(16), Arg::Number(3), Arg::Number(0)])?;
    let socket = Arg::Number(fd);
    raw::call(
        libc::SYS_setsockopt,
        &[socket, Arg::Number(1), Arg::Number(8), Arg::Bytes(MEBIBYTE), Arg::Number(4)],
    )?;
    for _ in 0..400 {
        let length = Arg::Number(17);
        let sent = raw::call(libc::SYS_sendto, &[socket, Arg::Bytes(REQUEST), length, Arg::Number(0x40)]);
        if sent.is_err() {
            break;
        }
    }
    Ok(())
}
