//! The wanted set on disk: `STATE/desired.json` has all of it, `STATE/desired.log` the deltas since, one JSON object a line.
//! So a change costs as much as it is large, and not as much as the set is.
//!
//! Invariant: what was acknowledged is read back. A delta is synced before it is acknowledged; one that does not
//! follow on what was read before it (it is in the set already, or of another epoch) changes nothing. When the set
//! is written anew, the log is emptied after it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mogok_api::agent::DesiredMessage;

use super::Desired;
use super::ballast::Ballast;
use crate::ledger::{LedgerError, atomic};

/// Bytes of the log beyond which the set is written anew.
const LOG_BYTES: u64 = 1 << 20;

/// Where the set is kept. One writer at a time.
#[derive(Debug, Clone)]
pub struct DesiredFile {
    set: PathBuf,
    log: PathBuf,
    ballast: Ballast,
}

impl DesiredFile {
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            set: state_dir.join("desired.json"),
            log: state_dir.join("desired.log"),
            ballast: Ballast::new(state_dir.join("desired.ballast")),
        }
    }

    /// The set as it was last acknowledged; an empty one when there is none yet.
    ///
    /// # Errors
    /// When a file is there and cannot be read: going on with an empty set would stop every container.
    pub fn load(&self) -> Result<Desired, LedgerError> {
        let mut desired = match present(std::fs::read(&self.set)) {
            Ok(Some(bytes)) => parse(&self.set, &bytes)?,
            Ok(None) => Desired::default(),
            Err(source) => return Err(LedgerError::Read { path: self.set.clone(), source }),
        };
        let log = present(std::fs::read(&self.log));
        let log =
            log.map_err(|source| LedgerError::Read { path: self.log.clone(), source })?.unwrap_or_default();
        // What follows the last line's end was not acknowledged.
        let Some(end) = log.iter().rposition(|byte| *byte == b'\n') else { return Ok(desired) };
        for line in log[..end].split(|byte| *byte == b'\n') {
            desired.apply(parse::<DesiredMessage>(&self.log, line)?);
        }
        Ok(desired)
    }

    /// Keeps `desired`, which `message` has led to; when this returns it survives a power loss.
    ///
    /// # Errors
    /// When it cannot be written; the set is then read back as it was, or as it is now.
    pub fn store(&self, desired: &Desired, message: &DesiredMessage) -> Result<(), LedgerError> {
        let mut stored = self.write(desired, message);
        // To want less is what makes room on a full disk.
        if let Err(LedgerError::Write { source, .. }) = &stored
            && matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
            && self.ballast.drop().unwrap_or(false)
        {
            stored = self.write(desired, message);
        }
        self.ballast.hold();
        stored
    }

    fn write(&self, desired: &Desired, message: &DesiredMessage) -> Result<(), LedgerError> {
        let written = |source| LedgerError::Write { path: self.log.clone(), source };
        if matches!(message, DesiredMessage::Delta { .. }) {
            let mut line = serde_json::to_vec(message)
                .map_err(|source| LedgerError::Parse { path: self.log.clone(), source })?;
            line.push(b'\n');
            if self.append(&line).map_err(written)? {
                return Ok(());
            }
        }
        atomic::write_json(&self.set, desired, atomic::Durability::PowerLoss)?;
        let emptied = OpenOptions::new().write(true).open(&self.log).and_then(|log| {
            log.set_len(0)?;
            log.sync_all()
        });
        present(emptied).map(drop).map_err(written)
    }

    /// Adds a line for good; false when the log is full, or what is in it has no end.
    fn append(&self, line: &[u8]) -> io::Result<bool> {
        let mut log = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.log)?;
        let length = log.metadata()?.len();
        if length >= LOG_BYTES {
            return Ok(false);
        }
        if let Some(last) = length.checked_sub(1) {
            let mut end = [0];
            log.read_exact_at(&mut end, last)?;
            if end != *b"\n" {
                return Ok(false);
            }
        }
        log.write_all(line).and_then(|()| log.sync_data()).inspect_err(|_| {
            // Should that fail as well, the next line finds no end before it, or what is read is as if this had been kept.
            let _ = log.set_len(length);
        })?;
        if length == 0
            && let Some(parent) = self.log.parent()
        {
            File::open(parent)?.sync_all()?;
        }
        Ok(true)
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, LedgerError> {
    serde_json::from_slice(bytes).map_err(|source| LedgerError::Parse { path: path.to_owned(), source })
}

