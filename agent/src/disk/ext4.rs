//! Gives the root directory of an ext4 image an owner, by editing its inode: a template per owner would
//! be a template per container. Layout: `Documentation/filesystems/ext4` (super, group_descr, inodes).
//!
//! Works on the file systems that [`super::template`] makes, and refuses others: with checksums of
//! metadata the edit would corrupt them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::DiskError;

const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xEF53;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
const INCOMPAT_64BIT: u32 = 0x80;
/// The root directory's inode; numbers begin at 1.
const ROOT_INODE: u64 = 2;
const MODE_TYPE: u16 = 0xF000;
const MODE_DIRECTORY: u16 = 0x4000;

/// `owner` is user and group, as the host counts them.
pub(super) fn set_root_owner(image: &File, path: &Path, owner: (u32, u32)) -> Result<(), DiskError> {
    let not_ours = |problem| DiskError::NotOurs { path: path.to_owned(), problem };
    let mut superblock = [0; 1024];
    read(image, path, &mut superblock, SUPERBLOCK)?;
    if u16_at(&superblock, 0x38) != MAGIC {
        return Err(not_ours("no superblock"));
    }
    if u32_at(&superblock, 0x64) & RO_COMPAT_METADATA_CSUM != 0 {
        return Err(not_ours("its metadata has checksums"));
    }
    let block = 1024_u64 << u32_at(&superblock, 0x18).min(6);
    let wide = u32_at(&superblock, 0x60) & INCOMPAT_64BIT != 0 && u16_at(&superblock, 0xFE) >= 64;

    let mut group = [0; 64];
    read(image, path, &mut group, (u64::from(u32_at(&superblock, 0x14)) + 1) * block)?;
    let high = if wide { u64::from(u32_at(&group, 0x28)) } else { 0 };
    let table = u64::from(u32_at(&group, 0x8)) | high << 32;
    let inode = table
        .checked_mul(block)
        .and_then(|table| table.checked_add((ROOT_INODE - 1) * u64::from(u16_at(&superblock, 0x58))))
        .ok_or_else(|| not_ours("its inode table lies nowhere"))?;

    let mut root = [0; 128];
    read(image, path, &mut root, inode)?;
    if u16_at(&root, 0) & MODE_TYPE != MODE_DIRECTORY {
        return Err(not_ours("its root is no directory"));
    }
    let (user, group) = (owner.0.to_le_bytes(), owner.1.to_le_bytes());
    root[0x2..0x4].copy_from_slice(&user[..2]);
    root[0x78..0x7A].copy_from_slice(&user[2..]);
    root[0x18..0x1A].copy_from_slice(&group[..2]);
    root[0x7A..0x7C].copy_from_slice(&group[2..]);
    image.write_all_at(&root, inode).map_err(DiskError::file("write the root inode of", path))
}

fn read(image: &File, path: &Path, buffer: &mut [u8], offset: u64) -> Result<(), DiskError> {
    image.read_exact_at(buffer, offset).map_err(DiskError::file("read the file system in", path))
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_ext4_is_refused_untouched() {
        let image = tempfile::tempfile().unwrap();
        image.set_len(1 << 20).unwrap();
        let error = set_root_owner(&image, Path::new("x.img"), (1, 1)).unwrap_err();
        assert!(matches!(error, DiskError::NotOurs { problem: "no superblock", .. }));
        let short = tempfile::tempfile().unwrap();
        let error = set_root_owner(&short, Path::new("x.img"), (1, 1)).unwrap_err();
        assert!(matches!(error, DiskError::File { .. }));
    }
}
