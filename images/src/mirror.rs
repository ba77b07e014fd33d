//! Where Debian packages come from: the mirrors of this machine's own apt settings, so that no
//! host name stands in a recipe and images are built the same way behind a proxy or a local mirror.

use std::io;
use std::process::Command;

/// Why no mirror is known.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("cannot run apt-get: images are built on Debian or a derivative")]
    AptGet(#[source] io::Error),
    #[error("`apt-get indextargets` failed: {message}")]
    Failed { message: String },
    #[error(
        "apt has no Debian archive with package lists: add one to its sources, then run `apt-get update`"
    )]
    None,
}

/// Base addresses of the Debian archive and, where apt has one, of its security archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    archive: String,
    security: Option<String>,
}

impl Mirrors {
    /// Reads them from apt.
    pub fn of_this_machine() -> Result<Self, MirrorError> {
        let output = Command::new("apt-get")
            .args(["indextargets", "--format", "$(LABEL)\t$(SITE)", "Created-By: Packages"])
            .output()
            .map_err(MirrorError::AptGet)?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(MirrorError::Failed { message });
        }
        Self::parse(&String::from_utf8_lossy(&output.stdout)).ok_or(MirrorError::None)
    }

    /// `targets`: lines of an archive's label, a tab, and its address.
    fn parse(targets: &str) -> Option<Self> {
        let labelled = |wanted: &str| {
            let sites = targets.lines().filter_map(|line| line.split_once('\t'));
            sites.filter(|(label, _)| *label == wanted).map(|(_, site)| site.to_owned()).next()
        };
        Some(Self { archive: labelled("Debian")?, security: labelled("Debian-Security") })
    }

    /// Lines of a sources.list for a suite: the release, its updates, its security updates.
    ///
    /// `kinds` are `deb` and `deb-src`.
    #[must_use]
    pub fn sources(&self, suite: &str, kinds: &[&str]) -> String {
        let mut lines = String::new();
        for kind in kinds {
            lines += &format!("{kind} {} {suite} main\n", self.archive);
            lines += &format!("{kind} {} {suite}-updates main\n", self.archive);
            if let Some(security) = &self.security {
                lines += &format!("{kind} {security} {suite}-security main\n");
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_archive_of_each_label_is_taken() {
        let mirrors = Mirrors::parse(
            "Other\thttp://other.example/x\nDebian\thttp://mirror.example/debian\n\
             Debian\thttp://second.example/debian\nDebian-Security\thttp://mirror.example/security\n",
        )
        .unwrap();
        assert_eq!(
            mirrors.sources("trixie", &["deb"]),
            "deb http://mirror.example/debian trixie main\n\
             deb http://mirror.example/debian trixie-updates main\n\
             deb http://mirror.example/security trixie-security main\n"
        );
        assert_eq!(Mirrors::parse("Other\thttp://other.example/x\n"), None);
    }
}
