//! WebSocket through the router, and its end.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use crate::harness::{Stage, alpha, settings, upstream};

pub(crate) async fn echo_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    if !message.is_close() {
                        socket.send(message).await.unwrap();
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn messages_go_both_ways_and_the_line_comes_at_the_end() {
    let stage = Stage::new(vec![alpha(vec![upstream(echo_server().await)])]).await;
    let stream = TcpStream::connect(stage.address).await.unwrap();
    let request = "ws://alpha.mogok.test/socket".into_client_request().unwrap();
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.status(), 101);
    for size in [1, 1000, 1_000_000] {
        let message = Message::binary(vec![7; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    drop(socket);
    let line = stage.control.line("path=\"/socket\"").await;
    assert!(line.contains("status=101"), "{line}");
}

#[tokio::test]
async fn a_silent_tunnel_is_closed() {
    let mut short = settings();
    short.rolling = Duration::from_millis(150);
    let stage = Stage::with(short, vec![alpha(vec![upstream(echo_server().await)])]).await;
    let stream = TcpStream::connect(stage.address).await.unwrap();
    let request = "ws://alpha.mogok.test/".into_client_request().unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert!(matches!(socket.next().await, None | Some(Err(_))));
    stage.control.line("code=H15").await;
}

#[tokio::test]
async fn an_upgrade_that_the_app_declines_is_an_ordinary_response_and_the_last() {
    let app = crate::harness::App::replies(crate::harness::ok("no")).await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let response = stage
        .raw(b"GET / HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert!(response.contains("connection: close\r\n") && response.ends_with("no"), "{response}");
}
