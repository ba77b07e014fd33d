//! One entry of an archive, checked: a value of [`Entry`] is safe to write below a directory, as
//! long as no component of its path is followed through a symlink (which `dir` sees to).

use tar::{EntryType, Header};

use super::error::{EntryName, Refusal, UnpackError};
use super::extension::Extensions;
use super::limits::{Profile, UnpackLimits};

const NAME_MAX: usize = 255;
const IMAGE_IDS: u64 = 65_536;
const APP_ID: u32 = 1000;
const SET_ID: u32 = 0o6000;
const STICKY: u32 = 0o1000;

#[derive(Debug)]
pub(super) struct Entry {
    /// As the archive has it, for messages.
    pub(super) name: Vec<u8>,
    /// Components, none of them empty, `.`, `..` or with a slash or NUL in it. Empty: the root.
    pub(super) path: Vec<Vec<u8>>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since the epoch.
    pub(super) mtime: i64,
}

#[derive(Debug)]
pub(super) enum Kind {
    Directory,
    File {
        bytes: u64,
    },
    Symlink {
        target: Vec<u8>,
    },
    /// Components of an earlier entry.
    HardLink {
        target: Vec<Vec<u8>>,
    },
}

impl Entry {
    /// Judges one header with its extension records. `None`: the root of an image, as `./`, whose
    /// attributes are ours to choose.
    pub(super) fn check(
        header: &Header,
        bytes: u64,
        extensions: Extensions,
        limits: &UnpackLimits,
    ) -> Result<Option<Self>, UnpackError> {
        let name = extensions.path.clone().unwrap_or_else(|| header.path_bytes().into_owned());
        judge(&name, header, bytes, extensions, limits).map_err(|refusal| refusal.of(&name))
    }
}

fn judge(
    name: &[u8],
    header: &Header,
    bytes: u64,
    extensions: Extensions,
    limits: &UnpackLimits,
) -> Result<Option<Entry>, Refusal> {
    let path = components(name, limits)?;
    // Two readings of one size are two different archives.
    if extensions.size.is_some_and(|size| size != bytes) {
        return Err(Refusal::Header { field: "two different sizes" });
    }
    let mode = header.mode().map_err(|_| Refusal::Header { field: "mode" })? & 0o7777;
    let mtime = header.mtime().map_err(|_| Refusal::Header { field: "mtime" })?;
    let mtime = i64::try_from(mtime).map_err(|_| Refusal::Header { field: "mtime" })?;
    let kind = kind(name, header, bytes, extensions.link, limits)?;
    check_mode(mode, &kind, limits.profile)?;

    let (uid, gid) = match limits.profile {
        Profile::Package => {
            match path.first() {
                None if matches!(kind, Kind::Directory) => return Ok(None),
                Some(top) if top == b"app" => {}
                _ => return Err(Refusal::OutsideApp),
            }
            if path.len() == 1 && !matches!(kind, Kind::Directory) {
                return Err(Refusal::OutsideApp);
            }
            (APP_ID, APP_ID)
        }
        Profile::Image => {
            let uid = match extensions.uid {
                Some(uid) => uid,
                None => header.uid().map_err(|_| Refusal::Header { field: "uid" })?,
            };
            let gid = match extensions.gid {
                Some(gid) => gid,
                None => header.gid().map_err(|_| Refusal::Header { field: "gid" })?,
            };
            if path.is_empty() {
                return match kind {
                    Kind::Directory => Ok(None),
                    _ => Err(Refusal::BadName),
                };
            }
            (image_id(uid, uid, gid)?, image_id(gid, uid, gid)?)
        }
    };
    Ok(Some(Entry { name: name.to_owned(), path, kind, mode, uid, gid, mtime }))
}

fn kind(
    name: &[u8],
    header: &Header,
    bytes: u64,
    extended_link: Option<Vec<u8>>,
    limits: &UnpackLimits,
) -> Result<Kind, Refusal> {
    let entry_type = header.entry_type();
    let link = || {
        extended_link
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .filter(|link| !link.is_empty() && link.len() <= limits.path_bytes && !link.contains(&0))
            .ok_or(Refusal::BadLink)
    };
    let kind = match entry_type {
        // Old archives write a directory as a file whose name ends with a slash: not ours.
        EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => {
            return Err(Refusal::Header { field: "a file whose name ends with a slash" });
        }
        EntryType::Regular | EntryType::Continuous => return Ok(Kind::File { bytes }),
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink { target: link()? },
        EntryType::Link => {
            let link = link()?;
            let target =
                components(&link, limits).map_err(|_| Refusal::LinkOut { target: EntryName::new(&link) })?;
            Kind::HardLink { target }
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => return Err(Refusal::Device),
        EntryType::GNUSparse => return Err(Refusal::Sparse),
        other => return Err(Refusal::UnknownType { type_byte: other.as_byte() }),
    };
    // Only files have content; a body elsewhere is where another reader would see more entries.
    if bytes != 0 {
        return Err(Refusal::Header { field: "size of something that is no file" });
    }
    Ok(kind)
}

fn check_mode(mode: u32, kind: &Kind, profile: Profile) -> Result<(), Refusal> {
    let allowed = match (kind, profile) {
        // A symlink's mode means nothing, and a hard link's is its target's, already judged.
        (Kind::Symlink { .. } | Kind::HardLink { .. }, _) => SET_ID | STICKY,
        (Kind::Directory, Profile::Image) => STICKY,
        _ => 0,
    };
    if mode & (SET_ID | STICKY) & !allowed != 0 {
        return Err(Refusal::Mode { mode });
    }
    Ok(())
}

fn image_id(id: u64, uid: u64, gid: u64) -> Result<u32, Refusal> {
    u32::try_from(id).ok().filter(|_| id < IMAGE_IDS).ok_or(Refusal::Owner { uid, gid })
}

/// Splits a path of the archive. `.` and empty components mean nothing and are left out.
fn components(path: &[u8], limits: &UnpackLimits) -> Result<Vec<Vec<u8>>, Refusal> {
    if path.is_empty() || path.contains(&0) {
        return Err(Refusal::BadName);
    }
    if path[0] == b'/' {
        return Err(Refusal::Absolute);
    }
    if path.len() > limits.path_bytes {
        return Err(Refusal::LongName { limit: limits.path_bytes });
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Refusal::ParentDirectory),
            part if part.len() > NAME_MAX => return Err(Refusal::LongName { limit: limits.path_bytes }),
            part => parts.push(part.to_owned()),
        }
    }
    if parts.len() > limits.depth {
        return Err(Refusal::Deep { limit: limits.depth });
    }
    Ok(parts)
}
