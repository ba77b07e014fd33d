//! Builds in one process: real store, repository, blob store, node synchronisation and agent API over a
//! Unix socket. Only the agent is a fake, so no container runs here.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use mogok_api::app::Plan;
use mogok_api::control::{Build, BuildState, LogLine};
use mogok_api::name::ProcessType;
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::config::Config;
use crate::log_store::{Filter, Start};
use crate::store::apps::AppRow;
use crate::store::instances::NewInstance;
use crate::store::releases::NewRelease;

mod fake_agent;

use fake_agent::{Ending, FakeAgent, digest_of};

const LOCK: &str = "GEM\n  specs:\n    rack (3.1.0)\n\nPLATFORMS\n  ruby\n\nDEPENDENCIES\n  rack\n";

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    config: Config,
}

/// A control plane that runs builds, one app, one fake agent.
struct Platform {
    dir: TempDir,
    agent: FakeAgent,
    state: AppState,
    app: AppRow,
    _running: DropGuard,
}

/// A package of one file, below the directory `top`.
fn package_of(top: &str, content: &str) -> Vec<u8> {
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir(tree.path().join(top)).unwrap();
    std::fs::write(tree.path().join(top).join("file"), content).unwrap();
    let mut bytes = Vec::new();
    mogok_images::pack::pack(tree.path(), 0, 1, &mut bytes).unwrap();
    bytes
}

fn package(content: &str) -> Vec<u8> {
    package_of("app", content)
}

async fn open(dir: &Path, more: &[&str]) -> AppState {
    let (state_dir, socket) = (dir.join("state"), dir.join("node.sock"));
    let agent = format!("unix:{}", dir.join("agent.sock").display());
    let (state_dir, socket) = (state_dir.to_str().unwrap(), socket.to_str().unwrap());
    let base = ["x", "--state-dir", state_dir, "--agent", &agent, "--node-socket", socket];
    AppState::open(Line::try_parse_from(base.iter().chain(more)).unwrap().config).await.unwrap()
}

/// Starts the parts; dropping the guard kills them wherever they are, as a crash would.
fn run_parts(state: &AppState) -> DropGuard {
    let stop = CancellationToken::new();
    for part in [0, 1] {
        let (state, stop, died) = (state.clone(), stop.clone(), stop.clone());
        tokio::spawn(async move {
            let work = async {
                if part == 0 { run(state, stop).await } else { crate::node::run(state, stop).await.unwrap() }
            };
            tokio::select! { biased; () = died.cancelled() => {}, () = work => {} }
        });
    }
    stop.drop_guard()
}

impl Platform {
    async fn start(ending: Ending) -> Self {
        Self::start_with(ending, &[]).await
    }

    async fn start_with(ending: Ending, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let agent = FakeAgent::start(&dir.path().join("agent.sock"), ending);
        let state = open(dir.path(), more).await;
        let user = state.store.create_user("a@example.com", "hash").await.unwrap();
        let app = state.store.create_app(user.id, &"fugafuga".parse().unwrap(), "secret").await.unwrap();
        let running = run_parts(&state);
        Self { dir, agent, state, app, _running: running }
    }

    /// Kills the control plane wherever it is, and starts it again on the same disk.
    async fn restart(self) -> Self {
        let Self { dir, agent, state, app, _running } = self;
        drop(_running);
        state.store.pool.close().await;
        drop(state);
        let state = open(dir.path(), &[]).await;
        let running = run_parts(&state);
        Self { dir, agent, state, app, _running: running }
    }

