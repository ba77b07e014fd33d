//! Packs a root file system into a tar.zst, the same bytes for the same tree: sorted, numeric
//! owners, no time later than the epoch given, no setuid or setgid, no device, no content of the
//! directories that a container fills itself.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

/// Fixed, so that the output is: zstd's result depends on whether it has workers, not on how many.
const ZSTD_WORKERS: u32 = 2;
/// Kept empty: the container mounts over them.
const EMPTIED: [&str; 4] = ["dev", "proc", "run", "sys"];

/// Why a tree could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("cannot {operation} {path}")]
    Tree { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot write the archive of {path}")]
    Output { path: PathBuf, source: io::Error },
}

/// Writes the tree below `root` to `output` as tar.zst. Times are clamped to `epoch` (seconds).
pub fn pack(root: &Path, epoch: u64, level: i32, output: impl Write) -> Result<(), PackError> {
    let wrong = |source| PackError::Output { path: root.to_owned(), source };
    let mut encoder = zstd::Encoder::new(output, level).map_err(wrong)?;
    encoder.multithread(ZSTD_WORKERS).map_err(wrong)?;
    encoder.include_checksum(true).map_err(wrong)?;
    let mut packer = Packer { builder: Builder::new(encoder), epoch, linked: HashMap::new() };
    packer.directory(root, Path::new(""))?;
    let encoder = packer.builder.into_inner().map_err(wrong)?;
    encoder.finish().and_then(|mut output| output.flush()).map_err(wrong)
}

struct Packer<W: Write> {
    builder: Builder<W>,
    epoch: u64,
    /// Files with more than one name, by device and inode: the first name packed.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Packer<W> {
    fn directory(&mut self, dir: &Path, name: &Path) -> Result<(), PackError> {
        let failed = |operation| move |source| PackError::Tree { operation, path: dir.to_owned(), source };
        let mut entries = fs::read_dir(dir)
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
            .map_err(failed("list"))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = name.join(entry.file_name());
            let meta = fs::symlink_metadata(&path).map_err(|source| PackError::Tree {
                operation: "look at",
                path: path.clone(),
                source,
            })?;
            self.entry(&path, &name, &meta)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path, meta: &Metadata) -> Result<(), PackError> {
        let tree = |operation| move |source| PackError::Tree { operation, path: path.to_owned(), source };
        let written = |source| PackError::Output { path: path.to_owned(), source };
        let kind = meta.file_type();
        let mut header = self.header(meta);
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.builder.append_data(&mut header, name, io::empty()).map_err(written)?;
            let emptied = EMPTIED.iter().any(|emptied| name.as_os_str() == OsStr::new(emptied));
            return if emptied { Ok(()) } else { self.directory(path, name) };
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(tree("read"))?;
            header.set_entry_type(EntryType::Symlink);
            return self.link(&mut header, name, &target).map_err(written);
        }
        if !kind.is_file() {
            // Devices, sockets and FIFOs: the container makes its own.
            return Ok(());
        }
        if meta.nlink() > 1 {
            let key = (meta.dev(), meta.ino());
            if let Some(first) = self.linked.get(&key) {
                let first = first.clone();
                header.set_entry_type(EntryType::Link);
                return self.link(&mut header, name, &first).map_err(written);
            }
            self.linked.insert(key, name.to_owned());
        }
        header.set_entry_type(EntryType::Regular);
        header.set_size(meta.len());
        let file = File::open(path).map_err(tree("open"))?;
        self.builder.append_data(&mut header, name, file).map_err(written)
    }

    /// As `Builder::append_link`, but with the target's bytes as they are: it would normalize them.
    fn link(&mut self, header: &mut Header, name: &Path, target: &Path) -> io::Result<()> {
        let bytes = target.as_os_str().as_bytes();
        if header.set_link_name_literal(bytes).is_err() {
            let mut long = Header::new_gnu();
            long.set_path("././@LongLink")?;
            long.set_entry_type(EntryType::GNULongLink);
            long.set_mode(0o644);
            long.set_size(bytes.len() as u64 + 1);
            long.set_cksum();
            self.builder.append(&long, [bytes, b"\0"].concat().as_slice())?;
        }
        self.builder.append_data(header, name, io::empty())
    }

    fn header(&self, meta: &Metadata) -> Header {
        let mut header = Header::new_gnu();
        // Sticky stays, for /tmp; setuid and setgid go.
        let kept = if meta.is_dir() { 0o1777 } else { 0o777 };
        header.set_mode(meta.mode() & kept);
        header.set_uid(meta.uid().into());
        header.set_gid(meta.gid().into());
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0).min(self.epoch));
        header.set_size(0);
        header
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::unpack::{UnpackLimits, unpack};

    #[test]
    fn the_same_tree_packs_to_the_same_bytes_and_comes_back() {
        if !nix::unistd::Uid::effective().is_root() {
            eprintln!("SKIP: keeping owners needs root");
            return;
        }
        let tree = |order: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
            fs::create_dir(dir.path().join("dev")).unwrap();
            fs::write(dir.path().join("dev/not-packed"), "x").unwrap();
            for name in order {
                fs::write(dir.path().join("usr/bin").join(name), name).unwrap();
            }
            let su = dir.path().join("usr/bin/su");
            fs::set_permissions(&su, fs::Permissions::from_mode(0o4755)).unwrap();
            fs::hard_link(&su, dir.path().join("usr/bin/su-too")).unwrap();
            symlink("/usr//bin/../bin/su", dir.path().join("absolute")).unwrap();
            symlink("x".repeat(300), dir.path().join("long")).unwrap();
            dir
        };
        let packed = |dir: &Path| {
            let mut bytes = Vec::new();
            pack(dir, 1_000_000, 3, &mut bytes).unwrap();
            bytes
        };
        let first = packed(tree(&["su", "a", "z"]).path());
        assert_eq!(first, packed(tree(&["z", "su", "a"]).path()));

        let into = tempfile::tempdir().unwrap();
        unpack(first.as_slice(), first.len() as u64, into.path(), &UnpackLimits::image()).unwrap();
        let meta = fs::metadata(into.path().join("usr/bin/su")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.nlink(), meta.mtime()), (0o755, 2, 1_000_000));
        let link = fs::read_link(into.path().join("absolute")).unwrap();
        assert_eq!(link, Path::new("/usr//bin/../bin/su"));
        assert_eq!(fs::read_link(into.path().join("long")).unwrap().as_os_str().len(), 300);
        assert_eq!(fs::read_dir(into.path().join("dev")).unwrap().count(), 0);
    }
}
