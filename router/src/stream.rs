//! A client's connection with the gate in it: hyper reads through this, and so sees only heads
//! that the gate accepted. In place of a refused head it gets a harmless one that closes the
//! connection, so that the refusal is answered in its turn, after the answers before it.
//!
//! Also the only place that knows a client's silence: each direction has its limit.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::gate::{Gate, Violation};
use crate::settings::Settings;

/// What hyper reads instead of a refused head.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
/// What is read and thrown away after the last response, so that closing does not reset the
/// connection before the client has read it.
const LINGER_BYTES: usize = 256 * 1024;
const LINGER: Duration = Duration::from_secs(1);

/// What the connection and its requests tell each other.
#[derive(Debug)]
pub struct Peer {
    /// The peer's address as a header value.
    pub address: HeaderValue,
    pub ip: std::net::IpAddr,
    /// Whether its `X-Forwarded-*` are believed.
    pub front: bool,
    /// The number (from 1) of the refused head, and why; 0 when none is.
    refused_at: AtomicU64,
    violation: OnceLock<Violation>,
    /// The number of the head after which there can be no other; 0 when unknown.
    last_at: AtomicU64,
    /// Requests that were taken up.
    taken: AtomicU64,
    /// Requests between their head and the end of their response.
    under_way: AtomicUsize,
    /// The client neither sent nor read for too long.
    silent: AtomicBool,
}

/// What the gate said of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// It is the connection's last: its response must close unless it upgrades.
    Last,
    Refused(Violation),
}

impl Peer {
    #[must_use]
    pub fn new(ip: std::net::IpAddr, front: bool) -> Self {
        let address = HeaderValue::try_from(ip.to_canonical().to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self {
            address,
            ip,
            front,
            refused_at: AtomicU64::new(0),
            violation: OnceLock::new(),
            last_at: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            silent: AtomicBool::new(false),
        }
    }

    /// Takes the next request up. hyper hands requests over in the order of their heads, one by
    /// one, on the connection's own task, so counting them tells them apart.
    pub fn take(&self) -> Verdict {
        let number = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        if self.refused_at.load(Ordering::Relaxed) == number {
            return Verdict::Refused(self.violation.get().copied().unwrap_or(Violation::RequestLine));
        }
        if self.last_at.load(Ordering::Relaxed) == number { Verdict::Last } else { Verdict::Pass }
    }

    /// Whether the client, not the app, kept silent.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Marks a request as under way until the mark is dropped.
    #[must_use]
    pub fn under_way(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }
}

/// A request between its head and the end of its response.
#[derive(Debug)]
pub struct UnderWay(Arc<Peer>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The times a client has.
#[derive(Debug, Clone, Copy)]
struct Patience {
    idle: Duration,
    head: Duration,
    rolling: Duration,
}

/// The gated connection.
pub struct GatedStream {
    inner: TcpStream,
    gate: Gate,
    peer: Arc<Peer>,
    /// Bytes of a head that is not whole yet.
    held: BytesMut,
    /// Bytes that hyper may have but had no room for.
    passed: BytesMut,
    refused: bool,
    patience: Patience,
    /// The last time a byte came or went.
    active: Instant,
    /// When the head that is being read began.
    head_began: Option<Instant>,
    read_timer: Option<Pin<Box<Sleep>>>,
    write_timer: Option<Pin<Box<Sleep>>>,
    /// When a write first found no room.
    blocked: Option<Instant>,
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

impl GatedStream {
    #[must_use]
    pub fn new(inner: TcpStream, peer: Arc<Peer>, settings: &Settings) -> Self {
        Self {
            inner,
            gate: Gate::default(),
            peer,
            held: BytesMut::new(),
            passed: BytesMut::new(),
            refused: false,
            patience: Patience { idle: settings.client_idle, head: settings.head, rolling: settings.rolling },
            active: Instant::now(),
            head_began: None,
            read_timer: None,
            write_timer: None,
            blocked: None,
            linger: None,
        }
    }

    /// Publishes what the gate found; returns how much may pass.
    fn judge(&mut self, bytes: Judged, buf: &mut ReadBuf<'_>) -> usize {
        let fed = match bytes {
            Judged::Fresh { from } => self.gate.feed(&buf.filled()[from..]),
            Judged::Held => self.gate.feed(&self.held),
        };
        if let Some(last) = self.gate.last() {
            self.peer.last_at.store(last, Ordering::Relaxed);
        }
        if let Some(violation) = fed.refused {
            let _ = self.peer.violation.set(violation);
            self.peer.refused_at.store(self.gate.heads(), Ordering::Relaxed);
            self.refused = true;
        }
        fed.pass
    }

    /// Nothing came: is it time to give up?
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let busy = self.peer.under_way.load(Ordering::Relaxed) > 0;
            let deadline = if let Some(began) = self.head_began {
                began + self.patience.head
            } else if self.gate.awaits_head() {
                if busy { Instant::now() + self.patience.idle } else { self.active + self.patience.idle }
            } else if self.gate.last().is_some() {
                // A tunnel or a chunked body: whoever reads it has its own limit.
                return Poll::Pending;
            } else {
                self.active + self.patience.rolling
            };
            let timer = self.read_timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                self.peer.silent.store(true, Ordering::Relaxed);
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            timer.as_mut().reset(deadline);
        }
    }

    fn wrote(&mut self, poll: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if poll.is_ready() {
            self.active = Instant::now();
            self.blocked = None;
            return poll;
        }
        let deadline = *self.blocked.get_or_insert_with(Instant::now) + self.patience.rolling;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                self.peer.silent.store(true, Ordering::Relaxed);
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            timer.as_mut().reset(deadline);
        }
    }
}

