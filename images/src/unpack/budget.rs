//! What an archive has cost so far, against its caps: entries, bytes of contents, and bytes that
//! come out of the decompressor at all (headers and padding can be a bomb too).

use std::io::{self, Read};

use super::error::{Refusal, UnpackError};
use super::limits::UnpackLimits;

#[derive(Debug)]
pub(super) struct Budget {
    bytes_limit: u64,
    ratio_limit: u64,
    /// The most bytes that the ratio allows for an input of this size.
    ratio_bytes: u64,
    bytes: u64,
    entries_limit: u64,
    entries: u64,
}

impl Budget {
    pub(super) fn new(limits: &UnpackLimits, input_bytes: u64) -> Self {
        Self {
            bytes_limit: limits.bytes,
            ratio_limit: limits.ratio,
            ratio_bytes: input_bytes.saturating_mul(limits.ratio).max(limits.ratio_from),
            bytes: 0,
            entries_limit: limits.entries,
            entries: 0,
        }
    }

    /// The reader, cut off where the caps end: what an entry's own size hides, the stream cannot.
    pub(super) fn metered<R: Read>(&self, inner: R) -> Metered<R> {
        Metered { inner, left: self.bytes_limit.min(self.ratio_bytes) }
    }

    pub(super) fn count_entry(&mut self) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.entries_limit {
            return Err(UnpackError::Entries { limit: self.entries_limit });
        }
        Ok(())
    }

    /// Charges a file's content before a byte of it is written.
    pub(super) fn charge(&mut self, name: &[u8], bytes: u64) -> Result<(), UnpackError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.bytes_limit {
            return Err(Refusal::TooLarge { limit: self.bytes_limit }.of(name));
        }
        if self.bytes > self.ratio_bytes {
            return Err(Refusal::Bomb { limit: self.ratio_limit }.of(name));
        }
        Ok(())
    }
}

/// A reader that fails once more bytes than allowed came out of it.
pub(super) struct Metered<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        match self.left.checked_sub(got as u64) {
            Some(left) => {
                self.left = left;
                Ok(got)
            }
            None => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the archive unpacks to more bytes than its caps allow",
            )),
        }
    }
}
