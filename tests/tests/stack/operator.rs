//! What the operator is told when the platform cannot run here.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Result, ensure};
use mogok_tests::Platform;
use mogok_tests::platform::{Options, bin_dir};
use mogok_tests::program::both;

#[test]
fn a_taken_port_is_named_with_the_option_that_moves_it() -> Result<()> {
    let Some(platform) = Platform::prepare(Options::default())? else { return Ok(()) };
    for (address, option) in [
        ("127.0.0.1:7701", "--control-plane-listen"),
        ("127.0.0.1:7702", "--router-listen"),
        ("127.0.0.1:8080", "--listen"),
    ] {
        let _other = TcpListener::bind(address)?;
        let told = platform.refusal(|_| {})?;
        ensure!(
            told.contains(address) && told.contains(&format!("give another address with {option}")),
            "{told}"
        );
    }
    platform.finish()
}

#[test]
fn who_is_not_root_is_told_so() -> Result<()> {
    let Some(platform) = Platform::prepare(Options::default())? else { return Ok(()) };
    let told = platform.refusal(|onehost| {
        onehost.uid(65_534).gid(65_534);
    })?;
    ensure!(told.contains("needs root") && told.contains("sudo"), "{told}");
    platform.finish()
}

#[test]
fn a_missing_feature_of_the_kernel_is_named() -> Result<()> {
    let Some(platform) = Platform::prepare(Options::default())? else { return Ok(()) };
    // In a mount namespace where the kernel seems to know fewer file systems.
    let hidden = "grep -v overlay /proc/filesystems > \"$1\" && mount --bind \"$1\" /proc/filesystems && exec \"$2\" check";
    let file = platform.state_dir().join("filesystems");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", hidden, "sh"])
        .args([file.as_os_str(), bin_dir().join("mogok-agent").as_os_str()])
        .output()?;
    let told = both(&output);
    ensure!(output.status.code() == Some(1), "{told}");
    let line = told.lines().find(|line| line.starts_with("overlay and ext4")).unwrap_or_default();
    ensure!(line.contains("overlay") && !line.ends_with(" ok"), "{told}");
    platform.finish()
}