    /// Commits the files and pushes them to `master`.
    async fn push(&self, files: &[(&str, &str)]) {
        self.state.repositories.repository(self.app.id).await.unwrap();
        let bare = self.dir.path().join("state/repos").join(format!("{}.git", self.app.id));
        let source = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = source.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let bare = bare.to_str().unwrap();
        for line in [
            &["init", "--quiet"][..],
            &["add", "."],
            &["-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "-m", "x"],
            &["push", "--quiet", "--force", bare, "HEAD:refs/heads/master"],
        ] {
            let mut git = Command::new("git");
            git.args(line)
                .current_dir(source.path())
                .env_remove("GIT_DIR")
                .env("GIT_CONFIG_GLOBAL", "/dev/null");
            assert!(git.status().unwrap().success(), "{line:?}");
        }
    }

    async fn push_rack(&self) {
        self.push(&[("Gemfile", ""), ("Gemfile.lock", LOCK), ("config.ru", ""), ("Procfile", "web: puma\n")])
            .await;
    }

    async fn request(&self) -> Build {
        request(&self.state, &self.app, None).await.unwrap()
    }

    async fn build(&self, id: BuildId) -> Build {
        self.state.store.build(id).await.unwrap().unwrap().shown()
    }

    /// Follows the build's log to its end; its lines and how the build ended.
    async fn ended(&self, id: BuildId) -> (Vec<String>, Build) {
        let follow = async {
            let mut reader = self.state.logs.follow(id, Start::After(0), Filter::default()).await.unwrap();
            let mut lines: Vec<LogLine> = Vec::new();
            while let Some(more) = reader.next().await.unwrap() {
                lines.extend(more);
            }
            lines.into_iter().map(|line| line.line).collect()
        };
        let lines = tokio::time::timeout(Duration::from_secs(30), follow).await.expect("the build ends");
        (lines, self.build(id).await)
    }
}

/// Looks again until it is so, for 20 s.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    for _ in 0..2000 {
        if so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 20 s: {what}");
}

#[tokio::test]
async fn a_commit_becomes_a_release() {
    let platform = Platform::start(Ending::Package(package("one"))).await;
    platform.push_rack().await;
    let build = platform.request().await;
    let (lines, build) = platform.ended(build.id).await;
    assert_eq!(build.state, BuildState::Succeeded, "{lines:?}");
    assert_eq!(build.release.unwrap().to_string(), "v1");
    let bytes = package("one").len();
    assert_eq!(build.package_bytes, Some(bytes as u64));
    let short = &build.commit[..7];
    assert_eq!(
        lines,
        [
            &format!("build of commit {short} queued"),
            &format!("source 10.2 KB at commit {short}, Rack 3.1.0"),
            "process types: web",
            "bundle install",
            "bundled",
            &format!("package {bytes} B"),
            "release v1 is ready: mogok start",
        ]
    );
    let app = platform.state.store.app(platform.app.id).await.unwrap().unwrap();
    let release = platform.state.store.release(app.current_release.unwrap()).await.unwrap().unwrap();
    assert_eq!(release.package, digest_of(&package("one")));
    assert_eq!(release.processes[&ProcessType::web()], "puma");
    assert!(platform.state.images.has(&release.package));
    // Its container is no longer wanted, and the app's log tells the same story.
    until("the container leaves", async || platform.agent.wanted().is_empty()).await;
    let log = platform.state.logs.read_last(app.id, 100, Filter::default()).await.unwrap();
    assert_eq!(log.len(), lines.len());
}

#[tokio::test]
async fn the_node_gets_the_source_and_the_next_build_its_gems() {
    let platform = Platform::start(Ending::Never).await;
    platform.push_rack().await;
    let first = platform.request().await;
    until("the container starts", async || platform.agent.started() == 1).await;
    let spec = platform.agent.wanted().remove(0);
    let source = platform.agent.blob(&spec.blobs[0].digest).unwrap();
    assert!(source.windows(9).any(|part| part == b"config.ru"), "no tar of the commit");
    assert!(spec.package_mounts.is_empty());
    platform.agent.end_with(Ending::Package(package("one")));
    assert_eq!(platform.ended(first.id).await.1.state, BuildState::Succeeded);
    platform.agent.end_with(Ending::Never);
    let second = platform.request().await;
    until("the second starts", async || platform.agent.started() == 2).await;
    let spec = platform.agent.wanted().into_iter().max_by_key(|spec| spec.id).unwrap();
    assert_eq!(spec.package_mounts[0].digest, digest_of(&package("one")));
    platform.agent.end_with(Ending::Package(package("two")));
    let (lines, build) = platform.ended(second.id).await;
    assert_eq!(build.release.unwrap().to_string(), "v2");
    assert!(lines.contains(&"gems of v1 are at hand".to_owned()), "{lines:?}");
}

