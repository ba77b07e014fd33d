//! `Gemfile.lock`, as far as the platform needs it: gems with versions, platforms, Ruby and Bundler.
//!
//! A Gemfile is a program and is never run here; its lock file is data. It is hostile data: every size
//! is bounded, and what is not understood is passed over, because Bundler itself judges it in the sandbox.
//! The format: <https://github.com/rubygems/rubygems/blob/master/bundler/lib/bundler/lockfile_parser.rb>.

use std::collections::BTreeMap;

/// Bytes of a lock file at most; that of a large app has some 50 KB.
pub const MAX_BYTES: usize = 4 << 20;
const MAX_LINE: usize = 4096;
const MAX_GEMS: usize = 10_000;
const MAX_PLATFORMS: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockfileError {
    #[error("Gemfile.lock: {0} bytes are too many, at most {MAX_BYTES} are read")]
    TooLarge(usize),
    #[error("Gemfile.lock line {line}: not valid UTF-8")]
    Encoding { line: usize },
    #[error("Gemfile.lock line {line}: longer than {MAX_LINE} bytes")]
    LineTooLong { line: usize },
    #[error("Gemfile.lock line {line}: a merge conflict was committed; resolve it and run: bundle lock")]
    MergeConflict { line: usize },
    #[error("Gemfile.lock line {line}: more than {MAX_GEMS} gems")]
    TooManyGems { line: usize },
    #[error("Gemfile.lock line {line}: more than {MAX_PLATFORMS} platforms")]
    TooManyPlatforms { line: usize },
    #[error("Gemfile.lock: it has no DEPENDENCIES section; make it with: bundle lock")]
    NotALockfile,
    #[error(
        "Gemfile.lock: it is for the platforms {} only; run: bundle lock --add-platform x86_64-linux",
        platforms.join(", ")
    )]
    NoLinux { platforms: Vec<String> },
}

/// What a lock file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lockfile {
    gems: BTreeMap<String, String>,
    pub platforms: Vec<String>,
    /// `3.3.8` of `ruby 3.3.8p144`.
    pub ruby: Option<String>,
    /// `2.6.7` of `BUNDLED WITH`.
    pub bundler: Option<String>,
}

impl Lockfile {
    /// The locked version of a gem, without the platform: `1.16.0` of `1.16.0-x86_64-linux-gnu`.
    #[must_use]
    pub fn version(&self, gem: &str) -> Option<&str> {
        self.gems.get(gem).map(String::as_str)
    }

    /// How many gems are locked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.gems.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gems.is_empty()
    }

    /// Can Bundler install it on the platform's machines without resolving anew?
    ///
    /// # Errors
    /// When it was locked for other systems only, with the command that mends it.
    pub fn check_platform(&self) -> Result<(), LockfileError> {
        let fits = |platform: &String| {
            // With the C library as a suffix where Bundler distinguishes: x86_64-linux-gnu.
            matches!(platform.as_str(), "ruby" | "x86_64-linux" | "x86_64-linux-gnu")
        };
        // Very old lock files have no such section; Bundler takes that as `ruby`.
        if self.platforms.is_empty() || self.platforms.iter().any(fits) {
            return Ok(());
        }
        Err(LockfileError::NoLinux { platforms: self.platforms.iter().take(10).cloned().collect() })
    }

    /// The framework by which people know the app: `Rails 7.2.2`, `Sinatra 4.1.0`, `Rack 3.1.0`.
    #[must_use]
    pub fn framework(&self) -> Option<String> {
        [("rails", "Rails"), ("railties", "Rails"), ("sinatra", "Sinatra"), ("rack", "Rack")]
            .iter()
            .find_map(|(gem, name)| self.version(gem).map(|version| format!("{name} {version}")))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    /// `GEM`, `GIT`, `PATH`, `PLUGIN SOURCE`: sources with gems below `specs:`.
    Source,
    Platforms,
    Dependencies,
    Ruby,
    Bundler,
    /// `CHECKSUMS` and what later versions add.
    Other,
}

