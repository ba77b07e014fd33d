//! The gate over raw sockets: what two servers could read differently ends here, with H26.

use crate::harness::{App, Stage, alpha, code};

/// What is wrong with each is known by the unit tests; here it must not reach an app.
const BAD: &[&str] = &[
    "POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    "POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nContent-Length: +5\r\n\r\nabcde",
    "POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\nHost: alpha.mogok.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: alpha.mogok.test@b/c\r\n\r\n",
    "GET http://beta.mogok.test/ HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n",
    "CONNECT alpha.mogok.test:80 HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n",
    "TRACE / HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n",
    "get / HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\nX: a\r\n b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\nX : a\r\n\r\n",
    "GET / HTTP/1.1\nHost: alpha.mogok.test\n\n",
    "GET / HTTP/2.0\r\nHost: alpha.mogok.test\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "\u{16}\u{3}\u{1}\u{2}\u{0}",
];

#[tokio::test]
async fn every_bad_request_gets_h26_and_the_connection_closes() {
    let app = App::echo_head().await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    for bad in BAD {
        let response = stage.raw(bad.as_bytes()).await;
        assert!(response.starts_with("HTTP/1.1 400 "), "{bad:?}: {response}");
        assert_eq!(code(&response), Some("H26"), "{bad:?}");
        assert!(response.contains("connection: close\r\n"), "{bad:?}: {response}");
    }
    assert_eq!(*app.connections.lock().unwrap(), 0);
}

#[tokio::test]
async fn oversized_heads_are_refused_and_the_client_reads_why() {
    let app = App::echo_head().await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let with = |lines: String| format!("GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\n{lines}\r\n");
    for size in [40_000, 100_000] {
        let response = stage.raw(with(format!("X: {}\r\n", "y".repeat(size))).as_bytes()).await;
        assert_eq!(code(&response), Some("H26"), "{size}");
    }
    let response = stage.raw(with("X: y\r\n".repeat(100)).as_bytes()).await;
    assert_eq!(code(&response), Some("H26"));
    let fits = with(format!("{}X: {}\r\nConnection: close\r\n", "X: y\r\n".repeat(97), "y".repeat(20_000)));
    assert!(stage.raw(fits.as_bytes()).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_refusal_waits_for_its_turn_and_nothing_after_it_is_served() {
    let app = App::echo_head().await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let good = "GET /first HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n";
    let bad = "GET /second HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    let third = "GET /third HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n";
    let responses = stage.raw(format!("{good}{bad}{third}").as_bytes()).await;
    assert!(responses.starts_with("HTTP/1.1 200 "), "{responses}");
    assert!(responses.contains("GET /first "));
    assert!(responses.contains("x-mogok-error: H26"));
    assert!(!responses.contains("/third"));
}

#[tokio::test]
async fn a_head_may_come_byte_by_byte_and_requests_may_be_pipelined() {
    let app = App::echo_head().await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let mut client = stage.client().await;
    client.stream.set_nodelay(true).unwrap();
    for byte in "\r\nGET /slow HTTP/1.1\r\nHost: ALPHA.mogok.test:80\r\nConnection: close\r\n\r\n".chars() {
        client.send(&byte.to_string()).await;
    }
    assert!(client.rest().await.contains("GET /slow HTTP/1.1\r\n"));

    let two = "GET /1 HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: close\r\n\r\n";
    let responses = stage.raw(two.as_bytes()).await;
    let (one, two) = (responses.find("GET /1 ").unwrap(), responses.find("GET /2 ").unwrap());
    assert!(one < two);
}

#[tokio::test]
async fn malformed_chunks_are_h26_and_end_the_request_to_the_app() {
    let app = App::script(|mut conn| async move {
        conn.head().await;
        conn.rest().await;
    })
    .await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let response = stage
        .raw(b"POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc")
        .await;
    assert_eq!(code(&response), Some("H26"), "{response}");
    stage.control.line("code=H26").await;
}

#[tokio::test]
async fn absolute_form_reaches_the_app_in_origin_form() {
    let app = App::echo_head().await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let response = stage
        .raw(b"GET http://alpha.mogok.test/x?y HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: close\r\n\r\n")
        .await;
    assert!(response.contains("GET /x?y HTTP/1.1\r\n"), "{response}");
}

#[tokio::test]
async fn what_a_client_says_of_its_origin_does_not_reach_the_app_unless_it_is_the_front() {
    let app = App::echo_head().await;
    let lies = "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX_Forwarded_For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Request-Id: 0123456789abcdef0123\r\n";
    let mut settings = crate::harness::settings();
    settings.fronts = vec![];
    let stage = Stage::with(settings, vec![alpha(vec![app.upstream()])]).await;
    let response = stage.get("/", lies).await;
    assert!(!response.contains("1.2.3.4"), "{response}");
    assert!(response.contains("x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\n"), "{response}");
    assert!(response.contains("x-request-id: 0123456789abcdef0123"), "{response}");
    assert!(response.contains("x-request-start: "), "{response}");

    let behind = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let response = behind.get("/", lies).await;
    assert!(response.contains("x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\n"), "{response}");
    assert!(behind.control.line("fwd=\"1.2.3.4\"").await.ends_with("protocol=https"));
}