#[tokio::test]
async fn a_failure_tells_its_reason_last() {
    let lines = vec!["bundle install", "mogok-build: failed: gem pg needs libpq"];
    let platform = Platform::start(Ending::Failure(lines)).await;
    platform.push_rack().await;
    let build = platform.request().await;
    let (lines, build) = platform.ended(build.id).await;
    assert_eq!(build.state, BuildState::Failed);
    assert_eq!(build.reason.as_deref(), Some("gem pg needs libpq"));
    assert_eq!(lines.last().unwrap(), "failed: gem pg needs libpq");
    assert!(lines.contains(&"mogok-build: failed: gem pg needs libpq".to_owned()), "{lines:?}");
    assert!(platform.state.store.app(platform.app.id).await.unwrap().unwrap().current_release.is_none());
    // And the next one may begin.
    platform.agent.end_with(Ending::Package(package("one")));
    let next = platform.request().await;
    assert_eq!(platform.ended(next.id).await.1.state, BuildState::Succeeded);
}

#[tokio::test]
async fn what_a_node_would_not_unpack_is_no_release() {
    let platform = Platform::start(Ending::Package(package("one"))).await;
    platform.push_rack().await;
    let first = platform.request().await;
    assert_eq!(platform.ended(first.id).await.1.state, BuildState::Succeeded);
    for (package, reason) in [
        (b"no archive at all".to_vec(), "the build wrote something that is no package"),
        (
            package_of("etc", "x"),
            "the package cannot be unpacked: archive entry etc: it does not lie below app/; change the repository",
        ),
    ] {
        platform.agent.end_with(Ending::Package(package));
        let build = platform.request().await;
        let (_, build) = platform.ended(build.id).await;
        assert_eq!(build.state, BuildState::Failed);
        assert!(build.reason.as_deref().unwrap().starts_with(reason), "{:?}", build.reason);
    }
    // The gems of the next build are those of the last release.
    platform.agent.end_with(Ending::Never);
    let started = platform.agent.started();
    platform.request().await;
    until("the next starts", async || platform.agent.started() == started + 1).await;
    let spec = platform.agent.wanted().into_iter().max_by_key(|spec| spec.id).unwrap();
    assert_eq!(spec.package_mounts[0].digest, digest_of(&package("one")));
}

#[tokio::test]
async fn what_cannot_be_built_never_reaches_a_node() {
    let platform =
        Platform::start_with(Ending::Package(package("x")), &["--build-source-bytes", "20000"]).await;
    let big = "x".repeat(30_000);
    for (files, reason) in [
        (&[("a", "")][..], "no Gemfile at the top"),
        (&[("Gemfile", "")], "no Gemfile.lock at the top"),
        (
            &[("Gemfile", ""), ("Gemfile.lock", LOCK), ("Procfile", "web: x\nweb: y\n")],
            "Procfile line 2: process type web was already given in line 1",
        ),
        (
            &[("Gemfile", ""), ("Gemfile.lock", LOCK), ("Procfile", "web: x\n"), ("a", &big)],
            "the source is larger than 20 KB",
        ),
    ] {
        platform.push(files).await;
        // A node that takes it may be met a moment later.
        let build = platform.request().await;
        let (_, build) = platform.ended(build.id).await;
        assert_eq!(build.state, BuildState::Failed);
        assert!(build.reason.as_deref().unwrap().starts_with(reason), "{:?}", build.reason);
    }
    assert_eq!(platform.agent.started(), 0);
}

#[tokio::test]
async fn a_killed_control_plane_goes_on_where_it_was() {
    let platform = Platform::start(Ending::Never).await;
    platform.push_rack().await;
    let build = platform.request().await;
    let platform = platform.restart().await;
    until("the container starts", async || platform.agent.started() == 1).await;
    let platform = platform.restart().await;
    platform.agent.end_with(Ending::Package(package("one")));
    let platform = platform.restart().await;
    let (lines, build) = platform.ended(build.id).await;
    assert_eq!(build.state, BuildState::Succeeded, "{lines:?}");
    let platform = platform.restart().await;
    // One container, one release, whatever was repeated.
    assert_eq!(platform.agent.started(), 1);
    assert_eq!(platform.state.store.releases(platform.app.id, 10).await.unwrap().len(), 1);
    assert_eq!(lines.iter().filter(|line| *line == "bundled").count(), 1, "{lines:?}");
}

