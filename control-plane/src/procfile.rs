//! The Procfile: which processes an app has and how each is started.
//!
//! `TYPE: COMMAND` lines, `#` comments and empty lines. Anything else is an error that names the line,
//! because a process that is silently missing is found out too late. Without a Procfile, Rails and Rack
//! apps get the usual web process.

use std::collections::BTreeMap;

use mogok_api::name::ProcessType;

use crate::lockfile::Lockfile;

/// Bytes of a Procfile at most.
pub const MAX_BYTES: usize = 64 << 10;
/// Process types of an app at most.
pub const MAX_TYPES: usize = 50;
/// Bytes of one command at most.
pub const MAX_COMMAND: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProcfileError {
    #[error("Procfile: {0} bytes are too many, at most {MAX_BYTES} are read")]
    TooLarge(usize),
    #[error("Procfile line {line}: not valid UTF-8")]
    Encoding { line: usize },
    #[error(
        "Procfile line {line}: expected TYPE: COMMAND, for example \"web: bin/rails server\", found {text:?}"
    )]
    Malformed { line: usize, text: String },
    #[error(
        "Procfile line {line}: invalid process type in {text:?}: use 1 to 63 letters, digits, hyphens and underscores"
    )]
    BadType { line: usize, text: String },
    #[error("Procfile line {line}: process type {kind} has no command: {text:?}")]
    NoCommand { line: usize, kind: ProcessType, text: String },
    #[error("Procfile line {line}: control character in {text:?}")]
    ControlCharacter { line: usize, text: String },
    #[error("Procfile line {line}: the command is longer than {MAX_COMMAND} bytes: {text:?}")]
    CommandTooLong { line: usize, text: String },
    #[error("Procfile line {line}: process type {kind} was already given in line {first}: {text:?}")]
    Duplicate { line: usize, kind: ProcessType, first: usize, text: String },
    #[error("Procfile line {line}: more than {MAX_TYPES} process types")]
    TooMany { line: usize },
    #[error(
        "Procfile: it names no process; add a line such as \"web: bin/rails server -b 0.0.0.0 -p $PORT\""
    )]
    Empty,
}

/// What an app runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processes {
    pub commands: BTreeMap<ProcessType, String>,
    /// What the developer should know, in the build log.
    pub warnings: Vec<String>,
}

impl Processes {
    /// The types, for people: `web, worker`.
    #[must_use]
    pub fn types(&self) -> String {
        self.commands.keys().map(ProcessType::as_str).collect::<Vec<_>>().join(", ")
    }
}

