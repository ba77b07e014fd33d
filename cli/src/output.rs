//! How results reach the reader: JSON for scripts, aligned tables for people, and never a character of
//! an app's output that a terminal would obey instead of showing it.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use chrono::{DateTime, Utc};
use mogok_api::control::client::ClientError;
use serde::Serialize;

/// Where and how results are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Prints `value` as JSON, or what `human` makes of it.
    pub(crate) fn show<T: Serialize>(self, value: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string_pretty(value)? } else { human(value) };
        let text = if io::stdout().is_terminal() { escaped(&text, "\t\n", self.escape()) } else { text };
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        if !text.is_empty() && !text.ends_with('\n') {
            stdout.write_all(b"\n")?;
        }
        Ok(stdout.flush()?)
    }

    /// One line of a stream: JSON per line, or `human`.
    pub(crate) fn line<T: Serialize>(self, value: &T, human: impl FnOnce(&T) -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string(value)? } else { human(value) };
        let text = if io::stdout().is_terminal() { escaped(&text, "\t", self.escape()) } else { text };
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")?;
        Ok(stdout.flush()?)
    }

    /// How a character is written that must not be obeyed: a document stays one that says the same.
    fn escape(self) -> fn(char) -> String {
        if self.json { |c| format!("\\u{:04x}", u32::from(c)) } else { |c| c.escape_default().to_string() }
    }
}

/// Rows under a header, columns aligned by their widest cell.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut push = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    push(&mut header.iter().copied());
    for row in rows {
        push(&mut row.iter().map(String::as_str));
    }
    text
}

/// `12s ago`, `3h ago`: how long something has been so.
pub(crate) fn ago(at: DateTime<Utc>) -> String {
    let seconds = (Utc::now() - at).num_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86_400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// A line without what a terminal would obey: shown as `\u{1b}`. A pipe gets what was written, see [`Output`].
pub(crate) fn without_controls(text: &str) -> String {
    escaped(text, "\t", |c| c.escape_default().to_string())
}

fn escaped(text: &str, kept: &str, escape: fn(char) -> String) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_obeyed(character) && !kept.contains(character) {
            safe.push_str(&escape(character));
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Does it do something to a terminal, or to how what stands around it is shown? Control characters, both line
/// separators, and the embeddings, overrides and isolates of UAX #9, by which text reads other than it is.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An error as `--json` shows it: the platform's own, or one of this command.
#[derive(Debug, Serialize)]
struct Told {
    /// A code of the API, or `failed` for what this command itself found wrong.
    code: serde_json::Value,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Told {
    fn of(error: &anyhow::Error) -> Self {
        if let Some(ClientError::Refused(refusal)) = error.downcast_ref::<ClientError>() {
            let code = serde_json::to_value(refusal.code).unwrap_or_default();
            return Self { code, message: refusal.message.clone(), remedy: refusal.remedy.clone() };
        }
        Self { code: "failed".into(), message: format!("{error:#}"), remedy: None }
    }
}

/// The error and its causes on one line each, or as one JSON document.
pub(crate) fn print_error(error: &anyhow::Error, json: bool) {
    let mut stderr = io::stderr().lock();
    if json && let Ok(text) = serde_json::to_string(&Told::of(error)) {
        let _ = writeln!(stderr, "{text}");
        return;
    }
    let _ = writeln!(stderr, "mogok: {}", without_controls(&error.to_string()));
    for cause in error.chain().skip(1) {
        let _ = writeln!(stderr, "  caused by: {}", without_controls(&cause.to_string()));
    }
}

/// Did the reader of our output go away (`mogok logs | head`)?
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let text = table(&["NAME", "N"], &[vec!["a".into(), "1".into()], vec!["longer".into(), "22".into()]]);
        assert_eq!(text, "NAME    N\na       1\nlonger  22\n");
    }

    #[test]
    fn an_error_is_a_document_with_code_message_and_remedy() {
        use mogok_api::error::{ApiError, ErrorCode};
        let refusal = ApiError::new(ErrorCode::NotFound, "no app x").remedy("list your apps: mogok apps");
        let shown = serde_json::to_value(Told::of(&ClientError::Refused(refusal).into())).unwrap();
        let expected = serde_json::json!(
            { "code": "not_found", "message": "no app x", "remedy": "list your apps: mogok apps" }
        );
        assert_eq!(shown, expected);
        let own = anyhow::anyhow!("no such file").context("cannot read x");
        let shown = serde_json::to_value(Told::of(&own)).unwrap();
        assert_eq!(shown, serde_json::json!({ "code": "failed", "message": "cannot read x: no such file" }));
    }

    #[test]
    fn terminal_escapes_are_shown_and_not_obeyed() {
        assert_eq!(without_controls("a\u{1b}[31mred\t\r"), "a\\u{1b}[31mred\t\\r");
        assert_eq!(without_controls("\u{9b}2J\u{7f}"), "\\u{9b}2J\\u{7f}");
        for shown in ["grün", "שלום \u{200f}عالم", "日本語", "👩\u{200d}💻"] {
            assert_eq!(without_controls(shown), shown);
        }
    }

    #[test]
    fn text_cannot_be_turned_around_on_a_terminal() {
        for turning in
            ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}').chain(['\u{2028}', '\u{2029}'])
        {
            let shown = format!("a\\u{{{:x}}}b", u32::from(turning));
            assert_eq!(without_controls(&format!("a{turning}b")), shown);
        }
    }

    #[test]
    fn a_document_on_a_terminal_is_the_same_document() {
        let value = serde_json::json!({ "line": "a\u{202e}b\u{9b}c\u{1b}\n" });
        let shown =
            escaped(&serde_json::to_string_pretty(&value).unwrap(), "\t\n", Output { json: true }.escape());
        assert!(shown.contains(r"a\u202eb\u009bc\u001b\n"), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