#[tokio::test]
async fn kills_at_any_point_lose_and_double_nothing() {
    let mut platform = Platform::start(Ending::Package(package("one"))).await;
    platform.push_rack().await;
    let build = platform.request().await;
    // Each life is a little longer than the one before, so that each step is cut at several points.
    let mut lives = 0;
    while !platform.build(build.id).await.state.ended() {
        lives += 1;
        tokio::time::sleep(Duration::from_millis(lives * 3)).await;
        platform = platform.restart().await;
        assert!(lives < 300, "it never ends");
    }
    let releases = platform.state.store.releases(platform.app.id, 10).await.unwrap();
    assert_eq!((platform.agent.started(), releases.len()), (1, 1));
    // A log that was left open by the kill is closed by the next life.
    let (lines, build) = platform.ended(build.id).await;
    assert_eq!(build.state, BuildState::Succeeded, "{lines:?}");
    assert!(lives > 1, "it ended in its first life: nothing was cut");
}

#[tokio::test]
async fn a_cancelled_build_leaves_its_node() {
    let platform = Platform::start(Ending::Never).await;
    platform.push_rack().await;
    let build = platform.request().await;
    let busy = request(&platform.state, &platform.app, None).await.unwrap_err();
    assert!(
        matches!(&busy, RequestError::Create(CreateBuildError::Busy { running }) if *running == build.id),
        "{busy}"
    );
    until("the container starts", async || platform.agent.started() == 1).await;
    for _ in 0..2 {
        let cancelled = cancel(&platform.state, platform.app.id, build.id).await.unwrap();
        assert_eq!(cancelled.state, BuildState::Cancelled);
    }
    let (lines, _) = platform.ended(build.id).await;
    assert_eq!(lines.last().unwrap(), "cancelled");
    until("the container leaves", async || platform.agent.wanted().is_empty()).await;
    let other = cancel(&platform.state, AppId::new(), build.id).await.unwrap_err();
    assert!(matches!(other, CancelError::NoBuild(_)), "{other}");
}

#[tokio::test]
async fn without_a_push_there_is_nothing_to_build() {
    let platform = Platform::start(Ending::Never).await;
    let error = request(&platform.state, &platform.app, None).await.unwrap_err();
    let Failed(error) = error.into();
    assert_eq!(
        error.to_string(),
        "nothing was pushed to the app fugafuga yet (push first: git push mogok master, or the branch that you have)"
    );
    platform.push_rack().await;
    let error = request(&platform.state, &platform.app, Some("nowhere")).await.unwrap_err();
    assert!(matches!(error, RequestError::UnknownReference { .. }), "{error}");
    let error = request(&platform.state, &platform.app, Some("--upload-pack=x")).await.unwrap_err();
    assert!(matches!(error, RequestError::InvalidReference(_)), "{error}");
}

#[tokio::test]
async fn what_a_developer_will_stumble_over_is_said_before_it_happens() {
    let platform = Platform::start(Ending::Package(package("one"))).await;
    let workers = [("Gemfile", ""), ("Gemfile.lock", LOCK), ("Procfile", "worker: work\n")];
    platform.push(&[&workers[..], &[("vendor/cache/rack-3.1.0.gem", "")]].concat()).await;
    let (lines, _) = platform.ended(platform.request().await.id).await;
    let said = |part: &str| lines.iter().any(|line| line.contains(part));
    assert!(said("warning: the commit has vendor/cache: Bundler takes every gem from there"), "{lines:?}");
    assert!(said("to run it: the free plan runs web processes only"), "{lines:?}");

    platform.state.store.set_plan(platform.app.owner, Plan::Paid).await.unwrap();
    platform.push(&workers).await;
    let (lines, _) = platform.ended(platform.request().await.id).await;
    assert!(
        lines.iter().any(|line| line == "to run it: mogok scale worker=1, then mogok start"),
        "{lines:?}"
    );
    assert!(!lines.iter().any(|line| line.contains("vendor/cache")), "{lines:?}");

    let worker = [("worker".parse().unwrap(), 1)].into();
    platform.state.store.scale_app(platform.app.id, Plan::Paid, &worker).await.unwrap();
    let (lines, _) = platform.ended(platform.request().await.id).await;
    assert!(!lines.iter().any(|line| line.starts_with("to run it")), "{lines:?}");
}

