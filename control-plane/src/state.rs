//! What every part of the control plane shares: the store, the settings and the handles of the
//! parts. Cheap to clone; made once at the start by [`AppState::open`].

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use crate::auth::Auth;
use crate::config::Config;
use crate::git::{GitError, Repositories};
use crate::log_store::LogStore;
use crate::node::Observed;
use crate::retention::Retention;
use crate::routes::{Routes, Timing};
use crate::store::{Store, StoreError};
use crate::turn::Turns;
use crate::wake::Wake;

/// Logs that are followed at once, in all and by one account.
const FOLLOWS: usize = 400;
const FOLLOWS_PER_USER: usize = 20;

/// Handle to everything shared.
#[derive(Debug, Clone)]
pub struct AppState {
    pub store: Store,
    pub config: Arc<Config>,
    pub wake: Wake,
    pub logs: LogStore,
    /// Sources and packages, content-addressed.
    pub images: mogok_images::Store,
    /// What is seen of nodes and containers.
    pub observed: Observed,
    /// The routing table and the routers.
    pub routes: Routes,
    pub auth: Auth,
    pub repositories: Repositories,
    /// Keeps blobs that are about to be used.
    pub retention: Retention,
    /// Logs that are followed.
    pub(crate) follows: Arc<Turns>,
}

/// Why the shared state could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot make the state directory {path}")]
    StateDir { path: std::path::PathBuf, source: std::io::Error },
    #[error(transparent)]
    Repositories(#[from] GitError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot open the blob store")]
    Images(#[from] mogok_images::StoreError),
}

impl AppState {
    /// Makes the state directory, opens the store and every part that lives on disk.
    ///
    /// # Errors
    /// When the directory or the store cannot be used.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let made = std::fs::create_dir_all(&config.state_dir)
            // Config vars, sources and packages of the tenants: for nobody else on this host.
            .and_then(|()| std::fs::set_permissions(&config.state_dir, Permissions::from_mode(0o700)));
        made.map_err(|source| OpenError::StateDir { path: config.state_dir.clone(), source })?;
        let store = Store::open(&config.database_url()).await?;
        let logs = LogStore::open(&config.state_dir);
        let images = mogok_images::Store::open(config.state_dir.join("store"))?;
        let wake = Wake::default();
        let observed = Observed::new(wake.clone());
        let routes = Routes::new(wake.clone(), Timing::default());
        let auth = Auth::new(store.clone());
        let repositories = Repositories::open(&config.state_dir, config.push_limit_bytes)?;
        let follows = Arc::new(Turns::new(FOLLOWS, FOLLOWS_PER_USER));
        Ok(Self {
            store,
            config: Arc::new(config),
            wake,
            logs,
            images,
            observed,
            routes,
            auth,
            repositories,
            retention: Retention::default(),
            follows,
        })
    }
}
