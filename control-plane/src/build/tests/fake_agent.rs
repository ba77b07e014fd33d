//! An agent that speaks the real agent API on a real Unix socket and runs no container: a build that it
//! is told to run ends at once, or when the test says so, as the test has chosen.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use chrono::Utc;
use mogok_api::agent::{
    AgentEvent, BlobInfo, CgroupMode, DesiredAck, DesiredMessage, ImageInfo, LogRecord, LogStream, NodeInfo,
};
use mogok_api::id::{Epoch, InstanceId, NodeId};
use mogok_api::instance::{ExitStatus, InstanceSpec, InstanceStatus, Phase};
use mogok_api::name::Digest;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How builds end.
#[derive(Debug, Clone)]
pub(super) enum Ending {
    /// With status 0 and this package.
    Package(Vec<u8>),
    /// With status 1 after these lines.
    Failure(Vec<&'static str>),
    /// Not before it is told so.
    Never,
}

#[derive(Debug)]
struct Inner {
    info: NodeInfo,
    ending: Ending,
    held: Option<(Epoch, u64)>,
    wanted: BTreeMap<InstanceId, InstanceSpec>,
    statuses: BTreeMap<InstanceId, InstanceStatus>,
    blobs: HashMap<Digest, Bytes>,
    events: Vec<AgentEvent>,
    logs: Vec<LogRecord>,
}

#[derive(Debug, Clone)]
struct Shared {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<()>,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub(super) struct FakeAgent {
    shared: Shared,
    server: JoinHandle<()>,
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes))).parse().unwrap()
}

impl FakeAgent {
    pub(super) fn start(socket: &Path, ending: Ending) -> Self {
        let image = ImageInfo { name: "ruby-build".parse().unwrap(), digest: digest_of(b"ruby-build") };
        let info = NodeInfo {
            id: NodeId::new(),
            agent_version: "0".to_owned(),
            kernel: "6.18".to_owned(),
            cgroup_mode: CgroupMode::Hybrid,
            cpu_millis: 2000,
            memory_bytes: 8 << 30,
            images: vec![image],
            max_instances: 100,
        };
        let inner = Inner {
            info,
            ending,
            held: None,
            wanted: BTreeMap::new(),
            statuses: BTreeMap::new(),
            blobs: HashMap::new(),
            events: Vec::new(),
            logs: Vec::new(),
        };
        let shared = Shared { inner: Arc::new(Mutex::new(inner)), changed: watch::Sender::new(()) };
        let router = Router::new()
            .route("/v1/node", get(node))
            .route("/v1/desired", post(desired))
            .route("/v1/events", get(events))
            .route("/v1/logs", get(logs))
            .route("/v1/blobs", get(list_blobs))
            .route("/v1/blobs/{digest}", get(read_blob).put(write_blob).delete(drop_blob))
            .layer(DefaultBodyLimit::disable())
            .with_state(shared.clone());
        let listener = UnixListener::bind(socket).unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { shared, server }
    }

    /// What builds that run and those that come end with from now on.
    pub(super) fn end_with(&self, ending: Ending) {
        let mut inner = self.shared.inner.lock().unwrap();
        inner.ending = ending;
        inner.settle();
        drop(inner);
        self.shared.changed.send_replace(());
    }

    /// The containers that are wanted here now.
    pub(super) fn wanted(&self) -> Vec<InstanceSpec> {
        self.shared.inner.lock().unwrap().wanted.values().cloned().collect()
    }

    pub(super) fn blob(&self, digest: &Digest) -> Option<Bytes> {
        self.shared.inner.lock().unwrap().blobs.get(digest).cloned()
    }

    /// The blobs that are here.
    pub(super) fn blobs(&self) -> Vec<Digest> {
        self.shared.inner.lock().unwrap().blobs.keys().cloned().collect()
    }

