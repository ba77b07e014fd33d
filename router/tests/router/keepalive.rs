//! Connections to instances are used again, and a request that meets the closing of one is sent
//! again only when that is safe.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::{App, Stage, alpha, code, ok, settings, until};

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let app = App::echo_head().await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let mut client = stage.client().await;
    for _ in 0..20 {
        client.send("GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n").await;
        let head = client.head().await.unwrap();
        let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
        client.take(length.parse().unwrap()).await;
    }
    assert_eq!(*app.connections.lock().unwrap(), 1);
}

/// Answers one request, then closes when the second one is there: the race at its worst.
async fn closes_at_the_second(requests: Arc<AtomicUsize>) -> App {
    App::script(move |mut conn| {
        let requests = Arc::clone(&requests);
        async move {
            conn.head().await;
            requests.fetch_add(1, Ordering::SeqCst);
            conn.send(&ok("hello")).await;
            if conn.head().await.is_some() {
                requests.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_get_that_meets_a_closing_connection_is_sent_again_on_a_new_one() {
    let requests = Arc::new(AtomicUsize::new(0));
    let app = closes_at_the_second(Arc::clone(&requests)).await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    assert!(stage.get("/", "").await.ends_with("hello"));
    assert!(stage.get("/", "").await.ends_with("hello"));
    assert_eq!(requests.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_post_that_meets_a_closing_connection_is_not_sent_twice() {
    let requests = Arc::new(AtomicUsize::new(0));
    let app = closes_at_the_second(Arc::clone(&requests)).await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    assert!(stage.get("/", "").await.ends_with("hello"));
    let post = b"POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(code(&stage.raw(post).await), Some("H13"));
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_connection_that_the_app_closed_is_not_used_and_an_idle_one_is_closed() {
    let app = App::script(|mut conn| async move {
        conn.head().await;
        conn.send(&ok("hello")).await;
    })
    .await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let post = b"POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    for _ in 0..10 {
        assert!(stage.raw(post).await.ends_with("hello"));
        // The closing has reached the router when the app's end is gone from the kernel's table;
        // a turn of the scheduler is enough on loopback.
        tokio::task::yield_now().await;
    }

    let ended = Arc::new(AtomicUsize::new(0));
    let theirs = Arc::clone(&ended);
    let app = App::script(move |mut conn| {
        let ended = Arc::clone(&theirs);
        async move {
            conn.head().await;
            conn.send(&ok("hello")).await;
            conn.rest().await;
            ended.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let mut short = settings();
    short.upstream_idle = std::time::Duration::from_millis(100);
    let stage = Stage::with(short, vec![alpha(vec![app.upstream()])]).await;
    assert!(stage.get("/", "").await.ends_with("hello"));
    until("the idle connection's end", || (ended.load(Ordering::SeqCst) == 1).then_some(())).await;
}
