//! Does an instance answer? A TCP connection to its port that is accepted, or, where the app names a
//! path, a `GET` that is answered with 2xx or 3xx. The answer is a stranger's: only its first line is
//! read, and only so much of it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One attempt to connect.
const CONNECT: Duration = Duration::from_secs(1);
/// One attempt to get an answer to a request; a first request may load much of the program.
const ANSWER: Duration = Duration::from_secs(10);
/// `HTTP/1.1 200`
const STATUS_LINE: usize = 12;
/// Between attempts to connect, which cost little: half of it is added to every start.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
/// The same for a program that is slow to boot, after [`SLOW`].
const SLOW_CONNECT_PAUSE: Duration = Duration::from_millis(50);
const SLOW: Duration = Duration::from_secs(5);
/// Between attempts to get an answer, which are work for the program: doubling, from the first to the longest.
const FIRST_REQUEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_REQUEST_PAUSE: Duration = Duration::from_millis(500);

/// Returns when `address` answers. The caller bounds the wait.
pub async fn answers(address: SocketAddr, path: Option<&str>) {
    let begun = Instant::now();
    let mut request_pause = FIRST_REQUEST_PAUSE;
    loop {
        let up = match path {
            None => connect(address).await.is_some(),
            Some(path) => {
                matches!(tokio::time::timeout(ANSWER, get(address, path)).await, Ok(Some(200..=399)))
            }
        };
        if up {
            return;
        }
        let pause = match path {
            None if begun.elapsed() < SLOW => CONNECT_PAUSE,
            None => SLOW_CONNECT_PAUSE,
            Some(_) => request_pause,
        };
        tokio::time::sleep(pause).await;
        request_pause = (request_pause * 2).min(LONGEST_REQUEST_PAUSE);
    }
}

async fn connect(address: SocketAddr) -> Option<TcpStream> {
    tokio::time::timeout(CONNECT, TcpStream::connect(address)).await.ok()?.ok()
}

async fn get(address: SocketAddr, path: &str) -> Option<u16> {
    let mut stream = connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: mogok-health\r\nX-Forwarded-Proto: https\r\n\
         Accept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut line = [0; STATUS_LINE];
    stream.read_exact(&mut line).await.ok()?;
    status_of(&line)
}

fn status_of(line: &[u8; STATUS_LINE]) -> Option<u16> {
    let status = line.strip_prefix(b"HTTP/1.1 ").or_else(|| line.strip_prefix(b"HTTP/1.0 "))?;
    std::str::from_utf8(status).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn only_a_status_line_has_a_status() {
        assert_eq!(status_of(b"HTTP/1.1 301"), Some(301));
        for bad in [b"HTTP/2.0 200", b"HTTP/1.1 2x0", b"SSH-2.0-Open"] {
            assert_eq!(status_of(bad), None);
        }
    }

    #[tokio::test]
    async fn an_accepted_connection_is_enough_without_a_path() {
        let (_listener, address) = listener().await;
        tokio::time::timeout(PATIENCE, answers(address, None)).await.unwrap();
    }

    #[tokio::test]
    async fn a_path_must_answer_well() {
        let (listener, address) = listener().await;
        let server = tokio::spawn(async move {
            for answer in ["HTTP/1.1 500 No\r\n\r\n", "nonsense, closed", "HTTP/1.1 302 Found\r\n\r\n"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /up HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        tokio::time::timeout(PATIENCE, answers(address, Some("/up"))).await.unwrap();
        server.await.unwrap();
    }
}
