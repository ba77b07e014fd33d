//! A request's body that outlives an early answer.
//!
//! A server that has answered and closes while the client still sends makes the client's system drop the answer
//! with the connection (RFC 9112, section 9.6), and a proxy between the two tells of a broken server instead. So what a
//! service has not read of a body when it lets go of it is read on, for a bounded time and up to a bounded size.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::runtime::Handle;

/// Bytes that are read and thrown away at most; who sends more sees the connection close.
const BYTES: usize = 16 << 20;
const TIME: Duration = Duration::from_secs(10);
/// Until the next bytes: who has stopped sending waits for the answer, or for nothing.
const PAUSE: Duration = Duration::from_secs(1);

/// Passes a body on, and reads the rest of it when dropped.
#[derive(Debug)]
pub struct Lingering<B: Body<Data = Bytes> + Send + Unpin + 'static>(Option<B>);

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Lingering<B> {
    pub fn new(body: B) -> Self {
        Self(Some(body))
    }
}

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Body for Lingering<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.0 = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Drop for Lingering<B> {
    fn drop(&mut self) {
        let Some(body) = self.0.take().filter(|body| !body.is_end_stream()) else { return };
        // Without a runtime there is no connection left either.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(tokio::time::timeout(TIME, drain(body)));
        }
    }
}

async fn drain<B: Body<Data = Bytes> + Unpin>(mut body: B) {
    let mut left = BYTES;
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(PAUSE, body.frame()).await {
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
        left = rest;
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::stream;
    use http_body_util::StreamBody;

    use super::*;

    const PIECE: usize = 1 << 16;

    /// A body of many pieces, and how many of them were read.
    fn body(
        pieces: usize,
    ) -> (Lingering<impl Body<Data = Bytes, Error = Infallible> + Send + Unpin>, Arc<AtomicUsize>) {
        let read = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&read);
        let frames = stream::iter((0..pieces).map(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(Frame::data(Bytes::from(vec![0; PIECE])))
        }));
        (Lingering::new(StreamBody::new(frames)), read)
    }

    async fn settled(read: &AtomicUsize) -> usize {
        let mut before = usize::MAX;
        for _ in 0..1000 {
            tokio::task::yield_now().await;
            let now = read.load(Ordering::Relaxed);
            if now == before {
                return now;
            }
            before = now;
        }
        panic!("it does not end");
    }

    #[tokio::test]
    async fn what_was_not_read_is_read_on_up_to_a_bound() {
        let (mut some, read) = body(20);
        some.frame().await.unwrap().unwrap();
        drop(some);
        assert_eq!(settled(&read).await, 20);

        let (much, read) = body(10 * BYTES / PIECE);
        drop(much);
        assert_eq!(settled(&read).await, BYTES / PIECE + 1);
    }

    #[tokio::test]
    async fn nothing_is_left_of_what_was_read_to_its_end() {
        let (all, read) = body(3);
        assert_eq!(all.collect().await.unwrap().to_bytes().len(), 3 * PIECE);
        assert_eq!(read.load(Ordering::Relaxed), 3);
    }
}