/// Which bytes the gate looks at.
enum Judged {
    Fresh { from: usize },
    Held,
}

impl AsyncRead for GatedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.passed.is_empty() {
                let count = this.passed.len().min(buf.remaining());
                buf.put_slice(&this.passed[..count]);
                this.passed.advance(count);
                return Poll::Ready(Ok(()));
            }
            if this.refused {
                // Nothing more is read; the response to the stand-in closes the connection.
                return Poll::Pending;
            }
            let from = buf.filled().len();
            let read = if this.held.is_empty() {
                Pin::new(&mut this.inner).poll_read(cx, buf)
            } else {
                let mut space = [0; 4096];
                let mut more = ReadBuf::new(&mut space);
                let read = Pin::new(&mut this.inner).poll_read(cx, &mut more);
                if matches!(read, Poll::Ready(Ok(()))) && more.filled().is_empty() {
                    // The client left in the middle of a head.
                    return Poll::Ready(Ok(()));
                }
                this.held.extend_from_slice(more.filled());
                read
            };
            match read {
                Poll::Pending => {
                    ready!(this.poll_silence(cx))?;
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
            this.active = Instant::now();
            if this.held.is_empty() {
                let fresh = buf.filled().len() - from;
                if fresh == 0 {
                    return Poll::Ready(Ok(()));
                }
                let pass = this.judge(Judged::Fresh { from }, buf);
                if pass < fresh {
                    this.held.extend_from_slice(&buf.filled()[from + pass..]);
                    buf.set_filled(from + pass);
                }
            } else {
                let pass = this.judge(Judged::Held, buf);
                this.passed = this.held.split_to(pass);
            }
            if this.refused {
                this.held.clear();
                this.passed.extend_from_slice(STAND_IN);
            }
            this.head_began =
                if this.held.is_empty() { None } else { Some(this.head_began.unwrap_or(this.active)) };
            if buf.filled().len() > from {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for GatedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.wrote(poll, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.wrote(poll, cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    /// Ends our side, then reads what the client still sends, within bounds.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
            if !this.refused && this.gate.awaits_head() && this.held.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        let (timer, read) =
            this.linger.get_or_insert_with(|| (Box::pin(sleep_until(Instant::now() + LINGER)), 0));
        let mut space = [0; 4096];
        while *read < LINGER_BYTES && timer.as_mut().poll(cx).is_pending() {
            let mut waste = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut waste)) {
                Ok(()) if !waste.filled().is_empty() => *read += waste.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
