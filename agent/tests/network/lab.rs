//! A host of its own for every test: a thread in a private network namespace, which it and all that it
//! spawns share, without a way out. It vanishes with the test.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mogok_agent::network::{Egress, Network, NetworkConfig};
use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;

/// A connection that is dropped, not refused, costs this much; longer than TCP waits before it asks again.
pub(crate) const PATIENCE: Duration = Duration::from_millis(2500);
/// An answer that must come may take this long on a busy machine.
const ANSWER: Duration = Duration::from_secs(30);

/// Runs `test` on a thread in a new network namespace; says SKIP where that is not possible.
pub(crate) fn on_a_host_of_its_own<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIP: a network namespace needs root: {errno}");
            return;
        }
        if run("nft", &["list", "ruleset"]).is_err() {
            eprintln!("SKIP: nft does not run");
            return;
        }
        // A container's link is number 2 in its namespace. One that is number 2 on the host too, as on no real host,
        // has the kernel wait up to a second before it lets the first packet through (linkwatch_urgent_event).
        run("ip", &["link", "add", "spent0", "type", "veth", "peer", "name", "spent1"]).unwrap();
        run("ip", &["link", "del", "spent0"]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(Lab { dir: tempfile::tempdir().unwrap() }));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) struct Lab {
    dir: TempDir,
}

impl Lab {
    pub(crate) fn config(&self) -> NetworkConfig {
        NetworkConfig {
            pool: "10.88.0.0/16".parse().unwrap(),
            ports: (20000, 20009),
            egress: Egress::Deny,
            build_grants: vec![SocketAddrV4::new(Ipv4Addr::new(10, 88, 0, 1), 8081)],
            bandwidth: std::num::NonZeroU32::MIN.saturating_add(99_999),
            connections: std::num::NonZeroU32::MIN.saturating_add(4095),
            resolvers: Vec::new(),
            table: "mogok_test".into(),
            state_dir: self.dir.path().to_owned(),
        }
    }

    pub(crate) async fn start(&self) -> Network {
        Network::start(&self.config()).await.unwrap()
    }
}

/// Runs a program in this namespace and answers what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Runs `work` on a thread inside `netns`.
pub(crate) fn inside<T: Send + 'static>(netns: impl AsFd, work: impl FnOnce() -> T + Send + 'static) -> T {
    let netns = netns.as_fd().try_clone_to_owned().unwrap();
    std::thread::spawn(move || {
        setns(&netns, CloneFlags::CLONE_NEWNET).unwrap();
        drop(netns);
        work()
    })
    .join()
    .unwrap()
}

/// Answers every connection with the address it came from, then echoes. Ends with the test.
pub(crate) fn serve(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let peer = stream.peer_addr().unwrap();
                stream.write_all(format!("{}\n", peer.ip()).as_bytes()).unwrap();
                let mut buffer = [0; 64];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..read]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// A connection to [`serve`], and the address it is seen to come from.
pub(crate) fn dial(address: impl Into<SocketAddr>) -> std::io::Result<(TcpStream, String)> {
    dial_within(address, ANSWER)
}

fn dial_within(address: impl Into<SocketAddr>, patience: Duration) -> std::io::Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect_timeout(&address.into(), patience)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut seen = String::new();
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
        seen.push(byte[0].into());
    }
    Ok((stream, seen))
}

/// Does `address` answer to someone inside `netns`?
pub(crate) fn reaches(netns: impl AsFd, address: (Ipv4Addr, u16)) -> bool {
    inside(netns, move || dial_within(address, PATIENCE).is_ok())
}

/// Another machine: a namespace behind a link of the host, with the given addresses.
pub(crate) struct Elsewhere {
    holder: Child,
}

impl Elsewhere {
    /// The host is 10.99.0.1 and 11.0.0.1 on this link. 11.0.0.0/24 stands for the public internet.
    pub(crate) fn new() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = holder.id().to_string();
        let elsewhere = Self { holder };
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs = format!("/proc/{pid}/ns/net");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while std::fs::read_link(&theirs).is_ok_and(|theirs| theirs == own) {
            assert!(std::time::Instant::now() < deadline, "unshare does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        run("ip", &["link", "add", "out0", "type", "veth", "peer", "name", "eth0", "netns", &pid]).unwrap();
        for arguments in
            ["addr add 10.99.0.1/24 dev out0", "addr add 11.0.0.1/24 dev out0", "link set out0 up"]
        {
            run("ip", &arguments.split(' ').collect::<Vec<_>>()).unwrap();
        }
        inside(elsewhere.netns(), || {
            for arguments in
                ["addr add 10.99.0.2/24 dev eth0", "addr add 11.0.0.2/24 dev eth0", "link set eth0 up"]
            {
                run("ip", &arguments.split(' ').collect::<Vec<_>>()).unwrap();
            }
            // So that a packet that was let out by mistake would be answered.
            run("ip", &["route", "add", "10.88.0.0/16", "via", "10.99.0.1"]).unwrap();
        });
        // Until then it loses what is sent.
        while !run("ip", &["link", "show", "out0"]).unwrap().contains("state UP") {
            assert!(std::time::Instant::now() < deadline, "the link does not come up");
            std::thread::sleep(Duration::from_millis(5));
        }
        elsewhere
    }

    pub(crate) fn netns(&self) -> std::fs::File {
        std::fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
