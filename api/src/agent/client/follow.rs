//! The two endless streams of an agent: events and logs. The event stream carries heartbeats, so
//! silence on it is an error after [`EVENT_SILENCE`]; the log stream of a quiet node is silent by
//! right, and whoever reads both gives it up together with the event stream.

use std::marker::PhantomData;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::connection::Connection;
use super::ndjson::Decoder;
use super::{AgentClient, ClientError, Exchange};
use crate::agent::{AgentEvent, LogRecord};
use crate::id::InstanceId;

/// Three heartbeats missed.
pub const EVENT_SILENCE: Duration = Duration::from_secs(15);
/// A snapshot of a full node whose containers all died talking.
const EVENT_LINE: usize = 64 << 20;
/// 10,000 bytes, each of which JSON may write with six, and the rest of the record.
const LOG_LINE: usize = 128 << 10;

/// Values as the agent sends them.
#[derive(Debug)]
pub struct Follow<T> {
    operation: &'static str,
    body: Incoming,
    decoder: Decoder,
    silence: Option<Duration>,
    _connection: Connection,
    _values: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Follow<T> {
    /// The next value; nothing when the agent has ended the stream. Cancel-safe.
    ///
    /// # Errors
    /// When the connection breaks, is silent for too long, or carries what is not such a value; the stream
    /// is of no use afterwards.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        let operation = self.operation;
        loop {
            let value = self.decoder.value().map_err(|source| ClientError::Line { operation, source })?;
            if value.is_some() {
                return Ok(value);
            }
            let frame = match self.silence {
                Some(silence) => tokio::time::timeout(silence, self.body.frame())
                    .await
                    .map_err(|_| ClientError::Silent { operation, seconds: silence.as_secs() })?,
                None => self.body.frame().await,
            };
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|source| ClientError::Http { operation, source })?;
            if let Some(chunk) = frame.data_ref() {
                self.decoder.push(chunk);
            }
        }
    }
}

impl AgentClient {
    /// The status of every instance, then each change; goes on behind `after` where the agent still can.
    ///
    /// # Errors
    /// When the agent cannot be reached or refuses.
    pub async fn events(&self, after: Option<u64>) -> Result<Follow<AgentEvent>, ClientError> {
        let after = after.map(|seq| format!("&after={seq}")).unwrap_or_default();
        let path = format!("/v1/events?follow=true{after}");
        self.follow("follow the events", path, EVENT_LINE, Some(EVENT_SILENCE)).await
    }

    /// The output of all instances behind `after`, or all that is kept, and then as it comes.
    ///
    /// # Errors
    /// When the agent cannot be reached or refuses.
    pub async fn logs(&self, after: Option<&str>) -> Result<Follow<LogRecord>, ClientError> {
        let after = after.map(|cursor| format!("&after={}", escaped(cursor))).unwrap_or_default();
        self.follow("follow the logs", format!("/v1/logs?follow=true{after}"), LOG_LINE, None).await
    }

    /// The output of one instance, all that is kept; with `follow` also as it comes.
    ///
    /// # Errors
    /// When the agent cannot be reached, or has no such instance.
    pub async fn instance_logs(
        &self,
        id: InstanceId,
        follow: bool,
    ) -> Result<Follow<LogRecord>, ClientError> {
        let path = format!("/v1/instances/{id}/logs?follow={follow}");
        self.follow("read the logs of the instance", path, LOG_LINE, None).await
    }

    async fn follow<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        path: String,
        limit: usize,
        silence: Option<Duration>,
    ) -> Result<Follow<T>, ClientError> {
        let exchange = Exchange::new(operation, Method::GET, path);
        let (connection, reply) = self.bounded(&exchange, self.open(&exchange, super::empty())).await?;
        Ok(Follow {
            operation,
            body: reply.into_body(),
            decoder: Decoder::new(limit),
            silence,
            _connection: connection,
            _values: PhantomData,
        })
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_travel_in_the_query_unharmed() {
        assert_eq!(escaped("a:1/2,b=3&c d~"), "a%3A1%2F2%2Cb%3D3%26c%20d~");
    }
}
