//! Runs `nft(8)` to make the table whole or take it away. A script is one transaction: all of it takes
//! effect, or nothing. What changes with every container goes by `nfnetlink.rs`.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::NetworkError;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Services often start without the sbin directories.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Applies a script.
pub(super) async fn apply(operation: &'static str, script: &str) -> Result<(), NetworkError> {
    run(operation, &["-f", "-"], script).await
}

/// Has the kernel say whether it would take a script, without taking it.
pub(super) async fn check(operation: &'static str, script: &str) -> Result<(), NetworkError> {
    run(operation, &["-c", "-f", "-"], script).await
}

async fn run(operation: &'static str, arguments: &[&str], script: &str) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::NftStart { operation, source };
    let mut child = Command::new("nft")
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let exchange = async {
        if let Some(mut stdin) = stdin {
            // nft reads its whole input before it says anything; where it dies first, its words and
            // status tell more than our EPIPE.
            let _ = stdin.write_all(script.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(TIMEOUT, exchange)
        .await
        .map_err(|_| NetworkError::NftTimeout { operation, seconds: TIMEOUT.as_secs() })?
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let first = words.lines().next().unwrap_or_default().trim();
    let message =
        if first.is_empty() { output.status.to_string() } else { first.chars().take(300).collect() };
    Err(NetworkError::Nft { operation, message })
}
