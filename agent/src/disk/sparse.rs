//! Copies a file with holes: only its data is read and written (lseek(2), SEEK_DATA), and where the file
//! system can share blocks, not even that (the standard library copies by copy_file_range(2)).

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Makes `to`, an empty file, a copy of `from`, which nobody may change meanwhile. Moves both offsets.
pub(super) fn copy(mut from: &File, mut to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut offset = 0;
    while offset < length {
        let data = match seek(from, offset, Whence::SeekData) {
            Ok(data) => data,
            // No data from here to the end.
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => break,
            Err(error) => return Err(error),
        };
        let end = seek(from, data, Whence::SeekHole)?;
        from.seek(SeekFrom::Start(data))?;
        to.seek(SeekFrom::Start(data))?;
        if io::copy(&mut from.take(end - data), &mut to)? != end - data {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        offset = end;
    }
    Ok(())
}

fn seek(file: &File, offset: u64, whence: Whence) -> io::Result<u64> {
    let too_large = |_| io::Error::from(ErrorKind::FileTooLarge);
    let found = lseek(file, i64::try_from(offset).map_err(too_large)?, whence)?;
    u64::try_from(found).map_err(too_large)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn copies_data_and_keeps_holes() {
        let from = tempfile::tempfile().unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(b"middle", (20 << 20) + 17).unwrap();
        from.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let to = tempfile::tempfile().unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        assert!(to.metadata().unwrap().blocks() <= 3 * 16, "holes were filled");
        let mut buffer = [0; 6];
        to.read_exact_at(&mut buffer, (20 << 20) + 17).unwrap();
        assert_eq!(&buffer, b"middle");
        to.read_exact_at(&mut buffer[..3], (64 << 20) - 3).unwrap();
        assert_eq!(&buffer[..3], b"end");
    }

    #[test]
    fn copies_nothing_but_a_hole() {
        let from = tempfile::tempfile().unwrap();
        from.set_len(1 << 20).unwrap();
        let to = tempfile::tempfile().unwrap();
        copy(&from, &to).unwrap();
        assert_eq!((to.metadata().unwrap().len(), to.metadata().unwrap().blocks()), (1 << 20, 0));
    }
}