    /// How many containers were started in all.
    pub(super) fn started(&self) -> usize {
        let inner = self.shared.inner.lock().unwrap();
        let started = |event: &AgentEvent| match event {
            AgentEvent::Changed { instance, .. } => Some(instance.id),
            _ => None,
        };
        inner.events.iter().filter_map(started).collect::<BTreeSet<_>>().len()
    }
}

impl Inner {
    fn missing(&self) -> Vec<Digest> {
        let specs = self.wanted.values();
        let all = specs.flat_map(|spec| {
            let blobs = spec.blobs.iter().map(|blob| &blob.digest);
            blobs.chain(spec.package_mounts.iter().map(|mount| &mount.digest))
        });
        all.filter(|digest| !self.blobs.contains_key(digest)).cloned().collect()
    }

    fn event(&mut self, event: impl FnOnce(u64) -> AgentEvent) {
        let seq = self.events.len() as u64 + 1;
        self.events.push(event(seq));
    }

    fn set(&mut self, status: InstanceStatus) {
        self.statuses.insert(status.id, status.clone());
        self.event(|seq| AgentEvent::Changed { seq, instance: status });
    }

    /// Brings what is to what is wanted.
    fn settle(&mut self) {
        let gone: Vec<_> = self.statuses.keys().filter(|id| !self.wanted.contains_key(id)).copied().collect();
        for id in gone {
            self.statuses.remove(&id);
            self.event(|seq| AgentEvent::Removed { seq, id });
        }
        if !self.missing().is_empty() {
            return;
        }
        for spec in self.wanted.values().cloned().collect::<Vec<_>>() {
            let status = match self.statuses.get(&spec.id) {
                Some(status) => status.clone(),
                None => {
                    let status = up(&spec);
                    self.set(status.clone());
                    status
                }
            };
            if status.phase == Phase::Up {
                self.end(&spec, status);
            }
        }
    }

    fn end(&mut self, spec: &InstanceSpec, status: InstanceStatus) {
        let (lines, code, output) = match self.ending.clone() {
            Ending::Never => return,
            Ending::Failure(lines) => (lines, 1, None),
            Ending::Package(bytes) => {
                let digest = digest_of(&bytes);
                self.blobs.insert(digest.clone(), bytes.into());
                (vec!["bundle install", "bundled"], 0, Some(digest))
            }
        };
        for line in &lines {
            let cursor = (self.logs.len() + 1).to_string();
            self.logs.push(LogRecord {
                cursor,
                at: Utc::now(),
                instance: spec.id,
                app: spec.app.clone(),
                process: spec.process.clone(),
                stream: LogStream::Stdout,
                line: (*line).to_owned(),
            });
        }
        self.set(InstanceStatus {
            phase: Phase::Exited,
            exit: Some(ExitStatus { code: Some(code), signal: None, out_of_memory: false }),
            last_lines: lines.into_iter().map(str::to_owned).collect(),
            output,
            ..status
        });
    }
}

fn up(spec: &InstanceSpec) -> InstanceStatus {
    InstanceStatus {
        id: spec.id,
        app: spec.app.clone(),
        process: spec.process.clone(),
        release: None,
        kind: spec.kind,
        phase: Phase::Up,
        since: Utc::now(),
        endpoint: None,
        restarts: 0,
        exit: None,
        failure: None,
        last_lines: Vec::new(),
        restart_at: None,
        output: None,
    }
}

async fn node(State(shared): State<Shared>) -> Json<NodeInfo> {
    Json(shared.inner.lock().unwrap().info.clone())
}

