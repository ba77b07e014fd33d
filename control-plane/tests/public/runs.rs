//! What is wanted to run: start, stop, scale, rollback, and the deploys that answer them.

use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use mogok_api::app::Plan;
use mogok_api::control::{Deploy, DeployState};
use serde_json::{Value, json};

use crate::harness::Platform;

async fn platform() -> (Platform, String) {
    let p = Platform::start().await;
    let token = p.sign_up("a@example.com").await;
    p.create_app(&token, "fugafuga").await;
    (p, token)
}

#[tokio::test]
async fn what_was_not_built_does_not_start() {
    let (p, token) = platform().await;
    for (path, part) in
        [("start", "nothing is built yet"), ("restart", "stopped"), ("rollback", "nothing is built yet")]
    {
        let (status, body) = p.post(&format!("/v1/apps/fugafuga/{path}"), &token, Value::Null).await;
        assert_eq!(
            (status, body["message"].as_str().unwrap().contains(part)),
            (StatusCode::CONFLICT, true),
            "{body}"
        );
        assert!(body["remedy"].as_str().unwrap().contains("mogok "), "{body}");
    }
    let (status, body) = p.post("/v1/apps/fugafuga/builds", &token, Value::Null).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(body["remedy"].as_str().unwrap().contains("git push mogok master"), "{body}");
}

#[tokio::test]
async fn a_started_app_has_a_deploy_that_can_be_waited_for() {
    let (p, token) = platform().await;
    p.release("fugafuga", &[("web", "puma")]).await;
    let (status, deploy) = p.post("/v1/apps/fugafuga/start", &token, json!({})).await;
    assert_eq!(status, StatusCode::OK, "{deploy}");
    let deploy: Deploy = serde_json::from_value(deploy).unwrap();
    assert_eq!((deploy.action.as_str(), deploy.release.unwrap().get()), ("start", 1));
    assert_eq!(p.get("/v1/apps/fugafuga", &token).await.1["running"], true);

    let path = format!("/v1/apps/fugafuga/deploys/{}", deploy.id);
    let ended = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        p.state.store.end_deploy(deploy.id, DeployState::Failed, Some("it crashed")).await.unwrap();
        p.state.wake.deploys.wake();
    };
    let began = Instant::now();
    let wait = format!("{path}?wait=20");
    let ((_, seen), ()) = tokio::join!(p.get(&wait, &token), ended);
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!((&seen["state"], &seen["message"]), (&json!("failed"), &json!("it crashed")));

    let (_, next) = p.post("/v1/apps/fugafuga/stop", &token, Value::Null).await;
    assert_eq!(next["action"], "stop");
    assert_eq!(p.get("/v1/apps/fugafuga", &token).await.1["running"], false);
    let other = p.sign_up("b@example.com").await;
    assert_eq!(p.get(&path, &other).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn scaling_keeps_to_the_plan_and_says_so() {
    let (p, token) = platform().await;
    p.release("fugafuga", &[("web", "puma"), ("worker", "sidekiq")]).await;
    let path = "/v1/apps/fugafuga/formation";
    let scale = |body: Value| p.call(Method::PATCH, path, &token, body);
    for (body, status, part) in [
        (json!({"web": 2}), 422, "free plan: 1 instance"),
        (json!({"worker": 1}), 422, "free plan: it runs web processes only"),
        (json!({"clock": 1}), 400, "no process type clock: it has web, worker"),
        (json!({"web": -1}), 400, "invalid value"),
        (json!({}), 400, "names no process type"),
    ] {
        let (got, answer) = scale(body).await;
        assert_eq!(got.as_u16(), status, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(part), "{answer}");
    }
    let (user, _) = p.state.store.user_by_email("a@example.com").await.unwrap().unwrap();
    p.state.store.set_plan(user.id, Plan::Paid).await.unwrap();
    assert_eq!(scale(json!({"web": 3, "worker": 1})).await.1["action"], "scale");
    assert_eq!(scale(json!({"web": 6})).await.0.as_u16(), 422);
    assert_eq!(p.get(path, &token).await.1, json!({"web": 3, "worker": 1}));
}

#[tokio::test]
async fn releases_are_listed_and_rolled_back_to() {
    let (p, token) = platform().await;
    p.release("fugafuga", &[("web", "puma")]).await;
    p.call(Method::PATCH, "/v1/apps/fugafuga/config", &token, json!({"SECRET": "x"})).await;
    let (_, releases) = p.get("/v1/apps/fugafuga/releases", &token).await;
    let told: Vec<_> = releases
        .as_array()
        .unwrap()
        .iter()
        .map(|r| {
            (
                r["number"].as_str().unwrap(),
                r["description"].as_str().unwrap(),
                r["current"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(told, [("v2", "set SECRET", true), ("v1", "build 4f2a91c", false)]);
    let (status, deploy) = p.post("/v1/apps/fugafuga/rollback", &token, json!({"to": "v1"})).await;
    assert_eq!((status, &deploy["release"]), (StatusCode::OK, &json!("v3")), "{deploy}");
    assert_eq!(p.get("/v1/apps/fugafuga/config", &token).await.1, json!({}));
    let (status, _) = p.post("/v1/apps/fugafuga/rollback", &token, json!({"to": "v9"})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    // A package that is no longer there is not rolled back to.
    let package = p.state.store.release(
        p.state
            .store
            .app_by_name(&"fugafuga".parse().unwrap())
            .await
            .unwrap()
            .unwrap()
            .current_release
            .unwrap(),
    );
    p.state.images.remove(&package.await.unwrap().unwrap().package, || Some(())).unwrap();
    let (status, body) = p.post("/v1/apps/fugafuga/rollback", &token, json!({"to": "v1"})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(body["message"].as_str().unwrap().contains("no longer kept"), "{body}");
}