/// `None` for a file that is not there.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use mogok_api::id::Epoch;
    use mogok_api::instance::InstanceSpec;
    use proptest::prelude::*;

    use super::*;
    use crate::instance::sample_spec;

    /// Applies and stores, as the agent does.
    fn change(file: &DesiredFile, desired: &mut Desired, message: &DesiredMessage) {
        desired.apply(message.clone());
        file.store(desired, message).unwrap();
    }

    fn snapshot(epoch: Epoch, version: u64, instances: Vec<InstanceSpec>) -> DesiredMessage {
        DesiredMessage::Snapshot { epoch, version, instances }
    }

    fn delta(epoch: Epoch, from: u64, upsert: Vec<InstanceSpec>) -> DesiredMessage {
        DesiredMessage::Delta { epoch, from, version: from + 1, upsert, remove: vec![] }
    }

    #[test]
    fn what_was_stored_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = DesiredFile::new(dir.path());
        assert_eq!(file.load().unwrap(), Desired::default());
        let (epoch, mut desired) = (Epoch::new(), Desired::default());
        change(&file, &mut desired, &snapshot(epoch, 1, vec![sample_spec()]));
        assert_eq!(file.load().unwrap(), desired);
        let before = std::fs::read(dir.path().join("desired.json")).unwrap();
        change(&file, &mut desired, &delta(epoch, 1, vec![sample_spec()]));
        change(&file, &mut desired, &delta(epoch, 2, vec![sample_spec()]));
        assert_eq!((desired.version, desired.instances.len()), (3, 3));
        assert_eq!(file.load().unwrap(), desired);
        assert_eq!(std::fs::read(dir.path().join("desired.json")).unwrap(), before, "all of it was written");
        // Another epoch's deltas are not those of the log.
        change(&file, &mut desired, &snapshot(Epoch::new(), 1, vec![]));
        assert_eq!(file.load().unwrap(), desired);
    }

    #[test]
    fn a_log_that_outlived_its_set_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = DesiredFile::new(dir.path());
        let (epoch, mut desired) = (Epoch::new(), Desired::default());
        change(&file, &mut desired, &snapshot(epoch, 1, vec![]));
        change(&file, &mut desired, &delta(epoch, 1, vec![sample_spec()]));
        let log = std::fs::read(dir.path().join("desired.log")).unwrap();
        for later in [snapshot(epoch, 2, vec![]), snapshot(Epoch::new(), 1, vec![sample_spec()])] {
            change(&file, &mut desired, &later);
            assert_eq!(std::fs::metadata(dir.path().join("desired.log")).unwrap().len(), 0);
            // As if it had not been emptied yet when the power went.
            std::fs::write(dir.path().join("desired.log"), &log).unwrap();
            assert_eq!(file.load().unwrap(), desired);
        }
    }

    #[test]
    fn damage_is_an_error_and_half_a_line_was_never_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (DesiredFile::new(dir.path()), dir.path().join("desired.log"));
        let (epoch, mut desired) = (Epoch::new(), Desired::default());
        change(&file, &mut desired, &snapshot(epoch, 1, vec![]));
        change(&file, &mut desired, &delta(epoch, 1, vec![sample_spec()]));
        let whole = std::fs::read(&log).unwrap();
        std::fs::write(&log, [&whole[..], &whole[..20]].concat()).unwrap();
        assert_eq!(file.load().unwrap(), desired);
        // What comes next does not go on with that half.
        change(&file, &mut desired, &delta(epoch, 2, vec![sample_spec()]));
        assert_eq!(file.load().unwrap(), desired);
        std::fs::write(&log, b"{\n").unwrap();
        assert!(file.load().is_err());
        std::fs::remove_file(&log).unwrap();
        std::fs::write(dir.path().join("desired.json"), b"{").unwrap();
        assert!(file.load().is_err(), "a torn file must not read as an empty set");
    }

    #[test]
    fn a_long_log_becomes_part_of_the_set() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (DesiredFile::new(dir.path()), dir.path().join("desired.log"));
        let (epoch, mut desired) = (Epoch::new(), Desired::default());
        change(&file, &mut desired, &snapshot(epoch, 0, vec![]));
        let large = || InstanceSpec { command: vec!["x".repeat(400_000)], ..sample_spec() };
        for from in 0..4 {
            change(&file, &mut desired, &delta(epoch, from, vec![large()]));
        }
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
        assert_eq!(file.load().unwrap(), desired);
    }

    proptest! {
        /// Whatever prefix of the log's last write reached the disk, the set is the one before or the one after.
        #[test]
        fn a_cut_anywhere_is_the_set_before_or_after(cut in 0.0_f64..1.0) {
            let dir = tempfile::tempdir().unwrap();
            let (file, log) = (DesiredFile::new(dir.path()), dir.path().join("desired.log"));
            let (epoch, mut desired) = (Epoch::new(), Desired::default());
            change(&file, &mut desired, &snapshot(epoch, 1, vec![]));
            change(&file, &mut desired, &delta(epoch, 1, vec![sample_spec()]));
            let (before, length) = (desired.clone(), std::fs::metadata(&log).unwrap().len());
            change(&file, &mut desired, &delta(epoch, 2, vec![sample_spec()]));
            let whole = std::fs::read(&log).unwrap();
            let added = whole.len() as u64 - length;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let kept = length + (added as f64 * cut) as u64;
            std::fs::write(&log, &whole[..usize::try_from(kept).unwrap()]).unwrap();
            prop_assert_eq!(file.load().unwrap(), before);
            std::fs::write(&log, &whole).unwrap();
            prop_assert_eq!(file.load().unwrap(), desired);
        }
    }
}
