//! The store of the wanted state: SQLite on one host, PostgreSQL beyond it, one dialect for both.
//!
//! Each resource has a file with its own `impl Store` block. Placeholders are `$1, $2, ...`, which both
//! databases take; ids and enums travel as text, times as microseconds.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::AnyPool;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};

/// What can go wrong with the store; `Display` names the operation, the source says why.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the database {url}")]
    Open { url: String, source: sqlx::Error },
    #[error("cannot bring the database schema up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    #[error("cannot {operation}")]
    Query { operation: &'static str, source: sqlx::Error },
    #[error("the database holds an invalid {column}: {value:?}")]
    Corrupt { column: &'static str, value: String },
}

/// Handle to the database; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) pool: AnyPool,
}

impl Store {
    /// Opens `sqlite:PATH` or `postgres://...` and applies outstanding migrations.
    ///
    /// # Errors
    /// When the database cannot be opened or migrated.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let open = |source| StoreError::Open { url: url.to_owned(), source };
        let options = AnyConnectOptions::from_str(url).map_err(open)?;
        let sqlite = url.starts_with("sqlite:");
        let pool = AnyPoolOptions::new()
            // SQLite has one writer; a second connection would only turn waiting into SQLITE_BUSY.
            .max_connections(if sqlite { 1 } else { 10 })
            .acquire_timeout(Duration::from_secs(10))
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if sqlite {
                        for pragma in [
                            "PRAGMA journal_mode = WAL",
                            "PRAGMA synchronous = NORMAL",
                            "PRAGMA foreign_keys = ON",
                            "PRAGMA busy_timeout = 5000",
                        ] {
                            sqlx::query(pragma).execute(&mut *connection).await?;
                        }
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await
            .map_err(open)?;
        sqlx::migrate!().run(&pool).await.map_err(StoreError::Migrate)?;
        Ok(Self { pool })
    }

    /// The URL of an SQLite database file that is created when missing.
    #[must_use]
    pub fn sqlite_url(path: &Path) -> String {
        format!("sqlite:{}?mode=rwc", path.display())
    }
}

/// A time as the store keeps it: microseconds since the epoch.
pub(crate) fn to_micros(at: DateTime<Utc>) -> i64 {
    at.timestamp_micros()
}

/// The reverse of [`to_micros`].
pub(crate) fn from_micros(column: &'static str, micros: i64) -> Result<DateTime<Utc>, StoreError> {
    DateTime::from_timestamp_micros(micros)
        .ok_or_else(|| StoreError::Corrupt { column, value: micros.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_database_gets_the_schema_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let url = Store::sqlite_url(&dir.path().join("mogok.db"));
        for _ in 0..2 {
            let store = Store::open(&url).await.unwrap();
            let rows = sqlx::query("SELECT id FROM apps WHERE name = $1")
                .bind("nothing")
                .fetch_all(&store.pool)
                .await
                .unwrap();
            assert!(rows.is_empty());
        }
    }
}
