//! One line on disk: `SEQ MICROS SOURCE PROCESS TEXT\n`.
//!
//! Everything hostile is taken out before it is written (newlines, NUL, bytes that are no UTF-8, more
//! than 10,000 bytes), so that a newline in the file always ends a record.

use chrono::DateTime;
use mogok_api::control::{LogLine, LogSource};

use super::NewLine;

/// Bytes of a line's text at most.
pub(super) const MAX_LINE: usize = 10_000;
/// Bytes of a process name at most; the longest type has 63.
const MAX_PROCESS: usize = 80;
/// No record is longer: the text, the process, two numbers of 20 digits and a source.
pub(super) const MAX_RECORD: usize = MAX_LINE + MAX_PROCESS + 64;

/// Writes the record behind what `out` holds.
pub(super) fn encode(seq: u64, line: &NewLine, out: &mut Vec<u8>) {
    let process: String =
        line.process.chars().map(|c| if c.is_whitespace() || c.is_control() { '_' } else { c }).collect();
    let process = if process.is_empty() { "-" } else { cut(&process, MAX_PROCESS) };
    let head = format!("{seq} {} {} {process} ", line.at.timestamp_micros(), line.source);
    out.extend_from_slice(head.as_bytes());
    // One byte of garbage becomes three, so look at no more than can be kept.
    let bytes = &line.line[..line.line.len().min(MAX_LINE + 4)];
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let text: String = String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| match c {
            '\0' => char::REPLACEMENT_CHARACTER,
            '\n' | '\r' => ' ',
            other => other,
        })
        .collect();
    out.extend_from_slice(cut(&text, MAX_LINE).as_bytes());
    out.push(b'\n');
}

/// Reads a record, without its newline; nothing when it is none (after a power loss).
pub(super) fn decode(record: &[u8]) -> Option<LogLine> {
    let record = std::str::from_utf8(record).ok()?;
    let mut fields = record.splitn(5, ' ');
    let seq = fields.next()?.parse().ok()?;
    let at = DateTime::from_timestamp_micros(fields.next()?.parse().ok()?)?;
    let source = match fields.next()? {
        "app" => LogSource::App,
        "build" => LogSource::Build,
        "router" => LogSource::Router,
        "mogok" => LogSource::Mogok,
        _ => return None,
    };
    let process = fields.next()?.to_owned();
    let line = fields.next()?.to_owned();
    Some(LogLine { seq, at, source, process, line })
}

fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let end = (0..=max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(process: &str, line: &[u8]) -> NewLine {
        let at = DateTime::from_timestamp_micros(1_795_000_000_123_456).unwrap();
        NewLine { at, source: LogSource::App, process: process.to_owned(), line: line.to_vec() }
    }

    fn through(new: &NewLine) -> LogLine {
        let mut out = Vec::new();
        encode(7, new, &mut out);
        assert!(out.len() <= MAX_RECORD, "{}", out.len());
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
        decode(out.strip_suffix(b"\n").unwrap()).unwrap()
    }

    #[test]
    fn hostile_bytes_are_made_harmless() {
        assert_eq!(through(&line("web.1", b"a\0b\xffc\nd\r\n")).line, "a\u{fffd}b\u{fffd}c d");
        assert_eq!(through(&line("", b"")).process, "-");
        assert_eq!(through(&line("a b\nc", b"x")).process, "a_b_c");
        assert_eq!(through(&line("web.1", "é".repeat(9_000).as_bytes())).line.len(), MAX_LINE);
        assert_eq!(through(&line("web.1", &[0xff; 20_000])).line.len(), 9_999);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(text in "[^\0\r\n]{0,200}", seq in any::<u64>()) {
            let new = line("worker.2", text.as_bytes());
            let mut out = Vec::new();
            encode(seq, &new, &mut out);
            let read = decode(out.strip_suffix(b"\n").unwrap()).unwrap();
            prop_assert_eq!(read.line, text);
            prop_assert_eq!(read.seq, seq);
            prop_assert_eq!(read.at, new.at);
        }

        #[test]
        fn garbage_is_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            through(&line("web.1", &bytes));
        }
    }
}
