//! Git as a child process: a clean environment, one set of settings that no repository can change,
//! limits, a process group of its own. However it ends, no process of the group stays.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::GitError;

/// Limits every git process lives under (per process: address space in KiB, CPU seconds, size of a
/// written file in blocks of at least 512 bytes). A limit that the host sets lower stays.
const LIMITED: &str = "ulimit -c 0; ulimit -v 1572864; ulimit -t 900; ulimit -f 8388608; exec git \"$@\"";
/// How long a group may take to end after SIGTERM; git removes its lock files then.
const GRACE: Duration = Duration::from_secs(2);
/// What is kept of a process's messages.
const MESSAGE: u64 = 4096;

/// Settings of every git process. They come from the command, so they win over a repository's own.
const SETTINGS: &[(&str, &str)] = &[
    // Ownership of the directories is ours to know.
    ("safe.directory", "*"),
    ("core.logAllRefUpdates", "false"),
    ("core.protectHFS", "true"),
    ("core.protectNTFS", "true"),
    // No address leads outside, whatever a repository names.
    ("protocol.allow", "never"),
    // What one process may hold in memory.
    ("core.bigFileThreshold", "16m"),
    ("core.deltaBaseCacheLimit", "32m"),
    ("core.packedGitWindowSize", "32m"),
    ("core.packedGitLimit", "256m"),
    ("pack.threads", "1"),
    ("pack.windowMemory", "64m"),
    ("pack.deltaCacheSize", "32m"),
    // Housekeeping is ours (`maintain`), at a time when nobody pushes.
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("receive.autogc", "false"),
    // A push is checked whole before any of it can be seen.
    ("transfer.fsckObjects", "true"),
    ("receive.fsckObjects", "true"),
    // Old, harmless flaws of well-known histories.
    ("receive.fsck.zeroPaddedFilemode", "ignore"),
    ("receive.fsck.badTimezone", "ignore"),
    ("receive.fsck.missingSpaceBeforeDate", "ignore"),
    // One pack per push, never thousands of files.
    ("transfer.unpackLimit", "1"),
    // Branches and tags can be seen and pushed; the platform's own references cannot.
    ("transfer.hideRefs", "refs"),
    ("transfer.hideRefs", "!refs/heads"),
    ("transfer.hideRefs", "!refs/tags"),
    ("uploadpack.allowFilter", "false"),
];

/// A git process that is about to start.
pub(super) struct Git {
    command: Command,
    settings: usize,
    operation: &'static str,
}

impl Git {
    /// `git OPERATION ARGUMENTS...` in the repository.
    pub(super) fn new(repository: &Path, operation: &'static str) -> Self {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", LIMITED, "git", operation])
            .current_dir(repository)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C.UTF-8")
            .env("GIT_DIR", repository)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_LITERAL_PATHSPECS", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut git = Self { command, settings: 0, operation };
        for (name, value) in SETTINGS {
            git = git.setting(name, value);
        }
        git
    }

    pub(super) fn setting(mut self, name: &str, value: &str) -> Self {
        let n = self.settings;
        self.settings += 1;
        self.command
            .env(format!("GIT_CONFIG_KEY_{n}"), name)
            .env(format!("GIT_CONFIG_VALUE_{n}"), value)
            .env("GIT_CONFIG_COUNT", self.settings.to_string());
        self
    }

    pub(super) fn args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.command.args(arguments);
        self
    }

    pub(super) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(super) fn stdin(mut self) -> Self {
        self.command.stdin(Stdio::piped());
        self
    }

    pub(super) fn spawn(mut self) -> Result<Running, GitError> {
        let child = self.command.kill_on_drop(true).spawn().map_err(GitError::Spawn)?;
        Ok(Running { child, operation: self.operation })
    }

    /// Runs it to its end; more output than `cap` bytes or more time than `limit` is an error.
    pub(super) async fn output(self, cap: u64, limit: Duration) -> Result<Output, GitError> {
        let operation = self.operation;
        let mut running = self.spawn()?;
        let work = async {
            let (stdout, stderr) = (running.take_stdout(), running.take_stderr());
            let read = async {
                let mut bytes = Vec::new();
                if let Some(stdout) = stdout {
                    stdout.take(cap + 1).read_to_end(&mut bytes).await.map_err(GitError::Spawn)?;
                }
                if bytes.len() as u64 > cap {
                    return Err(GitError::TooLarge { operation, limit: cap });
                }
                Ok(bytes)
            };
            let (bytes, message) = tokio::join!(read, message(stderr));
            let bytes = bytes?;
            let status = running.wait().await?;
            Ok(Output { status, bytes, message })
        };
        // A process that is not done when this is dropped is killed with its group.
        tokio::time::timeout(limit, work).await.map_err(|_| GitError::Timeout { operation, limit })?
    }
}

/// What a process that has ended gave.
pub(super) struct Output {
    pub(super) status: ExitStatus,
    pub(super) bytes: Vec<u8>,
    pub(super) message: String,
}

/// The beginning of what a process says on standard error; the rest is read and dropped, so that it
/// never blocks.
pub(super) async fn message(stderr: Option<ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let mut bytes = Vec::new();
    let read = (&mut stderr).take(MESSAGE).read_to_end(&mut bytes).await;
    if read.is_ok() {
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

/// A git process that runs, leader of its group. Dropped before its end, the group is killed.
pub(super) struct Running {
    child: Child,
    operation: &'static str,
}

impl Running {
    pub(super) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    pub(super) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub(super) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    pub(super) async fn wait(&mut self) -> Result<ExitStatus, GitError> {
        self.child.wait().await.map_err(GitError::Spawn)
    }

    /// Ends the group: SIGTERM, then SIGKILL.
    pub(super) async fn end(mut self) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            self.signal(Signal::SIGKILL);
            let _ = self.child.wait().await;
        }
    }

    fn signal(&self, signal: Signal) {
        // No id once the leader was waited for: until then the number cannot mean anybody else.
        let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) else { return };
        if let Err(error) = killpg(Pid::from_raw(id), signal) {
            tracing::debug!(%error, operation = self.operation, "cannot signal a git process");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}
