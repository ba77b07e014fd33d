//! Connections to instances, and the two bodies that go through them. A pool of its own for each
//! instance, not a client library's: what is unused can be closed when the instance retires, and
//! it is known exactly whether a failed request was sent.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mogok_api::linger::Lingering;
use nix::errno::Errno;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::fault::Fault;
use crate::instance::Instance;

/// The sending end of one connection.
pub type Sender = http1::SendRequest<RequestBody>;

/// The largest response head, in bytes; beyond it the response is malformed (H17).
const MAX_RESPONSE_HEAD: usize = 256 * 1024;
/// A connection whose last response just ended may need a moment until it is ready again.
const SETTLE: Duration = Duration::from_millis(5);

/// A connection that was used before and was used within `within`, ready for a request.
pub async fn reuse(instance: &Instance, within: Duration) -> Option<Sender> {
    // Each turn takes one out; a few bad ones are followed by a new connection.
    for _ in 0..4 {
        let mut sender = instance.take_idle(within)?;
        if sender.is_ready() || matches!(timeout(SETTLE, sender.ready()).await, Ok(Ok(()))) {
            return Some(sender);
        }
    }
    None
}

/// A new connection.
///
/// # Errors
/// [`Fault::Refused`] or [`Fault::ConnectTimeout`]; nothing was sent.
pub async fn connect(instance: &Instance, limit: Duration) -> Result<Sender, Fault> {
    let stream = match timeout(limit, TcpStream::connect(instance.address)).await {
        Err(_) => return Err(Fault::ConnectTimeout),
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => return Err(Fault::ConnectTimeout),
        Ok(Err(error)) => {
            tracing::debug!(instance = %instance.id, %error, "instance refused the connection");
            // Out of our own descriptors or ports is no fault of the instance.
            let code = error.raw_os_error().map(Errno::from_raw);
            let ours = matches!(code, Some(Errno::EMFILE | Errno::ENFILE | Errno::EADDRNOTAVAIL));
            return Err(if ours { Fault::Platform } else { Fault::Refused });
        }
        Ok(Ok(stream)) => stream,
    };
    // Without it small writes could wait for acknowledgements; failing leaves it only slower.
    let _ = stream.set_nodelay(true);
    let (sender, connection) = http1::Builder::new()
        .max_header_size(MAX_RESPONSE_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Fault::Refused)?;
    // Ends when the sender is dropped or the instance closes; its error reaches the request.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

/// How far a request's body has got, for the one who waits for the response.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    /// Milliseconds from `began` to the last byte.
    moved: AtomicU64,
    /// All was handed on.
    done: AtomicBool,
    /// It is the client that is waited for.
    on_client: AtomicBool,
    /// The client broke off, or sent what is no body.
    failed: AtomicBool,
    /// It sent what is no body.
    malformed: AtomicBool,
}

impl Progress {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            moved: AtomicU64::new(0),
            done: AtomicBool::new(false),
            on_client: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            malformed: AtomicBool::new(false),
        }
    }

    fn touch(&self) {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(elapsed, Ordering::Relaxed);
    }

    /// When the last byte moved.
    #[must_use]
    pub fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.moved.load(Ordering::Relaxed))
    }

    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn is_on_client(&self) -> bool {
        !self.is_done() && self.on_client.load(Ordering::Relaxed)
    }

    /// The client's part failed.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// It failed because the chunks were malformed.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        self.malformed.load(Ordering::Relaxed)
    }

    fn fail(&self, error: &hyper::Error) {
        let kind = error.source().and_then(|source| source.downcast_ref()).map(io::Error::kind);
        let malformed = matches!(kind, Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData));
        self.malformed.store(malformed, Ordering::Relaxed);
        self.failed.store(true, Ordering::Relaxed);
    }
}

/// A request's body on its way to an instance: the client's, or none.
#[derive(Debug, Default)]
pub struct RequestBody {
    inner: Option<(Lingering<Incoming>, Arc<Progress>)>,
}

impl RequestBody {
    /// The body, and its progress when there is one to follow.
    #[must_use]
    pub fn new(incoming: Incoming) -> (Self, Option<Arc<Progress>>) {
        if incoming.is_end_stream() {
            return (Self::default(), None);
        }
        let progress = Arc::new(Progress::new());
        (Self { inner: Some((Lingering::new(incoming), Arc::clone(&progress))) }, Some(progress))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some((incoming, progress)) = &mut self.inner else { return Poll::Ready(None) };
        let poll = Pin::new(&mut *incoming).poll_frame(cx);
        progress.on_client.store(poll.is_pending(), Ordering::Relaxed);
        let frame = ready!(poll);
        progress.touch();
        match &frame {
            Some(Ok(_)) if !incoming.is_end_stream() => {}
            Some(Ok(_)) | None => progress.done.store(true, Ordering::Relaxed),
            Some(Err(error)) => progress.fail(error),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(|(incoming, _)| incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), |(incoming, _)| incoming.size_hint())
    }
}
