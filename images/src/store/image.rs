//! Names of images: small files that hold a digest, replaced in one step. Beside each lies a record
//! of what the image was made from; it informs and is not needed to run.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mogok_api::name::{Digest, ImageName};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::unpack::UnpackLimits;

/// What an image was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Hash of the recipe.
    pub recipe: String,
    pub digest: Digest,
    /// Of the packed image.
    pub bytes: u64,
    /// Debian packages and their versions.
    pub packages: BTreeMap<String, String>,
}

impl Store {
    /// The image of this name, with its tree (unpacked if need be).
    pub fn image(&self, name: &ImageName) -> Result<Option<(Digest, PathBuf)>, StoreError> {
        let Some(digest) = self.image_digest(name)? else { return Ok(None) };
        let tree = self.tree(&digest, &UnpackLimits::image())?;
        Ok(Some((digest, tree)))
    }

    /// The digest an image's name stands for now.
    pub fn image_digest(&self, name: &ImageName) -> Result<Option<Digest>, StoreError> {
        let path = self.image_path(name);
        match fs::read_to_string(&path) {
            Ok(text) => text.trim_end().parse().map(Some).map_err(|_| StoreError::BadImage { path }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("read", &path, e)),
        }
    }

    /// All images by name.
    pub fn images(&self) -> Result<Vec<(ImageName, Digest)>, StoreError> {
        let dir = self.root.join("images");
        let mut images = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|e| StoreError::io("list", &dir, e))? {
            let name = entry.map_err(|e| StoreError::io("list", &dir, e))?.file_name();
            let Some(name) = name.to_str().and_then(|name| name.parse::<ImageName>().ok()) else { continue };
            if let Some(digest) = self.image_digest(&name)? {
                images.push((name, digest));
            }
        }
        images.sort();
        Ok(images)
    }

    /// What the image of this name was made from, where it was made into this store.
    pub fn image_record(&self, name: &ImageName) -> Result<Option<ImageRecord>, StoreError> {
        let path = self.image_path(name).with_extension("json");
        match fs::read(&path) {
            // An unreadable record is of an older mogok: as good as none.
            Ok(json) => Ok(serde_json::from_slice(&json).ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("read", &path, e)),
        }
    }

    /// Lets a name stand for a blob that is in the store.
    pub fn set_image(
        &self,
        name: &ImageName,
        digest: &Digest,
        record: &ImageRecord,
    ) -> Result<(), StoreError> {
        if !self.has(digest) {
            return Err(StoreError::NotFound { digest: digest.clone(), store: self.root.clone() });
        }
        let _maker = self.lock_shared()?;
        let path = self.image_path(name);
        let json =
            serde_json::to_vec_pretty(record).map_err(|e| StoreError::io("describe", &path, e.into()))?;
        self.replace_file(&path.with_extension("json"), &json)?;
        self.replace_file(&path, format!("{digest}\n").as_bytes())
    }

    /// Forgets a name; the blob and its tree stay until they are collected. False when there was none.
    pub fn remove_image(&self, name: &ImageName) -> Result<bool, StoreError> {
        let path = self.image_path(name);
        match fs::remove_file(&path) {
            Ok(()) => {
                let record = path.with_extension("json");
                match fs::remove_file(&record) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        Err(StoreError::io("remove", &record, e))
                    }
                    _ => Ok(true),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(StoreError::io("remove", &path, e)),
        }
    }

    /// Writes a small file of the store in one step; the caller holds the store's lock.
    pub(super) fn replace_file(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        let tmp = self.tmp();
        let mut file =
            tempfile::NamedTempFile::new_in(&tmp).map_err(|e| StoreError::io("make a file in", &tmp, e))?;
        file.write_all(content)
            .and_then(|()| file.as_file().sync_all())
            .map_err(|e| StoreError::io("write", path, e))?;
        file.persist(path).map(drop).map_err(|e| StoreError::io("rename a file to", path, e.error))
    }
}
