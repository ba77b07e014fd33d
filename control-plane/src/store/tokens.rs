//! Access tokens. The store holds only the SHA-256 of a secret, so a copy of the database signs nobody
//! in; a revoked token is a deleted row.

use chrono::{DateTime, TimeDelta, Utc};
use mogok_api::id::{TokenId, UserId};

use super::users::User;
use super::{Store, StoreError, begin, failed, now, parsed, time, time_opt, to_micros};

/// Tokens an account may hold; a login beyond that drops the one unused for longest.
const TOKENS_PER_USER: i64 = 100;
/// How old `last_used_at` may get before a use writes it again.
const USE_GRAIN: TimeDelta = TimeDelta::minutes(5);

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    pub id: TokenId,
    pub created_at: DateTime<Utc>,
    pub last_used_at: Option<DateTime<Utc>>,
}

impl Store {
    /// Records a token by the hash of its secret.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn create_token(&self, user: UserId, secret_hash: &str) -> Result<TokenId, StoreError> {
        let id = TokenId::new();
        let mut tx = begin(self).await?;
        sqlx::query("INSERT INTO tokens (id, user_id, secret_hash, created_at) VALUES ($1, $2, $3, $4)")
            .bind(id.to_string())
            .bind(user.to_string())
            .bind(secret_hash)
            .bind(to_micros(now()))
            .execute(&mut *tx)
            .await
            .map_err(failed("record a token"))?;
        sqlx::query(
            "DELETE FROM tokens WHERE user_id = $1 AND id NOT IN (SELECT id FROM tokens WHERE user_id = $1 \
             ORDER BY COALESCE(last_used_at, created_at) DESC, id DESC LIMIT $2)",
        )
        .bind(user.to_string())
        .bind(TOKENS_PER_USER)
        .execute(&mut *tx)
        .await
        .map_err(failed("drop old tokens"))?;
        tx.commit().await.map_err(failed("record a token"))?;
        Ok(id)
    }

    /// Whose token this is, or none; remembers the use.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn use_token(&self, secret_hash: &str) -> Result<Option<(User, TokenId)>, StoreError> {
        let row = sqlx::query(
            "SELECT u.id AS id, u.email AS email, u.plan AS plan, u.created_at AS created_at, \
             t.id AS token_id, t.last_used_at AS last_used_at \
             FROM tokens t JOIN users u ON u.id = t.user_id WHERE t.secret_hash = $1",
        )
        .bind(secret_hash)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("find a token"))?;
        let Some(row) = row else { return Ok(None) };
        let id: TokenId = parsed(&row, "token_id")?;
        let now = now();
        if time_opt(&row, "last_used_at")?.is_none_or(|used| now - used > USE_GRAIN) {
            sqlx::query("UPDATE tokens SET last_used_at = $1 WHERE id = $2")
                .bind(to_micros(now))
                .bind(id.to_string())
                .execute(&self.pool)
                .await
                .map_err(failed("remember the use of a token"))?;
        }
        Ok(Some((User::read(&row)?, id)))
    }

    /// The tokens of an account, newest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn tokens(&self, user: UserId) -> Result<Vec<TokenRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM tokens WHERE user_id = $1 ORDER BY id DESC")
            .bind(user.to_string())
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list tokens"))?;
        let read = |row| {
            Ok(TokenRow {
                id: parsed(row, "id")?,
                created_at: time(row, "created_at")?,
                last_used_at: time_opt(row, "last_used_at")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Revokes a token of the account; false when there is none.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn revoke_token(&self, user: UserId, id: TokenId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM tokens WHERE user_id = $1 AND id = $2")
            .bind(user.to_string())
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(failed("revoke a token"))?;
        Ok(done.rows_affected() > 0)
    }
}
