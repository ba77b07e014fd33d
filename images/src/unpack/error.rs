//! Why an archive was not unpacked.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A failed unpacking. Entries are named as the archive names them, made printable and cut.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("cannot read the archive (it is damaged, or no tar or tar.zst)")]
    Read(#[source] io::Error),
    #[error("archive entry {entry}: {refusal}")]
    Refused { entry: EntryName, refusal: Refusal },
    #[error("archive has more than {limit} entries")]
    Entries { limit: u64 },
    #[error("cannot {operation} {path} for archive entry {entry}")]
    Write { operation: &'static str, entry: EntryName, path: PathBuf, source: io::Error },
    #[error("disk full while unpacking archive entry {entry} into {path}: free space on its file system")]
    DiskFull { entry: EntryName, path: PathBuf },
    #[error("cannot open the directory {path} to unpack into")]
    Target { path: PathBuf, source: io::Error },
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("its name is empty or holds a NUL")]
    BadName,
    #[error("its path is absolute")]
    Absolute,
    #[error("its path holds ..")]
    ParentDirectory,
    #[error("its path is longer than {limit} bytes, or a component is longer than 255")]
    LongName { limit: usize },
    #[error("its path is deeper than {limit} directories")]
    Deep { limit: usize },
    #[error("it does not lie below app/")]
    OutsideApp,
    #[error("its path leads through something that is not a directory (a symlink, perhaps)")]
    ThroughNonDirectory,
    #[error("the archive holds this name twice")]
    Duplicate,
    #[error("it links to {target}, which is no earlier regular file of the archive")]
    LinkOut { target: EntryName },
    #[error("its link target is empty, holds a NUL or is too long")]
    BadLink,
    #[error("it is a device, FIFO or socket")]
    Device,
    #[error("it is a sparse file")]
    Sparse,
    #[error("it has the unknown type {type_byte:#04x}")]
    UnknownType { type_byte: u8 },
    #[error("it is setuid, setgid or sticky (mode {mode:o})")]
    Mode { mode: u32 },
    #[error("it belongs to {uid}:{gid}; ids of an image are 0 to 65535")]
    Owner { uid: u64, gid: u64 },
    #[error("its header is malformed: {field}")]
    Header { field: &'static str },
    #[error("its extension record is malformed, too large or of a kind that is not allowed: {what}")]
    Extension { what: &'static str },
    #[error("its content ends early")]
    Truncated,
    #[error("it brings the archive over {limit} bytes unpacked")]
    TooLarge { limit: u64 },
    #[error("it brings the archive over {limit} bytes unpacked per byte packed (a compression bomb)")]
    Bomb { limit: u64 },
}

impl Refusal {
    pub(super) fn of(self, name: &[u8]) -> UnpackError {
        UnpackError::Refused { entry: EntryName::new(name), refusal: self }
    }
}

/// A name from an archive, as it may be shown: escaped, and cut at 200 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryName(String);

impl EntryName {
    pub(super) fn new(bytes: &[u8]) -> Self {
        let shown: String = bytes.escape_ascii().take(200).map(char::from).collect();
        Self(if shown.is_empty() { "(no name)".to_owned() } else { shown })
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
