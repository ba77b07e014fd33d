//! A router that routes nothing: it follows the stream, applies what it says, and acknowledges it; it
//! can pretend to have requests in flight, and remembers whether a running app was ever without anybody.

use std::sync::Mutex;

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mogok_api::agent::client::ndjson::Decoder;
use mogok_api::id::{Epoch, RouterId};
use mogok_api::route::{AppRoute, RouteAck, RouteMessage};
use tokio::net::UnixStream;

use super::agent::Applied;
use super::*;

#[derive(Clone)]
pub(super) struct FakeRouter {
    id: RouterId,
    socket: std::path::PathBuf,
    applied: Applied,
    inner: Arc<Mutex<Inner>>,
    _task: Arc<tokio::task::JoinSet<()>>,
}

#[derive(Default)]
struct Inner {
    reached: Option<(Epoch, u64)>,
    routes: BTreeMap<String, AppRoute>,
    /// All that ever left the table, while it pretends to have requests in flight.
    draining: BTreeSet<InstanceId>,
    drain: bool,
    snapshots: usize,
    went_empty: bool,
}

impl FakeRouter {
    pub(super) fn start(socket: &Path) -> Self {
        let mut router = Self {
            id: RouterId::new(),
            socket: socket.to_owned(),
            applied: Applied::default(),
            inner: Arc::default(),
            _task: Arc::default(),
        };
        let mut tasks = tokio::task::JoinSet::new();
        let follower = router.clone();
        tasks.spawn(async move {
            loop {
                let _ = follower.follow().await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let acknowledger = router.clone();
        tasks.spawn(async move {
            loop {
                let _ = acknowledger.acknowledge().await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        router._task = Arc::new(tasks);
        router
    }

    pub(super) fn applied(&self) -> Applied {
        self.applied.clone()
    }

    pub(super) fn applied_now(&self) -> BTreeSet<InstanceId> {
        self.applied.lock().unwrap().clone()
    }

    pub(super) fn state(&self, app: &str) -> Option<RouteState> {
        self.inner.lock().unwrap().routes.get(app).map(|route| route.state)
    }

    pub(super) fn snapshots(&self) -> usize {
        self.inner.lock().unwrap().snapshots
    }

    pub(super) fn was_empty_while_running(&self) -> bool {
        self.inner.lock().unwrap().went_empty
    }

    /// Pretends that what leaves the table has requests in flight.
    pub(super) fn drain(&self, drain: bool) {
        let mut inner = self.inner.lock().unwrap();
        inner.drain = drain;
        inner.draining.clear();
    }

    async fn follow(&self) -> anyhow::Result<()> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let _connection = AbortOnDrop(tokio::spawn(connection));
        let request = hyper::Request::get(format!("/v1/routes?router={}", self.id))
            .header("host", "control")
            .body(Empty::<Bytes>::new())?;
        let mut body = sender.send_request(request).await?.into_body();
        let mut decoder = Decoder::new(1 << 20);
        while let Some(frame) = body.frame().await {
            if let Some(chunk) = frame?.data_ref() {
                decoder.push(chunk);
                while let Some(message) = decoder.value()? {
                    self.apply(message);
                }
            }
        }
        Ok(())
    }

    fn apply(&self, message: RouteMessage) {
        let mut inner = self.inner.lock().unwrap();
        match message {
            RouteMessage::Snapshot { epoch, version, routes } => {
                inner.reached = Some((epoch, version));
                inner.snapshots += 1;
                inner.routes = routes.into_iter().map(|route| (route.app.to_string(), route)).collect();
            }
            RouteMessage::Delta { epoch, from, version, upsert, remove } => {
                assert_eq!(inner.reached, Some((epoch, from)), "a gap in the versions");
                inner.reached = Some((epoch, version));
                for app in remove {
                    inner.routes.remove(app.as_str());
                }
                inner.routes.extend(upsert.into_iter().map(|route| (route.app.to_string(), route)));
            }
            RouteMessage::Heartbeat { epoch, version } => {
                assert_eq!(inner.reached, Some((epoch, version)), "a heartbeat of another version");
            }
        }
        let now: BTreeSet<_> = inner
            .routes
            .values()
            .flat_map(|route| &route.upstreams)
            .map(|upstream| upstream.instance)
            .collect();
        let mut applied = self.applied.lock().unwrap();
        if inner.drain {
            let left: Vec<_> = applied.difference(&now).copied().collect();
            inner.draining.extend(left);
        }
        let stopped = inner.routes.values().all(|route| route.state == RouteState::NoWeb);
        inner.went_empty |= now.is_empty() && !applied.is_empty() && !stopped;
        *applied = now;
    }

    async fn acknowledge(&self) -> anyhow::Result<()> {
        let (reached, draining) = {
            let inner = self.inner.lock().unwrap();
            (inner.reached, inner.draining.iter().copied().collect())
        };
        let Some((epoch, version)) = reached else { return Ok(()) };
        let ack = RouteAck { router: self.id, epoch, version, draining };
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let _connection = AbortOnDrop(tokio::spawn(connection));
        let request = hyper::Request::post("/v1/routes/ack")
            .header("host", "control")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(serde_json::to_vec(&ack)?)))?;
        let status = sender.send_request(request).await?.status();
        anyhow::ensure!(status.is_success(), "{status}");
        Ok(())
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<Result<(), hyper::Error>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
