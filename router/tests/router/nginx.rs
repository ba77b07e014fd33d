//! The generated configuration: nginx accepts it, and behind it the platform behaves as it says.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mogok_router::nginx::{NginxConfig, Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{App, Stage, alpha, closed, code, ok, upstream};

/// nginx of this machine, ended when dropped.
struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn installed() -> bool {
    let found = Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("SKIP: nginx is not installed");
    }
    found
}

fn certificate(directory: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    let names = vec!["mogok.test".to_owned(), "*.mogok.test".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (certificate, key)
}

/// Writes the configuration, has nginx test it and starts it.
async fn start(config: &NginxConfig, directory: &Path) -> Nginx {
    use std::os::unix::fs::PermissionsExt;
    // The workers are another user when this runs as root.
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = directory.join("nginx.conf");
    config.write(&file).unwrap();
    let tested =
        Command::new("nginx").arg("-t").arg("-c").arg(&file).arg("-p").arg(directory).output().unwrap();
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stderr));
    let child = Command::new("nginx")
        .arg("-c")
        .arg(&file)
        .arg("-p")
        .arg(directory)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let nginx = Nginx(child);
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(config.listen).await.is_err() {
        assert!(Instant::now() < deadline, "nginx did not listen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    nginx
}

async fn get(config: &NginxConfig, host: &str, more: &str) -> String {
    let mut client = TcpStream::connect(config.listen).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    response.replace("X-Mogok-Error", "x-mogok-error")
}

#[tokio::test]
async fn behind_nginx_the_right_part_answers_and_origins_are_true() {
    if !installed() {
        return;
    }
    let app = App::echo_head().await;
    let control_plane = App::echo_head().await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = certificate(directory.path());
    let tls = Tls {
        listen: closed().await,
        certificate: certificate.try_into().unwrap(),
        key: key.try_into().unwrap(),
    };
    let config = NginxConfig {
        tls: Some(tls),
        ..config(directory.path(), stage.address, control_plane.address).await
    };
    let nginx = start(&config, directory.path()).await;

    let lies = "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nForwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\n";
    let response = get(&config, "alpha.mogok.test", lies).await;
    assert!(response.contains("x-forwarded-for: 127.0.0.1\r\n"), "{response}");
    assert!(response.contains("x-forwarded-proto: http\r\n"), "{response}");
    assert!(response.contains(&format!("x-forwarded-port: {}\r\n", config.listen.port())), "{response}");
    assert!(response.contains("host: alpha.mogok.test\r\n"), "{response}");
    assert!(!response.contains("1.2.3.4"), "{response}");

    for host in ["api.mogok.test", "git.mogok.test"] {
        let response = get(&config, host, "").await;
        assert!(response.contains(&format!("Host: {host}\r\n")), "{response}");
    }
    for host in ["nobody.mogok.test", "elsewhere.example", "mogok.test"] {
        let response = get(&config, host, "").await;
        assert!(response.starts_with("HTTP/1.1 404 "), "{response}");
        assert_eq!(code(&response), Some("unknown-host"), "{response}");
    }

    let https = tokio::process::Command::new("curl")
        .args(["-sk", "--max-time", "10", "--noproxy", "*", "--resolve"])
        .arg(format!("alpha.mogok.test:{}:127.0.0.1", config.tls.as_ref().unwrap().listen.port()))
        .arg(format!("https://alpha.mogok.test:{}/x", config.tls.as_ref().unwrap().listen.port()))
        .output()
        .await;
    match https {
        Ok(output) => {
            let body = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(body.contains("GET /x HTTP/1.1"), "{body} {}", String::from_utf8_lossy(&output.stderr));
            assert!(body.contains("x-forwarded-proto: https"), "{body}");
        }
        Err(_) => eprintln!("SKIP: curl is not installed, HTTPS was not tried"),
    }
    drop(nginx);
}

#[tokio::test]
async fn websockets_and_single_chunks_pass_through_nginx() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
    if !installed() {
        return;
    }
    let go = std::sync::Arc::new(tokio::sync::Notify::new());
    let wait = std::sync::Arc::clone(&go);
    let control_plane = App::script(move |mut conn| {
        let wait = std::sync::Arc::clone(&wait);
        async move {
            conn.head().await;
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n1\n\r\n").await;
            wait.notified().await;
            conn.send("0\r\n\r\n").await;
        }
    })
    .await;
    let echo = upstream(crate::websocket::echo_server().await);
    let stage = Stage::new(vec![alpha(vec![echo])]).await;
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), stage.address, control_plane.address).await;
    let _nginx = start(&config, directory.path()).await;

    let stream = TcpStream::connect(config.listen).await.unwrap();
    let request = "ws://alpha.mogok.test/".into_client_request().unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));

    // The first line of a stream comes while the second is not there yet.
    let mut client = TcpStream::connect(config.listen).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: api.mogok.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"2\r\n1\n\r\n") {
        let read = tokio::time::timeout(Duration::from_secs(10), client.read_buf(&mut seen)).await;
        assert!(read.unwrap().unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
    go.notify_one();
}

/// Plain HTTP in front of these.
async fn config(
    directory: &Path,
    router: std::net::SocketAddr,
    control_plane: std::net::SocketAddr,
) -> NginxConfig {
    NginxConfig {
        listen: closed().await,
        router,
        control_plane,
        base_domain: "mogok.test".parse().unwrap(),
        state: directory.to_path_buf().try_into().unwrap(),
        tls: None,
        user: nix::unistd::geteuid().is_root().then(|| "www-data".parse().unwrap()),
    }
}

#[tokio::test]
async fn a_router_that_is_down_is_a_page_of_the_platform() {
    if !installed() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), closed().await, closed().await).await;
    let _nginx = start(&config, directory.path()).await;
    for host in ["alpha.mogok.test", "api.mogok.test"] {
        let response = get(&config, host, "").await;
        assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
        assert_eq!(code(&response), Some("H99"), "{response}");
        assert!(response.contains("Code: H99"), "{response}");
    }
}

