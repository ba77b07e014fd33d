//! Accounts, tokens, and how the API refuses what is no good request.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::Platform;

#[tokio::test]
async fn an_account_signs_up_logs_in_and_its_tokens_can_be_revoked() {
    let p = Platform::start().await;
    let first = p.sign_up("Dev@Example.com").await;
    let (status, me) = p.get("/v1/whoami", &first).await;
    assert_eq!(
        (status, &me["email"], &me["plan"]),
        (StatusCode::OK, &json!("dev@example.com"), &json!("free"))
    );

    let login = json!({"email": "dev@example.com", "password": "correct horse"});
    let (status, session) = p.post("/v1/login", "", login).await;
    assert_eq!(status, StatusCode::OK);
    let second = session["token"].as_str().unwrap().to_owned();
    let (_, tokens) = p.get("/v1/tokens", &second).await;
    assert_eq!(tokens.as_array().unwrap().len(), 2);
    assert!(!tokens.to_string().contains(&second) && !tokens.to_string().contains(&first));
    let other = tokens.as_array().unwrap().iter().find(|token| token["current"] == false).unwrap();
    let path = format!("/v1/tokens/{}", other["id"].as_str().unwrap());
    assert_eq!(p.call(Method::DELETE, &path, &second, Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(p.call(Method::DELETE, &path, &second, Value::Null).await.0, StatusCode::NOT_FOUND);
    assert_eq!(p.get("/v1/whoami", &first).await.0, StatusCode::UNAUTHORIZED);

    assert_eq!(p.post("/v1/logout", &second, Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(p.get("/v1/whoami", &second).await.0, StatusCode::UNAUTHORIZED);
    p.finish().await;
}

#[tokio::test]
async fn a_token_of_another_account_cannot_be_revoked() {
    let p = Platform::start().await;
    let (mine, theirs) = (p.sign_up("a@example.com").await, p.sign_up("b@example.com").await);
    let (_, tokens) = p.get("/v1/tokens", &theirs).await;
    let path = format!("/v1/tokens/{}", tokens[0]["id"].as_str().unwrap());
    assert_eq!(p.call(Method::DELETE, &path, &mine, Value::Null).await.0, StatusCode::NOT_FOUND);
    assert_eq!(p.get("/v1/whoami", &theirs).await.0, StatusCode::OK);
}

#[tokio::test]
async fn bad_credentials_are_refused_with_their_reason() {
    let p = Platform::start().await;
    p.sign_up("dev@example.com").await;
    for (path, email, password, status, part) in [
        ("/v1/signup", "dev@example.com", "correct horse", 409, "exists"),
        ("/v1/signup", "nobody", "correct horse", 400, "invalid email \"nobody\""),
        ("/v1/signup", "a@example.com", "short", 400, "5 bytes"),
        ("/v1/login", "dev@example.com", "wrong horse", 401, "wrong"),
        ("/v1/login", "a@example.com", "correct horse", 401, "wrong"),
    ] {
        let (got, body) = p.post(path, "", json!({"email": email, "password": password})).await;
        assert_eq!(got.as_u16(), status, "{path} {email}: {body}");
        assert!(body["message"].as_str().unwrap().contains(part), "{path} {email}: {body}");
    }
    assert_eq!(p.get("/v1/whoami", "mogok_wrong").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn every_refusal_is_an_api_error() {
    let p = Platform::start().await;
    let token = p.sign_up("dev@example.com").await;
    // `raw` checks that each of them is an `ApiError`.
    for (method, path, body, status) in [
        (Method::GET, "/v1/nothing", b"".as_slice(), 404),
        (Method::GET, "/", b"", 404),
        (Method::PUT, "/v1/apps", b"{}", 405),
        (Method::POST, "/v1/apps", b"{", 400),
        (Method::POST, "/v1/apps", b"\xff\xfe", 400),
        (Method::POST, "/v1/apps", b"[]", 400),
        (Method::POST, "/v1/apps", b"{}", 400),
        (Method::POST, "/v1/apps", &[b' '; 600 * 1024], 413),
        (Method::GET, "/v1/apps/%ff", b"", 400),
        (Method::GET, "/v1/apps/NO", b"", 400),
        (Method::GET, "/v1/apps/none", b"", 404),
        (Method::GET, "/v1/apps/none/logs?lines=x", b"", 404),
        (Method::DELETE, "/v1/tokens/x", b"", 400),
    ] {
        let (got, answer) = p.raw(method.clone(), path, &token, body).await;
        assert_eq!(got.as_u16(), status, "{method} {path}: {answer}");
    }
    let (_, answer) = p.raw(Method::PUT, "/v1/apps", &token, b"").await;
    assert!(answer["remedy"].as_str().unwrap().contains("POST"), "{answer}");
}

#[tokio::test]
async fn only_the_platforms_own_hosts_are_served() {
    let p = Platform::start().await;
    for (host, status) in [
        ("api.mogok.localhost", 200),
        ("API.MOGOK.localhost:8080", 200),
        ("mogok.localhost", 404),
        ("api.mogok.localhost.evil.example", 404),
        ("fugafuga.mogok.localhost", 404),
    ] {
        let request = p.builder(host, Method::GET, "/v1/platform").body(Default::default()).unwrap();
        assert_eq!(p.request(request).await.status().as_u16(), status, "{host}");
    }
    let (_, platform) = p.get("/v1/platform", "").await;
    assert_eq!(platform["git_url"], "http://git.mogok.localhost:8080");
    assert_eq!(platform["app_url"], "http://{app}.mogok.localhost:8080");
}
