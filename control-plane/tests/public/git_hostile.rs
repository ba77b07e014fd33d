//! What the git service must refuse: strangers, forbidden references, broken and huge pushes, and
//! clients that go away.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{GIT, Platform, eventually, stderr};

async fn platform(more: &[&str]) -> (Platform, String, PathBuf) {
    let p = Platform::with(more).await;
    let token = p.sign_up("dev@example.com").await;
    p.create_app(&token, "fugafuga").await;
    let dir = p.work_copy("work").await;
    (p, token, dir)
}

/// Pushes, which must fail; what git says about it.
async fn refused(p: &Platform, dir: &Path, token: &str, refs: &[&str]) -> String {
    let remote = p.remote(token, "fugafuga");
    let push = p.git(dir, &[&["push", &remote], refs].concat()).await;
    assert!(!push.status.success(), "{refs:?} must be refused");
    stderr(&push)
}

#[tokio::test]
async fn only_the_owner_gets_in() {
    let (p, token, dir) = platform(&[]).await;
    let other = p.sign_up("other@example.com").await;
    let said = refused(&p, &dir, &other, &["master"]).await;
    assert!(said.contains("no app fugafuga belongs to other@example.com"), "{said}");
    let said = refused(&p, &dir, "mogok_wrong", &["master"]).await;
    assert!(said.contains("Authentication failed"), "{said}");

    let anonymous = format!("http://{GIT}:{}/fugafuga.git", p.address.port());
    let said = stderr(&p.git(&dir, &["ls-remote", &anonymous]).await);
    assert!(said.contains("could not read Username"), "git must be asked for credentials: {said}");

    assert!(p.git(&dir, &["push", &p.remote(&token, "fugafuga"), "master"]).await.status.success());
    let clone = p.git(p.dir.path(), &["clone", &p.remote(&other, "fugafuga"), "stolen"]).await;
    assert!(!clone.status.success());
    p.post("/v1/logout", &token, Value::Null).await;
    let said = refused(&p, &dir, &token, &["master"]).await;
    assert!(said.contains("Authentication failed"), "{said}");
}

#[tokio::test]
async fn only_smart_http_is_served() {
    let (p, token, dir) = platform(&[]).await;
    p.git_ok(&dir, &["push", "-q", &p.remote(&token, "fugafuga"), "master"]).await;
    for path in [
        "/fugafuga.git/HEAD",
        "/fugafuga.git/config",
        "/fugafuga.git/info/refs",
        "/",
        "/fugafuga.git/objects/info/packs",
    ] {
        let request = p
            .builder(GIT, Method::GET, path)
            .header("authorization", format!("Bearer {token}"))
            .body(Default::default())
            .unwrap();
        assert_eq!(p.request(request).await.status().as_u16(), 404, "{path}");
    }
}

#[tokio::test]
async fn only_branches_and_tags_can_be_pushed() {
    let (p, token, dir) = platform(&[]).await;
    for forbidden in ["refs/mogok/kept/x", "refs/replace/x", "refs/notes/x", "refs/x"] {
        let said = refused(&p, &dir, &token, &[&format!("HEAD:{forbidden}")]).await;
        assert!(
            said.contains("hidden ref") || said.contains("branches and tags only"),
            "{forbidden}: {said}"
        );
    }
}

#[tokio::test]
async fn a_branch_can_be_deleted_but_not_the_one_that_is_built() {
    let (p, token, dir) = platform(&[]).await;
    let remote = p.remote(&token, "fugafuga");
    p.git_ok(&dir, &["push", "-q", &remote, "HEAD:refs/heads/master", "HEAD:refs/heads/other"]).await;
    let told = refused(&p, &dir, &token, &[":refs/heads/master"]).await;
    for word in ["cannot delete master", "git push --force mogok BRANCH:master", "mogok destroy"] {
        assert!(told.contains(word), "{told}");
    }
    p.git_ok(&dir, &["push", "-q", &remote, ":refs/heads/other"]).await;
}

