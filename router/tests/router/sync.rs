//! The table follows the control plane, outlives its absence and the router's own restart, and
//! acknowledgements say what is still in flight.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{App, Stage, alpha, ok, router, settings, until};

#[tokio::test]
async fn a_delta_moves_requests_and_is_acknowledged() {
    let (old, new) = (App::replies(ok("old")).await, App::replies(ok("new")).await);
    let stage = Stage::new(vec![alpha(vec![old.upstream()])]).await;
    assert!(stage.get("/", "").await.ends_with("old"));
    let version = stage.control.change(alpha(vec![new.upstream()]));
    let ack = stage.control.acked(version, |_| true).await;
    assert_eq!((ack.epoch, ack.draining.len()), (stage.control.epoch, 0));
    assert!(stage.get("/", "").await.ends_with("new"));
}

#[tokio::test]
async fn an_instance_drains_until_its_last_byte() {
    let finish = Arc::new(tokio::sync::Notify::new());
    let old = App::script({
        let finish = Arc::clone(&finish);
        move |mut conn| {
            let finish = Arc::clone(&finish);
            async move {
                conn.head().await;
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
                finish.notified().await;
                conn.send("world").await;
            }
        }
    })
    .await;
    let new = App::replies(ok("new")).await;
    let upstream = old.upstream();
    let stage = Stage::new(vec![alpha(vec![upstream.clone()])]).await;
    let mut client = stage.client().await;
    client.send("GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: close\r\n\r\n").await;
    client.head().await.unwrap();
    let version = stage.control.change(alpha(vec![new.upstream()]));
    stage.control.acked(version, |ack| ack.draining == [upstream.instance]).await;
    finish.notify_one();
    assert_eq!(client.rest().await, "helloworld");
    stage.control.acked(version, |ack| ack.draining.is_empty()).await;
}

#[tokio::test]
async fn a_lost_message_brings_a_snapshot() {
    let (old, new) = (App::replies(ok("old")).await, App::replies(ok("new")).await);
    let stage = Stage::new(vec![alpha(vec![old.upstream()])]).await;
    stage.control.change_silently(alpha(vec![old.upstream()]));
    let version = stage.control.change(alpha(vec![new.upstream()]));
    assert_eq!(version, 3);
    stage.control.acked(version, |_| true).await;
    assert!(stage.get("/", "").await.ends_with("new"));
}

#[tokio::test]
async fn a_restart_without_the_control_plane_goes_on_with_the_last_table() {
    let app = App::replies(ok("hello")).await;
    let mut stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    stage.control.acked(1, |_| true).await;
    let id = std::fs::read_to_string(stage.directory.path().join("state/router-id")).unwrap();
    stage.stop();
    (&mut stage.serving).await.unwrap();
    std::fs::remove_file(&stage.control.socket).unwrap();

    let (address, _stop, serving) = router(stage.directory.path(), settings(), true).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.0\r\nHost: alpha.mogok.test\r\n\r\n").await.unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    assert!(response.ends_with("hello"), "{response}");
    assert_eq!(std::fs::read_to_string(stage.directory.path().join("state/router-id")).unwrap(), id);
    serving.abort();
}

#[tokio::test]
async fn health_tells_the_operator_and_nobody_else() {
    let stage = Stage::new(vec![]).await;
    let health = |host: &str, more: &str| {
        format!("GET /__mogok/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n")
    };
    stage.control.acked(1, |_| true).await;
    let response = stage.raw(health("127.0.0.1:80", "").as_bytes()).await;
    assert!(response.contains("\"version\":1") && response.contains("\"control_plane\":true"), "{response}");
    for (host, more) in [("alpha.mogok.test", ""), ("127.0.0.1", "X-Forwarded-For: 1.2.3.4\r\n")] {
        let response = stage.raw(health(host, more).as_bytes()).await;
        assert!(response.starts_with("HTTP/1.1 404 "), "{response}");
    }
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight_and_delivers_its_line() {
    let finish = Arc::new(tokio::sync::Notify::new());
    let app = App::script({
        let finish = Arc::clone(&finish);
        move |mut conn| {
            let finish = Arc::clone(&finish);
            async move {
                conn.head().await;
                finish.notified().await;
                conn.send(&ok("hello")).await;
            }
        }
    })
    .await;
    let mut stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let mut idle = stage.client().await;
    let mut client = stage.client().await;
    client.send("GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n").await;
    until("a connection", || (*app.connections.lock().unwrap() == 1).then_some(())).await;
    stage.stop();
    assert_eq!(idle.rest().await, "");
    until("a closed listener", || std::net::TcpStream::connect(stage.address).is_err().then_some(())).await;
    finish.notify_one();
    assert!(client.rest().await.ends_with("hello"));
    (&mut stage.serving).await.unwrap();
    assert_eq!(stage.control.lines(), 1);
}

/// The promise that frees addresses: once a table without an instance is acknowledged and nothing
/// drains, not one more request reaches it, however many are under way on all threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_reaches_an_instance_after_its_end_is_acknowledged() {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    let counts = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    let mut apps = Vec::new();
    for count in &counts {
        let count = Arc::clone(count);
        let app = App::script(move |mut conn| {
            let count = Arc::clone(&count);
            async move {
                while conn.head().await.is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    conn.send(&ok("hello")).await;
                }
            }
        });
        apps.push(app.await);
    }
    let stage = Arc::new(Stage::new(vec![alpha(vec![apps[0].upstream()])]).await);
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (stage, stop) = (Arc::clone(&stage), Arc::clone(&stop));
        clients.spawn(async move {
            let mut client = stage.client().await;
            let mut served = 0;
            while !stop.load(Ordering::SeqCst) {
                client.send("GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n").await;
                let head = client.head().await.unwrap();
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                assert_eq!(client.take(5).await, b"hello");
                served += 1;
            }
            served
        });
    }
    for turn in 1..=30 {
        let version = stage.control.change(alpha(vec![apps[turn % 2].upstream()]));
        stage.control.acked(version, |ack| ack.draining.is_empty()).await;
        let left = &counts[(turn + 1) % 2];
        let (before, other) = (left.load(Ordering::SeqCst), counts[turn % 2].load(Ordering::SeqCst));
        until("requests to the other", || {
            (counts[turn % 2].load(Ordering::SeqCst) > other + 20).then_some(())
        })
        .await;
        assert_eq!(left.load(Ordering::SeqCst), before, "turn {turn}");
    }
    stop.store(true, Ordering::SeqCst);
    let served: usize = clients.join_all().await.into_iter().sum();
    assert_eq!(served, counts.iter().map(|count| count.load(Ordering::SeqCst)).sum::<usize>());
}
