//! The order of all output on the node, kept on disk: one line per stretch of an instance's log, in
//! the order in which the agent saw it. A cursor is a place in the journal, so it is small, means the
//! same after a restart of the agent, and finds the output of instances that are gone.
//!
//! ```text
//! STATE/journal/<offset>.log     <instance> <S|P> <start> <end>\n
//! STATE/journal/epoch            names this journal; cursors of another one start at its beginning
//! ```
//! Invariant: a stretch is whole lines, and the stretches of one log follow on each other.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use mogok_api::id::InstanceId;

use super::segments::{Appender, Bounds, Segments};

/// About 200,000 stretches.
const BOUNDS: Bounds = Bounds { file_bytes: 1 << 20, files: 16 };

/// Which of an instance's two logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The program's output, written by the shim.
    Shim,
    /// The platform's words, written by the agent.
    Platform,
}

impl Source {
    /// Its directory in that of the instance.
    #[must_use]
    pub fn dir(self, instance: &Path) -> PathBuf {
        instance.join(match self {
            Self::Shim => mogok_shim::spec::file::LOG_DIR,
            Self::Platform => "platform",
        })
    }
}

/// A stretch of an instance's log: bytes `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub instance: InstanceId,
    pub source: Source,
    pub start: u64,
    pub end: u64,
}

impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Shim => 'S',
            Source::Platform => 'P',
        };
        write!(f, "{} {source} {} {}", self.instance, self.start, self.end)
    }
}

impl Stretch {
    /// Reads one line of the journal.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = std::str::from_utf8(line).ok()?.split(' ');
        let instance = fields.next()?.parse().ok()?;
        let source = match fields.next()? {
            "S" => Source::Shim,
            "P" => Source::Platform,
            _ => return None,
        };
        let (start, end) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (start <= end).then_some(Self { instance, source, start, end })
    }
}

/// A place in the journal: the stretch whose line starts at `entry`, and the byte of the instance's log
/// up to which it was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    pub entry: u64,
    pub read: u64,
}

/// A [`Place`] of a certain journal, as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub epoch: String,
    pub place: Place,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.epoch, self.place.entry, self.place.read)
    }
}

/// A cursor that no agent handed out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid log cursor {0:?}: hand back the cursor of a log record")]
pub struct InvalidCursor(String);

impl FromStr for Cursor {
    type Err = InvalidCursor;
    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let invalid = || InvalidCursor(text.chars().take(80).collect());
        let mut fields = text.splitn(3, '-');
        let mut field = || fields.next().ok_or_else(invalid);
        let epoch = field()?.to_owned();
        let entry = field()?.parse().map_err(|_| invalid())?;
        let read = field()?.parse().map_err(|_| invalid())?;
        Ok(Self { epoch, place: Place { entry, read } })
    }
}

/// The journal, for its one writer.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    epoch: String,
    entries: Appender,
}

impl Journal {
    /// # Errors
    /// When it cannot be made or read.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("journal");
        let entries = Appender::open(&dir, BOUNDS)?;
        let path = dir.join("epoch");
        let epoch = match std::fs::read(&path) {
            // Torn by a power loss, say: readers begin anew.
            Ok(bytes) => known_epoch(bytes).map_or_else(|| new_epoch(&path), Ok)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => new_epoch(&path)?,
            Err(error) => return Err(error),
        };
        Ok(Self { dir, epoch, entries })
    }

    #[must_use]
    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    /// A reader of its own.
    #[must_use]
    pub fn reader(&self) -> Segments {
        Segments::new(self.dir.clone())
    }

    /// # Errors
    /// When the disk does not take it; the journal is then as before.
    pub fn append(&mut self, stretches: &[Stretch]) -> io::Result<()> {
        let lines: String = stretches.iter().map(|stretch| format!("{stretch}\n")).collect();
        self.entries.append(lines.as_bytes())
    }

    #[must_use]
    pub fn end(&self) -> u64 {
        self.entries.end()
    }
}

/// As [`new_epoch`] writes it.
fn known_epoch(bytes: Vec<u8>) -> Option<String> {
    String::from_utf8(bytes)
        .ok()
        .filter(|epoch| epoch.len() == 32 && epoch.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn new_epoch(path: &Path) -> io::Result<String> {
    let epoch: String = mogok_api::id::Epoch::new().to_string().replace('-', "");
    std::fs::write(path, &epoch)?;
    Ok(epoch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cursors_and_stretches_come_back_as_they_went() {
        let cursor = Cursor { epoch: "ab12".into(), place: Place { entry: 5, read: 70 } };
        assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
        let stretch = Stretch { instance: InstanceId::new(), source: Source::Platform, start: 3, end: 9 };
        assert_eq!(Stretch::parse(stretch.to_string().as_bytes()), Some(stretch));
    }

    #[test]
    fn a_journal_keeps_its_epoch_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let stretch = Stretch { instance: InstanceId::new(), source: Source::Shim, start: 0, end: 9 };
        journal.append(&[stretch, stretch]).unwrap();
        let again = Journal::open(dir.path()).unwrap();
        assert_eq!((again.epoch(), again.end()), (journal.epoch(), journal.end()));
        for damage in [&b""[..], b"\xff", b"a-b"] {
            std::fs::write(dir.path().join("journal/epoch"), damage).unwrap();
            let anew = Journal::open(dir.path()).unwrap();
            assert_ne!(anew.epoch(), journal.epoch());
            assert_eq!(Journal::open(dir.path()).unwrap().epoch(), anew.epoch());
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parsers(text in "\\PC{0,80}") {
            let _ = text.parse::<Cursor>();
            let _ = Stretch::parse(text.as_bytes());
        }
    }
}
