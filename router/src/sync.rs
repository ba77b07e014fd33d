//! Keeps the table in step with the control plane: reads the stream of routes, applies, saves,
//! acknowledges; after a gap, a silence or a broken stream it begins again. While the control
//! plane is away the last table stays in force.
//!
//! Invariant: a version is acknowledged only when it is in force and on disk, so that not even a
//! restart goes back to an instance that the control plane believes to be out of use.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mogok_api::id::RouterId;
use mogok_api::route::{RouteAck, RouteMessage};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::control::{ControlAddress, ControlError};
use crate::saved::{SavedError, SavedTable, TableFile};
use crate::table::{Gap, Keeper, Position, Tables};

/// The stream has a heartbeat every 2 s; silence for this long means that it is dead.
const SILENCE: Duration = Duration::from_secs(8);
/// The largest line: a snapshot of some hundred thousand apps.
const MAX_LINE: usize = 64 * 1024 * 1024;
const ACK_INTERVAL: Duration = Duration::from_secs(2);
/// Between two attempts: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Why a stream ended. It is taken up again in every case.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("the route stream broke")]
    Broken(#[source] hyper::Error),
    #[error("the route stream ended")]
    Ended,
    #[error("the route stream was silent for {} s", SILENCE.as_secs())]
    Silent,
    #[error("a line of the route stream is longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("a line of the route stream is malformed")]
    Malformed(#[source] serde_json::Error),
    #[error(transparent)]
    Gap(#[from] Gap),
}

/// The synchronisation of one router.
pub struct Sync {
    control: ControlAddress,
    router: RouterId,
    tables: Arc<Tables>,
    keeper: Keeper,
    file: TableFile,
    applied: watch::Sender<Option<Position>>,
    connected: Arc<AtomicBool>,
}

impl Sync {
    /// Starts from the saved table, where there is one.
    ///
    /// # Errors
    /// The saved table cannot be used; [`Self::without_saved`] starts without it.
    pub fn new(
        control: ControlAddress,
        router: RouterId,
        tables: Arc<Tables>,
        file: TableFile,
        connected: Arc<AtomicBool>,
    ) -> (Self, Result<(), SavedError>) {
        let mut sync = Self {
            control,
            router,
            keeper: Keeper::new(Arc::clone(&tables)),
            tables,
            file,
            applied: watch::channel(None).0,
            connected,
        };
        let loaded = sync.file.load().map(|saved| {
            if let Some(SavedTable { epoch, version, routes }) = saved {
                tracing::info!(version, apps = routes.len(), "using the saved table");
                // A snapshot always follows.
                let _ = sync.keeper.apply(RouteMessage::Snapshot { epoch, version, routes });
            }
        });
        (sync, loaded)
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) -> Infallible {
        let acks = acknowledge(
            self.control.clone(),
            self.router,
            Arc::clone(&self.tables),
            self.applied.subscribe(),
        );
        let stream = async {
            let mut backoff = BACKOFF.0;
            loop {
                let began = Instant::now();
                let error = self.follow().await;
                let was_connected = self.connected.swap(false, Ordering::Relaxed);
                if was_connected && began.elapsed() > BACKOFF.1 {
                    backoff = BACKOFF.0;
                }
                tracing::warn!(error = %chain(&error), "lost the control plane, going on with the last table");
                sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        };
        tokio::select! {
            never = acks => never,
            never = stream => never,
        }
    }

    /// Follows one stream to its end.
    async fn follow(&mut self) -> StreamError {
        let path = format!("/v1/routes?router={}", self.router);
        let mut body = match self.control.get(&path).await {
            Ok(reply) => reply.into_body(),
            Err(error) => return error.into(),
        };
        let mut buffer = BytesMut::new();
        let mut begun = false;
        let mut searched = 0;
        loop {
            if let Err(error) = fill(&mut body, &mut buffer).await {
                return error;
            }
            // All that came together is saved and acknowledged as one.
            let mut changed = false;
            let mut failed = None;
            while let Some(end) = buffer[searched..].iter().position(|b| *b == b'\n') {
                let line = buffer.split_to(searched + end);
                buffer.advance(1);
                searched = 0;
                match self.apply(&line, begun) {
                    Ok(applied) => {
                        begun = true;
                        changed |= applied;
                    }
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            searched = buffer.len();
            if changed {
                self.connected.store(true, Ordering::Relaxed);
                self.save().await;
                self.applied.send_replace(self.keeper.position());
            }
            if let Some(error) = failed {
                return error;
            }
        }
    }

    fn apply(&mut self, line: &[u8], begun: bool) -> Result<bool, StreamError> {
        if line.is_empty() {
            return Ok(false);
        }
        let message: RouteMessage = serde_json::from_slice(line).map_err(StreamError::Malformed)?;
        // What is in force may be the saved table, which only a snapshot may follow.
        if !begun && !matches!(message, RouteMessage::Snapshot { .. }) {
            return Err(Gap::NoSnapshot.into());
        }
        Ok(self.keeper.apply(message)?)
    }

    async fn save(&self) {
        let Some(Position { epoch, version }) = self.keeper.position() else { return };
        let table = SavedTable { epoch, version, routes: self.keeper.routes().cloned().collect() };
        let file = self.file.clone();
        let saved = tokio::task::spawn_blocking(move || {
            // The type has string keys only, so that it always has a JSON form.
            file.save(&serde_json::to_vec(&table).unwrap_or_default())
        });
        if let Ok(Err(error)) = saved.await {
            tracing::error!(error = %chain(&error), "cannot save the table, a restart would begin without one");
        }
    }
}

/// Waits for more of the stream.
async fn fill(body: &mut Incoming, buffer: &mut BytesMut) -> Result<(), StreamError> {
    let frame = timeout(SILENCE, body.frame())
        .await
        .map_err(|_| StreamError::Silent)?
        .ok_or(StreamError::Ended)?
        .map_err(StreamError::Broken)?;
    if let Ok(data) = frame.into_data() {
        if buffer.len() + data.len() > MAX_LINE {
            return Err(StreamError::TooLong);
        }
        buffer.extend_from_slice(&data);
    }
    Ok(())
}

/// Acknowledges every applied version, every drained instance, and every 2 s.
async fn acknowledge(
    control: ControlAddress,
    router: RouterId,
    tables: Arc<Tables>,
    mut applied: watch::Receiver<Option<Position>>,
) -> Infallible {
    let mut ticks = interval(ACK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = applied.changed() => if changed.is_err() {
                // The other half is gone with the whole task.
                std::future::pending::<()>().await;
            },
            () = tables.drained.notified() => {}
            _ = ticks.tick() => {}
        }
        let position = *applied.borrow_and_update();
        let Some(Position { epoch, version }) = position else { continue };
        let ack = RouteAck { router, epoch, version, draining: tables.draining() };
        if let Err(error) = control.post("/v1/routes/ack", &ack).await {
            tracing::debug!(error = %chain(&error), "acknowledgement not delivered");
        }
    }
}

/// An error with its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
