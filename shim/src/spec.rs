//! What the agent asks of a shim: one container, complete. The agent writes it as `spec.json` into
//! the container's state directory; the shim reads nothing else.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub mod check;

/// Names of the files in a container's state directory.
pub mod file {
    /// [`super::Spec`] as JSON, written by the agent before the shim starts.
    pub const SPEC: &str = "spec.json";
    /// Control socket of the shim, mode 0600.
    pub const SOCKET: &str = "shim.sock";
    /// [`crate::protocol::Started`] as JSON, written (atomically) once the program runs.
    pub const STARTED: &str = "started.json";
    /// [`crate::protocol::Exit`] as JSON, written (atomically) before anyone is told.
    pub const EXIT: &str = "exit.json";
    /// Directory of the container's log files.
    pub const LOG_DIR: &str = "log";
}

/// One container. Paths are host paths unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The instance id, for process titles and log records.
    pub id: String,
    pub hostname: String,
    /// Layers of the root file system, the top one first; each a directory owned by host ids 0..65535.
    pub layers: Vec<PathBuf>,
    pub writable: Writable,
    pub binds: Vec<Bind>,
    /// Small files written into the writable layer before the start (`/etc/resolv.conf`, `/etc/hosts`).
    pub files: Vec<File>,
    /// First of the container's 65,536 host user and group ids.
    pub id_base: u32,
    /// User and group inside the container.
    pub uid: u32,
    pub gid: u32,
    /// The container's cgroup in the v2 tree (`CLONE_INTO_CGROUP`).
    pub cgroup: PathBuf,
    /// Its cgroups in v1 hierarchies, on a hybrid host (the init joins them before it does anything).
    pub cgroups_v1: Vec<PathBuf>,
    /// Limits of the disk that its writes go to, for whose device they are written once it is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk_limits: Vec<DiskLimit>,
    /// Absolute path of the program in the container, then its arguments.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory in the container.
    pub cwd: String,
    pub open_files: u64,
    /// Bytes of the largest file it may write (`RLIMIT_FSIZE`), where capped.
    pub file_bytes: Option<u64>,
    /// Bytes of `/tmp` and `/dev/shm` together (tmpfs, charged to its memory).
    pub tmp_bytes: u64,
    pub log: Log,
}

/// Where the container's writes go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writable {
    /// A tmpfs, charged to the container's memory.
    Tmpfs { bytes: u64, inodes: u64 },
    /// A file that holds a fresh ext4 file system, of this size; mounted through a loop device that
    /// frees itself with the mount.
    Image { path: PathBuf },
}

/// A file of the container's cgroups that takes limits of a block device, and what stands behind the device's number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimit {
    pub file: PathBuf,
    pub limits: String,
}

/// A host file or directory inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    pub source: PathBuf,
    /// Absolute path in the container; created where missing.
    pub target: String,
    pub kind: BindKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BindKind {
    /// A regular file, read-only.
    ReadOnlyFile,
    /// A directory, read-only, id-mapped like a layer.
    ReadOnlyDir,
    /// A regular file the container's user may write and not replace (an output).
    WritableFile,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Absolute path in the container.
    pub path: String,
    pub content: String,
}

/// Bounds of the log: `files` files of `file_bytes` each, the oldest dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    pub file_bytes: u64,
    pub files: u32,
    /// Bytes per second that are kept at most; the rest is counted in a line that says so. 0: no cap.
    pub rate_bytes: u64,
}
