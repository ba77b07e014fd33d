//! Unpacks a hostile tar (plain or zstd) below a directory.
//!
//! The `tar` crate only splits the stream into headers and bodies. Each entry becomes a checked
//! [`entry::Entry`] or ends the unpacking with an error that names it, and [`dir::Root`] writes it
//! by descriptor, never through a symlink. Every size is capped, so no input costs more than its
//! [`UnpackLimits`]. On an error the caller removes what was written.

use std::io::{self, BufReader, Read};
use std::path::Path;

mod budget;
mod dir;
mod entry;
mod error;
mod extension;
mod limits;
mod outline;

pub use error::{Refusal, UnpackError};
pub use limits::{Profile, UnpackLimits};

use budget::Budget;
use entry::{Entry, Kind};
use extension::Extensions;
use outline::Outline;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// 8 MiB is the window of zstd level 19; a frame that asks for more only asks for memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Unpacks `input`, a tar or tar.zst of `input_bytes` bytes, into the existing empty directory `into`.
///
/// Image trees keep their numeric owners (the caller must be root); package trees get 1000:1000.
pub fn unpack(
    input: impl Read,
    input_bytes: u64,
    into: &Path,
    limits: &UnpackLimits,
) -> Result<(), UnpackError> {
    let mut root = dir::Root::open(into, limits.profile)?;
    each(input, input_bytes, limits, &mut |entry, body| root.write(entry, body))?;
    root.finish()
}

/// Would [`unpack`] take `input`? Reads it to its end and writes nothing, so all that is left to go wrong is the disk.
///
/// # Errors
/// The error that [`unpack`] ends with.
pub fn judge(input: impl Read, input_bytes: u64, limits: &UnpackLimits) -> Result<(), UnpackError> {
    let mut outline = Outline::default();
    each(input, input_bytes, limits, &mut |entry, body| outline.add(entry, body))
}

/// What is done with an entry that was checked, and its content.
type Visit<'a> = &'a mut dyn FnMut(&Entry, &mut dyn Read) -> Result<(), UnpackError>;

fn each(
    input: impl Read,
    input_bytes: u64,
    limits: &UnpackLimits,
    visit: Visit<'_>,
) -> Result<(), UnpackError> {
    let mut input = BufReader::with_capacity(128 * 1024, input);
    let mut magic = Vec::new();
    (&mut input).take(4).read_to_end(&mut magic).map_err(UnpackError::Read)?;
    let input = magic.as_slice().chain(input);
    let budget = Budget::new(limits, input_bytes);
    if magic == ZSTD_MAGIC {
        let mut decoder = zstd::Decoder::with_buffer(BufReader::new(input)).map_err(UnpackError::Read)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(UnpackError::Read)?;
        each_of_tar(decoder, limits, budget, visit)
    } else {
        each_of_tar(input, limits, budget, visit)
    }
}

fn each_of_tar(
    input: impl Read,
    limits: &UnpackLimits,
    mut budget: Budget,
    visit: Visit<'_>,
) -> Result<(), UnpackError> {
    // The budget's byte cap also bounds what padding and headers can make us decompress.
    let mut archive = tar::Archive::new(budget.metered(input));
    let mut extensions = Extensions::default();
    // Raw: long names and pax records are read by `extension`, which caps them; the tar crate would
    // read them into memory whole.
    for raw in archive.entries().map_err(UnpackError::Read)?.raw(true) {
        let mut raw = raw.map_err(UnpackError::Read)?;
        budget.count_entry()?;
        if extensions.absorb(&mut raw)? {
            continue;
        }
        let Some(entry) = Entry::check(raw.header(), raw.size(), extensions.take(), limits)? else {
            continue;
        };
        if let Kind::File { bytes } = entry.kind {
            budget.charge(&entry.name, bytes)?;
        }
        visit(&entry, &mut raw)?;
    }
    extensions.none_left()
}

/// True when an error of a write means that the disk (or a quota) is full.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests;