/// The whole answer to these bytes.
async fn raw(config: &NginxConfig, request: &str) -> String {
    let mut client = TcpStream::connect(config.listen).await.unwrap();
    // It may answer and close before it has read everything.
    let _ = client.write_all(request.as_bytes()).await;
    let mut response = Vec::new();
    let _ = client.read_to_end(&mut response).await;
    String::from_utf8_lossy(&response).replace("X-Mogok-Error", "x-mogok-error")
}

#[tokio::test]
async fn a_request_over_a_limit_of_nginx_gets_a_page_with_a_code() {
    if !installed() {
        return;
    }
    let app = App::replies(ok("hello")).await;
    let stage = Stage::new(vec![alpha(vec![app.upstream()])]).await;
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), stage.address, closed().await).await;
    let _nginx = start(&config, directory.path()).await;
    let head = |target: &str, more: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: alpha.mogok.test\r\nConnection: close\r\n{more}\r\n")
    };
    let cookie = |bytes: usize| head("/", &format!("Cookie: a={}\r\n", "x".repeat(bytes)));

    // What the router takes, nginx takes too.
    for taken in [cookie(16 << 10), cookie(31 << 10), head(&format!("/{}", "x".repeat(12 << 10)), "")] {
        let response = raw(&config, &taken).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{} bytes: {response}", taken.len());
    }
    let both = format!("/{}", "x".repeat(30 << 10));
    let refused = [
        ("a head for the router to refuse", cookie(32 << 10)),
        ("two long lines", head(&both, &format!("Cookie: {}\r\n", "x".repeat(30 << 10)))),
        ("a cookie", cookie(80 << 10)),
        ("a target", head(&format!("/{}", "x".repeat(80 << 10)), "")),
        ("no request line", "nonsense\r\n\r\n".to_owned()),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("TRACE", head("/", "").replace("GET", "TRACE")),
        ("another coding", head("/", "Transfer-Encoding: gzip\r\n")),
        ("HTTP/3.0", head("/", "").replace("HTTP/1.1", "HTTP/3.0")),
    ];
    for (what, request) in refused {
        let response = raw(&config, &request).await;
        assert!(response.starts_with("HTTP/1.1 400 "), "{what}: {response}");
        assert_eq!(code(&response), Some("H26"), "{what}: {response}");
        assert!(response.contains("Code: H26"), "{what}: {response}");
    }
    let upload = raw(&config, &head("/", "Content-Length: 2000000000\r\n")).await;
    assert!(upload.starts_with("HTTP/1.1 413 ") && upload.contains("1 GiB"), "{upload}");
    assert_eq!(code(&upload), Some("H26"), "{upload}");
}
