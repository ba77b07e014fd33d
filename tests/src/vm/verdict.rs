//! Reads what a machine says over its serial line: `@@ begin NAME` and `@@ end NAME STATUS` around the output
//! of each test program (libtest's), `@@ done` at the end. Pure; a line is read once it is whole.

use std::collections::BTreeMap;
use std::fmt;

/// What libtest said of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    Failed,
    Ignored,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::Ignored => "ignored",
        })
    }
}

/// One program's output.
#[derive(Debug, Default)]
pub(super) struct Section {
    pub(super) verdicts: BTreeMap<String, Verdict>,
    /// As the shell has it: 124 after a timeout, 128 and the signal's number after a kill. `None`: it never ended.
    pub(super) status: Option<i32>,
    pub(super) text: String,
}

/// Something to tell at once.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Verdict {
        program: String,
        test: String,
        verdict: Verdict,
    },
    Skip(String),
    /// A program ended.
    End(String),
    Remark(String),
}

/// All that was read so far.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) sections: BTreeMap<String, Section>,
    pub(super) skips: usize,
    pub(super) done: bool,
    /// What its init said besides.
    pub(super) remarks: Vec<String>,
    current: Option<String>,
    /// Bytes of the transcript that were read.
    read: usize,
}

impl Reading {
    /// Reads what is new in the transcript, which only ever grows.
    pub(super) fn read(&mut self, transcript: &str) -> Vec<Line> {
        let new = &transcript[self.read..];
        let Some(end) = new.rfind('\n') else { return Vec::new() };
        self.read += end + 1;
        new[..end].lines().filter_map(|line| self.line(line)).collect()
    }

    fn line(&mut self, line: &str) -> Option<Line> {
        if let Some(words) = line.strip_prefix("@@ ") {
            return self.marker(words);
        }
        let program = self.current.clone()?;
        let section = self.sections.get_mut(&program)?;
        section.text.push_str(line);
        section.text.push('\n');
        // Not always at the beginning of a line: programs that tests have started share one standard error.
        if let Some(at) = line.find("SKIP: ") {
            self.skips += 1;
            return Some(Line::Skip(line[at..].to_owned()));
        }
        let (test, verdict) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
        let verdict = match verdict.split(',').next()? {
            "ok" => Verdict::Passed,
            "FAILED" => Verdict::Failed,
            "ignored" => Verdict::Ignored,
            _ => return None,
        };
        // `name - should panic`
        let test = test.split(" - ").next()?.to_owned();
        section.verdicts.insert(test.clone(), verdict);
        Some(Line::Verdict { program, test, verdict })
    }

    fn marker(&mut self, words: &str) -> Option<Line> {
        let fields: Vec<&str> = words.split(' ').collect();
        match fields[..] {
            ["begin", name] => {
                self.sections.insert(name.to_owned(), Section::default());
                self.current = Some(name.to_owned());
            }
            ["end", name, status] => {
                self.current = None;
                self.sections.get_mut(name)?.status = status.parse().ok();
                return Some(Line::End(name.to_owned()));
            }
            ["done"] => self.done = true,
            _ => {
                self.remarks.push(words.to_owned());
                return Some(Line::Remark(words.to_owned()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_belong_to_their_program() {
        let mut reading = Reading::default();
        let said = "@@ kernel 6.1\n@@ begin agent-disk\ntest a ... ok\ntest b::c ... FAILED\n\
                    test d ... ignored, slow\nnoise\n@@ end agent-disk 101\n@@ begin shim-x\ntest a ... o";
        let lines = reading.read(said);
        assert_eq!(lines[0], Line::Remark("kernel 6.1".into()));
        assert_eq!(lines[4], Line::End("agent-disk".into()));
        assert_eq!(lines.len(), 5);
        let section = &reading.sections["agent-disk"];
        assert_eq!(section.verdicts["a"], Verdict::Passed);
        assert_eq!(section.verdicts["b::c"], Verdict::Failed);
        assert_eq!(section.verdicts["d"], Verdict::Ignored);
        assert_eq!(section.status, Some(101));
        assert!(section.text.contains("noise"));
        // Not whole yet, and then it is.
        assert!(reading.sections["shim-x"].verdicts.is_empty() && !reading.done);
        let more = format!("{said}k\nSKIP: no\n@@ end shim-x 0\n@@ done\n");
        assert_eq!(reading.read(&more).len(), 3);
        assert_eq!(reading.sections["shim-x"].verdicts["a"], Verdict::Passed);
        assert_eq!((reading.skips, reading.done), (1, true));
    }

    #[test]
    fn what_no_program_said_is_no_verdict() {
        let mut reading = Reading::default();
        assert_eq!(reading.read("test a ... ok\n@@ end nobody 0\n"), []);
        assert!(reading.sections.is_empty());
    }
}
