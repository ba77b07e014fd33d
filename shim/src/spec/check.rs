//! What a [`Spec`] must hold beyond its types. The shim checks again what the agent built: it is the
//! last to see it before it acts on it as root.
//!
//! Invariant: a checked spec never asks for uid 0, for ids outside its range, or for a path with `..`.

use super::{BindKind, Spec, Writable};

/// Ids of one container.
pub const IDS: u32 = 65_536;
/// Layers: their names must fit one mount option of 255 bytes.
const LAYERS: usize = 32;
/// Bytes of arguments and environment together; the kernel's own limit is a quarter of the stack's.
const ARGUMENT_BYTES: usize = 1 << 20;

/// What is wrong with a spec, by the name of the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("{field}: {value:?} is not an absolute path without \"..\", \".\", \"//\" and NUL")]
    Path { field: &'static str, value: String },
    #[error("{field}: {value:?} lies below a directory that the sandbox makes itself")]
    Reserved { field: &'static str, value: String },
    #[error("{field}: {value} is not in {min}..={max}")]
    Range { field: &'static str, value: u64, min: u64, max: u64 },
    #[error("{field}: contains a NUL byte")]
    Nul { field: &'static str },
    #[error("env: {0:?} is not NAME=value")]
    Variable(String),
    #[error("hostname: {0:?} is not 1-63 letters, digits and hyphens")]
    Hostname(String),
}

impl Spec {
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), SpecError> {
        range("layers", self.layers.len() as u64, 1, LAYERS as u64)?;
        range("uid", self.uid.into(), 1, u64::from(IDS) - 2)?;
        range("gid", self.gid.into(), 1, u64::from(IDS) - 2)?;
        // The host's own users lie below, and u32::MAX means "no id".
        range("id_base", self.id_base.into(), u64::from(IDS), u64::from(u32::MAX - IDS))?;
        range("open_files", self.open_files, 16, 1 << 20)?;
        range("tmp_bytes", self.tmp_bytes, 1 << 16, 1 << 40)?;
        range("log.files", self.log.files.into(), 1, 1000)?;
        range("log.file_bytes", self.log.file_bytes, 1 << 14, 1 << 40)?;
        range("log.rate_bytes", self.log.rate_bytes, 0, 1 << 40)?;
        if let Writable::Tmpfs { bytes, inodes } = &self.writable {
            range("writable.tmpfs.bytes", *bytes, 1 << 16, 1 << 50)?;
            range("writable.tmpfs.inodes", *inodes, 64, 1 << 40)?;
        }
        self.check_command()?;
        self.check_paths()?;
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if self.hostname.is_empty() || self.hostname.len() > 63 || !self.hostname.chars().all(letters) {
            return Err(SpecError::Hostname(self.hostname.clone()));
        }
        Ok(())
    }

    fn check_command(&self) -> Result<(), SpecError> {
        range("command", self.command.len() as u64, 1, 1 << 16)?;
        path("command", &self.command[0])?;
        if self.command.iter().any(|argument| argument.contains('\0')) {
            return Err(SpecError::Nul { field: "command" });
        }
        for variable in &self.env {
            match variable.split_once('=') {
                Some((name, _)) if !name.is_empty() && !variable.contains('\0') => {}
                _ => return Err(SpecError::Variable(variable.chars().take(64).collect())),
            }
        }
        let bytes: usize = self.command.iter().chain(&self.env).map(|text| text.len() + 1).sum();
        range("command and env", bytes as u64, 1, ARGUMENT_BYTES as u64)
    }

    fn check_paths(&self) -> Result<(), SpecError> {
        if self.cwd != "/" {
            path("cwd", &self.cwd)?;
        }
        for bind in &self.binds {
            path("binds.target", &bind.target)?;
            unreserved("binds.target", &bind.target, &["/proc", "/sys", "/dev"])?;
        }
        for file in &self.files {
            path("files.path", &file.path)?;
            unreserved("files.path", &file.path, &["/proc", "/sys", "/dev", "/tmp"])?;
        }
        let host = self.layers.iter().map(|layer| ("layers", layer));
        let host = host.chain(self.binds.iter().map(|bind| ("binds.source", &bind.source)));
        let host = host.chain(self.cgroups_v1.iter().map(|cgroup| ("cgroups_v1", cgroup)));
        let host = host.chain(self.disk_limits.iter().map(|limit| ("disk_limits", &limit.file)));
        for (field, value) in host.chain([("cgroup", &self.cgroup)]) {
            path(field, &value.to_string_lossy())?;
        }
        if let Writable::Image { path: image } = &self.writable {
            path("writable.image.path", &image.to_string_lossy())?;
        }
        Ok(())
    }
}

impl BindKind {
    /// Is the source a directory?
    #[must_use]
    pub fn is_dir(self) -> bool {
        self == Self::ReadOnlyDir
    }
}

fn range(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), SpecError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(SpecError::Range { field, value, min, max }) }
}