/// Reads a Procfile.
///
/// # Errors
/// For the first line that breaks the rules, with its number (from 1) and text.
pub fn parse(bytes: &[u8]) -> Result<Processes, ProcfileError> {
    if bytes.len() > MAX_BYTES {
        return Err(ProcfileError::TooLarge(bytes.len()));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut found: BTreeMap<ProcessType, (usize, String)> = BTreeMap::new();
    for (index, raw) in bytes.split(|b| *b == b'\n').enumerate() {
        let line = index + 1;
        let raw = std::str::from_utf8(raw).map_err(|_| ProcfileError::Encoding { line })?.trim();
        if raw.is_empty() || raw.starts_with('#') {
            continue;
        }
        let (kind, command) = entry(line, raw)?;
        if let Some((first, _)) = found.get(&kind) {
            return Err(ProcfileError::Duplicate { line, kind, first: *first, text: shown(raw) });
        }
        if found.len() == MAX_TYPES {
            return Err(ProcfileError::TooMany { line });
        }
        found.insert(kind, (line, command));
    }
    if found.is_empty() {
        return Err(ProcfileError::Empty);
    }
    let mut warnings = Vec::new();
    if !found.contains_key(&ProcessType::web()) {
        warnings.push("the Procfile has no web process: the app will not answer requests".to_owned());
    }
    if found.keys().any(|kind| kind.as_str() == "release") {
        warnings.push("the Procfile has a release process: it is not run by itself yet".to_owned());
    }
    let commands = found.into_iter().map(|(kind, (_, command))| (kind, command)).collect();
    Ok(Processes { commands, warnings })
}

fn entry(line: usize, raw: &str) -> Result<(ProcessType, String), ProcfileError> {
    let text = || shown(raw);
    let (kind, command) =
        raw.split_once(':').ok_or_else(|| ProcfileError::Malformed { line, text: text() })?;
    let kind: ProcessType =
        kind.trim_end().parse().map_err(|_| ProcfileError::BadType { line, text: text() })?;
    let command = command.trim();
    if command.is_empty() {
        return Err(ProcfileError::NoCommand { line, kind, text: text() });
    }
    if command.len() > MAX_COMMAND {
        return Err(ProcfileError::CommandTooLong { line, text: text() });
    }
    if command.chars().any(|c| c.is_control() && c != '\t') {
        return Err(ProcfileError::ControlCharacter { line, text: text() });
    }
    Ok((kind, command.to_owned()))
}

/// What an error shows of a line.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The processes of an app without a Procfile; none when it is neither Rails nor Rack.
#[must_use]
pub fn default_for(lock: &Lockfile, has_config_ru: bool) -> Option<Processes> {
    let command = if lock.version("rails").or_else(|| lock.version("railties")).is_some() {
        // Puma by itself reads config/puma.rb, as `rails server` does, and nothing of Rails' server command.
        if lock.version("puma").is_some() {
            "bundle exec puma -b tcp://0.0.0.0:$PORT -e $RAILS_ENV"
        } else {
            "bin/rails server -b 0.0.0.0 -p $PORT -e $RAILS_ENV"
        }
    } else if lock.version("rack").is_some() && has_config_ru {
        "bundle exec rackup config.ru -o 0.0.0.0 -p $PORT"
    } else {
        return None;
    };
    let warning = format!("no Procfile: using \"web: {command}\"; write it to a Procfile to choose yourself");
    Some(Processes {
        commands: BTreeMap::from([(ProcessType::web(), command.to_owned())]),
        warnings: vec![warning],
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn commands(text: &str) -> Vec<(String, String)> {
        let found = parse(text.as_bytes()).unwrap().commands;
        found.into_iter().map(|(kind, command)| (kind.to_string(), command)).collect()
    }

    fn pair(kind: &str, command: &str) -> (String, String) {
        (kind.to_owned(), command.to_owned())
    }

    #[test]
    fn types_and_commands_are_read() {
        let text = "# the app\r\nweb:  bundle exec puma -p $PORT # not a comment\r\n\r\n  \
                    worker_2 : FOO=a:b sidekiq\r\nrelease:rake db:migrate";
        assert_eq!(
            commands(text),
            [
                pair("release", "rake db:migrate"),
                pair("web", "bundle exec puma -p $PORT # not a comment"),
                pair("worker_2", "FOO=a:b sidekiq"),
            ]
        );
        assert_eq!(parse(text.as_bytes()).unwrap().types(), "release, web, worker_2");
        assert_eq!(commands("\u{feff}web: x\n"), [pair("web", "x")]);
        let warnings = parse(b"worker: x").unwrap().warnings;
        assert!(warnings[0].contains("no web process"), "{warnings:?}");
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, error) in [
            (
                "web: x\n\nworker sidekiq\n",
                "Procfile line 3: expected TYPE: COMMAND, for example \"web: bin/rails server\", \
                 found \"worker sidekiq\"",
            ),
            ("web: x\nweb: y", "Procfile line 2: process type web was already given in line 1: \"web: y\""),
            ("web:   \r\n", "Procfile line 1: process type web has no command: \"web:\""),
            (
                "we b: x",
                "Procfile line 1: invalid process type in \"we b: x\": \
                 use 1 to 63 letters, digits, hyphens and underscores",
            ),
            ("web: a\u{7}b", "Procfile line 1: control character in \"web: a\\u{7}b\""),
            (
                "# nothing\n",
                "Procfile: it names no process; \
                 add a line such as \"web: bin/rails server -b 0.0.0.0 -p $PORT\"",
            ),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap_err().to_string(), error);
        }
        assert_eq!(parse(b"web: x\n\xff: y").unwrap_err(), ProcfileError::Encoding { line: 2 });
        assert_eq!(parse(&vec![b'#'; MAX_BYTES + 1]).unwrap_err(), ProcfileError::TooLarge(MAX_BYTES + 1));
        let long = format!("web: {}", "x".repeat(MAX_COMMAND + 1));
        assert!(matches!(parse(long.as_bytes()), Err(ProcfileError::CommandTooLong { line: 1, .. })));
        let many: String = (0..=MAX_TYPES).map(|n| format!("w{n}: x\n")).collect();
        assert_eq!(parse(many.as_bytes()).unwrap_err(), ProcfileError::TooMany { line: MAX_TYPES + 1 });
    }

    #[test]
    fn without_a_procfile_rails_and_rack_have_a_web_process() {
        let lock = |gems: &[&str]| {
            let specs: String = gems.iter().map(|gem| format!("    {gem} (1.0)\n")).collect();
            let text = format!(
                "GEM\n  remote: https://rubygems.org/\n  specs:\n{specs}\nPLATFORMS\n  ruby\n\nDEPENDENCIES\n"
            );
            crate::lockfile::parse(text.as_bytes()).unwrap()
        };
        let web = |gems: &[&str], config_ru| {
            default_for(&lock(gems), config_ru).map(|p| p.commands[&ProcessType::web()].clone())
        };
        assert_eq!(
            web(&["rails", "rack"], true).unwrap(),
            "bin/rails server -b 0.0.0.0 -p $PORT -e $RAILS_ENV"
        );
        assert_eq!(
            web(&["rails", "puma"], true).unwrap(),
            "bundle exec puma -b tcp://0.0.0.0:$PORT -e $RAILS_ENV"
        );
        assert_eq!(web(&["rack"], true).unwrap(), "bundle exec rackup config.ru -o 0.0.0.0 -p $PORT");
        assert_eq!(web(&["rack"], false), None);
        assert_eq!(web(&["json"], true), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn what_was_read_says_the_same_when_written(text in "([a-z]{1,3} ?:[ -~]{0,6}[\r]?\n){0,6}") {
            if let Ok(read) = parse(text.as_bytes()) {
                let written: String = read.commands.iter().map(|(k, c)| format!("{k}: {c}\n")).collect();
                prop_assert_eq!(parse(written.as_bytes()).unwrap(), read);
            }
        }

        #[test]
        fn a_broken_line_is_found_wherever_it_is(before in 0usize..20) {
            let mut text: String = (0..before).map(|n| format!("p{n}: x\n")).collect();
            text.push_str("broken\n");
            let error = parse(text.as_bytes()).unwrap_err();
            prop_assert_eq!(error, ProcfileError::Malformed { line: before + 1, text: "broken".to_owned() });
        }
    }
}
