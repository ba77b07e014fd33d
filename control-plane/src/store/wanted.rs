//! Changes of what is wanted of an app. Each is one transaction that holds the app's row, checks the
//! rule, writes the change and a deploy, and supersedes the deploy before it; the caller then wakes the
//! reconciler. A crash leaves all of a change or nothing of it.

use mogok_api::app::Plan;
use mogok_api::control::{Config, ConfigChange, Formation};
use mogok_api::id::AppId;
use mogok_api::name::{ConfigVar, ProcessType, ReleaseNumber};
use sqlx::{Any, Transaction};

use super::apps::{AppRow, lock};
use super::deploys::{self, DeployAction, DeployRow};
use super::releases::{self, NewRelease, ReleaseRow};
use super::{Store, StoreError, begin, failed};
use crate::plan::{OverPlan, check_formation};

/// Bytes of all names and values of an app's config.
pub const CONFIG_BYTES: usize = 64 * 1024;
/// Process types that a formation may name.
const PROCESS_TYPES: usize = 32;

/// Why what is wanted did not change.
#[derive(Debug, thiserror::Error)]
pub enum WantedError {
    #[error("the app is gone")]
    NoApp,
    #[error("nothing is built yet")]
    NothingBuilt,
    #[error("release {release} has none of the wanted processes: it has {}", list(.has))]
    NothingToRun { release: ReleaseNumber, has: Vec<ProcessType> },
    #[error("the app is stopped")]
    Stopped,
    #[error("the config would have {bytes} bytes: the limit is 65536 for all names and values")]
    ConfigTooLarge { bytes: usize },
    #[error("config var {0} is set by the platform")]
    OwnVar(ConfigVar),
    #[error("the value of config var {0} contains a NUL byte, which no environment can carry")]
    NulInValue(ConfigVar),
    #[error("release {release} has no process type {kind}: it has {}", list(.has))]
    NoSuchType { kind: ProcessType, release: ReleaseNumber, has: Vec<ProcessType> },
    #[error("a formation names at most 32 process types")]
    TooManyTypes,
    #[error(transparent)]
    OverPlan(#[from] OverPlan),
    #[error("there is no release {0}")]
    NoRelease(ReleaseNumber),
    #[error("there is no release before the current one")]
    NoEarlierRelease,
    #[error("release {0} is the current one")]
    AlreadyCurrent(ReleaseNumber),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn list(types: &[ProcessType]) -> String {
    types.iter().map(ProcessType::as_str).collect::<Vec<_>>().join(", ")
}

type Tx = Transaction<'static, Any>;

/// The app's row, held until the commit.
async fn held(tx: &mut Tx, app: AppId) -> Result<AppRow, WantedError> {
    lock(tx, app).await?.filter(|row| !row.destroying).ok_or(WantedError::NoApp)
}

async fn current(tx: &mut Tx, app: &AppRow) -> Result<Option<ReleaseRow>, WantedError> {
    match app.current_number {
        None => Ok(None),
        Some(number) => Ok(releases::by_number(tx, app.id, number).await?),
    }
}

async fn commit(tx: Tx) -> Result<(), WantedError> {
    Ok(tx.commit().await.map_err(failed("change what is wanted"))?)
}

/// Is there a process that both the formation and the release have?
fn runnable(formation: &Formation, release: &ReleaseRow) -> Result<(), WantedError> {
    if formation.iter().any(|(kind, &count)| count > 0 && release.processes.contains_key(kind)) {
        return Ok(());
    }
    let has = release.processes.keys().cloned().collect();
    Err(WantedError::NothingToRun { release: release.number, has })
}

impl Store {
    /// Wants the app to run; again is no error.
    ///
    /// # Errors
    /// [`WantedError::NothingBuilt`], or [`WantedError::NothingToRun`] for a release without such processes.
    pub async fn start_app(&self, app: AppId) -> Result<DeployRow, WantedError> {
        let mut tx = begin(self).await?;
        let row = held(&mut tx, app).await?;
        let release = current(&mut tx, &row).await?.ok_or(WantedError::NothingBuilt)?;
        runnable(&row.formation, &release)?;
        set_running(&mut tx, app, true).await?;
        let deploy = deploys::insert(&mut tx, app, DeployAction::Start).await?;
        commit(tx).await?;
        Ok(deploy)
    }

    /// Wants the app to stop; again is no error.
    ///
    /// # Errors
    /// When the app is gone.
    pub async fn stop_app(&self, app: AppId) -> Result<DeployRow, WantedError> {
        let mut tx = begin(self).await?;
        held(&mut tx, app).await?;
        set_running(&mut tx, app, false).await?;
        let deploy = deploys::insert(&mut tx, app, DeployAction::Stop).await?;
        commit(tx).await?;
        Ok(deploy)
    }

    /// Wants new instances in place of the present ones: those of this deploy.
    ///
    /// # Errors
    /// [`WantedError::Stopped`] when nothing runs.
    pub async fn restart_app(&self, app: AppId) -> Result<DeployRow, WantedError> {
        let mut tx = begin(self).await?;
        let row = held(&mut tx, app).await?;
        if !row.running {
            return Err(WantedError::Stopped);
        }
        let deploy = deploys::insert(&mut tx, app, DeployAction::Restart).await?;
        commit(tx).await?;
        Ok(deploy)
    }

    /// Changes how many instances of some process types are wanted, within the plan. Before a first release any
    /// type may be named, because none is known.
    ///
    /// # Errors
    /// The rule that the change breaks.
    pub async fn scale_app(
        &self,
        app: AppId,
        plan: Plan,
        change: &Formation,
    ) -> Result<DeployRow, WantedError> {
        let mut tx = begin(self).await?;
        let row = held(&mut tx, app).await?;
        let release = current(&mut tx, &row).await?;
        let mut formation = row.formation.clone();
        for (kind, &count) in change {
            match release.as_ref().filter(|release| !release.processes.contains_key(kind)) {
                // One of an earlier release, or of before the first: it has gone, and so does its count. That of
                // web stays, because an absent one would mean one instance.
                Some(_) if count == 0 && !kind.is_web() && formation.contains_key(kind) => {
                    formation.remove(kind);
                }
                Some(release) if count > 0 || !kind.is_web() => {
                    return Err(WantedError::NoSuchType {
                        kind: kind.clone(),
                        release: release.number,
                        has: release.processes.keys().cloned().collect(),
                    });
                }
                _ => {
                    formation.insert(kind.clone(), count);
                }
            }
        }
        // Only what is asked for is checked: an app from a larger plan must stay changeable.
        check_formation(plan, change)?;
        if formation.len() > PROCESS_TYPES {
            return Err(WantedError::TooManyTypes);
        }
        let text = serde_json::to_string(&formation)
            .map_err(|source| StoreError::Encode { column: "a formation", source })?;
        sqlx::query("UPDATE apps SET formation = $1 WHERE id = $2")
            .bind(text)
            .bind(app.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed("change a formation"))?;
        let deploy = deploys::insert(&mut tx, app, DeployAction::Scale).await?;
        commit(tx).await?;
        Ok(deploy)
    }

    /// Sets and unsets config vars. Where the app has a release, a real change makes the next one, which
    /// deploys itself when the app runs.
    ///
    /// # Errors
    /// The rule that the change breaks.
    pub async fn configure_app(
        &self,
        app: AppId,
        change: &ConfigChange,
    ) -> Result<(Config, Option<DeployRow>), WantedError> {
        let mut tx = begin(self).await?;
        let row = held(&mut tx, app).await?;
        let config = changed(&row.config, change)?;
        if config == row.config {
            return Ok((config, None));
        }
        let mut deploy = None;
        write_config(&mut tx, app, &config).await?;
        if let Some(release) = current(&mut tx, &row).await? {
            let new =
                NewRelease { description: described(&row.config, change), ..NewRelease::like(&release) };
            releases::insert(&mut tx, app, &new, &config).await?;
            if row.running {
                deploy = Some(deploys::insert(&mut tx, app, DeployAction::Config).await?);
            }
        }
        commit(tx).await?;
        Ok((config, deploy))
    }

    /// The release that a rollback of the app goes to; without a number, the one before the current one.
    ///
    /// # Errors
    /// When there is no such release, or it is the current one.
    pub async fn rollback_target(
        &self,
        app: &AppRow,
        to: Option<ReleaseNumber>,
    ) -> Result<ReleaseRow, WantedError> {
        let now = app.current_number.ok_or(WantedError::NothingBuilt)?;
        let to = match to {
            Some(number) if number == now => return Err(WantedError::AlreadyCurrent(number)),
            Some(number) => number,
            None => ReleaseNumber::new(now.get() - 1).ok_or(WantedError::NoEarlierRelease)?,
        };
        let mut tx = begin(self).await?;
        releases::by_number(&mut tx, app.id, to).await?.ok_or(WantedError::NoRelease(to))
    }

    /// Makes a new release that equals an earlier one, config included.
    ///
    /// # Errors
    /// When there is no such release, or it is the current one.
    pub async fn roll_back_app(&self, app: AppId, to: ReleaseNumber) -> Result<DeployRow, WantedError> {
        let mut tx = begin(self).await?;
        let row = held(&mut tx, app).await?;
        if row.current_number == Some(to) {
            return Err(WantedError::AlreadyCurrent(to));
        }
        let old = releases::by_number(&mut tx, app, to).await?.ok_or(WantedError::NoRelease(to))?;
        let new = NewRelease { description: format!("rollback to {to}"), ..NewRelease::like(&old) };
        releases::insert(&mut tx, app, &new, &old.config).await?;
        write_config(&mut tx, app, &old.config).await?;
        let deploy = deploys::insert(&mut tx, app, DeployAction::Rollback).await?;
        commit(tx).await?;
        Ok(deploy)
    }
}

async fn set_running(tx: &mut Tx, app: AppId, running: bool) -> Result<(), StoreError> {
    sqlx::query("UPDATE apps SET running = $1 WHERE id = $2")
        .bind(i64::from(running))
        .bind(app.to_string())
        .execute(&mut **tx)
        .await
        .map_err(failed("start or stop an app"))?;
    Ok(())
}

async fn write_config(tx: &mut Tx, app: AppId, config: &Config) -> Result<(), StoreError> {
    let text =
        serde_json::to_string(config).map_err(|source| StoreError::Encode { column: "a config", source })?;
    sqlx::query("UPDATE apps SET config = $1 WHERE id = $2")
        .bind(text)
        .bind(app.to_string())
        .execute(&mut **tx)
        .await
        .map_err(failed("change a config"))?;
    Ok(())
}

/// The config after the change, when it keeps the rules.
fn changed(config: &Config, change: &ConfigChange) -> Result<Config, WantedError> {
    let mut config = config.clone();
    for (name, value) in change {
        match value {
            None => {
                config.remove(name);
            }
            // The agent decides where a process listens.
            Some(_) if name.as_str() == "PORT" => return Err(WantedError::OwnVar(name.clone())),
            Some(value) if value.contains('\0') => return Err(WantedError::NulInValue(name.clone())),
            Some(value) => {
                config.insert(name.clone(), value.clone());
            }
        }
    }
    let bytes = config.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > CONFIG_BYTES {
        return Err(WantedError::ConfigTooLarge { bytes });
    }
    Ok(config)
}

/// `set A, B, unset C`: names only, values are secrets.
fn described(old: &Config, change: &ConfigChange) -> String {
    let names = |wanted: fn(&Option<String>) -> bool| -> Vec<&str> {
        let real = |(name, value): &(&ConfigVar, &Option<String>)| old.get(name) != value.as_ref();
        change.iter().filter(|(_, v)| wanted(v)).filter(real).map(|(name, _)| name.as_str()).collect()
    };
    let (set, unset) = (names(Option::is_some), names(Option::is_none));
    let part = |verb: &str, names: &[&str]| match names {
        [] => None,
        few if few.len() <= 5 => Some(format!("{verb} {}", few.join(", "))),
        many => Some(format!("{verb} {} config vars", many.len())),
    };
    [part("set", &set), part("unset", &unset)].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
