//! What the platform says about a build: its own steps, in the build's log and, with source `build`, in
//! the app's. The output of the container comes into both with that of all containers of its node.

use std::time::Duration;

use chrono::Utc;
use mogok_api::control::LogSource;
use mogok_api::id::{AppId, BuildId};
use mogok_api::instance::InstanceStatus;

use crate::log_store::{Filter, LogError, LogStore, NewLine, Start};

/// The process of the platform's own lines.
const PLATFORM: &str = "build";
/// How long the end of a build waits for its last lines, which come by another stream than its status.
const DRAIN: Duration = Duration::from_secs(3);
/// How many of the last lines must have arrived.
const DRAIN_LINES: usize = 5;

/// Says something about a build. A log that cannot be written does not stop the build.
pub(super) fn say(logs: &LogStore, build: BuildId, app: AppId, text: &str) {
    let line = NewLine {
        at: Utc::now(),
        source: LogSource::Build,
        process: PLATFORM.to_owned(),
        line: text.as_bytes().to_vec(),
    };
    let both = logs
        .append_all(build, std::slice::from_ref(&line))
        .and_then(|_| logs.append_all(app, std::slice::from_ref(&line)));
    if let Err(error) = both {
        tracing::warn!(%app, %build, %error, "build log not written");
    }
}

/// Ends the build's log: its readers come to an end.
pub(super) fn close(logs: &LogStore, build: BuildId) {
    if let Err(error) = logs.close(build) {
        tracing::warn!(%build, %error, "build log not closed");
    }
}

/// Waits until the last lines that the container wrote are in the log, or for 3 s.
pub(super) async fn drained(logs: &LogStore, build: BuildId, status: &InstanceStatus) {
    let last = &status.last_lines[status.last_lines.len().saturating_sub(DRAIN_LINES)..];
    if last.is_empty() {
        return;
    }
    let arrived = async {
        let filter = Filter { source: Some(LogSource::Build), process: None };
        let mut reader = logs.follow(build, Start::Last(DRAIN_LINES), filter).await?;
        let mut tail: Vec<String> = Vec::new();
        while tail != last {
            let Some(lines) = reader.next().await? else { break };
            for line in lines {
                tail.push(line.line);
                if tail.len() > last.len() {
                    tail.remove(0);
                }
                if tail == last {
                    break;
                }
            }
        }
        Ok::<(), LogError>(())
    };
    match tokio::time::timeout(DRAIN, arrived).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%build, %error, "build log not read"),
        Err(_) => tracing::info!(%build, "last lines of the build are late"),
    }
}
