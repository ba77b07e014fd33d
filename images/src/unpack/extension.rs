//! Extension records: GNU long names (`L`, `K`) and pax headers (`x`, `g`), each of which describes
//! the entry behind it. They are read here, capped, so that none costs memory.
//!
//! Source: pax(1p), "pax Extended Header"; tar(5), "GNU Tar Archives".

use std::io::Read;

use tar::{Entry, EntryType, PaxExtensions};

use super::error::{Refusal, UnpackError};

/// Bytes of one record: long names are capped far below this, and no other key is needed.
const RECORD_BYTES: u64 = 64 * 1024;

/// What the records said about the next entry. Later records overrule earlier ones.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Name of the last record, for errors.
    record: Option<Vec<u8>>,
}

impl Extensions {
    /// Takes the entry in if it is an extension record; false when it is an entry of its own.
    pub(super) fn absorb(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<bool, UnpackError> {
        let kind = entry.header().entry_type();
        let wanted = matches!(
            kind,
            EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
        );
        if !wanted {
            return Ok(false);
        }
        let name = entry.header().path_bytes().into_owned();
        let refused = |what| Refusal::Extension { what }.of(&name);
        if entry.size() > RECORD_BYTES {
            return Err(refused("too large"));
        }
        let mut data = Vec::new();
        entry.take(RECORD_BYTES).read_to_end(&mut data).map_err(UnpackError::Read)?;
        match kind {
            EntryType::GNULongName => self.path = Some(without_nul(data)),
            EntryType::GNULongLink => self.link = Some(without_nul(data)),
            EntryType::XHeader => self.absorb_pax(&data).map_err(refused)?,
            // `git archive` puts the commit into one; anything else would rename entries unseen.
            _ => {
                let comments = PaxExtensions::new(&data)
                    .all(|record| record.is_ok_and(|record| record.key_bytes() == b"comment"));
                if !comments {
                    return Err(refused("global header"));
                }
                return Ok(true);
            }
        }
        self.record = Some(name);
        Ok(true)
    }

    fn absorb_pax(&mut self, data: &[u8]) -> Result<(), &'static str> {
        for record in PaxExtensions::new(data) {
            let record = record.map_err(|_| "pax record")?;
            let value = record.value_bytes();
            let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
            match record.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number().ok_or("pax size")?),
                b"uid" => self.uid = Some(number().ok_or("pax uid")?),
                b"gid" => self.gid = Some(number().ok_or("pax gid")?),
                key if key.starts_with(b"GNU.sparse.") => return Err("sparse file"),
                // Times, owner names and extended attributes (file capabilities among them) are not
                // taken over.
                _ => {}
            }
        }
        Ok(())
    }

    /// The records of the entry at hand; the next one starts without any.
    pub(super) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// An archive must not end behind a record.
    pub(super) fn none_left(&self) -> Result<(), UnpackError> {
        match &self.record {
            Some(name) => Err(Refusal::Truncated.of(name)),
            None => Ok(()),
        }
    }
}

/// GNU long names end with a NUL that is not part of the name.
fn without_nul(mut data: Vec<u8>) -> Vec<u8> {
    if data.last() == Some(&0) {
        data.pop();
    }
    data
}
