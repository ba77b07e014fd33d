//! Push and clone with the real git, and what the build reads from a repository.

use std::io::Write;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, StatusCode};
use mogok_control_plane::git::{Commit, GitError, Repository};
use serde_json::json;

use crate::harness::{GIT, Platform, stderr};

async fn pushed(p: &Platform) -> (String, std::path::PathBuf) {
    let token = p.sign_up("dev@example.com").await;
    p.create_app(&token, "fugafuga").await;
    let dir = p.work_copy("work").await;
    p.git_ok(&dir, &["remote", "add", "mogok", &p.remote(&token, "fugafuga")]).await;
    let push = p.git(&dir, &["push", "mogok", "master"]).await;
    assert!(push.status.success(), "{}", stderr(&push));
    assert!(stderr(&push).contains("build it with: mogok build"), "{}", stderr(&push));
    (token, dir)
}

async fn repository(p: &Platform) -> Repository {
    let app = p.state.store.app_by_name(&"fugafuga".parse().unwrap()).await.unwrap().unwrap();
    p.state.repositories.repository(app.id).await.unwrap()
}

#[tokio::test]
async fn what_is_pushed_can_be_cloned_with_every_protocol() {
    let p = Platform::start().await;
    let (token, dir) = pushed(&p).await;
    let head = p.git_ok(&dir, &["rev-parse", "HEAD"]).await;
    for version in ["0", "1", "2"] {
        let protocol = format!("protocol.version={version}");
        let to = format!("clone{version}");
        let remote = p.remote(&token, "fugafuga");
        p.git_ok(p.dir.path(), &["-c", &protocol, "clone", "-q", &remote, &to]).await;
        assert_eq!(p.git_ok(&p.dir.path().join(&to), &["rev-parse", "HEAD"]).await, head, "{version}");
    }
    // A second push, and a fetch that negotiates: its request is packed by git.
    for n in 0..60 {
        let message = format!("commit {n}");
        p.git_ok(&dir, &["commit", "-q", "--allow-empty", "-m", &message]).await;
    }
    p.git_ok(&dir, &["push", "-q", "mogok", "master", "HEAD:refs/tags/v1", "HEAD:refs/heads/feature/x"])
        .await;
    let clone = p.dir.path().join("clone2");
    p.git_ok(&clone, &["commit", "-q", "--allow-empty", "-m", "mine"]).await;
    p.git_ok(&clone, &["fetch", "-q", "--all", "--tags"]).await;
    let newest = p.git_ok(&dir, &["rev-parse", "HEAD"]).await;
    assert_eq!(p.git_ok(&clone, &["rev-parse", "origin/feature/x"]).await, newest);
    p.git_ok(&dir, &["push", "-q", "mogok", ":refs/heads/feature/x"]).await;
    p.finish().await;
}

