//! Every code can be produced, and stands in the page and in the app's log.

use std::time::Duration;

use mogok_api::route::RouteState;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{
    App, Control, Stage, alpha, alpha_in, closed, code, ok, router, settings, until, upstream,
};

#[tokio::test]
async fn an_app_without_instances_says_why() {
    let stage = Stage::new(vec![]).await;
    for (state, expected) in [
        (RouteState::Crashed, "H10"),
        (RouteState::NoWeb, "H14"),
        (RouteState::Running, "H20"),
        (RouteState::Booting, "H20"),
        (RouteState::Maintenance, "H80"),
        (RouteState::NoRelease, "H81"),
    ] {
        let version = stage.control.change(alpha_in(state, vec![]));
        stage.control.acked(version, |_| true).await;
        let response = stage.get("/", "Accept: application/json\r\n").await;
        assert_eq!(code(&response), Some(expected), "{response}");
        assert!(response.contains(&format!("\"code\":\"{expected}\"")), "{response}");
        let line = stage.control.line(&format!("at=error code={expected} ")).await;
        assert!(line.contains("method=GET path=\"/\" host=alpha.mogok.test request_id="), "{line}");
        assert!(line.contains("status=503"), "{line}");
    }
}

#[tokio::test]
async fn maintenance_holds_although_there_are_instances() {
    let app = App::replies(ok("hello")).await;
    let stage = Stage::new(vec![alpha_in(RouteState::Maintenance, vec![app.upstream()])]).await;
    assert_eq!(code(&stage.get("/", "").await), Some("H80"));
}

#[tokio::test]
async fn an_unknown_host_is_a_404_and_without_any_table_it_is_the_platforms_fault() {
    let stage = Stage::new(vec![]).await;
    let response = stage.get("/", "").await;
    assert!(response.starts_with("HTTP/1.1 404 "), "{response}");
    assert_eq!(code(&response), Some("unknown-host"));

    let directory = tempfile::tempdir().unwrap();
    let (address, _stop, serving) = router(directory.path(), settings(), false).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.0\r\nHost: alpha.mogok.test\r\n\r\n").await.unwrap();
    let mut response = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut client, &mut response).await.unwrap();
    assert_eq!(code(&response), Some("H99"), "{response}");
    serving.abort();
}

