//! The names of an archive and what each of them is, without a file system: refuses what [`super::dir::Root`] refuses
//! and writes nothing. That the two agree is property-tested.

use std::collections::HashMap;
use std::io::{self, Read};

use super::entry::{Entry, Kind};
use super::error::{EntryName, Refusal, UnpackError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Directory,
    /// A directory that is there because of an entry below it.
    Implicit,
    File,
    Symlink,
}

/// Bounded by the archive's caps on entries, depth and length of names.
#[derive(Debug, Default)]
pub(super) struct Outline {
    nodes: HashMap<Vec<Vec<u8>>, Node>,
}

impl Outline {
    /// Adds one entry; `content` yields the bytes of a file, which are read to their end.
    pub(super) fn add(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), UnpackError> {
        let Some((_, parents)) = entry.path.split_last() else {
            return Err(Refusal::BadName.of(&entry.name));
        };
        self.enter(entry, parents)?;
        let node = match &entry.kind {
            Kind::Directory => {
                if self.nodes.get(&entry.path) == Some(&Node::Implicit) {
                    self.nodes.remove(&entry.path);
                }
                Node::Directory
            }
            Kind::Symlink { .. } => Node::Symlink,
            Kind::File { .. } => Node::File,
            Kind::HardLink { target } => {
                if self.nodes.get(target) != Some(&Node::File) {
                    let target = EntryName::new(&target.join(&b'/'));
                    return Err(Refusal::LinkOut { target }.of(&entry.name));
                }
                Node::File
            }
        };
        if self.nodes.contains_key(&entry.path) {
            return Err(Refusal::Duplicate.of(&entry.name));
        }
        self.nodes.insert(entry.path.clone(), node);
        if let Kind::File { bytes } = entry.kind
            && io::copy(content, &mut io::sink()).map_err(UnpackError::Read)? < bytes
        {
            return Err(Refusal::Truncated.of(&entry.name));
        }
        Ok(())
    }

    fn enter(&mut self, entry: &Entry, parents: &[Vec<u8>]) -> Result<(), UnpackError> {
        // From below: the directories above one that is known are known.
        for depth in (1..=parents.len()).rev() {
            match self.nodes.get(&parents[..depth]) {
                Some(Node::Directory | Node::Implicit) => break,
                Some(Node::File | Node::Symlink) => {
                    return Err(Refusal::ThroughNonDirectory.of(&entry.name));
                }
                None => {}
            }
        }
        for depth in (1..=parents.len()).rev() {
            if self.nodes.contains_key(&parents[..depth]) {
                break;
            }
            self.nodes.insert(parents[..depth].to_vec(), Node::Implicit);
        }
        Ok(())
    }
}
