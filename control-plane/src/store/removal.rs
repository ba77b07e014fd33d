//! The end of an app: marked first, then its instances and builds end, then its row goes and with it
//! builds, releases and deploys. The name stays taken until then. Each step can be done again.

use mogok_api::id::{AppId, BuildId};
use sqlx::Row;

use super::apps::lock;
use super::{Store, StoreError, begin, failed, parsed};

impl Store {
    /// Wants the app and everything of it gone; again is no error. Its builds are asked to end.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn destroy_app(&self, app: AppId) -> Result<(), StoreError> {
        let mut tx = begin(self).await?;
        if lock(&mut tx, app).await?.is_none() {
            return Ok(());
        }
        for change in [
            "UPDATE apps SET destroying = 1, running = 0 WHERE id = $1",
            "UPDATE deploys SET state = 'superseded' WHERE app_id = $1 AND state = 'running'",
            "UPDATE builds SET cancel_requested = 1 WHERE app_id = $1 AND state IN ('queued', 'running')",
        ] {
            sqlx::query(change)
                .bind(app.to_string())
                .execute(&mut *tx)
                .await
                .map_err(failed("mark an app as to be destroyed"))?;
        }
        tx.commit().await.map_err(failed("mark an app as to be destroyed"))
    }

    /// Does something of a destroyed app still run: an instance or a build?
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn app_is_busy(&self, app: AppId) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "SELECT (SELECT COUNT(*) FROM instances WHERE app_id = $1) + (SELECT COUNT(*) FROM builds \
             WHERE app_id = $1 AND state IN ('queued', 'running')) AS busy",
        )
        .bind(app.to_string())
        .fetch_one(&self.pool)
        .await
        .map_err(failed("count what runs of an app"))?;
        Ok(row.try_get::<i64, _>("busy").map_err(failed("count what runs of an app"))? > 0)
    }

    /// The builds of an app, whose logs go with it.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn build_ids(&self, app: AppId) -> Result<Vec<BuildId>, StoreError> {
        let rows = sqlx::query("SELECT id FROM builds WHERE app_id = $1")
            .bind(app.to_string())
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list the builds of an app"))?;
        rows.iter().map(|row| parsed(row, "id")).collect()
    }

    /// Removes the row of a destroyed app and with it all its builds, releases and deploys.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn remove_app(&self, app: AppId) -> Result<(), StoreError> {
        // An instance row that came meanwhile holds the app by its foreign key: then this fails and is
        // done again later.
        sqlx::query("DELETE FROM apps WHERE id = $1 AND destroying = 1")
            .bind(app.to_string())
            .execute(&self.pool)
            .await
            .map_err(failed("remove an app"))?;
        Ok(())
    }
}