#[tokio::test]
async fn a_page_of_the_routers_reaches_a_client_that_sends_on() {
    let stage = Stage::new(vec![alpha_in(RouteState::Crashed, vec![])]).await;
    let body = vec![b'x'; 3 << 20];
    for (host, expected) in [("alpha.mogok.test", "H10"), ("nobody.mogok.test", "unknown-host")] {
        for _ in 0..3 {
            let mut client = TcpStream::connect(stage.address).await.unwrap();
            let length = body.len();
            let head = format!(
                "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            client.write_all(head.as_bytes()).await.unwrap();
            // Not all at once into the kernel's buffers.
            for piece in body.chunks(1 << 16) {
                client.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut response = String::new();
            tokio::io::AsyncReadExt::read_to_string(&mut client, &mut response).await.unwrap();
            assert_eq!(code(&response), Some(expected), "{response}");
        }
    }
}

#[tokio::test]
async fn h11_too_many_wait_and_h22_too_many_are_connected() {
    let app = App::script(|mut conn| async move {
        let head = conn.head().await.unwrap_or_default();
        if head.starts_with("GET /stream ") {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
        }
        conn.rest().await;
    })
    .await;
    let mut small = settings();
    small.backlog_per_instance = 1;
    small.connections_per_instance = 2;
    let stage = Stage::with(small, vec![alpha(vec![app.upstream()])]).await;

    let mut waits = stage.client().await;
    waits.send("GET /wait HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n").await;
    until("a connection", || (*app.connections.lock().unwrap() == 1).then_some(())).await;
    assert_eq!(code(&stage.get("/", "").await), Some("H11"));
    drop(waits);
    stage.control.line("code=H27").await;

    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = stage.client().await;
        stream.send("GET /stream HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n").await;
        stream.head().await.unwrap();
        streams.push(stream);
    }
    assert_eq!(code(&stage.get("/", "").await), Some("H22"));
}

#[tokio::test]
async fn h12_no_first_byte_in_time() {
    let app = App::script(|mut conn| async move {
        conn.rest().await;
    })
    .await;
    let mut short = settings();
    short.first_byte = Duration::from_millis(150);
    let stage = Stage::with(short, vec![alpha(vec![app.upstream()])]).await;
    let response = stage.get("/", "").await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert_eq!(code(&response), Some("H12"));
    stage.control.line("code=H12").await;
}

#[tokio::test]
async fn h13_closed_without_a_response_and_h17_no_http() {
    for (reply, expected) in [("", "H13"), ("HTTP/1.1 200", "H13"), ("220 smtp ready\r\n\r\n", "H17")] {
        let app = App::script(move |mut conn| async move {
            conn.head().await;
            conn.send(reply).await;
        })
        .await;
        let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
        assert_eq!(code(&stage.get("/", "").await), Some(expected), "{reply:?}");
        stage.control.line(&format!("code={expected} ")).await;
    }
}

#[tokio::test]
async fn h15_the_app_falls_silent_and_h18_it_breaks_off() {
    for (silent, expected) in [(true, "H15"), (false, "H18")] {
        let app = App::script(move |mut conn| async move {
            conn.head().await;
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
            if silent {
                conn.rest().await;
            }
        })
        .await;
        let mut short = settings();
        short.rolling = Duration::from_millis(150);
        let stage = Stage::with(short, vec![alpha(vec![app.upstream()])]).await;
        let response = stage.get("/", "").await;
        assert!(response.contains("hello") && !response.ends_with("0\r\n\r\n"), "{response}");
        let line = stage.control.line(&format!("code={expected} ")).await;
        assert!(line.contains("status=200 bytes=5"), "{line}");
    }
}

#[tokio::test]
async fn h19_a_connection_that_nobody_accepts() {
    use nix::sys::socket::*;
    // Nobody accepts here, and the queue for one connection is full: the kernel ignores more.
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    listen(&socket, Backlog::new(0).unwrap()).unwrap();
    let listener = std::net::TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let mut fill = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await
    {
        fill.push(stream);
        assert!(fill.len() < 10);
    }
    let mut short = settings();
    short.connect = Duration::from_millis(150);
    let stage = Stage::with(short, vec![alpha(vec![upstream(address)])]).await;
    assert_eq!(code(&stage.get("/", "").await), Some("H19"));
    stage.control.line("code=H19").await;
}

#[tokio::test]
async fn h21_refused_and_h34_when_all_are_set_aside() {
    let routes = vec![alpha(vec![upstream(closed().await), upstream(closed().await)])];
    let stage = Stage::new(routes).await;
    assert_eq!(code(&stage.get("/", "").await), Some("H21"));
    assert_eq!(code(&stage.get("/", "").await), Some("H34"));
    stage.control.line("code=H34").await;
}

#[tokio::test]
async fn an_only_instance_is_tried_again_at_once() {
    let stage = Stage::new(vec![alpha(vec![upstream(closed().await)])]).await;
    for _ in 0..2 {
        assert_eq!(code(&stage.get("/", "").await), Some("H21"));
    }
}

#[tokio::test]
async fn h27_a_client_that_leaves_ends_its_request() {
    let (gone, mut told) = tokio::sync::mpsc::channel(1);
    let app = App::script(move |mut conn| {
        let gone = gone.clone();
        async move {
            conn.head().await;
            conn.rest().await;
            let _ = gone.send(()).await;
        }
    })
    .await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let mut client = stage.client().await;
    client.send("GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\n\r\n").await;
    until("a connection", || (*app.connections.lock().unwrap() == 1).then_some(())).await;
    drop(client);
    tokio::time::timeout(crate::harness::DEADLINE, told.recv()).await.unwrap().unwrap();
    let line = stage.control.line("code=H27").await;
    assert!(line.contains("status=499"), "{line}");
}

#[tokio::test]
async fn h28_a_client_that_stops_sending() {
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let app = App::script(|mut conn| async move {
            conn.rest().await;
        })
        .await;
        let mut short = settings();
        short.rolling = Duration::from_millis(150);
        let stage = Stage::with(short, vec![alpha(vec![app.upstream()])]).await;
        stage.raw(format!("POST / HTTP/1.1\r\nHost: alpha.mogok.test\r\n{framing}").as_bytes()).await;
        stage.control.line("code=H28").await;
    }
}

#[tokio::test]
async fn a_half_sent_head_and_an_idle_connection_are_closed() {
    let mut short = settings();
    short.head = Duration::from_millis(100);
    short.client_idle = Duration::from_millis(100);
    let stage = Stage::with(short, vec![]).await;
    assert_eq!(stage.raw(b"GET / HT").await, "");
    assert_eq!(stage.raw(b"").await, "");
}

#[tokio::test]
async fn request_lines_wait_for_a_control_plane_that_is_away() {
    let app = App::replies(ok("hello")).await;
    let mut stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let routes = vec![alpha(vec![app.upstream()])];
    let away =
        std::mem::replace(&mut stage.control, Control::start(tempfile::tempdir().unwrap().path(), vec![]));
    drop(away);
    stage.get("/while-away", "").await;
    stage.control = Control::start(stage.directory.path(), routes);
    let line = stage.control.line("path=\"/while-away\"").await;
    assert!(line.starts_with("at=info method=GET "), "{line}");
    assert!(line.contains(" instance=web.1 connect="), "{line}");
}
