//! What the agent knows of its containers, on disk: `STATE/instances/<id>/record.json`, and after
//! the end `STATE/gone/<id>/` until the last lines were read. The ledger is what a restarted agent
//! finds its containers by.
//!
//! Invariant: a record stands before anything of its container does, and goes after everything of it
//! is gone; so whatever exists without a record is debris.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use mogok_api::id::InstanceId;
use mogok_api::instance::{ExitStatus, Failure, InstanceSpec, InstanceStatus};
use mogok_api::name::Digest;
use serde::{Deserialize, Serialize};

use crate::clock::Moment;
use crate::debris;
use crate::instance::state::State;
use crate::network::Allocation;
use crate::restart::Backoff;

pub mod atomic;
pub mod uids;

const VERSION: u32 = 1;
const RECORD: &str = "record.json";

/// The ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot read {path}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}", path = path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is not what this agent wrote", path = path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("{path} is of format {found}, this agent knows {VERSION}", path = path.display())]
    Format { path: PathBuf, found: u32 },
}

/// One run of the program: from the spawn of its shim on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Boot of the host it was started in.
    pub boot_id: String,
    pub shim_pid: i32,
    /// Start time of the shim in clock ticks since boot: with the pid it names the process for good.
    pub shim_start_time: u64,
    pub init_pid: Option<i32>,
    /// Offset of its first byte in the container's log.
    pub log_start: u64,
    pub started_at: DateTime<Utc>,
}

impl Run {
    /// How long the run took that has ended now, or at `ended_us` (microseconds since the epoch) when an end
    /// was recorded that nobody watched: then as far as the wall clock went on as it should, and never longer
    /// than until now.
    #[must_use]
    pub fn length(&self, ended_us: Option<u64>) -> Duration {
        let age = crate::clock::age(self.shim_start_time);
        let started_us = u64::try_from(self.started_at.timestamp_micros()).unwrap_or(0);
        ended_us.map_or(age, |ended| Duration::from_micros(ended.saturating_sub(started_us)).min(age))
    }
}

/// All that is kept of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    pub spec: InstanceSpec,
    pub state: State,
    /// When it entered the state.
    pub since: DateTime<Utc>,
    /// The same, whatever happened to the wall clock since.
    #[serde(default)]
    pub entered: Option<Moment>,
    pub uid_base: u32,
    pub allocation: Option<Allocation>,
    pub run: Option<Run>,
    pub restarts: u32,
    pub backoff: Backoff,
    pub restart_at: Option<DateTime<Utc>>,
    /// The same, whatever happens to the wall clock until then.
    #[serde(default)]
    pub restart_due: Option<Moment>,
    pub exit: Option<ExitStatus>,
    pub failure: Option<Failure>,
    pub last_lines: Vec<String>,
    pub output: Option<Digest>,
}

impl Record {
    #[must_use]
    pub fn new(spec: InstanceSpec, uid_base: u32) -> Self {
        Self {
            format: VERSION,
            spec,
            state: State::Pending,
            since: Utc::now(),
            entered: None,
            uid_base,
            allocation: None,
            run: None,
            restarts: 0,
            backoff: Backoff::default(),
            restart_at: None,
            restart_due: None,
            exit: None,
            failure: None,
            last_lines: Vec::new(),
            output: None,
        }
    }

    #[must_use]
    pub fn id(&self) -> InstanceId {
        self.spec.id
    }

    /// What others are told of it. `gateway` is the address that host ports stand on.
    #[must_use]
    pub fn status(&self, gateway: std::net::Ipv4Addr) -> InstanceStatus {
        let port = self.allocation.as_ref().and_then(|allocation| allocation.host_port);
        InstanceStatus {
            id: self.spec.id,
            app: self.spec.app.clone(),
            process: self.spec.process.clone(),
            release: self.spec.release,
            kind: self.spec.kind,
            phase: self.state.phase(),
            since: self.since,
            endpoint: port.map(|port| (gateway, port).into()),
            restarts: self.restarts,
            exit: self.exit,
            failure: self.failure.clone(),
            last_lines: self.last_lines.clone(),
            restart_at: self.restart_at,
            output: self.output.clone(),
        }
    }
}

