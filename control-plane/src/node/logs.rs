//! Taking a node's output into the logs of apps and builds. A batch is appended and then the cursor is
//! kept, so a death in between repeats a batch at most; those lines are recognised in the log by time
//! and process, and left out. Nothing is lost, nothing doubled.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use mogok_api::agent::client::{AgentClient, ClientError, Follow};
use mogok_api::agent::{LogRecord, LogStream};
use mogok_api::control::LogSource;
use mogok_api::id::{AppId, BuildId, InstanceId, NodeId};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::cursor::{CursorError, CursorFile};
use super::{chain, cursor_path};
use crate::log_store::{Filter, LogError, LogKey, NewLine};
use crate::state::AppState;
use crate::store::StoreError;

/// Lines of a batch.
const BATCH: usize = 500;
/// How long a batch may wait for more lines.
const LINGER: Duration = Duration::from_millis(50);
/// Instances whose app is remembered.
const REMEMBERED: usize = 10_000;

/// Why the logs of a node could not be taken.
#[derive(Debug, thiserror::Error)]
enum IntakeError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Cursor(#[from] CursorError),
}

/// Follows the logs until it is dropped.
pub(super) async fn run(state: AppState, client: AgentClient, node: NodeId) {
    let mut backoff = Backoff::default();
    loop {
        if let Err(error) = follow(&state, &client, node, &mut backoff).await {
            tracing::warn!(%node, error = chain(&error), "cannot take the logs of a node");
        }
        backoff.wait().await;
    }
}

