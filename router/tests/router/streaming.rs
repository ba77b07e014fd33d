//! Bodies pass both ways as they come, and HTTP's finer points pass too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{App, Stage, alpha, ok};

#[tokio::test]
async fn chunks_arrive_as_they_are_sent() {
    let (go, gate) = tokio::sync::mpsc::channel::<()>(1);
    let gate = Arc::new(tokio::sync::Mutex::new(gate));
    let app = App::script(move |mut conn| {
        let gate = Arc::clone(&gate);
        async move {
            conn.head().await;
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n").await;
            for _ in 0..3 {
                conn.send("5\r\nhello\r\n").await;
                // The next only after the client has read this one.
                gate.lock().await.recv().await;
            }
            conn.send("0\r\nX-Sum: 7\r\n\r\n").await;
        }
    })
    .await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let mut client = stage.client().await;
    client
        .send("GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n")
        .await;
    let head = client.head().await.unwrap();
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    for _ in 0..3 {
        assert_eq!(client.take(10).await, b"5\r\nhello\r\n");
        go.send(()).await.unwrap();
    }
    let rest = client.rest().await;
    assert_eq!(rest.to_lowercase(), "0\r\nx-sum: 7\r\n\r\n");
}

#[tokio::test]
async fn an_upload_streams_with_backpressure() {
    const SIZE: usize = 32 * 1024 * 1024;
    let taken = Arc::new(AtomicUsize::new(0));
    let (go, wait) = tokio::sync::watch::channel(false);
    let app = App::script({
        let taken = Arc::clone(&taken);
        move |mut conn| {
            let (taken, mut wait) = (Arc::clone(&taken), wait.clone());
            async move {
                conn.head().await;
                taken.fetch_add(conn.ahead(), Ordering::SeqCst);
                wait.wait_for(|go| *go).await.unwrap();
                let mut buffer = vec![0; 1 << 16];
                while taken.load(Ordering::SeqCst) < SIZE {
                    let read = conn.stream.read(&mut buffer).await.unwrap();
                    assert!(read > 0);
                    taken.fetch_add(read, Ordering::SeqCst);
                }
                conn.send(&ok("got it")).await;
            }
        }
    })
    .await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let mut client = stage.client().await;
    client
        .send(&format!(
            "POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: close\r\nContent-Length: {SIZE}\r\n\r\n"
        ))
        .await;
    // While the app reads nothing, only what the kernel and two small buffers hold goes in.
    let piece = vec![b'x'; 1 << 16];
    let mut sent = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(300), client.stream.write(&piece)).await
    {
        sent += written.unwrap();
        assert!(sent < SIZE, "the router swallowed the whole upload");
    }
    go.send_replace(true);
    while sent < SIZE {
        let end = piece.len().min(SIZE - sent);
        sent += client.stream.write(&piece[..end]).await.unwrap();
    }
    assert!(client.rest().await.ends_with("got it"));
    assert_eq!(taken.load(Ordering::SeqCst), SIZE);
}

#[tokio::test]
async fn a_chunked_upload_passes_and_the_connection_closes_after_it() {
    let app = App::script(|mut conn| async move {
        let head = conn.head().await.unwrap();
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        assert_eq!(conn.take(15).await, b"5\r\nhello\r\n0\r\n\r\n");
        conn.send(&ok("fine")).await;
    })
    .await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let response = stage
        .raw(b"POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .await;
    assert!(response.contains("connection: close\r\n") && response.ends_with("fine"), "{response}");
}

#[tokio::test]
async fn the_router_says_100_continue_when_the_body_is_wanted() {
    let app = App::script(|mut conn| async move {
        let head = conn.head().await.unwrap();
        assert!(!head.contains("expect:"), "{head}");
        let body = conn.take(5).await;
        conn.send(&ok(std::str::from_utf8(&body).unwrap())).await;
    })
    .await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let mut client = stage.client().await;
    client
        .send("POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        .await;
    assert!(client.head().await.unwrap().starts_with("HTTP/1.1 100 "));
    client.send("hello").await;
    assert!(client.rest().await.ends_with("hello"));
}

#[tokio::test]
async fn head_has_the_length_and_no_body_and_the_connection_goes_on() {
    let app = App::script(|mut conn| async move {
        while let Some(head) = conn.head().await {
            let reply = if head.starts_with("HEAD") {
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_owned()
            } else {
                ok("later")
            };
            conn.send(&reply).await;
        }
    })
    .await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let mut client = stage.client().await;
    client.send("HEAD / HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n").await;
    assert!(client.head().await.unwrap().contains("content-length: 5"));
    client.send("GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: close\r\n\r\n").await;
    assert!(client.rest().await.ends_with("later"));
    assert_eq!(*app.connections.lock().unwrap(), 1);
    stage.control.line("at=info method=HEAD").await;
}

#[tokio::test]
async fn an_http_1_0_client_gets_what_it_understands() {
    let app =
        App::replies("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let response = stage.raw(b"GET / HTTP/1.0\r\nHost: alpha.mogok.test\r\n\r\n").await;
    assert!(!response.contains("chunked") && response.ends_with("\r\n\r\nhello"), "{response}");
}

#[tokio::test]
async fn hop_by_hop_headers_stay_on_their_hop() {
    let app = App::script(|mut conn| async move {
        let head = conn.head().await.unwrap();
        assert!(!head.contains("x-mine") && !head.contains("keep-alive"), "{head}");
        conn.send("HTTP/1.1 200 OK\r\nConnection: close, X-Theirs\r\nX-Theirs: 1\r\nX-Mogok-Error: H99\r\nX-Stays: 1\r\nContent-Length: 0\r\n\r\n").await;
    })
    .await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let response = stage
        .raw(b"GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n\r\n")
        .await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert!(response.contains("x-stays: 1"), "{response}");
    assert!(!response.contains("x-theirs") && !response.contains("x-mogok-error"), "{response}");
}