fn path(field: &'static str, value: &str) -> Result<(), SpecError> {
    let names = value.strip_prefix('/').filter(|_| value.len() < 4096 && !value.contains('\0'));
    match names {
        Some(names) if names.split('/').all(|name| !matches!(name, "" | "." | "..")) => Ok(()),
        _ => Err(SpecError::Path { field, value: value.chars().take(200).collect() }),
    }
}

fn unreserved(field: &'static str, value: &str, reserved: &[&str]) -> Result<(), SpecError> {
    let below =
        |dir: &&&str| value.strip_prefix(**dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match reserved.iter().find(below) {
        Some(_) => Err(SpecError::Reserved { field, value: value.chars().take(200).collect() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Bind, Log};

    fn spec() -> Spec {
        Spec {
            id: "one".into(),
            hostname: "one".into(),
            layers: vec!["/layer".into()],
            writable: Writable::Tmpfs { bytes: 1 << 20, inodes: 1000 },
            binds: vec![],
            files: vec![],
            id_base: 1 << 20,
            uid: 1000,
            gid: 1000,
            cgroup: "/sys/fs/cgroup/one".into(),
            cgroups_v1: vec![],
            disk_limits: vec![],
            command: vec!["/bin/true".into()],
            env: vec!["A=b=c".into()],
            cwd: "/".into(),
            open_files: 1024,
            file_bytes: None,
            tmp_bytes: 1 << 20,
            log: Log { file_bytes: 1 << 20, files: 2, rate_bytes: 1 << 20 },
        }
    }

    #[test]
    fn a_plain_spec_passes() {
        assert_eq!(spec().check(), Ok(()));
    }

    #[test]
    fn each_dangerous_value_is_refused_by_name() {
        type Change = fn(&mut Spec);
        let cases: [(&str, Change); 12] = [
            ("uid", |s| s.uid = 0),
            ("gid", |s| s.gid = 0),
            ("id_base", |s| s.id_base = 0),
            ("id_base", |s| s.id_base = u32::MAX - 10),
            ("cwd", |s| s.cwd = "/app/../..".into()),
            ("cwd", |s| s.cwd = "app".into()),
            ("command", |s| s.command.clear()),
            ("command", |s| s.command[0] = "sh".into()),
            ("env", |s| s.env.push("=x".into())),
            ("layers", |s| s.layers.clear()),
            ("hostname", |s| s.hostname = "a b".into()),
            ("binds.target", |s| {
                s.binds.push(Bind {
                    source: "/x".into(),
                    target: "/proc/sys".into(),
                    kind: BindKind::ReadOnlyDir,
                });
            }),
        ];
        for (field, change) in cases {
            let mut changed = spec();
            change(&mut changed);
            let error = changed.check().unwrap_err().to_string();
            assert!(error.starts_with(field), "{field}: {error}");
        }
    }

    #[test]
    fn only_whole_names_are_reserved() {
        assert!(unreserved("f", "/procfile", &["/proc"]).is_ok());
        assert!(unreserved("f", "/proc", &["/proc"]).is_err());
        assert!(unreserved("f", "/proc/x", &["/proc"]).is_err());
    }
}
