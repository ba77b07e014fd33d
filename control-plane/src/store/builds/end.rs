//! How builds end. A success writes the build, its release and, where the app runs, the deploy of it in
//! one transaction, so that no crash leaves a package without a release or a release without its deploy.

use mogok_api::control::BuildState;
use mogok_api::id::BuildId;
use mogok_api::name::Digest;

use super::{BuildRow, state_text};
use crate::store::releases::{self, CreateReleaseError, NewRelease, ReleaseRow};
use crate::store::{Store, StoreError, begin, failed, now, to_micros};

/// What a successful build has made.
#[derive(Clone, PartialEq, Eq)]
pub struct Success {
    pub release: NewRelease,
    pub package: Digest,
    /// Bytes of the package's blob.
    pub package_bytes: u64,
}

/// Why a success was not written.
#[derive(Debug, thiserror::Error)]
pub enum SuccessError {
    #[error("the build has ended already")]
    Ended,
    #[error(transparent)]
    Release(#[from] CreateReleaseError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Ends a build that is queued or running as failed or cancelled; its container is no longer wanted.
    /// False when it had ended already. Wake `nodes` afterwards.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn end_build(
        &self,
        id: BuildId,
        state: BuildState,
        reason: Option<&str>,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE builds SET state = $1, ended_at = $2, reason = $3 \
             WHERE id = $4 AND state IN ('queued', 'running')",
        )
        .bind(state_text(state))
        .bind(to_micros(now()))
        .bind(reason)
        .bind(id.to_string())
        .execute(&self.pool)
        .await
        .map_err(failed("end a build"))?;
        Ok(done.rows_affected() > 0)
    }

    /// Ends a running build with its package, and makes the release of it the app's current one.
    /// Wake `nodes`, `reconcile` and `deploys` afterwards.
    ///
    /// # Errors
    /// [`SuccessError::Ended`] when it was cancelled meanwhile: nothing is written then.
    pub async fn succeed_build(
        &self,
        build: &BuildRow,
        success: &Success,
    ) -> Result<ReleaseRow, SuccessError> {
        let mut tx = begin(self).await?;
        // First the app's row, as everyone does who takes both.
        let release = releases::create_in(&mut tx, build.app, &success.release).await?;
        let bytes = i64::try_from(success.package_bytes).unwrap_or(i64::MAX);
        let done = sqlx::query(
            "UPDATE builds SET state = 'succeeded', ended_at = $1, release_number = $2, package = $3, \
             package_bytes = $4 WHERE id = $5 AND state = 'running'",
        )
        .bind(to_micros(now()))
        .bind(i64::from(release.number.get()))
        .bind(success.package.as_str())
        .bind(bytes)
        .bind(build.id.to_string())
        .execute(&mut *tx)
        .await
        .map_err(failed("end a build with its release"))?;
        if done.rows_affected() == 0 {
            return Err(SuccessError::Ended);
        }
        tx.commit().await.map_err(failed("end a build with its release"))?;
        Ok(release)
    }
}