/// Reads a lock file.
///
/// # Errors
/// When it is over a bound, no text, has a merge conflict, or is no lock file at all.
pub fn parse(bytes: &[u8]) -> Result<Lockfile, LockfileError> {
    if bytes.len() > MAX_BYTES {
        return Err(LockfileError::TooLarge(bytes.len()));
    }
    let mut lock = Lockfile::default();
    let (mut section, mut dependencies) = (Section::Other, false);
    for (index, raw) in bytes.split(|b| *b == b'\n').enumerate() {
        let line = index + 1;
        if raw.len() > MAX_LINE {
            return Err(LockfileError::LineTooLong { line });
        }
        let text = std::str::from_utf8(raw).map_err(|_| LockfileError::Encoding { line })?.trim_end();
        if ["<<<<<<<", "=======", ">>>>>>>", "|||||||"].iter().any(|mark| text.starts_with(mark)) {
            return Err(LockfileError::MergeConflict { line });
        }
        let item = text.trim_start();
        if item.is_empty() {
            continue;
        }
        let indent = text.len() - item.len();
        if indent == 0 {
            section = match item {
                "GEM" | "GIT" | "PATH" | "PLUGIN SOURCE" => Section::Source,
                "PLATFORMS" => Section::Platforms,
                "DEPENDENCIES" => Section::Dependencies,
                "RUBY VERSION" => Section::Ruby,
                "BUNDLED WITH" => Section::Bundler,
                _ => Section::Other,
            };
            dependencies |= section == Section::Dependencies;
            continue;
        }
        match section {
            // Four spaces: a gem. Six: what it needs.
            Section::Source if indent == 4 => {
                if let Some((name, version)) = gem(item) {
                    if lock.gems.len() == MAX_GEMS && !lock.gems.contains_key(name) {
                        return Err(LockfileError::TooManyGems { line });
                    }
                    lock.gems.entry(name.to_owned()).or_insert_with(|| version.to_owned());
                }
            }
            Section::Platforms => {
                if lock.platforms.len() == MAX_PLATFORMS {
                    return Err(LockfileError::TooManyPlatforms { line });
                }
                lock.platforms.push(shown(item));
            }
            Section::Ruby => lock.ruby = lock.ruby.take().or_else(|| ruby(item)),
            Section::Bundler => lock.bundler = lock.bundler.take().or_else(|| version(item)),
            Section::Source | Section::Dependencies | Section::Other => {}
        }
    }
    if dependencies { Ok(lock) } else { Err(LockfileError::NotALockfile) }
}

/// `nokogiri (1.16.0-x86_64-linux-gnu)` -> nokogiri, 1.16.0.
fn gem(item: &str) -> Option<(&str, &str)> {
    let (name, rest) = item.split_once(" (")?;
    let full = rest.strip_suffix(')')?;
    let version = full.split_once('-').map_or(full, |(version, _)| version);
    let named = !name.is_empty()
        && name.len() <= 255
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    (named && is_version(version)).then_some((name, version))
}

/// `ruby 3.3.8p144` -> 3.3.8; `ruby 3.3.0.preview1` stays.
fn ruby(item: &str) -> Option<String> {
    let text = item.strip_prefix("ruby ")?;
    let text = text.split_whitespace().next()?;
    let end = text.rfind('p').filter(|at| {
        let patch = &text[at + 1..];
        !patch.is_empty() && patch.bytes().all(|b| b.is_ascii_digit())
    });
    version(&text[..end.unwrap_or(text.len())])
}

fn version(item: &str) -> Option<String> {
    is_version(item).then(|| item.to_owned())
}

