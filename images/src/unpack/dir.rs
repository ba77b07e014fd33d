//! Writes checked entries below one directory, by descriptor.
//!
//! Each component of a path is opened with `O_NOFOLLOW | O_DIRECTORY` relative to its parent, and
//! everything is created exclusively, so nothing outside the directory is ever touched and nothing
//! inside it is written twice. Attributes of directories are set at the end, children first.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};

use super::entry::{Entry, Kind};
use super::error::{EntryName, Refusal, UnpackError};
use super::is_full;
use super::limits::Profile;

const OPEN_DIR: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The directory that is unpacked into.
pub(super) struct Root {
    path: PathBuf,
    fd: OwnedFd,
    /// Every directory made, by path. `None`: made on the way to an entry, not named yet.
    directories: HashMap<Vec<Vec<u8>>, Option<Attributes>>,
    implicit: Attributes,
    /// The parent of the last entry: archives list a directory's files one after the other.
    last_parent: Option<(Vec<Vec<u8>>, OwnedFd)>,
    chunk: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
}

impl Attributes {
    fn of(entry: &Entry) -> Self {
        Self { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime }
    }

    fn owner(self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    fn time(self) -> TimeSpec {
        TimeSpec::new(self.mtime, 0)
    }
}

impl Root {
    pub(super) fn open(path: &Path, profile: Profile) -> Result<Self, UnpackError> {
        let target = |errno: Errno| UnpackError::Target { path: path.to_owned(), source: errno.into() };
        let fd = nix::fcntl::open(path, OPEN_DIR, Mode::empty()).map_err(target)?;
        // The temporary directory was private; the root of a tree is world-readable like any root.
        fchmod(&fd, Mode::from_bits_truncate(0o755)).map_err(target)?;
        let owner = match profile {
            Profile::Image => 0,
            Profile::Package => 1000,
        };
        let implicit = Attributes { mode: 0o755, uid: owner, gid: owner, mtime: 0 };
        Ok(Self {
            path: path.to_owned(),
            fd,
            directories: HashMap::new(),
            implicit,
            last_parent: None,
            chunk: vec![0; 128 * 1024],
        })
    }

    /// Writes one entry; `content` yields the bytes of a file.
    pub(super) fn write(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), UnpackError> {
        let Some((name, parents)) = entry.path.split_last() else {
            return Err(Refusal::BadName.of(&entry.name));
        };
        let parent = self.enter(entry, parents)?;
        match &entry.kind {
            Kind::Directory => self.make_directory(entry, &parent, name)?,
            Kind::File { bytes } => self.make_file(entry, &parent, name, *bytes, content)?,
            Kind::Symlink { target } => self.make_symlink(entry, &parent, name, target)?,
            Kind::HardLink { target } => self.make_hard_link(entry, &parent, name, target)?,
        }
        self.last_parent = Some((parents.to_vec(), parent));
        Ok(())
    }

