//! The steps of a start by name, as `docs/sandbox.md` tells them, and the failure of one.
//!
//! A step travels from the child as one byte, so [`Step::ALL`] is the whole list in order.

use std::fmt;
use std::io;

use nix::errno::Errno;

use crate::protocol::StepFailed;

macro_rules! steps {
    ($($name:ident = $text:literal,)*) => {
        /// One step of a start.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Step { $($name,)* }

        impl Step {
            /// Every step, in order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in reports and in `docs/sandbox.md`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

steps! {
    Descriptors = "descriptors",
    StateDir = "state_dir",
    ReadSpec = "read_spec",
    Settle = "settle",
    OpenLog = "open_log",
    Listen = "listen",
    JoinNetwork = "join_network",
    PrivateMounts = "private_mounts",
    OpenCgroup = "open_cgroup",
    OpenSources = "open_sources",
    Scratch = "scratch",
    Pipes = "pipes",
    Clone = "clone",
    JoinCgroups = "join_cgroups",
    MapIds = "map_ids",
    OomScore = "oom_score",
    Limits = "limits",
    UserNamespace = "user_namespace",
    Layers = "layers",
    WritableLayer = "writable_layer",
    Overlay = "overlay",
    WriteFiles = "write_files",
    MountPoints = "mount_points",
    Devices = "devices",
    Temporary = "temporary",
    Binds = "binds",
    Release = "release",
    ShedPrivileges = "shed_privileges",
    MountNamespace = "mount_namespace",
    BecomeRoot = "become_root",
    Session = "session",
    Keyring = "keyring",
    CgroupNamespace = "cgroup_namespace",
    Loopback = "loopback",
    MountProc = "mount_proc",
    PivotRoot = "pivot_root",
    DetachHost = "detach_host",
    AttachProc = "attach_proc",
    MaskProc = "mask_proc",
    Hostname = "hostname",
    Stdio = "stdio",
    BoundingSet = "bounding_set",
    SecureBits = "secure_bits",
    BecomeUser = "become_user",
    Capabilities = "capabilities",
    NoNewPrivileges = "no_new_privileges",
    WorkingDirectory = "working_directory",
    DeathSignal = "death_signal",
    Seccomp = "seccomp",
    Fork = "fork",
    Execute = "execute",
    Report = "report",
    Sealed = "sealed",
    Request = "request",
    JoinNamespaces = "join_namespaces",
    Terminal = "terminal",
}

impl Step {
    /// The steps of an exec in a running container, in order.
    pub const EXEC: &[Self] = &[
        Self::Descriptors,
        Self::Sealed,
        Self::Settle,
        Self::Request,
        Self::ReadSpec,
        Self::OpenCgroup,
        Self::Pipes,
        Self::Clone,
        Self::JoinCgroups,
        Self::OomScore,
        Self::Limits,
        Self::JoinNamespaces,
        Self::BecomeRoot,
        Self::Keyring,
        Self::BoundingSet,
        Self::SecureBits,
        Self::BecomeUser,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::Terminal,
        Self::WorkingDirectory,
        Self::Seccomp,
        Self::Fork,
        Self::DeathSignal,
        Self::Session,
        Self::Stdio,
        Self::Execute,
        Self::Report,
        Self::ShedPrivileges,
    ];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A step that failed, on what, and why.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {detail}")]
pub struct SetupError {
    pub step: Step,
    pub detail: String,
    pub source: Errno,
}

impl From<SetupError> for StepFailed {
    fn from(error: SetupError) -> Self {
        Self { step: error.step.name().to_owned(), errno: error.source as i32, detail: error.detail }
    }
}

/// Gives a failed call the step it belongs to.
pub(crate) trait At<T> {
    fn at(self, step: Step, detail: impl fmt::Display) -> Result<T, SetupError>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step, detail: impl fmt::Display) -> Result<T, SetupError> {
        #[cfg(feature = "failpoints")]
        let this = crate::failpoint::passed(self, step);
        #[cfg(not(feature = "failpoints"))]
        let this = self;
        this.map_err(|source| SetupError { step, detail: detail.to_string(), source })
    }
}

impl<T> At<T> for io::Result<T> {
    fn at(self, step: Step, detail: impl fmt::Display) -> Result<T, SetupError> {
        self.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)).at(step, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_its_place_in_the_list() {
        for (place, step) in Step::ALL.iter().enumerate() {
            assert_eq!(*step as usize, place);
        }
        assert!(Step::ALL.len() < 0xfe);
    }

    #[test]
    fn the_document_tells_every_step_in_order() {
        let (start, exec) =
            include_str!("../../docs/sandbox.md").split_once("\n## A program that joins").unwrap();
        let exec_alone = [Step::Sealed, Step::Request, Step::JoinNamespaces, Step::Terminal];
        let of_start: Vec<_> = Step::ALL.iter().copied().filter(|step| !exec_alone.contains(step)).collect();
        for (mut rest, steps) in [(start, &of_start[..]), (exec, Step::EXEC)] {
            for step in steps {
                let cell = format!("`{step}`");
                let at = rest
                    .find(&cell)
                    .unwrap_or_else(|| panic!("docs/sandbox.md lacks {cell}, or has it elsewhere"));
                rest = &rest[at + cell.len()..];
            }
        }
    }
}