#[tokio::test]
async fn an_object_that_would_escape_a_checkout_is_refused() {
    let (p, token, dir) = platform(&[]).await;
    let blob = p.git_ok(&dir, &["rev-parse", "HEAD:config.ru"]).await;
    let hash: Vec<u8> = (0..20).map(|n| u8::from_str_radix(&blob[n * 2..n * 2 + 2], 16).unwrap()).collect();
    for name in [".git", "..", "a/b"] {
        let file = p.dir.path().join("tree");
        std::fs::write(&file, [format!("100644 {name}\0").as_bytes(), &hash].concat()).unwrap();
        let path = file.display().to_string();
        let tree = p.git_ok(&dir, &["hash-object", "-t", "tree", "--literally", "-w", &path]).await;
        let commit = p.git_ok(&dir, &["commit-tree", "-m", "evil", &tree]).await;
        let said = refused(&p, &dir, &token, &[&format!("{commit}:refs/heads/evil")]).await;
        assert!(
            said.contains("fsck error") || said.contains("fsckObjects") || said.contains("error: object"),
            "{name}: {said}"
        );
    }
    let remote = p.remote(&token, "fugafuga");
    assert_eq!(p.git_ok(&dir, &["ls-remote", &remote]).await, "", "nothing of it was taken");
}

#[tokio::test]
async fn a_push_over_the_cap_is_refused_in_words_and_leaves_nothing() {
    let (p, token, dir) = platform(&["--push-limit-bytes", "1048576"]).await;
    let mut seed = 1_u64;
    let mut noise = |bytes: usize| -> Vec<u8> {
        let next = |_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed.to_be_bytes()[0]
        };
        (0..bytes).map(next).collect()
    };
    // What goes on far beyond the cap is cut off.
    for (bytes, part) in [(2 << 20, "exceeds maximum allowed size"), (12 << 20, "")] {
        std::fs::write(dir.join("large"), noise(bytes)).unwrap();
        p.git_ok(&dir, &["add", "."]).await;
        p.git_ok(&dir, &["commit", "-q", "--amend", "-m", "large"]).await;
        let said = refused(&p, &dir, &token, &["master"]).await;
        assert!(said.contains(part), "{bytes}: {said}");
    }
    let repos = p.dir.path().join("state/repos");
    eventually("the quarantine is gone", || size(&repos) < 1 << 20).await;
    std::fs::write(dir.join("large"), "small").unwrap();
    p.git_ok(&dir, &["add", "."]).await;
    p.git_ok(&dir, &["commit", "-q", "--amend", "-m", "small"]).await;
    p.git_ok(&dir, &["push", "-q", &p.remote(&token, "fugafuga"), "master"]).await;
}

fn size(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let entries = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    entries.sum()
}

/// Processes of this machine that work in the directory.
fn working_in(dir: &Path) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let inside = |cwd: PathBuf| cwd.starts_with(dir);
    processes.filter(|entry| std::fs::read_link(entry.path().join("cwd")).is_ok_and(inside)).count()
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_no_process_and_no_lock() {
    let (p, token, dir) = platform(&[]).await;
    let repos = p.dir.path().join("state/repos");
    for _ in 0..2 {
        let mut stream = TcpStream::connect(p.address).await.unwrap();
        let head = format!(
            "POST /fugafuga.git/git-receive-pack HTTP/1.1\r\nhost: {GIT}\r\nauthorization: Bearer {token}\r\n\
             content-type: application/x-git-receive-pack-request\r\ncontent-length: 1000000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"00b0").await.unwrap();
        eventually("git runs", || working_in(&repos) > 0).await;
        drop(stream);
        eventually("git is gone", || working_in(&repos) == 0).await;
    }
    // The repository's lock is free again.
    let remote = p.remote(&token, "fugafuga");
    let arguments = ["push", "-q", &remote, "master"];
    let push = p.git_ok(&dir, &arguments);
    tokio::time::timeout(Duration::from_secs(20), push).await.unwrap();
}

#[tokio::test]
async fn a_stop_ends_transfers() {
    let (p, token, _) = platform(&[]).await;
    let repos = p.dir.path().join("state/repos");
    let mut stream = TcpStream::connect(p.address).await.unwrap();
    let head = format!(
        "POST /fugafuga.git/git-receive-pack HTTP/1.1\r\nhost: {GIT}\r\nauthorization: Bearer {token}\r\n\
         content-type: application/x-git-receive-pack-request\r\ncontent-length: 1000000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    eventually("git runs", || working_in(&repos) > 0).await;
    p.stop.cancel();
    eventually("git is gone", || working_in(&repos) == 0).await;
}