async fn desired(State(shared): State<Shared>, Json(message): Json<DesiredMessage>) -> Json<DesiredAck> {
    let mut inner = shared.inner.lock().unwrap();
    let (at, fits) = match message {
        DesiredMessage::Snapshot { epoch, version, instances } => {
            inner.wanted = instances.into_iter().map(|spec| (spec.id, spec)).collect();
            ((epoch, version), true)
        }
        DesiredMessage::Delta { epoch, from, version, upsert, remove } => {
            let fits = inner.held == Some((epoch, from));
            if fits {
                inner.wanted.retain(|id, _| !remove.contains(id));
                inner.wanted.extend(upsert.into_iter().map(|spec| (spec.id, spec)));
            }
            ((epoch, version), fits)
        }
        DesiredMessage::Heartbeat { epoch, version } => {
            ((epoch, version), inner.held == Some((epoch, version)))
        }
    };
    if fits {
        inner.held = Some(at);
        inner.settle();
    }
    let ack = DesiredAck {
        epoch: inner.held.map(|(epoch, _)| epoch),
        version: inner.held.map_or(0, |(_, version)| version),
        need_snapshot: !fits,
        missing_blobs: inner.missing(),
    };
    drop(inner);
    shared.changed.send_replace(());
    Json(ack)
}

async fn write_blob(
    State(shared): State<Shared>,
    UrlPath(digest): UrlPath<Digest>,
    body: Bytes,
) -> StatusCode {
    if digest_of(&body) != digest {
        return StatusCode::BAD_REQUEST;
    }
    let mut inner = shared.inner.lock().unwrap();
    inner.blobs.insert(digest, body);
    inner.settle();
    drop(inner);
    shared.changed.send_replace(());
    StatusCode::NO_CONTENT
}

async fn read_blob(State(shared): State<Shared>, UrlPath(digest): UrlPath<Digest>) -> Response {
    match shared.inner.lock().unwrap().blobs.get(&digest) {
        Some(bytes) => bytes.clone().into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn list_blobs(State(shared): State<Shared>) -> Json<Vec<BlobInfo>> {
    let inner = shared.inner.lock().unwrap();
    let info = |(digest, bytes): (&Digest, &Bytes)| BlobInfo {
        digest: digest.clone(),
        bytes: bytes.len() as u64,
        idle_s: 0,
    };
    Json(inner.blobs.iter().map(info).collect())
}

async fn drop_blob(State(shared): State<Shared>, UrlPath(digest): UrlPath<Digest>) -> StatusCode {
    shared.inner.lock().unwrap().blobs.remove(&digest);
    StatusCode::NO_CONTENT
}

/// Everything from `from` on and then what comes, as `read` gives it.
fn stream<T: Serialize + Send + 'static>(
    shared: Shared,
    first: Option<T>,
    from: usize,
    read: impl Fn(&Inner, usize) -> Vec<T> + Send + 'static,
) -> Body {
    let changed = shared.changed.subscribe();
    let line = |value: &T| format!("{}\n", serde_json::to_string(value).unwrap());
    let first = first.as_ref().map(line).unwrap_or_default();
    Body::from_stream(futures_util::stream::unfold(
        (shared, changed, from, Some(first), read),
        move |(shared, mut changed, mut at, first, read)| async move {
            if let Some(first) = first.filter(|first| !first.is_empty()) {
                return Some((Ok::<_, std::convert::Infallible>(first), (shared, changed, at, None, read)));
            }
            loop {
                changed.borrow_and_update();
                let new = read(&shared.inner.lock().unwrap(), at);
                if !new.is_empty() {
                    at += new.len();
                    let text = new.iter().map(line).collect::<String>();
                    return Some((Ok(text), (shared, changed, at, None, read)));
                }
                changed.changed().await.ok()?;
            }
        },
    ))
}

async fn events(State(shared): State<Shared>) -> Body {
    let (first, from) = {
        let inner = shared.inner.lock().unwrap();
        let instances = inner.statuses.values().cloned().collect();
        let seq = inner.events.len();
        (AgentEvent::Snapshot { seq: seq as u64, instances }, seq)
    };
    stream(shared, Some(first), from, |inner, at| inner.events[at..].to_vec())
}

async fn logs(State(shared): State<Shared>, query: axum::extract::RawQuery) -> Body {
    let query = query.0.unwrap_or_default();
    let after = query.split('&').find_map(|pair| pair.strip_prefix("after="));
    let from = after.and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
    stream(shared, None, from, |inner, at| inner.logs[at..].to_vec())
}
