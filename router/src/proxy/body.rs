//! The body of a response on its way to the client: a page of the router, or what the app sends,
//! frame by frame as it comes. With the app's goes all that ends with it: the claim on the
//! instance, the connection, the log line.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::access::Access;
use crate::client::{Progress, Sender};
use crate::fault::Fault;
use crate::instance::Ticket;
use crate::stream::{Peer, UnderWay};

/// Why a response broke off; the client sees its connection close before the response's end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the app was silent for too long")]
    Idle,
    #[error("the app broke off its response")]
    Interrupted(#[source] hyper::Error),
}

/// Any response's body.
pub struct RouterBody {
    kind: Kind,
    /// Until it is dropped the client is not idle.
    _under_way: Option<UnderWay>,
}

enum Kind {
    Page(Option<Bytes>),
    App(Box<AppBody>),
}

impl RouterBody {
    /// A page of the router's own.
    #[must_use]
    pub fn page(bytes: Bytes) -> Self {
        Self { kind: Kind::Page((!bytes.is_empty()).then_some(bytes)), _under_way: None }
    }

    pub(super) fn app(body: AppBody) -> Self {
        Self { kind: Kind::App(Box::new(body)), _under_way: None }
    }

    pub(super) fn marked(self, under_way: UnderWay) -> Self {
        Self { _under_way: Some(under_way), ..self }
    }
}

impl Body for RouterBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.get_mut().kind {
            Kind::Page(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::App(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Page(bytes) => bytes.is_none(),
            Kind::App(body) => body.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Page(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Kind::App(body) => body.inner.size_hint(),
        }
    }
}

/// The body that an app sends.
pub(super) struct AppBody {
    inner: Incoming,
    sender: Option<Sender>,
    ticket: Ticket,
    access: Access,
    progress: Option<Arc<Progress>>,
    peer: Arc<Peer>,
    rolling: Duration,
    /// When the last frame came.
    moved: Instant,
    /// Made at the first wait: most responses come in one piece.
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl AppBody {
    pub(super) fn new(
        inner: Incoming,
        sender: Sender,
        ticket: Ticket,
        access: Access,
        progress: Option<Arc<Progress>>,
        peer: Arc<Peer>,
        rolling: Duration,
    ) -> Self {
        Self {
            inner,
            sender: Some(sender),
            ticket,
            access,
            progress,
            peer,
            rolling,
            moved: Instant::now(),
            timer: None,
            ended: false,
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.moved = Instant::now();
                self.access.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.end(Some(Fault::ServerInterrupted));
                Poll::Ready(Some(Err(BodyError::Interrupted(error))))
            }
            Poll::Ready(None) => {
                self.end(None);
                Poll::Ready(None)
            }
            Poll::Pending => self.poll_silence(cx),
        }
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let deadline = self.moved + self.rolling;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                self.end(Some(Fault::Idle));
                return Poll::Ready(Some(Err(BodyError::Idle)));
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn end(&mut self, fault: Option<Fault>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.access.fault = fault;
        let sender = self.sender.take();
        // A connection whose request is still being sent is of no use to the next.
        let sent = self.progress.as_ref().is_none_or(|progress| progress.is_done());
        if let Some(sender) = sender
            && fault.is_none()
            && sent
        {
            self.ticket.instance().keep(sender);
        }
    }
}

impl Drop for AppBody {
    fn drop(&mut self) {
        // hyper does not ask for the end of a body whose length it knows.
        if self.inner.is_end_stream() {
            self.end(None);
        } else {
            let idle = self.peer.is_silent();
            self.end(Some(if idle { Fault::ClientIdle } else { Fault::ClientInterrupted }));
        }
    }
}
