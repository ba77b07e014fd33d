//! Programs in running containers, as a client has them: one half that sends, one that receives.
//!
//! Invariant: one piece of input is under way at most, and orders never wait for it.

use std::io;
use std::sync::Arc;

use hyper::Method;
use hyper::StatusCode;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{Mutex, Semaphore};

use super::{AgentClient, ClientError, Exchange};
use crate::agent::exec::{
    ExecDecoder, ExecExit, ExecFrame, ExecInput, ExecOutput, ExecRequest, InvalidFrame, MAX_PAYLOAD,
    PROTOCOL, TerminalSize,
};
use crate::id::InstanceId;

const OPERATION: &str = "execute in the instance";

/// The connection of a running program broke.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("the connection to the program broke")]
    Io(#[source] io::Error),
    #[error("the other side does not keep to the protocol")]
    Frame(#[source] InvalidFrame),
}

/// Messages out of a stream.
#[derive(Debug)]
pub struct ExecReader<R> {
    stream: R,
    decoder: ExecDecoder,
}

impl<R: AsyncRead + Unpin> ExecReader<R> {
    pub fn new(stream: R) -> Self {
        Self { stream, decoder: ExecDecoder::default() }
    }

    /// The next message; nothing at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// When the stream breaks, also in the middle of a message, or carries what is none.
    pub async fn next<T: ExecFrame>(&mut self) -> Result<Option<T>, ExecError> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(message) = self.decoder.message().map_err(ExecError::Frame)? {
                return Ok(Some(message));
            }
            match self.stream.read(&mut bytes).await.map_err(ExecError::Io)? {
                0 if self.decoder.is_empty() => return Ok(None),
                0 => return Err(ExecError::Io(io::ErrorKind::UnexpectedEof.into())),
                read => self.decoder.push(&bytes[..read]),
            }
        }
    }
}

type Wire = TokioIo<Upgraded>;

/// Sends to the program; clones send to the same.
#[derive(Debug, Clone)]
pub struct ExecSender {
    wire: Arc<Mutex<WriteHalf<Wire>>>,
    window: Arc<Semaphore>,
}

impl ExecSender {
    /// Sends input, when all that was sent before has been taken. Not cancel-safe.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn stdin(&self, bytes: &[u8]) -> Result<(), ExecError> {
        for piece in bytes.chunks(MAX_PAYLOAD) {
            self.piece(piece.to_vec()).await?;
        }
        Ok(())
    }

    /// Tells the program that there is no more input.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn end_of_stdin(&self) -> Result<(), ExecError> {
        self.piece(Vec::new()).await
    }

    /// Tells the program the new size of its terminal.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), ExecError> {
        self.send(&ExecInput::Resize(size)).await
    }

    /// Sends the program a signal.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn signal(&self, number: u8) -> Result<(), ExecError> {
        self.send(&ExecInput::Signal(number)).await
    }

    async fn piece(&self, piece: Vec<u8>) -> Result<(), ExecError> {
        // Given back by the receiver when the agent has taken the piece.
        if let Ok(permit) = self.window.acquire().await {
            permit.forget();
        }
        self.send(&ExecInput::Stdin(piece)).await
    }

    async fn send(&self, input: &ExecInput) -> Result<(), ExecError> {
        self.wire.lock().await.write_all(&input.encode()).await.map_err(ExecError::Io)
    }
}

/// What the program says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// The last.
    Exit(ExecExit),
}

/// Receives from the program.
#[derive(Debug)]
pub struct ExecReceiver {
    wire: ExecReader<ReadHalf<Wire>>,
    window: Arc<Semaphore>,
}

impl ExecReceiver {
    /// The next output, or the program's end. It has to be asked for as long as input is sent. Cancel-safe.
    ///
    /// # Errors
    /// When the connection breaks before the program has ended.
    pub async fn next(&mut self) -> Result<ExecEvent, ExecError> {
        loop {
            return match self.wire.next::<ExecOutput>().await? {
                Some(ExecOutput::Stdout(bytes)) => Ok(ExecEvent::Stdout(bytes)),
                Some(ExecOutput::Stderr(bytes)) => Ok(ExecEvent::Stderr(bytes)),
                Some(ExecOutput::Exit(exit)) => Ok(ExecEvent::Exit(exit)),
                Some(ExecOutput::Taken) => {
                    self.window.add_permits(1);
                    continue;
                }
                None => Err(ExecError::Io(io::ErrorKind::UnexpectedEof.into())),
            };
        }
    }
}

impl AgentClient {
    /// Executes a program in a running container. It ends when both halves are dropped.
    ///
    /// # Errors
    /// When the agent cannot be reached, the container is in no state to be joined, or the program does not
    /// start.
    pub async fn exec(
        &self,
        id: InstanceId,
        request: &ExecRequest,
    ) -> Result<(ExecSender, ExecReceiver), ClientError> {
        let json = serde_json::to_vec(request);
        let json = json.map_err(|source| ClientError::Json { operation: OPERATION, source })?;
        let exchange = Exchange {
            json: Some(json.into()),
            ..Exchange::new(OPERATION, Method::POST, format!("/v1/instances/{id}/exec"))
        };
        let upgraded = self.bounded(&exchange, self.upgrade(&exchange)).await?;
        let (reader, writer) = split(TokioIo::new(upgraded));
        let window = Arc::new(Semaphore::new(1));
        Ok((
            ExecSender { wire: Arc::new(Mutex::new(writer)), window: window.clone() },
            ExecReceiver { wire: ExecReader::new(reader), window },
        ))
    }

    async fn upgrade(&self, exchange: &Exchange) -> Result<Upgraded, ClientError> {
        let mut request = self.request(exchange, super::body_of(exchange));
        let headers = request.headers_mut();
        headers.insert(CONNECTION, hyper::header::HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, hyper::header::HeaderValue::from_static(PROTOCOL));
        let (_connection, reply) = self.open_request(exchange.operation, request).await?;
        if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = reply.status().as_u16();
            super::accepted(OPERATION, reply).await?;
            return Err(ClientError::Unexplained { operation: OPERATION, status });
        }
        hyper::upgrade::on(reply).await.map_err(|source| ClientError::Http { operation: OPERATION, source })
    }
}
