//! The verdict on a deploy in the app's log: "start failed: ...". What the container wrote and how it ended
//! come from the node by another stream than the status that the verdict is made of, so the line waits for
//! them: whoever reads the log meets the cause first.

use std::time::Duration;

use chrono::{DateTime, Utc};
use mogok_api::control::LogSource;
use mogok_api::id::AppId;
use mogok_api::instance::InstanceStatus;

use crate::log_store::{Filter, LogError, LogStore, Start};

/// How long the cause is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How far back it may stand already.
const LINES: usize = 50;

/// Writes `line` behind what is told of the end of `cause` since `begun`. The deploy's own row says the same
/// and does not wait; should the control plane die meanwhile, it is what is left.
pub(super) fn tell(
    logs: &LogStore,
    app: AppId,
    line: String,
    cause: Option<InstanceStatus>,
    begun: DateTime<Utc>,
) {
    let logs = logs.clone();
    tokio::spawn(async move {
        if let Some(status) = cause {
            match tokio::time::timeout(PATIENCE, told(&logs, app, &status, begun)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%app, %error, "the log of an app was not read"),
                Err(_) => {
                    tracing::info!(%app, instance = %status.id, "the last lines of an instance are late")
                }
            }
        }
        if let Err(error) = logs.append(app, Utc::now(), LogSource::Mogok, "deploy", &line) {
            tracing::warn!(%app, %error, "cannot write to the log of an app");
        }
    });
}

/// Returns when the log says how the instance ended, which its node says last.
async fn told(
    logs: &LogStore,
    app: AppId,
    status: &InstanceStatus,
    begun: DateTime<Utc>,
) -> Result<(), LogError> {
    let last = status.exit.map_or_else(|| "cannot start: ".to_owned(), |exit| exit.to_string());
    let filter = Filter { source: Some(LogSource::Mogok), process: Some(status.process.to_string()) };
    let mut reader = logs.follow(app, Start::Last(LINES), filter).await?;
    while let Some(lines) = reader.next().await? {
        if lines.iter().any(|line| line.at >= begun && line.line.starts_with(&last)) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mogok_api::id::InstanceId;
    use mogok_api::instance::{ContainerKind, ExitStatus, Phase};

    use super::*;

    fn crashed() -> InstanceStatus {
        InstanceStatus {
            id: InstanceId::new(),
            app: "fugafuga".parse().unwrap(),
            process: "web.1".parse().unwrap(),
            release: None,
            kind: ContainerKind::App,
            phase: Phase::Crashed,
            since: Utc::now(),
            endpoint: None,
            restarts: 0,
            exit: Some(ExitStatus { code: Some(7), signal: None, out_of_memory: false }),
            failure: None,
            last_lines: vec!["about to fail".to_owned()],
            restart_at: None,
            output: None,
        }
    }

    #[tokio::test]
    async fn the_verdict_stands_behind_its_cause() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, app, begun) = (LogStore::open(dir.path()), AppId::new(), Utc::now());
        let say = |source, process: &str, line: &str| {
            logs.append(app, Utc::now(), source, process, line).unwrap();
        };
        // Of an earlier deploy.
        let before = begun - chrono::TimeDelta::minutes(1);
        logs.append(app, before, LogSource::Mogok, "web.1", "exited with status 7").unwrap();
        tell(&logs, app, "start failed: web.1".to_owned(), Some(crashed()), begun);
        tokio::task::yield_now().await;
        say(LogSource::App, "web.1", "about to fail");
        say(LogSource::Mogok, "web.1", "exited with status 7");
        let mut reader = logs.follow(app, Start::After(0), Filter::default()).await.unwrap();
        let mut lines = Vec::new();
        while !lines.iter().any(|line: &String| line.starts_with("start failed")) {
            lines.extend(reader.next().await.unwrap().unwrap().into_iter().map(|line| line.line));
        }
        assert_eq!(
            lines,
            ["exited with status 7", "about to fail", "exited with status 7", "start failed: web.1"]
        );
    }
}
