//! The typed asynchronous client of the agent API.
//!
//! Small requests share one kept connection and are sent again on a new one when it turns out dead
//! (each of them is idempotent); streams and blobs have a connection each. Every wait has a bound,
//! every reply a size.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio_rustls::rustls::ClientConfig;

use self::connection::{Connection, RequestBody};
use crate::agent::{DesiredAck, DesiredMessage, InstanceDetail, NodeInfo, ReclaimRequest, Reclaimed};
use crate::error::ApiError;
use crate::id::InstanceId;
use crate::instance::InstanceStatus;

mod address;
mod blob;
mod connection;
mod exec;
mod follow;
pub mod ndjson;
#[cfg(test)]
mod tests;

pub use address::{AgentAddress, Identity, IdentityError, InvalidAddress};
pub use exec::{ExecError, ExecEvent, ExecReader, ExecReceiver, ExecSender};
pub use follow::{EVENT_SILENCE, Follow};

/// How long a small request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The same for one that waits for the kernel to freeze or to reclaim; the agent's own bounds are shorter.
const HOLD: Duration = Duration::from_secs(30);
/// Bytes of a small reply.
const REPLY_LIMIT: usize = 1 << 20;
/// Bytes of the list of all instances.
const LIST_LIMIT: usize = 64 << 20;

