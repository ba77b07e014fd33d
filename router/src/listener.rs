//! The router as a whole: listens, serves every connection, keeps table and log lines in step with
//! the control plane, and stops without breaking what is in flight.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mogok_api::id::RouterId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::control::ControlAddress;
use crate::logs;
use crate::proxy::{Counts, Proxy};
use crate::saved::TableFile;
use crate::settings::Settings;
use crate::stream::{GatedStream, Peer};
use crate::sync::Sync;
use crate::table::Tables;

/// How long accepting rests after it failed, as it does when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a stop waits for the last log lines.
const LAST_LINES: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}: is another program using it? Choose another with --listen")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot make the state directory {}", path.display())]
    State { path: PathBuf, source: io::Error },
    #[error("cannot read or keep the router's id in {}", path.display())]
    Id { path: PathBuf, source: io::Error },
}

/// A router that listens and does not serve yet.
pub struct Router {
    listener: TcpListener,
    address: SocketAddr,
    proxy: Arc<Proxy>,
    control: ControlAddress,
    id: RouterId,
    state: PathBuf,
}

/// The id of the router whose state is here: the same one over restarts.
///
/// # Errors
/// [`StartError::Id`].
pub fn router_id(state: &Path) -> Result<RouterId, StartError> {
    let path = state.join("router-id");
    let fail = |source| StartError::Id { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            text.trim().parse().map_err(|error| fail(io::Error::new(io::ErrorKind::InvalidData, error)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = RouterId::new();
            let new = path.with_extension("new");
            std::fs::write(&new, format!("{id}\n"))
                .and_then(|()| std::fs::rename(&new, &path))
                .map_err(fail)?;
            Ok(id)
        }
        Err(error) => Err(fail(error)),
    }
}

impl Router {
    /// Listens on `address` with its state in `state`. Without `id` it is the one kept there.
    ///
    /// # Errors
    /// [`StartError`]: the address is in use, or the state directory of no use.
    pub async fn bind(
        address: SocketAddr,
        control: ControlAddress,
        state: &Path,
        id: Option<RouterId>,
        settings: Settings,
    ) -> Result<Self, StartError> {
        let listen = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        std::fs::create_dir_all(state)
            .map_err(|source| StartError::State { path: state.to_path_buf(), source })?;
        let id = id.map_or_else(|| router_id(state), Ok)?;
        let (queue, poster) = logs::queue(settings.log_queue);
        let proxy = Arc::new(Proxy {
            settings,
            tables: Arc::default(),
            logs: Arc::new(queue),
            connected: Arc::new(AtomicBool::new(false)),
            port: address.port(),
            counts: Counts::default(),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        // Runs for as long as the process; what is unsent at the stop is waited for in `serve`.
        let posting = control.clone();
        tokio::spawn(async move { poster.run(posting).await });
        Ok(Self { listener, address, proxy, control, id, state: state.to_path_buf() })
    }

    /// The address it listens on, with the port that was chosen for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn tables(&self) -> &Arc<Tables> {
        &self.proxy.tables
    }

    /// Serves until `stop` completes, then finishes what is in flight, within the grace time.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let proxy = self.proxy;
        let (sync, loaded) = Sync::new(
            self.control,
            self.id,
            Arc::clone(&proxy.tables),
            TableFile::new(&self.state),
            Arc::clone(&proxy.connected),
        );
        if let Err(error) = loaded {
            tracing::error!(%error, "starting without the saved table");
        }
        tracing::info!(address = %self.address, router = %self.id, "router listens");
        // The table goes on changing, and is acknowledged, until the last request has ended.
        let syncing = tokio::spawn(sync.run());
        {
            let accept = accept(&self.listener, &proxy);
            let sweep = sweep(&proxy);
            tokio::select! {
                never = accept => match never {},
                never = sweep => match never {},
                () = stop => {}
            }
        }
        drop(self.listener);
        tracing::info!(connections = proxy.tasks.len(), "router stops");
        proxy.stopping.cancel();
        proxy.tasks.close();
        if timeout(proxy.settings.grace, proxy.tasks.wait()).await.is_err() {
            tracing::warn!(connections = proxy.tasks.len(), "router stops with requests in flight");
        }
        let _ = timeout(LAST_LINES, async {
            while proxy.logs.waiting() > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        syncing.abort();
    }
}

async fn accept(listener: &TcpListener, proxy: &Arc<Proxy>) -> std::convert::Infallible {
    let room = Arc::new(Semaphore::new(proxy.settings.clients));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await;
        match listener.accept().await {
            Ok((stream, peer)) => {
                proxy.tasks.spawn(connection(stream, peer, Arc::clone(proxy), permit.ok()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn sweep(proxy: &Arc<Proxy>) -> std::convert::Infallible {
    let limit = proxy.settings.upstream_idle;
    loop {
        sleep((limit / 4).max(Duration::from_millis(10))).await;
        proxy.tables.sweep(limit);
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    proxy: Arc<Proxy>,
    _permit: Option<OwnedSemaphorePermit>,
) {
    // Without it small writes could wait for acknowledgements; failing leaves it only slower.
    let _ = stream.set_nodelay(true);
    let ip = peer.ip();
    let peer = Arc::new(Peer::new(ip, proxy.settings.is_front(ip)));
    let stream = GatedStream::new(stream, Arc::clone(&peer), &proxy.settings);
    let stopping = proxy.stopping.clone();
    let service = service_fn(move |request| Arc::clone(&proxy).answer(Arc::clone(&peer), request));
    let mut serving = pin!(
        http1::Builder::new()
            // The stream has its own time limits.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stopping.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection of a client ended early");
    }
}
