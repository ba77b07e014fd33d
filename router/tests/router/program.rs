//! The program itself: its arguments, its exit, its refusal of an address in use.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::closed;

fn router(listen: &str, directory: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mogok-router"));
    command
        .args(["run", "--listen", listen, "--base-domain", "mogok.test"])
        .args(["--control", "unix:/nonexistent/node.sock", "--state-dir"])
        .arg(directory)
        .stdin(Stdio::null());
    command
}

#[tokio::test]
async fn sigterm_ends_it_with_success() {
    let directory = tempfile::tempdir().unwrap();
    let listen = closed().await.to_string();
    let mut child = router(&listen, directory.path()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(&listen).is_err() {
        assert!(Instant::now() < deadline, "it did not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let output = router(&listen, directory.path()).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(errors.contains(&format!("cannot listen on {listen}")), "{errors}");
    assert!(errors.contains("in use"), "{errors}");
}