/// The ledger's directories.
#[derive(Debug, Clone)]
pub struct Ledger {
    instances: PathBuf,
    gone: PathBuf,
}

impl Ledger {
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(state_dir: &Path) -> Result<Self, LedgerError> {
        let ledger = Self { instances: state_dir.join("instances"), gone: state_dir.join("gone") };
        for path in [&ledger.instances, &ledger.gone] {
            make_dir(path)?;
        }
        Ok(ledger)
    }

    /// Where the directories of containers that are not gone lie.
    #[must_use]
    pub fn instances(&self) -> &Path {
        &self.instances
    }

    /// The directory of a container that is not gone.
    #[must_use]
    pub fn dir(&self, id: InstanceId) -> PathBuf {
        self.instances.join(id.to_string())
    }

    /// The directory of a container wherever it is now.
    #[must_use]
    pub fn find(&self, id: InstanceId) -> Option<PathBuf> {
        [&self.instances, &self.gone].map(|dir| dir.join(id.to_string())).into_iter().find(|dir| dir.is_dir())
    }

    /// Ids of all directories of containers; what is no id is none of ours.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<InstanceId>, LedgerError> {
        ids(&self.instances)
    }

    /// Ids of the containers that are gone and whose output is still kept.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list_gone(&self) -> Result<Vec<InstanceId>, LedgerError> {
        ids(&self.gone)
    }

    /// # Errors
    /// When there is no record, or none that this agent understands.
    pub fn load(&self, id: InstanceId) -> Result<Record, LedgerError> {
        read_record(&self.dir(id))
    }

    /// Writes a record, and makes the directory for the first one.
    ///
    /// # Errors
    /// When it cannot be written; the last one is then still there.
    pub fn store(&self, record: &Record) -> Result<(), LedgerError> {
        let dir = self.dir(record.id());
        make_dir(&dir)?;
        atomic::write_json(&dir.join(RECORD), record, atomic::Durability::Kill)
    }

    /// Puts a container that has nothing left but its output among the gone ones.
    ///
    /// # Errors
    /// When the directory cannot be moved.
    pub fn retire(&self, id: InstanceId) -> Result<(), LedgerError> {
        let (from, to) = (self.dir(id), self.gone.join(id.to_string()));
        if !from.exists() {
            return Ok(());
        }
        remove_dir(&to)?;
        std::fs::rename(&from, &to).map_err(|source| LedgerError::Write { path: to.clone(), source })?;
        // The time of the move is what the sweep goes by.
        std::fs::write(to.join("gone"), b"").map_err(|source| LedgerError::Write { path: to, source })
    }

    /// How long a container has been among the gone ones.
    #[must_use]
    pub fn gone_for(&self, id: InstanceId) -> Option<Duration> {
        let dir = self.gone.join(id.to_string());
        let marked = std::fs::metadata(dir.join("gone")).or_else(|_| std::fs::metadata(&dir)).ok()?;
        Some(SystemTime::now().duration_since(marked.modified().ok()?).unwrap_or_default())
    }

    /// Removes what was kept of a gone container.
    ///
    /// # Errors
    /// When its directory cannot be removed.
    pub fn erase_gone(&self, id: InstanceId) -> Result<(), LedgerError> {
        remove_dir(&self.gone.join(id.to_string()))
    }

    /// Removes what was kept of a container, whether it is gone or not. Does nothing when nothing is.
    ///
    /// # Errors
    /// When its directory cannot be removed.
    pub fn erase(&self, id: InstanceId) -> Result<(), LedgerError> {
        remove_dir(&self.dir(id))?;
        self.erase_gone(id)
    }
}

