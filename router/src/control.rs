//! The router's side of the control plane's node listener: HTTP over its Unix socket. One
//! connection a call; calls are few (the long stream, two acknowledgements a second at most,
//! batches of log lines), and a new connection never meets a stale one.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// To the head of a reply.
const REPLY: Duration = Duration::from_secs(10);

/// Where the control plane listens for routers: `unix:/run/mogok/node.sock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlAddress(PathBuf);

#[derive(Debug, thiserror::Error)]
#[error(
    "invalid control address {0:?}: expected unix: and an absolute path, for example unix:/run/mogok/node.sock"
)]
pub struct InvalidControlAddress(String);

impl FromStr for ControlAddress {
    type Err = InvalidControlAddress;
    fn from_str(text: &str) -> Result<Self, InvalidControlAddress> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self(path.into())),
            _ => Err(InvalidControlAddress(text.chars().take(200).collect())),
        }
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.0.display())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot connect to the control plane at {address}")]
    Connect { address: ControlAddress, source: io::Error },
    #[error("the control plane at {address} broke off {path}")]
    Exchange { address: ControlAddress, path: String, source: hyper::Error },
    #[error("the control plane at {address} did not answer {path} within {} s", REPLY.as_secs())]
    Slow { address: ControlAddress, path: String },
    #[error("the control plane at {address} answered {path} with {status}")]
    Status { address: ControlAddress, path: String, status: StatusCode },
}

impl ControlAddress {
    /// `GET path`: the reply, whose body may go on for long.
    ///
    /// # Errors
    /// No connection, no reply in time, or one that is not 2xx.
    pub async fn get(&self, path: &str) -> Result<Response<Incoming>, ControlError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    /// `POST path` with a JSON body; the reply's body is not read.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Result<(), ControlError> {
        // These types have string keys only, so that they always have a JSON form.
        let body = serde_json::to_vec(body).unwrap_or_default();
        self.call(Method::POST, path, body.into()).await.map(drop)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ControlError> {
        let exchange =
            |source| ControlError::Exchange { address: self.clone(), path: path.to_owned(), source };
        let reply = async {
            let stream = UnixStream::connect(&self.0)
                .await
                .map_err(|source| ControlError::Connect { address: self.clone(), source })?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(exchange)?;
            // It ends with the reply's body, or when that is dropped.
            tokio::spawn(connection);
            let mut request = Request::new(Full::new(body));
            *request.method_mut() = method;
            *request.uri_mut() = http::Uri::try_from(path).unwrap_or_default();
            let headers = request.headers_mut();
            headers.insert(HOST, http::HeaderValue::from_static("control-plane"));
            headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
            sender.send_request(request).await.map_err(exchange)
        };
        let reply = timeout(REPLY, reply)
            .await
            .map_err(|_| ControlError::Slow { address: self.clone(), path: path.to_owned() })??;
        let status = reply.status();
        if status.is_success() {
            Ok(reply)
        } else {
            Err(ControlError::Status { address: self.clone(), path: path.to_owned(), status })
        }
    }
}
