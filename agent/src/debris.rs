//! Removing what lies where something of ours belongs, whatever it is.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Removes a file, a link (not what it leads to) or a directory with all that is in it. Does nothing when there is
/// nothing.
///
/// # Errors
/// Those of unlink(2) and rmdir(2).
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Is there anything in a directory?
pub(crate) fn has_entries(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_it_is_it_goes_and_what_a_link_leads_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("kept/inside")).unwrap();
        fs::create_dir_all(at("dir/inside")).unwrap();
        fs::write(at("file"), "x").unwrap();
        std::os::unix::fs::symlink("kept", at("link")).unwrap();
        for name in ["dir", "file", "link", "nothing"] {
            remove(&at(name)).unwrap();
            assert!(fs::symlink_metadata(at(name)).is_err(), "{name}");
        }
        assert!(at("kept/inside").exists());
    }
}
