//! What is checked of a commit before anything runs: is it a Ruby app, can its gems be installed here,
//! which processes has it. Reads files as data and never evaluates one.

use crate::lockfile::{self, Lockfile};
use crate::procfile::{self, Processes};

/// The files of a commit that are looked at; absent where the commit has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SourceFiles {
    pub(super) gemfile: bool,
    pub(super) lock: Option<Vec<u8>>,
    pub(super) procfile: Option<Vec<u8>>,
    pub(super) config_ru: bool,
    pub(super) submodules: bool,
    /// A directory `vendor/cache`.
    pub(super) cached_gems: bool,
}

/// A commit that can be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) lock: Lockfile,
    pub(super) processes: Processes,
}

/// Checks the files.
///
/// # Errors
/// The reason why it cannot be built, in one line, with the remedy.
pub(super) fn check(files: &SourceFiles) -> Result<Checked, String> {
    if !files.gemfile {
        return Err("no Gemfile at the top of the commit: only Ruby apps can be built yet".to_owned());
    }
    let lock = files
        .lock
        .as_deref()
        .ok_or("no Gemfile.lock at the top of the commit: run bundle lock and commit it")?;
    let lock = lockfile::parse(lock).map_err(|error| error.to_string())?;
    lock.check_platform().map_err(|error| error.to_string())?;
    let mut processes = match &files.procfile {
        Some(bytes) => procfile::parse(bytes).map_err(|error| error.to_string())?,
        None => procfile::default_for(&lock, files.config_ru).ok_or(
            "no Procfile, and neither Rails nor a config.ru with the gem rack: \
             add a Procfile, for example with the line \"web: bundle exec ruby app.rb -p $PORT\"",
        )?,
    };
    if files.submodules {
        processes.warnings.push("the commit has git submodules: they are not fetched".to_owned());
    }
    if files.cached_gems {
        let warning = "the commit has vendor/cache: Bundler takes every gem from there and fetches none; if it lacks \
                       one, run bundle lock --add-platform x86_64-linux and bundle cache --all-platforms, and commit \
                       both, or take vendor/cache out of the commit";
        processes.warnings.push(warning.to_owned());
    }
    Ok(Checked { lock, processes })
}

#[cfg(test)]
mod tests {
    use mogok_api::name::ProcessType;

    use super::*;

    const LOCK: &[u8] = b"GEM\n  specs:\n    rack (3.1.0)\n\nPLATFORMS\n  ruby\n\nDEPENDENCIES\n  rack\n";

    fn rack() -> SourceFiles {
        SourceFiles { gemfile: true, lock: Some(LOCK.to_vec()), config_ru: true, ..SourceFiles::default() }
    }

    #[test]
    fn what_cannot_be_built_says_why() {
        let refused = |files: &SourceFiles| check(files).unwrap_err();
        assert!(refused(&SourceFiles::default()).starts_with("no Gemfile at the top"));
        assert!(refused(&SourceFiles { lock: None, ..rack() }).starts_with("no Gemfile.lock at the top"));
        assert!(refused(&SourceFiles { config_ru: false, ..rack() }).starts_with("no Procfile"));
        let broken = SourceFiles { procfile: Some(b"web".to_vec()), ..rack() };
        assert!(refused(&broken).starts_with("Procfile line 1: "), "{}", refused(&broken));
        let darwin = String::from_utf8(LOCK.to_vec()).unwrap().replace("ruby", "arm64-darwin");
        let darwin = SourceFiles { lock: Some(darwin.into_bytes()), ..rack() };
        assert!(
            refused(&darwin).ends_with("bundle lock --add-platform x86_64-linux"),
            "{}",
            refused(&darwin)
        );
    }

    #[test]
    fn what_can_be_built_has_processes() {
        let checked = check(&rack()).unwrap();
        assert!(checked.processes.commands[&ProcessType::web()].starts_with("bundle exec rackup"));
        let own = SourceFiles { procfile: Some(b"web: x\n".to_vec()), submodules: true, ..rack() };
        let checked = check(&own).unwrap();
        assert_eq!(checked.processes.commands[&ProcessType::web()], "x");
        assert!(checked.processes.warnings[0].contains("submodules"));
        let cached = check(&SourceFiles { cached_gems: true, ..rack() }).unwrap();
        let warnings = &cached.processes.warnings;
        assert!(warnings.iter().any(|warning| warning.contains("vendor/cache")), "{warnings:?}");
    }
}