fn is_version(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.')
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RAILS: &str = "\
GIT
  remote: https://example.com/widget.git
  revision: 0123456789abcdef
  specs:
    widget (0.1.0)
      rack (>= 2)

GEM
  remote: https://rubygems.org/
  specs:
    actionpack (7.2.2.1)
      rack (>= 2.2.4, < 3.2)
    nokogiri (1.18.2)
      racc (~> 1.4)
    nokogiri (1.18.2-x86_64-linux-gnu)
      racc (~> 1.4)
    puma (6.6.0)
      nio4r (~> 2.0)
    rack (3.1.16)
    rails (7.2.2.1)
      actionpack (= 7.2.2.1)

PLATFORMS
  ruby
  x86_64-linux-gnu

DEPENDENCIES
  puma (>= 5.0)
  rails (~> 7.2.2)
  widget!

CHECKSUMS
  rack (3.1.16) sha256=efed

RUBY VERSION
   ruby 3.3.8p144

BUNDLED WITH
   2.6.7
";

    #[test]
    fn a_lock_of_rails_is_read() {
        for text in [RAILS.to_owned(), RAILS.replace('\n', "\r\n")] {
            let lock = parse(text.as_bytes()).unwrap();
            assert_eq!(lock.len(), 6);
            assert_eq!(lock.version("rails"), Some("7.2.2.1"));
            assert_eq!(lock.version("nokogiri"), Some("1.18.2"));
            assert_eq!(lock.version("widget"), Some("0.1.0"));
            assert_eq!(lock.version("nio4r"), None);
            assert_eq!(lock.platforms, ["ruby", "x86_64-linux-gnu"]);
            assert_eq!(lock.ruby.as_deref(), Some("3.3.8"));
            assert_eq!(lock.bundler.as_deref(), Some("2.6.7"));
            assert_eq!(lock.framework().as_deref(), Some("Rails 7.2.2.1"));
            lock.check_platform().unwrap();
        }
    }

    #[test]
    fn a_lock_for_other_systems_names_the_remedy() {
        let lock = parse(b"PLATFORMS\n  arm64-darwin-24\n  x64-mingw-ucrt\n\nDEPENDENCIES\n").unwrap();
        assert_eq!(
            lock.check_platform().unwrap_err().to_string(),
            "Gemfile.lock: it is for the platforms arm64-darwin-24, x64-mingw-ucrt only; \
             run: bundle lock --add-platform x86_64-linux"
        );
        for platform in ["ruby", "x86_64-linux", "x86_64-linux-gnu"] {
            let text = format!("PLATFORMS\n  arm64-darwin\n  {platform}\nDEPENDENCIES\n");
            parse(text.as_bytes()).unwrap().check_platform().unwrap();
        }
        for platform in ["x86_64-linux-musl", "aarch64-linux"] {
            let text = format!("PLATFORMS\n  {platform}\nDEPENDENCIES\n");
            assert!(parse(text.as_bytes()).unwrap().check_platform().is_err(), "{platform}");
        }
        parse(b"DEPENDENCIES\n").unwrap().check_platform().unwrap();
    }

    #[test]
    fn what_is_no_lock_file_is_refused() {
        assert_eq!(parse(b"").unwrap_err(), LockfileError::NotALockfile);
        assert_eq!(parse(b"source 'https://rubygems.org'\n").unwrap_err(), LockfileError::NotALockfile);
        let conflict = "GEM\n  specs:\n<<<<<<< HEAD\n    a (1)\n=======\n    a (2)\n";
        assert_eq!(parse(conflict.as_bytes()).unwrap_err(), LockfileError::MergeConflict { line: 3 });
        assert_eq!(parse(b"GEM\n\xff\n").unwrap_err(), LockfileError::Encoding { line: 2 });
        assert_eq!(parse(&vec![b'x'; MAX_LINE + 1]).unwrap_err(), LockfileError::LineTooLong { line: 1 });
        assert_eq!(parse(&vec![b'\n'; MAX_BYTES + 1]).unwrap_err(), LockfileError::TooLarge(MAX_BYTES + 1));
        let many: String = (0..=MAX_GEMS).map(|n| format!("    g{n} (1)\n")).collect();
        assert!(matches!(
            parse(format!("GEM\n{many}").as_bytes()).unwrap_err(),
            LockfileError::TooManyGems { .. }
        ));
        let many = "  ruby\n".repeat(MAX_PLATFORMS + 1);
        assert!(matches!(
            parse(format!("PLATFORMS\n{many}").as_bytes()).unwrap_err(),
            LockfileError::TooManyPlatforms { .. }
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_damage_to_a_lock_is_read_or_refused(at in 0..RAILS.len(), byte in any::<u8>(), cut in any::<bool>()) {
            let mut bytes = RAILS.as_bytes().to_vec();
            bytes[at] = byte;
            if cut { bytes.truncate(at); }
            if let Ok(lock) = parse(&bytes) {
                prop_assert!(lock.len() <= 8);
                let _ = (lock.framework(), lock.check_platform());
            }
        }
    }
}
