//! A recipe: the directory that says what an image is. `recipe.toml` names the Debian suite and
//! packages; what lies below `files/` is copied over the root, owned by root.
//!
//! A recipe's hash covers everything that decides the image but the state of the Debian archive.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mogok_api::name::ImageName;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Raised when images are made in another way from the same recipe.
const BUILDER_VERSION: u32 = 1;
const FILES_MAX: usize = 1000;

/// Why a recipe cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("cannot read {path}: a recipe is a directory with a recipe.toml")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is malformed")]
    Malformed { path: PathBuf, source: toml::de::Error },
    #[error("{path}: {value:?} is no {what} (lower-case letters, digits, and +-._)")]
    Word { path: PathBuf, what: &'static str, value: String },
    #[error("{path} is neither a file nor a directory nor a symlink")]
    FileKind { path: PathBuf },
    #[error("{path} holds more than {FILES_MAX} files")]
    TooManyFiles { path: PathBuf },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Toml {
    name: ImageName,
    description: String,
    suite: String,
    packages: Vec<String>,
    /// dpkg path patterns of files that are not installed.
    #[serde(default)]
    exclude: Vec<String>,
}

/// A recipe, read and checked.
#[derive(Debug)]
pub struct Recipe {
    pub name: ImageName,
    pub description: String,
    pub suite: String,
    pub packages: Vec<String>,
    pub exclude: Vec<String>,
    /// Below `files/`, sorted; parents before children.
    pub files: Vec<RecipeFile>,
    /// 64 hexadecimal digits.
    pub hash: String,
}

/// A file, directory or symlink to lay over the root.
#[derive(Debug)]
pub struct RecipeFile {
    /// Relative to the root.
    pub path: PathBuf,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    Directory,
    File { bytes: Vec<u8>, executable: bool },
    Symlink { target: PathBuf },
}

impl Recipe {
    /// Reads the recipe in a directory.
    pub fn read(dir: &Path) -> Result<Self, RecipeError> {
        let path = dir.join("recipe.toml");
        let text =
            fs::read_to_string(&path).map_err(|source| RecipeError::Read { path: path.clone(), source })?;
        let toml: Toml =
            toml::from_str(&text).map_err(|source| RecipeError::Malformed { path: path.clone(), source })?;
        check_word(&path, "suite", &toml.suite)?;
        for package in &toml.packages {
            check_word(&path, "package name", package)?;
        }
        let mut files = Vec::new();
        let overlay = dir.join("files");
        if overlay.is_dir() {
            read_files(&overlay, Path::new(""), &mut files)?;
        }
        let hash = hash(&text, &files);
        let Toml { name, description, suite, packages, exclude } = toml;
        Ok(Self { name, description, suite, packages, exclude, files, hash })
    }
}

fn check_word(path: &Path, what: &'static str, value: &str) -> Result<(), RecipeError> {
    let good = value.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-._".contains(&b));
    good.then_some(()).ok_or_else(|| RecipeError::Word {
        path: path.to_owned(),
        what,
        value: value.to_owned(),
    })
}

fn read_files(dir: &Path, relative: &Path, files: &mut Vec<RecipeFile>) -> Result<(), RecipeError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RecipeError::Read { path, source }
    };
    let mut entries =
        fs::read_dir(dir).and_then(|entries| entries.collect::<Result<Vec<_>, _>>()).map_err(failed(dir))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let relative = relative.join(entry.file_name());
        let meta = fs::symlink_metadata(&path).map_err(failed(&path))?;
        if files.len() == FILES_MAX {
            return Err(RecipeError::TooManyFiles { path: dir.to_owned() });
        }
        let content = if meta.is_dir() {
            Content::Directory
        } else if meta.is_symlink() {
            Content::Symlink { target: fs::read_link(&path).map_err(failed(&path))? }
        } else if meta.is_file() {
            Content::File {
                bytes: fs::read(&path).map_err(failed(&path))?,
                executable: meta.permissions().mode() & 0o100 != 0,
            }
        } else {
            return Err(RecipeError::FileKind { path });
        };
        let descend = matches!(content, Content::Directory);
        files.push(RecipeFile { path: relative.clone(), content });
        if descend {
            read_files(&path, &relative, files)?;
        }
    }
    Ok(())
}

fn hash(text: &str, files: &[RecipeFile]) -> String {
    let mut hash = Sha256::new();
    // Every part with its length, so that no two recipes run together into the same bytes.
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(&BUILDER_VERSION.to_be_bytes());
    part(std::env::consts::ARCH.as_bytes());
    part(text.as_bytes());
    for file in files {
        part(file.path.as_os_str().as_encoded_bytes());
        match &file.content {
            Content::Directory => part(b"directory"),
            Content::Symlink { target } => {
                part(b"symlink");
                part(target.as_os_str().as_encoded_bytes());
            }
            Content::File { bytes, executable } => {
                part(if *executable { b"program" } else { b"file" });
                part(bytes);
            }
        }
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(toml: &str, mode: u32) -> Result<Recipe, RecipeError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("recipe.toml"), toml).unwrap();
        fs::create_dir_all(dir.path().join("files/usr/bin")).unwrap();
        let program = dir.path().join("files/usr/bin/x");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        Recipe::read(dir.path())
    }

    const GOOD: &str =
        "name = 'ruby'\ndescription = 'x'\nsuite = 'trixie'\npackages = ['libstdc++6', 'ruby']\n";

    #[test]
    fn the_hash_follows_every_input() {
        let first = recipe(GOOD, 0o755).unwrap();
        assert_eq!(first.hash, recipe(GOOD, 0o755).unwrap().hash);
        assert_ne!(first.hash, recipe(GOOD, 0o644).unwrap().hash);
        assert_ne!(first.hash, recipe(&GOOD.replace("'ruby']", "'ruby3.3']"), 0o755).unwrap().hash);
        let paths: Vec<_> = first.files.iter().map(|file| file.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["usr", "usr/bin", "usr/bin/x"]);
    }

    #[test]
    fn words_that_could_be_options_or_paths_are_refused() {
        for bad in ["--help", "a b", "a,b", "../x", "Ruby", ""] {
            let toml = GOOD.replace("libstdc++6", bad);
            assert!(matches!(recipe(&toml, 0o755), Err(RecipeError::Word { .. })), "{bad}");
        }
        assert!(matches!(recipe("nam = 'x'", 0o755), Err(RecipeError::Malformed { .. })));
    }
}
