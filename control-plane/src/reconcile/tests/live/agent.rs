//! An agent that runs nothing: it takes wanted sets as the contract says, asks for packages it lacks,
//! reports its instances up (or crashed, when their command says so), and writes down what it should
//! never have been asked to do.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::StreamExt;
use mogok_api::agent::{AgentEvent, CgroupMode, DesiredAck, DesiredMessage, LogRecord, LogStream, NodeInfo};
use mogok_api::id::Epoch;
use mogok_api::instance::InstanceSpec;
use mogok_api::name::Digest;
use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use super::*;

pub(super) type Applied = Arc<Mutex<BTreeSet<InstanceId>>>;

#[derive(Clone)]
pub(super) struct FakeAgent {
    inner: Arc<Mutex<Inner>>,
    events: broadcast::Sender<AgentEvent>,
    logs: broadcast::Sender<LogRecord>,
    routed: Applied,
    node: NodeId,
    _server: Arc<tokio::task::JoinSet<()>>,
}

#[derive(Default)]
struct Inner {
    epoch: Option<Epoch>,
    version: u64,
    set: BTreeMap<InstanceId, InstanceSpec>,
    status: BTreeMap<InstanceId, InstanceStatus>,
    blobs: BTreeMap<Digest, Bytes>,
    log: Vec<LogRecord>,
    seq: u64,
    silent: bool,
    violations: Vec<String>,
}

impl FakeAgent {
    pub(super) fn start(path: &Path, routed: Applied) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let mut agent = Self {
            inner: Arc::default(),
            events: broadcast::Sender::new(1000),
            logs: broadcast::Sender::new(1000),
            routed,
            node: NodeId::new(),
            _server: Arc::default(),
        };
        let app = Router::new()
            .route("/v1/node", get(node_info))
            .route("/v1/desired", post(desired))
            .route("/v1/events", get(events))
            .route("/v1/logs", get(logs))
            .route("/v1/blobs/{digest}", put(blob))
            .with_state(agent.clone());
        let mut server = tokio::task::JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        agent._server = Arc::new(server);
        agent
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it runs.
    pub(super) fn instances(&self) -> BTreeSet<InstanceId> {
        self.lock().status.keys().copied().collect()
    }

    pub(super) fn blobs(&self) -> usize {
        self.lock().blobs.len()
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Answers nobody.
    pub(super) fn silence(&self, silent: bool) {
        self.lock().silent = silent;
    }

    /// Makes what is the same as what is wanted.
    fn converge(&self, inner: &mut Inner) -> Vec<Digest> {
        let gone: Vec<_> = inner.status.keys().filter(|id| !inner.set.contains_key(*id)).copied().collect();
        for id in gone {
            if self.routed.lock().unwrap().contains(&id) {
                inner.violations.push(format!("{id} is to be stopped while the router sends requests to it"));
            }
            inner.status.remove(&id);
            inner.seq += 1;
            let _ = self.events.send(AgentEvent::Removed { seq: inner.seq, id });
        }
        let mut missing = Vec::new();
        for spec in inner.set.clone().into_values() {
            if let Some(package) = spec.package.clone().filter(|digest| !inner.blobs.contains_key(digest)) {
                missing.push(package);
                continue;
            }
            if inner.status.contains_key(&spec.id) {
                continue;
            }
            let broken = spec.command.iter().any(|word| word.contains("broken"));
            let status = status_of(&spec, broken, inner.seq);
            inner.seq += 1;
            inner.status.insert(spec.id, status.clone());
            let _ = self.events.send(AgentEvent::Changed { seq: inner.seq, instance: status });
            if !broken {
                let record = LogRecord {
                    cursor: (inner.log.len() + 1).to_string(),
                    at: now(),
                    instance: spec.id,
                    app: spec.app.clone(),
                    process: spec.process.clone(),
                    stream: LogStream::Stdout,
                    line: "hello".to_owned(),
                };
                inner.log.push(record.clone());
                let _ = self.logs.send(record);
            }
        }
        missing
    }
}

fn status_of(spec: &InstanceSpec, broken: bool, seq: u64) -> InstanceStatus {
    let port = 20_000 + u16::try_from(seq % 1000).unwrap();
    InstanceStatus {
        id: spec.id,
        app: spec.app.clone(),
        process: spec.process.clone(),
        release: spec.release,
        kind: spec.kind,
        phase: if broken { Phase::Crashed } else { Phase::Up },
        since: now(),
        endpoint: spec.listens.then(|| SocketAddr::from(([10, 88, 0, 1], port))),
        restarts: 0,
        exit: broken.then_some(ExitStatus { code: Some(1), signal: None, out_of_memory: false }),
        failure: None,
        last_lines: Vec::new(),
        restart_at: None,
        output: None,
    }
}

async fn node_info(State(agent): State<FakeAgent>) -> Response {
    if agent.lock().silent {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    Json(NodeInfo {
        id: agent.node,
        agent_version: "0".to_owned(),
        kernel: "6".to_owned(),
        cgroup_mode: CgroupMode::Hybrid,
        cpu_millis: 2000,
        memory_bytes: 8 << 30,
        images: Vec::new(),
        max_instances: 100,
    })
    .into_response()
}

async fn desired(State(agent): State<FakeAgent>, Json(message): Json<DesiredMessage>) -> Json<DesiredAck> {
    let mut inner = agent.lock();
    let mut need_snapshot = false;
    match message {
        DesiredMessage::Snapshot { epoch, version, instances } => {
            (inner.epoch, inner.version) = (Some(epoch), version);
            inner.set = instances.into_iter().map(|spec| (spec.id, spec)).collect();
        }
        DesiredMessage::Delta { epoch, from, version, upsert, remove } => {
            if inner.epoch == Some(epoch) && inner.version == from {
                inner.version = version;
                inner.set.retain(|id, _| !remove.contains(id));
                inner.set.extend(upsert.into_iter().map(|spec| (spec.id, spec)));
            } else {
                need_snapshot = true;
            }
        }
        DesiredMessage::Heartbeat { epoch, version } => {
            need_snapshot = inner.epoch != Some(epoch) || inner.version != version;
        }
    }
    let missing_blobs = agent.converge(&mut inner);
    Json(DesiredAck { epoch: inner.epoch, version: inner.version, need_snapshot, missing_blobs })
}

async fn blob(State(agent): State<FakeAgent>, UrlPath(digest): UrlPath<Digest>, body: Bytes) -> StatusCode {
    let mut inner = agent.lock();
    inner.blobs.insert(digest, body);
    agent.converge(&mut inner);
    StatusCode::NO_CONTENT
}

fn ndjson<T>(first: Vec<T>, rest: broadcast::Receiver<T>) -> Response
where
    T: serde::Serialize + Clone + Send + 'static,
{
    let rest = BroadcastStream::new(rest).filter_map(async |value| value.ok());
    let lines = futures_util::stream::iter(first).chain(rest).map(|value| {
        let mut line = serde_json::to_vec(&value).unwrap();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    Body::from_stream(lines).into_response()
}

async fn events(State(agent): State<FakeAgent>) -> Response {
    let inner = agent.lock();
    let snapshot =
        AgentEvent::Snapshot { seq: inner.seq, instances: inner.status.values().cloned().collect() };
    ndjson(vec![snapshot], agent.events.subscribe())
}

async fn logs(State(agent): State<FakeAgent>, Query(query): Query<HashMap<String, String>>) -> Response {
    let inner = agent.lock();
    let after: usize = query.get("after").map_or(0, |cursor| cursor.parse().unwrap());
    ndjson(inner.log[after..].to_vec(), agent.logs.subscribe())
}
