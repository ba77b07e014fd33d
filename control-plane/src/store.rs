//! The store of the wanted state: SQLite on one host, PostgreSQL beyond it, one dialect for both.
//!
//! Each resource has a file with its own `impl Store` block. Placeholders are `$1, $2, ...`, which both
//! databases take; ids and enums travel as text, times as microseconds.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions, AnyRow};
use sqlx::{Any, AnyPool, Row, Transaction};

pub mod apps;
pub mod builds;
pub mod deploys;
pub mod instances;
pub mod nodes;
pub mod releases;
mod removal;
pub mod tokens;
pub mod users;
pub mod wanted;

/// What can go wrong with the store; `Display` names the operation, the source says why.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the database {url}")]
    Open { url: String, source: sqlx::Error },
    #[error("cannot bring the database schema up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    #[error("cannot {operation}")]
    Query { operation: &'static str, source: sqlx::Error },
    #[error("cannot write {column} as JSON")]
    Encode { column: &'static str, source: serde_json::Error },
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

/// Names the operation that a database error belongs to: `.map_err(failed("list apps"))`.
pub(crate) fn failed(operation: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Query { operation, source }
}

/// Begins a transaction. On SQLite it holds the only connection: inside, use nothing but it.
pub(crate) async fn begin(store: &Store) -> Result<Transaction<'static, Any>, StoreError> {
    store.pool.begin().await.map_err(failed("begin a transaction"))
}

/// A text column, parsed into the type it stands for.
pub(crate) fn parsed<T: FromStr>(row: &AnyRow, column: &'static str) -> Result<T, StoreError> {
    let text: String = row.try_get(column).map_err(failed("read a text column"))?;
    text.parse().map_err(|_| StoreError::Corrupt { column, value: text })
}

/// A text column that may be NULL.
pub(crate) fn parsed_opt<T: FromStr>(row: &AnyRow, column: &'static str) -> Result<Option<T>, StoreError> {
    let text: Option<String> = row.try_get(column).map_err(failed("read a text column"))?;
    let parse = |text: String| text.parse().map_err(|_| StoreError::Corrupt { column, value: text });
    text.map(parse).transpose()
}

/// A text column that holds JSON. The value may hold secrets, so an error does not show it.
pub(crate) fn json<T: DeserializeOwned>(row: &AnyRow, column: &'static str) -> Result<T, StoreError> {
    let text: String = row.try_get(column).map_err(failed("read a JSON column"))?;
    serde_json::from_str(&text).map_err(|error| StoreError::Corrupt { column, value: format!("{error}") })
}

/// A whole number that is never negative.
pub(crate) fn number(row: &AnyRow, column: &'static str) -> Result<u64, StoreError> {
    let value: i64 = row.try_get(column).map_err(failed("read a number column"))?;
    u64::try_from(value).map_err(|_| StoreError::Corrupt { column, value: value.to_string() })
}

/// A flag, kept as 0 or 1.
pub(crate) fn flag(row: &AnyRow, column: &'static str) -> Result<bool, StoreError> {
    Ok(number(row, column)? != 0)
}

/// A time column.
pub(crate) fn time(row: &AnyRow, column: &'static str) -> Result<DateTime<Utc>, StoreError> {
    let micros: i64 = row.try_get(column).map_err(failed("read a time column"))?;
    from_micros(column, micros)
}

/// A time column that may be NULL.
pub(crate) fn time_opt(row: &AnyRow, column: &'static str) -> Result<Option<DateTime<Utc>>, StoreError> {
    let micros: Option<i64> = row.try_get(column).map_err(failed("read a time column"))?;
    micros.map(|micros| from_micros(column, micros)).transpose()
}

/// Now, as precise as the store keeps it, so that what is returned equals what is read later.
pub(crate) fn now() -> DateTime<Utc> {
    let now = Utc::now();
    DateTime::from_timestamp_micros(now.timestamp_micros()).unwrap_or(now)
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
