//! The typed, blocking client of the public API, as the `mogok` command uses it.
//!
//! Names below `localhost` resolve to the loopback address without asking anyone (RFC 6761,
//! section 6.3), as curl and browsers do. Every wait but that on a followed log is bounded.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Response, Uri};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::control::LogLine;
use crate::error::{ApiError, ErrorCode};

/// Longest line of a log stream, in bytes: a 10,000-byte line, escaped, and its envelope.
const MAX_LINE: u64 = 128 * 1024;
/// Longest reply that is read into memory, in bytes.
const MAX_REPLY: u64 = 16 * 1024 * 1024;

/// Why a call got no answer of use.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach the platform at {url}: check the address (--api, MOGOK_API) and that it runs")]
    Unreachable { url: String, source: ureq::Error },
    #[error(transparent)]
    Refused(#[from] ApiError),
    #[error("the platform at {url} is restarting or overloaded (HTTP {status}): try again in a moment")]
    Away { url: String, status: u16 },
    #[error(
        "{url} sent something that is not an answer of the platform's API (HTTP {status}): check the address \
         (--api, MOGOK_API)"
    )]
    NotAnAnswer { url: String, status: u16 },
    #[error("the log stream broke off")]
    Stream(#[from] std::io::Error),
    #[error("the log stream holds a line that is not a log line")]
    Line(#[source] serde_json::Error),
}

impl ClientError {
    /// May the same call work in a moment? What was begun goes on meanwhile.
    #[must_use]
    pub fn passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Away { .. })
    }

    /// The platform's own code, when it answered.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(error) => Some(error.code),
            _ => None,
        }
    }
}

/// Resolves `localhost` and all names below it by itself.
#[derive(Debug, Default)]
struct LoopbackResolver(DefaultResolver);

impl Resolver for LoopbackResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().unwrap_or_default().trim_end_matches('.');
        if host == "localhost" || host.ends_with(".localhost") {
            let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
            let mut addresses = self.empty();
            addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
            return Ok(addresses);
        }
        self.0.resolve(uri, config, timeout)
    }
}

/// A connection to one platform, with or without a token.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
    token: Option<String>,
}

impl Client {
    /// `base` is the API's URL without a trailing slash, for example `http://api.mogok.localhost:8080`.
    #[must_use]
    pub fn new(base: &str, token: Option<String>) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("mogok/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = ureq::Agent::with_parts(config, DefaultConnector::default(), LoopbackResolver::default());
        Self { agent, base: base.trim_end_matches('/').to_owned(), token }
    }

    fn authorization(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {token}"))
    }

    fn without_body(&self, method: &str, path: &str) -> Result<Response<ureq::Body>, ClientError> {
        let url = format!("{}{path}", self.base);
        let mut request = match method {
            "GET" => self.agent.get(&url),
            _ => self.agent.delete(&url),
        };
        if let Some(value) = self.authorization() {
            request = request.header("authorization", value);
        }
        let response =
            request.call().map_err(|source| ClientError::Unreachable { url: url.clone(), source })?;
        refuse_errors(&url, response)
    }

    fn with_body(
        &self,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Response<ureq::Body>, ClientError> {
        let url = format!("{}{path}", self.base);
        let mut request = match method {
            "POST" => self.agent.post(&url),
            _ => self.agent.patch(&url),
        };
        if let Some(value) = self.authorization() {
            request = request.header("authorization", value);
        }
        let response = request
            .send_json(body)
            .map_err(|source| ClientError::Unreachable { url: url.clone(), source })?;
        refuse_errors(&url, response)
    }

    /// # Errors
    /// When the platform cannot be reached, refuses, or sends no such value.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        decode(&self.base, self.without_body("GET", path)?)
    }

    /// # Errors
    /// As [`Client::get`].
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        decode(&self.base, self.with_body("POST", path, body)?)
    }

    /// # Errors
    /// As [`Client::get`].
    pub fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        decode(&self.base, self.with_body("PATCH", path, body)?)
    }

    /// A `POST` whose reply has no body of interest.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post_empty(&self, path: &str) -> Result<(), ClientError> {
        self.with_body("POST", path, &serde_json::json!({})).map(drop)
    }

    /// # Errors
    /// As [`Client::get`].
    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.without_body("DELETE", path).map(drop)
    }

    /// A stream of log lines; it ends when the platform ends it.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn log(&self, path: &str) -> Result<LogStream, ClientError> {
        let response = self.without_body("GET", path)?;
        Ok(LogStream { reader: BufReader::new(Box::new(response.into_body().into_reader())) })
    }
}

/// Lines as they arrive; blank lines are heartbeats and passed over.
pub struct LogStream {
    reader: BufReader<Box<dyn Read + Send>>,
}

impl std::fmt::Debug for LogStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStream").finish_non_exhaustive()
    }
}

impl Iterator for LogStream {
    type Item = Result<LogLine, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut line = Vec::new();
            match self.reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => return Some(serde_json::from_slice(&line).map_err(ClientError::Line)),
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}

fn refuse_errors(url: &str, response: Response<ureq::Body>) -> Result<Response<ureq::Body>, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let not_an_answer = || ClientError::NotAnAnswer { url: url.to_owned(), status: status.as_u16() };
    let body =
        response.into_body().with_config().limit(MAX_REPLY).read_to_vec().map_err(|_| not_an_answer())?;
    Err(match serde_json::from_slice::<ApiError>(&body) {
        Ok(refusal) => ClientError::Refused(refusal),
        Err(_) if matches!(status.as_u16(), 502..=504) => {
            ClientError::Away { url: url.to_owned(), status: status.as_u16() }
        }
        Err(_) => not_an_answer(),
    })
}

fn decode<T: DeserializeOwned>(url: &str, response: Response<ureq::Body>) -> Result<T, ClientError> {
    let status = response.status().as_u16();
    let not_an_answer = || ClientError::NotAnAnswer { url: url.to_owned(), status };
    let body =
        response.into_body().with_config().limit(MAX_REPLY).read_to_vec().map_err(|_| not_an_answer())?;
    serde_json::from_slice(&body).map_err(|_| not_an_answer())
}
