//! Image and package archives: nothing is written outside the directory, nothing in it is a device, a pipe or
//! set-user-id, no more than the caps is written, and a refusal says why.
//!
//! Checksums are made good first, or hardly a changed header would be looked at.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use mogok_images::unpack::{UnpackLimits, unpack};

const BLOCK: usize = 512;
/// Bytes of the name `secret` beside the directory, which archives try to reach.
const SECRET: &[u8] = b"secret";

/// Unpacks the bytes as an image, or as a package when the first one is odd.
pub fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let package = first & 1 == 1;
    let archive = if first & 2 == 0 { repaired(rest) } else { rest.to_vec() };
    let mut limits = if package { UnpackLimits::package() } else { UnpackLimits::image() };
    (limits.bytes, limits.entries, limits.ratio_from) = (1 << 20, 500, 256 << 10);

    let outer = tempfile::tempdir_in("/dev/shm").expect("a temporary directory");
    let (into, secret) = (outer.path().join("into"), outer.path().join("secret"));
    fs::create_dir(&into).expect("an empty directory");
    fs::write(&secret, SECRET).expect("a file beside it");
    let before = fs::metadata(&secret).expect("the file");

    let unpacked = unpack(archive.as_slice(), archive.len() as u64, &into, &limits);

    let after = fs::metadata(&secret).expect("the file beside it is still there");
    let of = |meta: &fs::Metadata| (meta.ino(), meta.nlink(), meta.mode(), meta.uid(), meta.len());
    assert_eq!(of(&before), of(&after), "the file beside the directory was touched");
    assert_eq!(fs::read(&secret).expect("readable"), SECRET);
    assert_eq!(fs::read_dir(outer.path()).expect("listed").count(), 2, "something was written outside");
    let mut bytes = 0;
    check(&into, package, &mut bytes);
    assert!(bytes <= limits.bytes, "{bytes} bytes were written");
    if package {
        for entry in fs::read_dir(&into).expect("listed") {
            assert_eq!(entry.expect("listed").file_name(), "app");
        }
    }
    if let Err(error) = unpacked {
        assert!(!error.to_string().is_empty());
    }
}

/// Looks at all that was written, following nothing.
fn check(dir: &Path, package: bool, bytes: &mut u64) {
    for entry in fs::read_dir(dir).expect("listed") {
        let path = entry.expect("listed").path();
        let meta = fs::symlink_metadata(&path).expect("there");
        let kind = meta.file_type();
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink(), "{path:?} is {kind:?}");
        assert!(!kind.is_block_device() && !kind.is_char_device() && !kind.is_fifo());
        if package && !kind.is_symlink() {
            assert_eq!(meta.mode() & 0o6000, 0, "{path:?} is set-user-id");
        }
        if kind.is_dir() {
            check(&path, package, bytes);
        } else if kind.is_file() {
            *bytes += meta.len() / meta.nlink();
        }
    }
}

/// The same archive with good checksums, as far as its headers are where their sizes say.
fn repaired(data: &[u8]) -> Vec<u8> {
    let mut archive = data.to_vec();
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = header[124..136].iter().take_while(|byte| matches!(byte, b'0'..=b'7'));
        let size = digits
            .fold(0_usize, |size, digit| size.saturating_mul(8).saturating_add(usize::from(digit - b'0')));
        at = at.saturating_add(BLOCK).saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
    }
    archive
}
