//! A control plane in this process with an empty state directory, and the clients to drive it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use mogok_api::control::Session;
use mogok_api::name::AppName;
use mogok_control_plane::config::Config;
use mogok_control_plane::server;
use mogok_control_plane::state::AppState;
use mogok_control_plane::store::releases::NewRelease;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const API: &str = "api.mogok.localhost";
pub(crate) const GIT: &str = "git.mogok.localhost";

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    config: Config,
}

pub(crate) struct Platform {
    pub(crate) dir: TempDir,
    pub(crate) state: AppState,
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    task: JoinHandle<Result<(), server::RunError>>,
}

impl Platform {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    pub(crate) async fn with(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state").display().to_string();
        let socket = dir.path().join("node.sock").display().to_string();
        let mut base = vec!["x", "--state-dir", &state_dir, "--node-socket", &socket];
        let database = postgres().await;
        base.extend(database.iter().flat_map(|url| ["--database", url]));
        let config = Line::try_parse_from(base.iter().chain(more)).unwrap().config;
        let state = AppState::open(config).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(server::serve(state.clone(), listener, stop.clone()));
        Self { dir, state, address, stop, task }
    }

    /// Stops it as SIGTERM does; it must end by itself.
    pub(crate) async fn finish(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(15), self.task).await.unwrap().unwrap().unwrap();
    }

    pub(crate) async fn request(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        Client::builder(TokioExecutor::new()).build_http().request(request).await.unwrap()
    }

    pub(crate) fn builder(&self, host: &str, method: Method, path: &str) -> hyper::http::request::Builder {
        Request::builder().method(method).uri(format!("http://{}{path}", self.address)).header("host", host)
    }

    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: &[u8],
    ) -> (StatusCode, Value) {
        let request = self
            .builder(API, method, path)
            .header("authorization", format!("Bearer {token}"))
            .body(Full::new(Bytes::copy_from_slice(body)))
            .unwrap();
        let response = self.request(request).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
        if !status.is_success() {
            assert!(value["code"].is_string() && value["message"].is_string(), "{status}: {value}");
        }
        (status, value)
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.raw(method, path, token, &body).await
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, token, Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, token: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::POST, path, token, body).await
    }

    /// A new account; its token.
    pub(crate) async fn sign_up(&self, email: &str) -> String {
        let credentials = json!({"email": email, "password": "correct horse"});
        let (status, body) = self.post("/v1/signup", "", credentials).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        serde_json::from_value::<Session>(body).unwrap().token
    }

    pub(crate) async fn create_app(&self, token: &str, name: &str) {
        let (status, body) = self.post("/v1/apps", token, json!({ "name": name })).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
    }

    /// As if a build of the app had succeeded.
    pub(crate) async fn release(&self, app: &str, processes: &[(&str, &str)]) {
        let name: AppName = app.parse().unwrap();
        let app = self.state.store.app_by_name(&name).await.unwrap().unwrap().id;
        let package = self.state.images.put(b"package".as_slice(), 100).unwrap();
        let new = NewRelease {
            description: "build 4f2a91c".to_owned(),
            commit: Some("4".repeat(40)),
            package,
            image: "ruby".parse().unwrap(),
            image_digest: None,
            processes: processes
                .iter()
                .map(|(kind, line)| (kind.parse().unwrap(), (*line).to_owned()))
                .collect(),
        };
        self.state.store.create_release(app, &new).await.unwrap();
    }

    pub(crate) fn remote(&self, token: &str, app: &str) -> String {
        format!("http://mogok:{token}@{GIT}:{}/{app}.git", self.address.port())
    }

    /// Runs git in a directory, with no settings but its own.
    pub(crate) async fn git(&self, dir: &Path, arguments: &[&str]) -> Output {
        let resolve = format!("http.curloptResolve={GIT}:{}:127.0.0.1", self.address.port());
        tokio::process::Command::new("git")
            .args(["-c", &resolve, "-c", "user.name=Dev", "-c", "user.email=dev@example.com"])
            .args(["-c", "init.defaultBranch=master", "-c", "gc.auto=0"])
            .args(arguments)
            .current_dir(dir)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.dir.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("LC_ALL", "C")
            .kill_on_drop(true)
            .output()
            .await
            .unwrap()
    }

    /// Runs git, which must succeed; its standard output.
    pub(crate) async fn git_ok(&self, dir: &Path, arguments: &[&str]) -> String {
        let output = self.git(dir, arguments).await;
        assert!(output.status.success(), "git {arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A working copy with one commit.
    pub(crate) async fn work_copy(&self, name: &str) -> std::path::PathBuf {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("config.ru"), "run ->(env) { [200, {}, ['hello']] }\n").unwrap();
        self.git_ok(&dir, &["init", "-q"]).await;
        self.git_ok(&dir, &["add", "."]).await;
        self.git_ok(&dir, &["commit", "-q", "-m", "first commit"]).await;
        dir
    }
}

/// A new database on the throw-away PostgreSQL server that `MOGOK_TEST_POSTGRES` names
/// (`postgres://USER@HOST:PORT`); without one the tests run on SQLite.
async fn postgres() -> Option<String> {
    let server = std::env::var("MOGOK_TEST_POSTGRES").ok()?;
    sqlx::any::install_default_drivers();
    let pool = sqlx::AnyPool::connect(&format!("{server}/postgres")).await.unwrap();
    let name = format!("mogok_{}", uuid::Uuid::new_v4().simple());
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&pool).await.unwrap();
    pool.close().await;
    Some(format!("{server}/{name}"))
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Polls until `done` holds; fails after ten seconds.
pub(crate) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within 10 s: {what}");
}