/// What can go wrong between the caller and an agent.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{address} needs a client certificate, its key and the CA: none was given")]
    NoIdentity { address: AgentAddress },
    #[error("cannot use the client certificate for {address}")]
    Identity { address: AgentAddress, source: IdentityError },
    #[error("cannot connect to the agent at {address}")]
    Connect { address: AgentAddress, source: io::Error },
    #[error("cannot {operation}: no answer from {address} in time")]
    Timeout { operation: &'static str, address: AgentAddress },
    #[error("cannot {operation}: the stream was silent for {seconds} s")]
    Silent { operation: &'static str, seconds: u64 },
    #[error("cannot {operation}")]
    Http { operation: &'static str, source: hyper::Error },
    #[error("cannot {operation}: the agent answers {status}")]
    Refused { operation: &'static str, status: u16, source: ApiError },
    #[error("cannot {operation}: the agent answers {status} without saying why")]
    Unexplained { operation: &'static str, status: u16 },
    #[error("cannot {operation}: more than {limit} bytes")]
    TooLarge { operation: &'static str, limit: u64 },
    #[error("cannot {operation}: the value is not what the contract says")]
    Json { operation: &'static str, source: serde_json::Error },
    #[error("cannot {operation}")]
    Line { operation: &'static str, source: ndjson::LineError },
    #[error("cannot {operation}: file {path}")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
}

/// A client of one agent; cheap to clone, clones share the kept connection.
#[derive(Debug, Clone)]
pub struct AgentClient {
    address: AgentAddress,
    tls: Option<Arc<ClientConfig>>,
    kept: Arc<Mutex<Option<Connection>>>,
}

/// One request, apart from its body's bytes.
struct Exchange {
    operation: &'static str,
    method: Method,
    path: String,
    json: Option<Bytes>,
    length: Option<u64>,
    timeout: Duration,
}

impl Exchange {
    fn new(operation: &'static str, method: Method, path: String) -> Self {
        Self { operation, method, path, json: None, length: None, timeout: TIMEOUT }
    }
}

impl AgentClient {
    /// A client; nothing is dialled yet. `identity` is needed for `https` and unused for `unix`.
    ///
    /// # Errors
    /// When an `https` address has no identity, or one that TLS cannot use.
    pub fn new(address: AgentAddress, identity: Option<&Identity>) -> Result<Self, ClientError> {
        let tls = match (&address, identity) {
            (AgentAddress::Unix(_), _) => None,
            (AgentAddress::Https { .. }, None) => return Err(ClientError::NoIdentity { address }),
            (AgentAddress::Https { .. }, Some(identity)) => Some(
                identity
                    .client_config()
                    .map_err(|source| ClientError::Identity { address: address.clone(), source })?,
            ),
        };
        Ok(Self { address, tls, kept: Arc::default() })
    }

    /// Where this agent is.
    #[must_use]
    pub fn address(&self) -> &AgentAddress {
        &self.address
    }

    /// What the node is.
    ///
    /// # Errors
    /// When the agent cannot be reached or refuses.
    pub async fn node(&self) -> Result<NodeInfo, ClientError> {
        let exchange = Exchange::new("read the node", Method::GET, "/v1/node".into());
        decode(exchange.operation, &self.unary(&exchange, REPLY_LIMIT).await?)
    }

    /// Hands the agent what is wanted, or a heartbeat.
    ///
    /// # Errors
    /// When the agent cannot be reached or refuses; the same message can be sent again.
    pub async fn desired(&self, message: &DesiredMessage) -> Result<DesiredAck, ClientError> {
        let operation = "send the wanted set";
        let json = serde_json::to_vec(message).map_err(|source| ClientError::Json { operation, source })?;
        let exchange = Exchange {
            json: Some(json.into()),
            ..Exchange::new(operation, Method::POST, "/v1/desired".into())
        };
        decode(operation, &self.unary(&exchange, REPLY_LIMIT).await?)
    }

    /// The status of every instance on the node.
    ///
    /// # Errors
    /// When the agent cannot be reached or refuses.
    pub async fn instances(&self) -> Result<Vec<InstanceStatus>, ClientError> {
        let exchange = Exchange::new("list the instances", Method::GET, "/v1/instances".into());
        decode(exchange.operation, &self.unary(&exchange, LIST_LIMIT).await?)
    }

    /// One instance in full.
    ///
    /// # Errors
    /// When the agent cannot be reached, or has no such instance.
    pub async fn instance(&self, id: InstanceId) -> Result<InstanceDetail, ClientError> {
        let exchange = Exchange::new("read the instance", Method::GET, format!("/v1/instances/{id}"));
        decode(exchange.operation, &self.unary(&exchange, REPLY_LIMIT).await?)
    }

    /// Makes every process of an instance that is up stand still.
    ///
    /// # Errors
    /// When the agent cannot be reached, or the instance cannot be frozen.
    pub async fn freeze(&self, id: InstanceId) -> Result<(), ClientError> {
        self.hold("freeze the instance", id, "freeze", None).await.map(drop)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When the agent cannot be reached, or the instance does not run.
    pub async fn thaw(&self, id: InstanceId) -> Result<(), ClientError> {
        self.hold("thaw the instance", id, "thaw", None).await.map(drop)
    }

    /// Has the kernel take memory back from a running instance.
    ///
    /// # Errors
    /// When the agent cannot be reached, or its host cannot do that.
    pub async fn reclaim(&self, id: InstanceId, request: ReclaimRequest) -> Result<Reclaimed, ClientError> {
        let operation = "take memory back from the instance";
        let json = serde_json::to_vec(&request).map_err(|source| ClientError::Json { operation, source })?;
        decode(operation, &self.hold(operation, id, "reclaim", Some(json.into())).await?)
    }

    async fn hold(
        &self,
        operation: &'static str,
        id: InstanceId,
        act: &str,
        json: Option<Bytes>,
    ) -> Result<Bytes, ClientError> {
        let path = format!("/v1/instances/{id}/{act}");
        let exchange = Exchange { json, timeout: HOLD, ..Exchange::new(operation, Method::POST, path) };
        self.unary(&exchange, REPLY_LIMIT).await
    }

    /// A small request on the kept connection.
    async fn unary(&self, exchange: &Exchange, limit: usize) -> Result<Bytes, ClientError> {
        let operation = exchange.operation;
        self.bounded(exchange, async {
            let mut kept = self.kept.lock().await;
            // Taken out, not borrowed: a request that is given up in the middle must not leave the rest of its
            // reply to the next one.
            if let Some(mut connection) = kept.take().filter(Connection::usable)
                && let Ok(reply) = connection.send(self.request(exchange, body_of(exchange))).await
            {
                let bytes = collect(operation, accepted(operation, reply).await?, limit).await?;
                *kept = Some(connection);
                return Ok(bytes);
            }
            let (connection, reply) = self.open(exchange, body_of(exchange)).await?;
            let bytes = collect(operation, reply, limit).await?;
            *kept = Some(connection);
            Ok(bytes)
        })
        .await
    }

    /// A request on a connection of its own; the reply's status is 2xx.
    async fn open(
        &self,
        exchange: &Exchange,
        body: RequestBody,
    ) -> Result<(Connection, Response<Incoming>), ClientError> {
        let operation = exchange.operation;
        let (connection, reply) = self.open_request(operation, self.request(exchange, body)).await?;
        let reply = accepted(operation, reply).await?;
        Ok((connection, reply))
    }

    /// The same with any reply.
    async fn open_request(
        &self,
        operation: &'static str,
        request: Request<RequestBody>,
    ) -> Result<(Connection, Response<Incoming>), ClientError> {
        let mut connection = Connection::open(&self.address, self.tls.as_ref())
            .await
            .map_err(|source| ClientError::Connect { address: self.address.clone(), source })?;
        let reply = connection.send(request).await;
        let reply = reply.map_err(|source| ClientError::Http { operation, source })?;
        Ok((connection, reply))
    }

    fn request(&self, exchange: &Exchange, body: RequestBody) -> Request<RequestBody> {
        let host = match &self.address {
            AgentAddress::Unix(_) => "agent".to_owned(),
            AgentAddress::Https { .. } => self.address.to_string().trim_start_matches("https://").to_owned(),
        };
        let mut request = Request::new(body);
        *request.method_mut() = exchange.method.clone();
        // The paths are made here of ids, digests and percent-encoded text, so they parse; and where one
        // should not, the agent answers that there is no `/`.
        *request.uri_mut() = exchange.path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        if let Ok(host) = host.parse() {
            headers.insert(HOST, host);
        }
        if exchange.json.is_some() {
            headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
        }
        if let Some(length) = exchange.length {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        request
    }

    async fn bounded<T>(
        &self,
        exchange: &Exchange,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(exchange.timeout, work)
            .await
            .unwrap_or_else(|_| Err(self.timed_out(exchange.operation)))
    }

    fn timed_out(&self, operation: &'static str) -> ClientError {
        ClientError::Timeout { operation, address: self.address.clone() }
    }
}

fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn body_of(exchange: &Exchange) -> RequestBody {
    match &exchange.json {
        None => empty(),
        Some(json) => Full::new(json.clone()).map_err(|never| match never {}).boxed_unsync(),
    }
}

/// Passes a reply that is 2xx, and makes an error of any other.
async fn accepted(
    operation: &'static str,
    reply: Response<Incoming>,
) -> Result<Response<Incoming>, ClientError> {
    if reply.status().is_success() {
        return Ok(reply);
    }
    let status = reply.status().as_u16();
    let bytes = collect(operation, reply, REPLY_LIMIT).await?;
    Err(match serde_json::from_slice(&bytes) {
        Ok(source) => ClientError::Refused { operation, status, source },
        Err(_) => ClientError::Unexplained { operation, status },
    })
}

async fn collect(
    operation: &'static str,
    reply: Response<Incoming>,
    limit: usize,
) -> Result<Bytes, ClientError> {
    let body = Limited::new(reply.into_body(), limit).collect().await;
    body.map(http_body_util::Collected::to_bytes).map_err(|error| {
        if error.is::<LengthLimitError>() {
            return ClientError::TooLarge { operation, limit: limit as u64 };
        }
        match error.downcast::<hyper::Error>() {
            Ok(source) => ClientError::Http { operation, source: *source },
            Err(_) => ClientError::TooLarge { operation, limit: limit as u64 },
        }
    })
}

fn decode<T: DeserializeOwned>(operation: &'static str, bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|source| ClientError::Json { operation, source })
}
