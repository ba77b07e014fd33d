//! Logs as developers read them: the last lines, and a stream that goes on.

use std::time::Duration;

use chrono::Utc;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use mogok_api::control::{LogLine, LogSource};
use mogok_api::id::AppId;

use crate::harness::{API, Platform};

async fn platform() -> (Platform, String, AppId) {
    let p = Platform::start().await;
    let token = p.sign_up("a@example.com").await;
    p.create_app(&token, "fugafuga").await;
    let app = p.state.store.app_by_name(&"fugafuga".parse().unwrap()).await.unwrap().unwrap().id;
    for n in 1..=5 {
        let (source, process) =
            if n == 3 { (LogSource::Router, "router") } else { (LogSource::App, "web.1") };
        p.state.logs.append(app, Utc::now(), source, process, format!("line {n}")).unwrap();
    }
    (p, token, app)
}

fn lines(text: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(text).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_str::<LogLine>(line).unwrap().line).collect()
}

async fn read(p: &Platform, token: &str, query: &str) -> (StatusCode, Vec<u8>) {
    let request = p
        .builder(API, Method::GET, &format!("/v1/apps/fugafuga/logs{query}"))
        .header("authorization", format!("Bearer {token}"))
        .body(Default::default())
        .unwrap();
    let response = p.request(request).await;
    (response.status(), response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

#[tokio::test]
async fn the_last_lines_are_given_and_filtered() {
    let (p, token, _) = platform().await;
    for (query, expected) in [
        ("", vec!["line 1", "line 2", "line 3", "line 4", "line 5"]),
        ("?lines=2", vec!["line 4", "line 5"]),
        ("?after=3", vec!["line 4", "line 5"]),
        ("?source=router", vec!["line 3"]),
        ("?process=web&lines=1", vec!["line 5"]),
        ("?lines=0", vec![]),
    ] {
        let (status, body) = read(&p, &token, query).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(lines(&body), expected, "{query}");
    }
    for bad in ["?lines=10001", "?lines=-1", "?source=kernel", "?process=a%20b", "?follow=maybe"] {
        assert_eq!(read(&p, &token, bad).await.0, StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test]
async fn a_followed_log_brings_new_lines_and_ends_with_the_platform() {
    let (p, token, app) = platform().await;
    let request = p
        .builder(API, Method::GET, "/v1/apps/fugafuga/logs?lines=1&follow=true")
        .header("authorization", format!("Bearer {token}"))
        .body(Default::default())
        .unwrap();
    let mut body = p.request(request).await.into_body();
    let mut seen = Vec::new();
    for n in 6..=7 {
        p.state.logs.append(app, Utc::now(), LogSource::App, "web.1", format!("line {n}")).unwrap();
    }
    while lines(&seen).len() < 3 {
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.unwrap();
        seen.extend(frame.unwrap().unwrap().into_data().unwrap());
    }
    assert_eq!(lines(&seen), ["line 5", "line 6", "line 7"]);
    p.finish().await;
    while let Some(Ok(_)) = body.frame().await {}
}
