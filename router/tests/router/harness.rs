//! The stage: a router, a control plane to inject tables, apps as scripts over raw connections,
//! and a client that writes bytes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mogok_api::id::{Epoch, InstanceId};
use mogok_api::route::{AppRoute, RouteAck, RouteMessage, RouteState, RouterLog, Upstream};
use mogok_router::listener::Router;
use mogok_router::settings::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;

/// The longest that anything here may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Waits until `probe` gives something.
pub(crate) async fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[derive(Default)]
struct Seen {
    acks: Vec<RouteAck>,
    lines: Vec<RouterLog>,
}

/// The control plane's node listener.
pub(crate) struct Control {
    pub(crate) socket: PathBuf,
    pub(crate) epoch: Epoch,
    table: Arc<Mutex<(u64, Vec<AppRoute>)>>,
    seen: Arc<Mutex<Seen>>,
    stream: broadcast::Sender<String>,
    server: JoinHandle<()>,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Control {
    pub(crate) fn start(directory: &Path, routes: Vec<AppRoute>) -> Self {
        let socket = directory.join("node.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let epoch = Epoch::new();
        let table = Arc::new(Mutex::new((1, routes)));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stream = broadcast::channel(64).0;
        let (their_table, their_seen, their_stream) = (Arc::clone(&table), Arc::clone(&seen), stream.clone());
        let server = tokio::spawn(async move {
            // Dropping the set ends the connections with the server.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (table, seen, stream) =
                    (Arc::clone(&their_table), Arc::clone(&their_seen), their_stream.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    answer(request, epoch, Arc::clone(&table), Arc::clone(&seen), stream.clone())
                });
                connections.spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(connection), service),
                );
            }
        });
        Self { socket, epoch, table, seen, stream, server }
    }

    pub(crate) fn send(&self, message: &RouteMessage) {
        let _ = self.stream.send(serde_json::to_string(message).unwrap() + "\n");
    }

    /// Changes one app's route by a delta; returns the new version.
    pub(crate) fn change(&self, route: AppRoute) -> u64 {
        let mut table = self.table.lock().unwrap();
        let from = table.0;
        table.0 += 1;
        table.1.retain(|other| other.app != route.app);
        table.1.push(route.clone());
        let version = table.0;
        self.send(&RouteMessage::Delta {
            epoch: self.epoch,
            from,
            version,
            upsert: vec![route],
            remove: vec![],
        });
        version
    }

    /// Changes the table without telling the stream, as if a message had been lost.
    pub(crate) fn change_silently(&self, route: AppRoute) {
        let mut table = self.table.lock().unwrap();
        table.0 += 1;
        table.1 = vec![route];
    }

    /// The last acknowledgement of `version` that `accept` likes.
    pub(crate) async fn acked(&self, version: u64, accept: impl Fn(&RouteAck) -> bool) -> RouteAck {
        until("an acknowledgement", || {
            let seen = self.seen.lock().unwrap();
            seen.acks.iter().rfind(|ack| ack.version == version && accept(ack)).cloned()
        })
        .await
    }

    /// The first request line with `part` in it.
    pub(crate) async fn line(&self, part: &str) -> String {
        until(part, || {
            let seen = self.seen.lock().unwrap();
            seen.lines.iter().map(|line| &line.line).find(|line| line.contains(part)).cloned()
        })
        .await
    }

    pub(crate) fn lines(&self) -> usize {
        self.seen.lock().unwrap().lines.len()
    }
}

async fn answer(
    request: Request<Incoming>,
    epoch: Epoch,
    table: Arc<Mutex<(u64, Vec<AppRoute>)>>,
    seen: Arc<Mutex<Seen>>,
    stream: broadcast::Sender<String>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    let path = request.uri().path().to_owned();
    if path == "/v1/routes" {
        let (following, snapshot) = {
            let table = table.lock().unwrap();
            let (version, routes) = table.clone();
            (stream.subscribe(), RouteMessage::Snapshot { epoch, version, routes })
        };
        let first = serde_json::to_string(&snapshot).unwrap() + "\n";
        let lines = futures_util::stream::unfold((Some(first), following), async |(first, mut following)| {
            let line = match first {
                Some(line) => line,
                None => following.recv().await.ok()?,
            };
            Some((Ok(Frame::data(Bytes::from(line))), (None, following)))
        });
        let body = StreamBody::new(lines);
        return Ok(Response::new(body.boxed_unsync()));
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut seen = seen.lock().unwrap();
    match path.as_str() {
        "/v1/routes/ack" => seen.acks.push(serde_json::from_slice(&body).unwrap()),
        "/v1/router-logs" => seen.lines.extend(serde_json::from_slice::<Vec<RouterLog>>(&body).unwrap()),
        other => panic!("unexpected {other}"),
    }
    Ok(Response::new(Empty::new().boxed_unsync()))
}

/// An app: what it does with each connection is a script.
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    /// Connections so far.
    pub(crate) connections: Arc<Mutex<usize>>,
    server: JoinHandle<()>,
}

