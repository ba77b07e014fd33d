//! Apps, their names and limits, their config, and their end.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::Platform;

#[tokio::test]
async fn an_app_is_made_once_within_the_plan() {
    let p = Platform::start().await;
    let (mine, theirs) = (p.sign_up("a@example.com").await, p.sign_up("b@example.com").await);
    let (status, app) = p.post("/v1/apps", &mine, json!({"name": "fugafuga"})).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(app["url"], "http://fugafuga.mogok.localhost:8080");
    assert_eq!(app["git_url"], "http://git.mogok.localhost:8080/fugafuga.git");
    assert_eq!(
        (&app["running"], &app["release"], &app["formation"]),
        (&json!(false), &Value::Null, &json!({"web": 1}))
    );

    for (token, name, status, part) in [
        (&theirs, "fugafuga", 409, "taken"),
        (&theirs, "portal", 400, "reserved"),
        (&theirs, "No_Good", 400, "invalid app name \"No_Good\""),
        (&mine, "another", 422, "the free plan allows 1 app"),
    ] {
        let (got, body) = p.post("/v1/apps", token, json!({ "name": name })).await;
        assert_eq!(got.as_u16(), status, "{name}: {body}");
        assert!(body["message"].as_str().unwrap().contains(part), "{name}: {body}");
        assert!(!body["message"].as_str().unwrap().contains("column"), "{body}");
    }
    assert_eq!(p.get("/v1/apps", &mine).await.1.as_array().unwrap().len(), 1);
    assert_eq!(p.get("/v1/apps", &theirs).await.1, json!([]));
}

#[tokio::test]
async fn the_apps_of_others_do_not_exist() {
    let p = Platform::start().await;
    let (mine, theirs) = (p.sign_up("a@example.com").await, p.sign_up("b@example.com").await);
    p.create_app(&mine, "fugafuga").await;
    let none = p.get("/v1/apps/nothing", &theirs).await;
    for (method, path) in [
        (Method::GET, ""),
        (Method::DELETE, ""),
        (Method::GET, "/config"),
        (Method::PATCH, "/config"),
        (Method::GET, "/builds"),
        (Method::POST, "/builds"),
        (Method::GET, "/releases"),
        (Method::POST, "/rollback"),
        (Method::POST, "/start"),
        (Method::POST, "/stop"),
        (Method::POST, "/restart"),
        (Method::PATCH, "/formation"),
        (Method::GET, "/ps"),
        (Method::GET, "/logs"),
    ] {
        let (status, body) =
            p.call(method.clone(), &format!("/v1/apps/fugafuga{path}"), &theirs, json!({})).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{method} {path}: {body}");
        let text = body.to_string().replace("fugafuga", "nothing");
        assert_eq!(text, none.1.to_string(), "it must not be told apart from no app at all");
    }
    assert_eq!(p.get("/v1/apps/fugafuga", &mine).await.0, StatusCode::OK);
}

/// A proxy writes on while the answer is on its way; a connection that is reset under it is a "bad gateway".
#[tokio::test]
async fn an_early_answer_reaches_a_client_that_sends_on() {
    let p = Platform::start().await;
    let body = vec![b'['; 3 << 20];
    for (path, status) in [("/v1/apps", 401), ("/v1/login", 413), ("/v1/nothing", 404)] {
        for _ in 0..3 {
            let mut client = TcpStream::connect(p.address).await.unwrap();
            let length = body.len();
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: api.mogok.localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            client.write_all(head.as_bytes()).await.unwrap();
            // Not all at once into the kernel's buffers.
            for piece in body.chunks(1 << 16) {
                client.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        }
    }
}

#[tokio::test]
async fn config_vars_are_set_unset_and_ruled() {
    let p = Platform::start().await;
    let token = p.sign_up("a@example.com").await;
    p.create_app(&token, "fugafuga").await;
    let path = "/v1/apps/fugafuga/config";
    let patch = |body: Value| p.call(Method::PATCH, path, &token, body);
    assert_eq!(patch(json!({"A": "1", "B": "2"})).await.1, json!({"config": {"A": "1", "B": "2"}}));
    assert_eq!(patch(json!({"A": null})).await.1, json!({"config": {"B": "2"}}));
    for (body, status, part) in [
        (json!({"MOGOK_APP": "x"}), 400, "reserved"),
        (json!({"1A": "x"}), 400, "invalid config var name"),
        (json!({"PORT": "80"}), 400, "PORT"),
        (json!({"A": 1}), 400, "expected a string"),
        (json!({"A": "x\u{0}"}), 400, "NUL"),
        (json!({"A": "x".repeat(64 * 1024)}), 413, "65536"),
    ] {
        let (got, answer) = patch(body).await;
        assert_eq!(got.as_u16(), status, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(part), "{answer}");
    }
    assert_eq!(p.get(path, &token).await.1, json!({"B": "2"}));
}

#[tokio::test]
async fn a_destroyed_app_leaves_nothing_and_frees_its_name() {
    let p = Platform::start().await;
    let token = p.sign_up("a@example.com").await;
    p.create_app(&token, "fugafuga").await;
    let dir = p.work_copy("work").await;
    p.git_ok(&dir, &["push", "-q", &p.remote(&token, "fugafuga"), "master"]).await;
    p.release("fugafuga", &[("web", "puma")]).await;
    let app = p.state.store.app_by_name(&"fugafuga".parse().unwrap()).await.unwrap().unwrap();
    let source = mogok_api::control::LogSource::Mogok;
    p.state.logs.append(app.id, chrono::Utc::now(), source, "api", "hello").unwrap();
    let state_dir = p.dir.path().join("state");
    let (repo, log) =
        (state_dir.join(format!("repos/{}.git", app.id)), state_dir.join(format!("logs/{}", app.id)));
    assert!(repo.is_dir() && log.is_dir());

    let (status, _) = p.call(Method::DELETE, "/v1/apps/fugafuga", &token, Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert!(!repo.exists() && !log.exists());
    assert_eq!(std::fs::read_dir(state_dir.join("repos")).unwrap().count(), 0);
    let (status, _) = p.call(Method::DELETE, "/v1/apps/fugafuga", &token, Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    p.create_app(&token, "fugafuga").await;
    assert_eq!(p.get("/v1/apps/fugafuga/releases", &token).await.1, json!([]));
    let clone = p.git(p.dir.path(), &["clone", "-q", &p.remote(&token, "fugafuga"), "clone"]).await;
    assert!(clone.status.success());
    assert!(!p.dir.path().join("clone/config.ru").exists(), "the old app's source is gone");
}