/// The record in a container's directory, living or gone.
///
/// # Errors
/// When there is none, or none that this agent understands.
pub fn read_record(dir: &Path) -> Result<Record, LedgerError> {
    let path = dir.join(RECORD);
    let bytes = atomic::read(&path).map_err(|source| LedgerError::Read { path: path.clone(), source })?;
    let record: Record =
        serde_json::from_slice(&bytes).map_err(|source| LedgerError::Parse { path: path.clone(), source })?;
    if record.format != VERSION {
        return Err(LedgerError::Format { path, found: record.format });
    }
    Ok(record)
}

/// The instance whose directory, disk or cgroup has this name: as ids are written, and no other spelling, for two
/// names must not be one instance.
#[must_use]
pub fn instance_named(name: &str) -> Option<InstanceId> {
    name.parse().ok().filter(|id: &InstanceId| id.to_string() == name)
}

fn ids(dir: &Path) -> Result<Vec<InstanceId>, LedgerError> {
    let failed = |source| LedgerError::Read { path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        found.extend(name.to_str().and_then(instance_named));
    }
    Ok(found)
}

fn make_dir(path: &Path) -> Result<(), LedgerError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| LedgerError::Write { path: path.to_owned(), source })
}

fn remove_dir(path: &Path) -> Result<(), LedgerError> {
    debris::remove(path).map_err(|source| LedgerError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::sample_spec;

    #[test]
    fn a_record_is_found_again_and_follows_its_container_out() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let mut record = Record::new(sample_spec(), 1 << 20);
        record.state = State::Up;
        let id = record.id();
        ledger.store(&record).unwrap();
        assert_eq!(ledger.list().unwrap(), [id]);
        assert_eq!(ledger.load(id).unwrap(), record);

        ledger.retire(id).unwrap();
        ledger.retire(id).unwrap();
        assert!(ledger.list().unwrap().is_empty());
        assert_eq!(ledger.list_gone().unwrap(), [id]);
        assert_eq!(read_record(&ledger.find(id).unwrap()).unwrap(), record);
        assert!(ledger.gone_for(id).unwrap() < Duration::from_secs(60));
        ledger.erase(id).unwrap();
        ledger.erase(id).unwrap();
        assert_eq!(ledger.find(id), None);
    }

    #[test]
    fn a_record_of_another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let record = Record { format: VERSION + 1, ..Record::new(sample_spec(), 0) };
        ledger.store(&record).unwrap();
        assert!(matches!(ledger.load(record.id()), Err(LedgerError::Format { .. })));
    }

    /// An agent that replaces another with containers running reads what that one wrote.
    #[test]
    fn a_record_of_an_earlier_agent_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let mut record = Record::new(sample_spec(), 1 << 20);
        record.entered = None;
        let mut earlier = serde_json::to_value(&record).unwrap();
        // Fields that came later than the first records.
        for field in ["entered", "restart_due"] {
            assert!(earlier.as_object_mut().unwrap().remove(field).is_some());
        }
        ledger.store(&record).unwrap();
        std::fs::write(ledger.dir(record.id()).join(RECORD), earlier.to_string()).unwrap();
        assert_eq!(ledger.load(record.id()).unwrap(), record);
    }

    #[test]
    fn what_lies_where_a_record_belongs_is_an_error_and_can_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let (file, fifo) = (InstanceId::new(), InstanceId::new());
        std::fs::write(ledger.dir(file), "").unwrap();
        std::fs::create_dir(ledger.dir(fifo)).unwrap();
        nix::unistd::mkfifo(&ledger.dir(fifo).join(RECORD), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for id in [file, fifo] {
            assert!(matches!(ledger.load(id), Err(LedgerError::Read { .. })));
            ledger.erase(id).unwrap();
        }
        assert!(ledger.list().unwrap().is_empty());
    }

    #[test]
    fn what_is_no_instance_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("instances/lost+found")).unwrap();
        assert!(ledger.list().unwrap().is_empty());
    }
}