impl Drop for App {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl App {
    pub(crate) async fn script<F>(script: impl Fn(Conn) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(0));
        let count = Arc::clone(&connections);
        let server = tokio::spawn(async move {
            let mut scripts = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                *count.lock().unwrap() += 1;
                scripts.spawn(script(Conn { stream, buffer: Vec::new() }));
            }
        });
        Self { address, connections, server }
    }

    /// Answers every request of every connection with `reply`.
    pub(crate) async fn replies(reply: impl Into<String>) -> Self {
        let reply = reply.into();
        Self::script(move |mut conn| {
            let reply = reply.clone();
            async move { while conn.head().await.is_some() && conn.send(&reply).await {} }
        })
        .await
    }

    /// Answers with the head of the request as body.
    pub(crate) async fn echo_head() -> Self {
        Self::script(|mut conn| async move {
            while let Some(head) = conn.head().await {
                conn.send(&ok(&head)).await;
            }
        })
        .await
    }

    pub(crate) fn upstream(&self) -> Upstream {
        upstream(self.address)
    }
}

/// A 200 with this body.
pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

pub(crate) fn upstream(address: SocketAddr) -> Upstream {
    Upstream { instance: InstanceId::new(), process: "web.1".parse().unwrap(), address }
}

/// An address of this machine where nothing listens.
pub(crate) async fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// The app `alpha` at `alpha.mogok.test`.
pub(crate) fn alpha(upstreams: Vec<Upstream>) -> AppRoute {
    alpha_in(RouteState::Running, upstreams)
}

pub(crate) fn alpha_in(state: RouteState, upstreams: Vec<Upstream>) -> AppRoute {
    AppRoute { app: "alpha".parse().unwrap(), hosts: vec!["alpha.mogok.test".to_owned()], state, upstreams }
}

/// The router with its control plane.
pub(crate) struct Stage {
    pub(crate) address: SocketAddr,
    pub(crate) control: Control,
    pub(crate) directory: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) serving: JoinHandle<()>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Settings with a short end to everything, for tests that are not about times.
pub(crate) fn settings() -> Settings {
    Settings { grace: Duration::from_secs(5), ..Settings::default() }
}

impl Stage {
    pub(crate) async fn new(routes: Vec<AppRoute>) -> Self {
        Self::with(settings(), routes).await
    }

    pub(crate) async fn with(settings: Settings, routes: Vec<AppRoute>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let control = Control::start(directory.path(), routes);
        let (address, stop, serving) = router(directory.path(), settings, true).await;
        Self { address, control, directory, stop: Some(stop), serving }
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub(crate) async fn client(&self) -> Conn {
        Conn { stream: TcpStream::connect(self.address).await.unwrap(), buffer: Vec::new() }
    }

    /// Sends these bytes on a connection of its own and reads to its end.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let mut client = self.client().await;
        client.stream.write_all(bytes).await.unwrap();
        client.rest().await
    }

    /// `GET path` for alpha with these header lines, on a connection of its own.
    pub(crate) async fn get(&self, path: &str, lines: &str) -> String {
        self.raw(
            format!("GET {path} HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: close\r\n{lines}\r\n")
                .as_bytes(),
        )
        .await
    }
}

/// A router whose state is in `directory`; with `table` it has one when this returns.
pub(crate) async fn router(
    directory: &Path,
    settings: Settings,
    table: bool,
) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let control = format!("unix:{}", directory.join("node.sock").display()).parse().unwrap();
    let state = directory.join("state");
    let router = Router::bind(([127, 0, 0, 1], 0).into(), control, &state, None, settings).await.unwrap();
    let address = router.address();
    let tables = Arc::clone(router.tables());
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(router.serve(async {
        let _ = stopped.await;
    }));
    if table {
        until("a table", || tables.load().position).await;
    }
    (address, stop, serving)
}

/// One end of a connection.
pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Conn {
    pub(crate) async fn send(&mut self, text: &str) -> bool {
        self.stream.write_all(text.as_bytes()).await.is_ok()
    }

    /// More bytes; `false` at the end.
    async fn more(&mut self) -> bool {
        let read = tokio::time::timeout(DEADLINE, self.stream.read_buf(&mut self.buffer)).await;
        matches!(read.expect("more bytes in time"), Ok(count) if count > 0)
    }

    /// The next message's head, blank line included.
    pub(crate) async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = self.buffer.drain(..end + 4).collect();
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// What was read beyond the last head.
    pub(crate) fn ahead(&self) -> usize {
        self.buffer.len()
    }

    /// The next `count` bytes.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            assert!(self.more().await, "the connection ended after {} bytes", self.buffer.len());
        }
        self.buffer.drain(..count).collect()
    }

    /// All that comes until the end.
    pub(crate) async fn rest(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }
}

/// The code of a page of the router.
pub(crate) fn code(response: &str) -> Option<&str> {
    let (_, rest) = response.split_once("x-mogok-error: ")?;
    rest.split("\r\n").next()
}