async fn follow(
    state: &AppState,
    client: &AgentClient,
    node: NodeId,
    backoff: &mut Backoff,
) -> Result<(), IntakeError> {
    let mut cursor = CursorFile::open(&cursor_path(state, node))?;
    let mut stream = match client.logs(cursor.get()).await {
        Err(ClientError::Refused { status: 400..=499, .. }) if cursor.get().is_some() => {
            tracing::warn!(%node, "the node does not know the log cursor: beginning at its oldest line");
            cursor.reset();
            client.logs(None).await?
        }
        other => other?,
    };
    let mut intake = Intake::new(state);
    loop {
        let (batch, end) = next_batch(&mut stream).await;
        if let Some(last) = batch.last() {
            let reached = last.cursor.clone();
            intake.take(batch).await?;
            cursor.set(reached)?;
            backoff.reset();
        }
        match end {
            None => {}
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// What comes together, and how the stream ended if it did.
async fn next_batch(stream: &mut Follow<LogRecord>) -> (Vec<LogRecord>, Option<Result<(), ClientError>>) {
    let mut batch = Vec::new();
    let mut until = None;
    while batch.len() < BATCH {
        let next = match until {
            None => stream.next().await,
            Some(until) => match tokio::time::timeout_at(until, stream.next()).await {
                Ok(next) => next,
                Err(_) => break,
            },
        };
        match next {
            Ok(Some(record)) => batch.push(record),
            Ok(None) => return (batch, Some(Ok(()))),
            Err(error) => return (batch, Some(Err(error))),
        }
        until = until.or_else(|| Some(Instant::now() + LINGER));
    }
    (batch, None)
}

/// Whose output it is.
#[derive(Debug, Clone, Copy)]
enum Owner {
    App(AppId),
    Build(BuildId, AppId),
    /// Nobody's: its app is gone.
    Nobody,
}

/// Sorts records into logs.
struct Intake<'a> {
    state: &'a AppState,
    owners: HashMap<InstanceId, Owner>,
    /// Records that may be repeated ones.
    doubtful: usize,
    /// How many lines of a process and time a log has, of which a repetition may come.
    present: HashMap<LogKey, HashMap<(i64, LogSource, String), u32>>,
}

impl<'a> Intake<'a> {
    fn new(state: &'a AppState) -> Self {
        Self { state, owners: HashMap::new(), doubtful: BATCH, present: HashMap::new() }
    }

    /// Appends the records that the logs do not have yet.
    async fn take(&mut self, batch: Vec<LogRecord>) -> Result<(), IntakeError> {
        let mut logs: BTreeMap<String, (LogKey, Vec<NewLine>)> = BTreeMap::new();
        for record in batch {
            for (key, line) in self.lines(record).await? {
                if self.doubtful > 0 && self.is_present(key, &line).await? {
                    continue;
                }
                logs.entry(format!("{key:?}")).or_insert_with(|| (key, Vec::new())).1.push(line);
            }
            self.doubtful = self.doubtful.saturating_sub(1);
        }
        if self.doubtful == 0 {
            self.present = HashMap::new();
        }
        for (key, lines) in logs.into_values() {
            self.state.logs.append_all(key, &lines)?;
        }
        Ok(())
    }

    /// The lines that a record makes, and in which log.
    async fn lines(&mut self, record: LogRecord) -> Result<Vec<(LogKey, NewLine)>, IntakeError> {
        let owner = self.owner(&record).await?;
        let (source, process) = match (owner, record.stream) {
            (Owner::Nobody, _) => return Ok(Vec::new()),
            (Owner::App(_), LogStream::Platform) => (LogSource::Mogok, record.process.to_string()),
            (Owner::App(_), _) => (LogSource::App, record.process.to_string()),
            (Owner::Build(..), LogStream::Platform) => (LogSource::Mogok, "build".to_owned()),
            (Owner::Build(..), _) => (LogSource::Build, "build".to_owned()),
        };
        let line = NewLine { at: record.at, source, process, line: record.line.into_bytes() };
        Ok(match owner {
            Owner::Nobody => Vec::new(),
            Owner::App(app) => vec![(app.into(), line)],
            // A line behind the end of a build's log would open it again.
            Owner::Build(build, app) if self.state.logs.is_closed(build) => vec![(app.into(), line)],
            Owner::Build(build, app) => vec![(build.into(), line.clone()), (app.into(), line)],
        })
    }

    async fn owner(&mut self, record: &LogRecord) -> Result<Owner, StoreError> {
        if let Some(owner) = self.owners.get(&record.instance) {
            return Ok(*owner);
        }
        let store = &self.state.store;
        let owner = if let Some(app) = store.app_of_instance(record.instance).await? {
            Owner::App(app)
        } else if let Some((build, app)) = store.build_of_instance(record.instance).await? {
            Owner::Build(build, app)
        } else {
            // The row of an instance goes before its last lines may have come. Its app has the same name and is
            // older (ids sort by time): another tenant's new app of that name must not read them.
            match store.app_by_name(&record.app).await? {
                Some(app) if app.id.to_string() < record.instance.to_string() => Owner::App(app.id),
                _ => {
                    tracing::debug!(instance = %record.instance, app = %record.app, "output of nobody");
                    Owner::Nobody
                }
            }
        };
        if self.owners.len() >= REMEMBERED {
            self.owners.clear();
        }
        self.owners.insert(record.instance, owner);
        Ok(owner)
    }

    /// Is the line a repetition of one that the log has? Each that it has is recognised once.
    async fn is_present(&mut self, key: LogKey, line: &NewLine) -> Result<bool, IntakeError> {
        if !self.present.contains_key(&key) {
            let mut counts = HashMap::new();
            // Other sources write between the lines of a batch, so look back further than one.
            for line in self.state.logs.read_last(key, 4 * BATCH, Filter::default()).await? {
                *counts.entry((line.at.timestamp_micros(), line.source, line.process)).or_default() += 1;
            }
            self.present.insert(key, counts);
        }
        let mark = (line.at.timestamp_micros(), line.source, line.process.clone());
        let count = self.present.get_mut(&key).and_then(|counts| counts.get_mut(&mark));
        Ok(count.is_some_and(|count| {
            let present = *count > 0;
            *count = count.saturating_sub(1);
            present
        }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use mogok_api::name::AppName;

    use super::*;
    use crate::config::Config;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        config: Config,
    }

    async fn state(dir: &std::path::Path) -> AppState {
        let dir = dir.display().to_string();
        let line = ["x", "--state-dir", &dir, "--node-socket", "/nowhere/node.sock"];
        AppState::open(Line::try_parse_from(line).unwrap().config).await.unwrap()
    }

    fn record(
        app: &AppName,
        instance: InstanceId,
        at: chrono::DateTime<chrono::Utc>,
        line: &str,
    ) -> LogRecord {
        LogRecord {
            cursor: "1".to_owned(),
            at,
            instance,
            app: app.clone(),
            process: "web.1".parse().unwrap(),
            stream: LogStream::Stdout,
            line: line.to_owned(),
        }
    }

    #[tokio::test]
    async fn a_batch_that_comes_again_is_recognised_line_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let state = state(dir.path()).await;
        let user = state.store.create_user("a@example.com", "hash").await.unwrap();
        let app = state.store.create_app(user.id, &"fugafuga".parse().unwrap(), "secret").await.unwrap();
        let (instance, at) = (InstanceId::new(), crate::store::now());
        let later = at + chrono::TimeDelta::microseconds(1);
        let lines = |texts: &[(chrono::DateTime<chrono::Utc>, &str)]| -> Vec<_> {
            texts.iter().map(|(at, text)| record(&app.name, instance, *at, text)).collect()
        };
        // Died behind the append: the cursor was not kept. Two lines of one instant are two lines.
        Intake::new(&state).take(lines(&[(at, "a\0"), (at, "b")])).await.unwrap();
        state.logs.append(app.id, at, LogSource::Router, "router", "between").unwrap();
        let again = lines(&[(at, "a\0"), (at, "b"), (at, "c"), (later, "b")]);
        Intake::new(&state).take(again).await.unwrap();
        let log = state.logs.read_last(app.id, 100, Filter::default()).await.unwrap();
        let own: Vec<_> = log.iter().filter(|line| line.source == LogSource::App).collect();
        assert_eq!(own.len(), 4, "{own:?}");
        assert_eq!((own[2].line.as_str(), own[3].line.as_str()), ("c", "b"));
    }

    #[tokio::test]
    async fn a_new_app_does_not_read_the_output_of_an_older_one_of_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let state = state(dir.path()).await;
        let older = InstanceId::new();
        let user = state.store.create_user("a@example.com", "hash").await.unwrap();
        let app = state.store.create_app(user.id, &"fugafuga".parse().unwrap(), "secret").await.unwrap();
        let own = InstanceId::new();
        let now = crate::store::now();
        let batch = vec![record(&app.name, older, now, "secret"), record(&app.name, own, now, "mine")];
        Intake::new(&state).take(batch).await.unwrap();
        let log = state.logs.read_last(app.id, 100, Filter::default()).await.unwrap();
        assert_eq!(log.iter().map(|line| line.line.as_str()).collect::<Vec<_>>(), ["mine"]);
    }
}
