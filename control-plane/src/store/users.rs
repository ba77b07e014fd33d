//! Accounts: who may sign in, and on which plan. Emails are unique in their normal form
//! ([`crate::auth::Email`]).

use chrono::{DateTime, Utc};
use mogok_api::app::Plan;
use mogok_api::id::UserId;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Store, StoreError, failed, now, parsed, time, to_micros};

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    pub email: String,
    pub plan: Plan,
    pub created_at: DateTime<Utc>,
}

/// Why an account was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateUserError {
    #[error("an account with this email exists")]
    Taken,
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(crate) fn plan_text(plan: Plan) -> &'static str {
    match plan {
        Plan::Free => "free",
        Plan::Paid => "paid",
    }
}

pub(super) fn plan(row: &AnyRow, column: &'static str) -> Result<Plan, StoreError> {
    let text: String = row.try_get(column).map_err(failed("read a plan"))?;
    match text.as_str() {
        "free" => Ok(Plan::Free),
        "paid" => Ok(Plan::Paid),
        _ => Err(StoreError::Corrupt { column, value: text }),
    }
}

impl User {
    pub(super) fn read(row: &AnyRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            email: row.try_get("email").map_err(failed("read an email"))?,
            plan: plan(row, "plan")?,
            created_at: time(row, "created_at")?,
        })
    }
}

impl Store {
    /// Makes an account on the free plan.
    ///
    /// # Errors
    /// [`CreateUserError::Taken`] when the email has an account.
    pub async fn create_user(&self, email: &str, password_hash: &str) -> Result<User, CreateUserError> {
        let user = User { id: UserId::new(), email: email.to_owned(), plan: Plan::Free, created_at: now() };
        sqlx::query(
            "INSERT INTO users (id, email, password_hash, plan, created_at) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(user.id.to_string())
        .bind(email)
        .bind(password_hash)
        .bind(plan_text(user.plan))
        .bind(to_micros(user.created_at))
        .execute(&self.pool)
        .await
        .map_err(|source| match source.as_database_error() {
            Some(error) if error.is_unique_violation() => CreateUserError::Taken,
            _ => StoreError::Query { operation: "create an account", source }.into(),
        })?;
        Ok(user)
    }

    /// The account of an email and its password hash.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn user_by_email(&self, email: &str) -> Result<Option<(User, String)>, StoreError> {
        let row = sqlx::query("SELECT * FROM users WHERE email = $1")
            .bind(email)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("find an account"))?;
        let Some(row) = row else { return Ok(None) };
        let hash = row.try_get("password_hash").map_err(failed("read a password hash"))?;
        Ok(Some((User::read(&row)?, hash)))
    }

    /// An account by its id.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        let row = sqlx::query("SELECT * FROM users WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("find an account"))?;
        row.as_ref().map(User::read).transpose()
    }

    /// Puts an account on a plan; apps above the new limits go on until they are changed.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn set_plan(&self, id: UserId, plan: Plan) -> Result<(), StoreError> {
        sqlx::query("UPDATE users SET plan = $1 WHERE id = $2")
            .bind(plan_text(plan))
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(failed("change a plan"))?;
        Ok(())
    }
}
