//! One HTTP/1.1 connection to an agent, driven by a task of its own. Dropping the connection ends the
//! task and closes the socket, also in the middle of a stream.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::address::AgentAddress;

/// What requests carry: nothing, JSON, or a file as it is read.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// How long connecting may take, with the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<RequestBody>,
    _task: AbortOnDrop,
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// Dials the agent.
    pub(super) async fn open(address: &AgentAddress, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let timeout = || io::Error::new(io::ErrorKind::TimedOut, "no connection within 5 s");
        tokio::time::timeout(CONNECT_TIMEOUT, Self::dial(address, tls)).await.map_err(|_| timeout())?
    }

    async fn dial(address: &AgentAddress, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let wire: Box<dyn Wire> = match (address, tls) {
            (AgentAddress::Unix(path), _) => Box::new(UnixStream::connect(path).await?),
            (AgentAddress::Https { host, port }, Some(tls)) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                Box::new(TlsConnector::from(tls.clone()).connect(name, stream).await?)
            }
            (AgentAddress::Https { .. }, None) => return Err(io::Error::other("no client certificate")),
        };
        let (sender, connection) = http1::handshake(TokioIo::new(wire)).await.map_err(io::Error::other)?;
        // Its error reaches whoever waits for the reply.
        let task = tokio::spawn(async move { drop(connection.with_upgrades().await) }).abort_handle();
        Ok(Self { sender, _task: AbortOnDrop(task) })
    }

    /// Can it take another request?
    pub(super) fn usable(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends one request and waits for the head of its reply.
    pub(super) async fn send(&mut self, request: Request<RequestBody>) -> hyper::Result<Response<Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }
}
