//! A connection that left HTTP: after `101 Switching Protocols` (WebSocket and the like) the bytes
//! go both ways as they come, until both sides are done, neither said anything for too long, or the
//! router stops. Each direction holds at most one buffer, so a slow reader slows its writer.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::fault::Fault;
use crate::instance::Ticket;

const BUFFER: usize = 16 * 1024;

/// Both ends, and what ends with the tunnel.
pub struct Tunnel {
    pub client: OnUpgrade,
    pub instance: OnUpgrade,
    pub access: Access,
    pub _ticket: Ticket,
}

/// When the last byte moved, in milliseconds from the beginning.
struct Activity {
    began: Instant,
    moved: AtomicU64,
}

impl Activity {
    fn touch(&self) {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(elapsed, Ordering::Relaxed);
    }

    /// Returns when nothing moved for `limit`.
    async fn silence(&self, limit: Duration) {
        loop {
            let deadline = self.began + Duration::from_millis(self.moved.load(Ordering::Relaxed)) + limit;
            if Instant::now() >= deadline {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

impl Tunnel {
    /// Carries bytes until the end.
    pub async fn run(mut self, rolling: Duration, stopping: CancellationToken) {
        let (client, instance) = match tokio::join!(self.client, self.instance) {
            (Ok(client), Ok(instance)) => (TokioIo::new(client), TokioIo::new(instance)),
            (Err(_), _) => return,
            (_, Err(_)) => {
                self.access.fault = Some(Fault::ServerInterrupted);
                return;
            }
        };
        let (mut client_read, mut client_write) = split(client);
        let (mut instance_read, mut instance_write) = split(instance);
        let activity = Activity { began: Instant::now(), moved: AtomicU64::new(0) };
        let mut down = 0;
        let fault = tokio::select! {
            fault = async {
                let (up, down) = tokio::join!(
                    pump(&mut client_read, &mut instance_write, &activity, None),
                    pump(&mut instance_read, &mut client_write, &activity, Some(&mut down)),
                );
                match (up, down) {
                    (Ok(()), Ok(())) => None,
                    (Err(_), _) => Some(Fault::ClientInterrupted),
                    (_, Err(_)) => Some(Fault::ServerInterrupted),
                }
            } => fault,
            () = activity.silence(rolling) => Some(Fault::Idle),
            () = stopping.cancelled() => None,
        };
        self.access.bytes = down;
        self.access.fault = fault;
    }
}

/// One direction, until its end.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    activity: &Activity,
    mut count: Option<&mut u64>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        activity.touch();
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        activity.touch();
        if let Some(count) = &mut count {
            **count += read as u64;
        }
    }
}