#[tokio::test]
async fn what_nobody_needs_is_collected() {
    let platform = Platform::start(Ending::Package(package("one"))).await;
    platform.push_rack().await;
    let build = platform.request().await;
    let (_, build) = platform.ended(build.id).await;
    let state = &platform.state;
    let old = state.images.put(&b"nobody's"[..], 100).unwrap();
    let gone = AppId::new();
    log::say(&state.logs, BuildId::new(), gone, "of an app that is gone");
    let source =
        state.store.build(build.id).await.unwrap().unwrap().handed.unwrap().spec.blobs[0].digest.clone();
    let package = build.package.unwrap();
    until("the build has left the node", async || platform.agent.wanted().is_empty()).await;
    collect::collect(state).await.unwrap();
    // What was put lately may be about to be used.
    assert_eq!(retention::collect(state, Duration::from_secs(3600)).await.unwrap().blobs, 0);
    assert!(platform.agent.blob(&source).is_some());
    // The source of the build, here and on the node, and what was put above.
    assert_eq!(retention::collect(state, Duration::ZERO).await.unwrap().blobs, 3);
    assert!(!state.images.has(&old) && state.images.has(&package));
    assert!(platform.agent.blob(&source).is_none() && platform.agent.blob(&package).is_some());
    let mut keys = state.logs.keys().unwrap();
    keys.retain(|key| *key != platform.app.id.into() && *key != build.id.into());
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test]
async fn packages_beyond_the_last_ten_releases_are_dropped_on_the_node_too() {
    let platform = Platform::start(Ending::Package(package("0"))).await;
    platform.push_rack().await;
    let mut packages = Vec::new();
    for number in 0..12 {
        platform.agent.end_with(Ending::Package(package(&number.to_string())));
        let build = platform.request().await;
        packages.push(platform.ended(build.id).await.1.package.unwrap());
        until("the build has left the node", async || platform.agent.wanted().is_empty()).await;
    }
    // The second release is the one that runs.
    let (state, app) = (&platform.state, platform.app.id);
    let second = state.store.releases(app, 100).await.unwrap().pop().unwrap();
    let node = state.observed.nodes()[0].info.id;
    let process = "web.1".parse().unwrap();
    let new = NewInstance { app, release: second.id, deploy: None, process, node };
    state.store.create_instance(&new).await.unwrap();

    retention::collect(state, Duration::ZERO).await.unwrap();
    let kept: Vec<bool> = packages.iter().map(|package| state.images.has(package)).collect();
    let on_node: Vec<bool> = packages.iter().map(|package| platform.agent.blob(package).is_some()).collect();
    let mut expected = [true; 12];
    expected[1] = false;
    assert_eq!(kept, expected, "the oldest one runs, and ten can be gone back to");
    assert_eq!(on_node, expected);
}

#[tokio::test]
async fn a_destroyed_app_leaves_no_blob_but_what_another_one_has() {
    let platform = Platform::start(Ending::Package(package("shared"))).await;
    platform.push_rack().await;
    let build = platform.request().await;
    let shared = platform.ended(build.id).await.1.package.unwrap();
    platform.agent.end_with(Ending::Package(package("own")));
    let build = platform.request().await;
    let own = platform.ended(build.id).await.1.package.unwrap();
    until("the build has left the node", async || platform.agent.wanted().is_empty()).await;

    let (state, app) = (&platform.state, platform.app.id);
    let user = state.store.create_user("b@example.com", "hash").await.unwrap();
    let other = state.store.create_app(user.id, &"other".parse().unwrap(), "secret").await.unwrap();
    let release = state.store.releases(app, 1).await.unwrap().remove(0);
    let same = NewRelease { package: shared.clone(), ..NewRelease::like(&release) };
    state.store.create_release(other.id, &same).await.unwrap();

    crate::apps::destroy(state, app).await.unwrap();
    until("only what the other app has is left", async || {
        let left = state.images.blobs().unwrap();
        left.len() == 1 && left[0].0 == shared && platform.agent.blobs() == [shared.clone()]
    })
    .await;
    assert!(platform.agent.blob(&own).is_none());
}