    fn make_directory(&mut self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> Result<(), UnpackError> {
        match mkdirat(parent, name, Mode::S_IRWXU) {
            Ok(()) => {}
            // An entry below it came first.
            Err(Errno::EEXIST) if matches!(self.directories.get(&entry.path), Some(None)) => {}
            Err(errno) => return Err(self.failed("make directory", entry, errno)),
        }
        self.directories.insert(entry.path.clone(), Some(Attributes::of(entry)));
        Ok(())
    }

    fn make_file(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &[u8],
        bytes: u64,
        content: &mut dyn Read,
    ) -> Result<(), UnpackError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| self.failed("create", entry, errno))?;
        let mut file = File::from(fd);
        let mut left = bytes;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.chunk.len());
            // Read errors are the archive's, write errors the disk's.
            let got = content.read(&mut self.chunk[..want]).map_err(UnpackError::Read)?;
            if got == 0 {
                return Err(Refusal::Truncated.of(&entry.name));
            }
            file.write_all(&self.chunk[..got]).map_err(|source| self.failed_io("write", entry, source))?;
            left -= got as u64;
        }
        let attributes = Attributes::of(entry);
        let (uid, gid) = attributes.owner();
        fchown(&file, uid, gid)
            .and_then(|()| fchmod(&file, Mode::from_bits_truncate(attributes.mode)))
            .and_then(|()| futimens(&file, &attributes.time(), &attributes.time()))
            .map_err(|errno| self.failed("set the attributes of", entry, errno))
    }

    fn make_symlink(
        &self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &[u8],
        target: &[u8],
    ) -> Result<(), UnpackError> {
        symlinkat(target, parent, name).map_err(|errno| self.failed("make symlink", entry, errno))?;
        let attributes = Attributes::of(entry);
        let (uid, gid) = attributes.owner();
        fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
            .and_then(|()| {
                let time = attributes.time();
                utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
            })
            .map_err(|errno| self.failed("set the attributes of", entry, errno))
    }

    fn make_hard_link(
        &self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &[u8],
        target: &[Vec<u8>],
    ) -> Result<(), UnpackError> {
        let shown = || EntryName::new(&target.join(&b'/'));
        let out = || Refusal::LinkOut { target: shown() }.of(&entry.name);
        let (target_name, target_parents) = target.split_last().ok_or_else(out)?;
        let target_parent = self.walk(target_parents).map_err(|_| out())?;
        let stat = fstatat(&target_parent, target_name.as_slice(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|_| out())?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(out());
        }
        linkat(&target_parent, target_name.as_slice(), parent, name, AtFlags::empty())
            .map_err(|errno| self.failed("make hard link", entry, errno))
    }

    /// Opens the directory of an entry, making what is missing of it.
    fn enter(&mut self, entry: &Entry, parents: &[Vec<u8>]) -> Result<OwnedFd, UnpackError> {
        if let Some((path, fd)) = self.last_parent.take()
            && path == parents
        {
            return Ok(fd);
        }
        let mut dir = self.fd.try_clone().map_err(|e| self.failed_io("open", entry, e))?;
        for (depth, name) in parents.iter().enumerate() {
            let name = name.as_slice();
            dir = match openat(&dir, name, OPEN_DIR, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::ENOENT) => {
                    mkdirat(&dir, name, Mode::S_IRWXU)
                        .map_err(|errno| self.failed("make directory", entry, errno))?;
                    self.directories.insert(parents[..=depth].to_vec(), None);
                    openat(&dir, name, OPEN_DIR, Mode::empty())
                        .map_err(|errno| self.failed("open", entry, errno))?
                }
                Err(Errno::ELOOP | Errno::ENOTDIR) => {
                    return Err(Refusal::ThroughNonDirectory.of(&entry.name));
                }
                Err(errno) => return Err(self.failed("open", entry, errno)),
            };
        }
        Ok(dir)
    }

    /// Opens an existing directory below the root without following anything.
    fn walk(&self, path: &[Vec<u8>]) -> io::Result<OwnedFd> {
        let mut dir = self.fd.try_clone()?;
        for name in path {
            dir = openat(&dir, name.as_slice(), OPEN_DIR, Mode::empty())?;
        }
        Ok(dir)
    }

    /// Gives every directory its attributes; children before parents, so that times stay.
    pub(super) fn finish(mut self) -> Result<(), UnpackError> {
        let mut directories: Vec<_> = std::mem::take(&mut self.directories).into_iter().collect();
        directories.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        for (path, attributes) in directories {
            let attributes = attributes.unwrap_or(self.implicit);
            let (uid, gid) = attributes.owner();
            self.walk(&path)
                .and_then(|dir| {
                    fchown(&dir, uid, gid)?;
                    fchmod(&dir, Mode::from_bits_truncate(attributes.mode))?;
                    futimens(&dir, &attributes.time(), &attributes.time())?;
                    Ok(())
                })
                .map_err(|source| {
                    self.failed_path("set the attributes of", EntryName::new(&path.join(&b'/')), source)
                })?;
        }
        Ok(())
    }

    fn failed(&self, operation: &'static str, entry: &Entry, errno: Errno) -> UnpackError {
        match errno {
            Errno::EEXIST => Refusal::Duplicate.of(&entry.name),
            errno => self.failed_io(operation, entry, errno.into()),
        }
    }

    fn failed_io(&self, operation: &'static str, entry: &Entry, source: io::Error) -> UnpackError {
        self.failed_path(operation, EntryName::new(&entry.name), source)
    }

    fn failed_path(&self, operation: &'static str, entry: EntryName, source: io::Error) -> UnpackError {
        if is_full(&source) {
            UnpackError::DiskFull { entry, path: self.path.clone() }
        } else {
            UnpackError::Write { operation, entry, path: self.path.clone(), source }
        }
    }
}