#[tokio::test]
async fn a_request_may_be_packed() {
    let p = Platform::start().await;
    let (token, dir) = pushed(&p).await;
    let head = p.git_ok(&dir, &["rev-parse", "HEAD"]).await;
    let want = format!("want {head}\n");
    let request = format!("{:04x}{want}00000009done\n", want.len() + 4);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(request.as_bytes()).unwrap();
    let send = |body: Vec<u8>| {
        let request = p
            .builder(GIT, Method::POST, "/fugafuga.git/git-upload-pack")
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/x-git-upload-pack-request")
            .header("content-encoding", "gzip")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        p.request(request)
    };
    let response = send(packed.finish().unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.windows(4).any(|bytes| bytes == b"PACK"), "{body:?}");
    assert_eq!(send(b"no gzip".to_vec()).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn head_follows_the_first_branch() {
    let p = Platform::start().await;
    let token = p.sign_up("dev@example.com").await;
    p.create_app(&token, "fugafuga").await;
    let dir = p.work_copy("work").await;
    let repository = repository(&p).await;
    assert_eq!(repository.default_commit().await.unwrap(), None);
    p.git_ok(&dir, &["push", "-q", &p.remote(&token, "fugafuga"), "master:trunk"]).await;
    let head: Commit = p.git_ok(&dir, &["rev-parse", "HEAD"]).await.parse().unwrap();
    assert_eq!(repository.default_commit().await.unwrap(), Some(head.clone()));
    for (name, found) in [("trunk", true), (head.as_str(), true), (head.short(), true), ("master", false)] {
        let commit = repository.resolve(&name.parse().unwrap()).await.unwrap();
        assert_eq!(commit.is_some(), found, "{name}");
    }
}

#[tokio::test]
async fn a_commit_is_read_without_a_checkout_and_kept_after_a_forced_push() {
    let p = Platform::start().await;
    let (_, dir) = pushed(&p).await;
    std::fs::create_dir(dir.join("sub")).unwrap();
    std::fs::write(dir.join("sub/a file"), "content").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("Procfile")).unwrap();
    p.git_ok(&dir, &["add", "."]).await;
    p.git_ok(&dir, &["commit", "-q", "-m", "second"]).await;
    p.git_ok(&dir, &["push", "-q", "mogok", "master"]).await;
    let repository = repository(&p).await;
    let commit = repository.default_commit().await.unwrap().unwrap();
    assert_eq!(repository.read_file(&commit, "sub/a file", 100).await.unwrap().unwrap(), b"content");
    assert_eq!(repository.read_file(&commit, "Gemfile", 100).await.unwrap(), None);
    assert!(matches!(repository.read_file(&commit, "Procfile", 100).await, Err(GitError::NotAFile { .. })));
    assert!(matches!(repository.read_file(&commit, "sub", 100).await, Err(GitError::NotAFile { .. })));
    assert!(matches!(repository.read_file(&commit, "sub/a file", 6).await, Err(GitError::TooLarge { .. })));

    let mut tar = Vec::new();
    let bytes = repository.archive(&commit, &mut tar, 1 << 20).await.unwrap();
    assert_eq!(bytes, tar.len() as u64);
    assert!(tar.windows(9).any(|bytes| bytes == b"config.ru"));
    let capped = repository.archive(&commit, &mut Vec::new(), 1024).await;
    assert!(matches!(capped, Err(GitError::TooLarge { .. })));

    repository.keep(&commit).await.unwrap();
    p.git_ok(&dir, &["reset", "-q", "--hard", "HEAD~1"]).await;
    p.git_ok(&dir, &["push", "-q", "-f", "mogok", "master"]).await;
    // Enough pushes for the packs to be made one, which drops what nothing refers to.
    for n in 0..32 {
        std::fs::write(dir.join("n"), n.to_string()).unwrap();
        p.git_ok(&dir, &["add", "."]).await;
        p.git_ok(&dir, &["commit", "-q", "-m", "more"]).await;
        p.git_ok(&dir, &["push", "-q", "mogok", "master"]).await;
    }
    let packs = || {
        let app =
            std::fs::read_dir(p.dir.path().join("state/repos")).unwrap().next().unwrap().unwrap().path();
        let files = std::fs::read_dir(app.join("objects/pack")).unwrap();
        files
            .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|end| end == "pack"))
            .count()
    };
    crate::harness::eventually("packs are made one", || packs() < 10).await;
    assert_eq!(repository.read_file(&commit, "sub/a file", 100).await.unwrap().unwrap(), b"content");
    let refs = p.git_ok(&dir, &["ls-remote", "mogok"]).await;
    assert!(!refs.contains("refs/mogok"), "the platform's own references are not shown: {refs}");
}

#[tokio::test]
async fn a_pushed_commit_is_built_once_at_a_time_and_the_build_can_be_cancelled() {
    let p = Platform::start().await;
    let (token, dir) = pushed(&p).await;
    let head = p.git_ok(&dir, &["rev-parse", "HEAD"]).await;
    let path = "/v1/apps/fugafuga/builds";
    for (reference, status) in [("nothing", 404), ("a..b", 400), ("--all", 400)] {
        let (got, body) = p.post(path, &token, json!({ "reference": reference })).await;
        assert_eq!(got.as_u16(), status, "{body}");
    }
    let (status, build) = p.post(path, &token, json!({})).await;
    assert_eq!((status, &build["commit"]), (StatusCode::CREATED, &json!(head)), "{build}");
    let id = build["id"].as_str().unwrap();
    let other = p.sign_up("other@example.com").await;
    p.create_app(&other, "another").await;
    for method in ["", "/log", "/cancel"] {
        let of_other = format!("/v1/apps/another/builds/{id}{method}");
        let call = if method == "/cancel" { Method::POST } else { Method::GET };
        assert_eq!(p.call(call, &of_other, &other, json!({})).await.0, StatusCode::NOT_FOUND, "{method}");
    }
    // No node is there to build it, and this commit has no Gemfile: it fails, or it is cancelled first.
    let (status, _) = p.post(&format!("{path}/{id}/cancel"), &token, json!({})).await;
    assert!([StatusCode::OK, StatusCode::CONFLICT].contains(&status), "{status}");
    let (_, build) = p.get(&format!("{path}/{id}"), &token).await;
    assert!(["cancelled", "failed"].contains(&build["state"].as_str().unwrap()), "{build}");
    assert_eq!(p.get(path, &token).await.1.as_array().unwrap().len(), 1);
}
