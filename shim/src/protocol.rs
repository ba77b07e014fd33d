//! What the shim and the agent say to each other.
//!
//! At the start the shim's standard output is a pipe to the agent that carries one [`Report`] as a
//! line of JSON and is then closed. After that the agent connects to the control socket as often as
//! it likes: frames of a 4-byte big-endian length (at most [`MAX_FRAME`]) and JSON, [`Request`] one way,
//! [`Reply`] the other, each request answered once and in order. [`Reply::Exited`] also answers a
//! pending [`Request::Wait`] when the program ends. Only uid 0 is answered (`SO_PEERCRED`).
//!
//! A container outlives many agents, so its shim is often of another version ([`versions`]). Fields that one side
//! does not know are ignored, a request that a shim does not know is refused by its name.

pub mod exec;
pub mod frame;
pub mod versions;

use serde::{Deserialize, Serialize};

pub use versions::Versions;

/// Bytes of the largest frame.
pub const MAX_FRAME: usize = 64 * 1024;

/// How the start went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    Started(Started),
    Failed(StepFailed),
}

/// The program runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The newest that the shim speaks.
    pub version: u32,
    /// The oldest that it understands.
    #[serde(default = "versions::first")]
    #[cfg_attr(feature = "protocol-1", serde(skip_serializing))]
    pub oldest: u32,
    pub shim_pid: i32,
    /// Field 22 of `/proc/PID/stat`, clock ticks since boot: with the pid it names a process for good.
    pub shim_start_time: u64,
    pub init_pid: i32,
    pub init_start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Microseconds since the epoch.
    pub at_us: u64,
}

impl Started {
    /// What the shim understands.
    #[must_use]
    pub fn versions(&self) -> Versions {
        Versions { oldest: self.oldest, newest: self.version }
    }
}

/// A step of the set-up failed; nothing of the container is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{step}: {detail}{}{}", if detail.is_empty() { "" } else { ": " }, std::io::Error::from_raw_os_error(*errno))]
pub struct StepFailed {
    /// The step by name, as in `docs/sandbox.md`.
    pub step: String,
    pub errno: i32,
    /// What the step was about: a path, an option. May be empty.
    #[serde(default)]
    pub detail: String,
}

/// How the program ended. `code` and `signal` exclude each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// Microseconds since the epoch.
    pub at_us: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Who are you? Answered by [`Reply::Started`].
    Hello,
    /// Send a signal to the container's init, or to every process of the container.
    Signal { signal: i32, all: bool },
    /// Answered when the program has ended and its last output is in the log.
    Wait,
    /// The exit is known, leave. Answered by [`Reply::Done`]; refused while the program runs. Without it
    /// the shim leaves by itself ten minutes after the exit, when nobody asked anything in between.
    Quit,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Started(Started),
    Done,
    Exited(Exit),
    Refused(String),
}
