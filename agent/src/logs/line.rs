//! One line of a log file: `<RFC 3339 time with microseconds> <O|E|P> <F|P> <bytes>`, as the shim
//! writes it (`O`, `E`) and the agent (`P`: the platform's own words). The bytes are the tenant's.

use chrono::{DateTime, SecondsFormat, Utc};
use mogok_api::agent::LogStream;

/// Bytes of text that one line carries at most.
pub const TEXT: usize = 10_000;

/// A line taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    pub at: DateTime<Utc>,
    pub stream: LogStream,
    /// The program's line goes on in the next one of this stream.
    pub part: bool,
    pub text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Takes a line without its newline apart; nothing when it is not one.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let at = std::str::from_utf8(fields.next()?).ok()?;
        let at = DateTime::parse_from_rfc3339(at).ok()?.with_timezone(&Utc);
        let stream = match fields.next()? {
            b"O" => LogStream::Stdout,
            b"E" => LogStream::Stderr,
            b"P" => LogStream::Platform,
            _ => return None,
        };
        let part = match fields.next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Self { at, stream, part, text: fields.next()? })
    }

    /// The text for people: at most [`TEXT`] bytes, what is not UTF-8 replaced.
    #[must_use]
    pub fn shown(&self) -> String {
        let mut shown = String::from_utf8_lossy(&self.text[..self.text.len().min(TEXT)]).into_owned();
        // A replacement character takes three bytes for one.
        shown.truncate(shown.floor_char_boundary(TEXT));
        shown
    }
}

/// A line of the platform's own, with its newline. Newlines in `text` become blanks.
#[must_use]
pub fn platform(at: DateTime<Utc>, text: &str) -> Vec<u8> {
    let at = at.to_rfc3339_opts(SecondsFormat::Micros, true);
    let text = text.replace(['\n', '\r'], " ");
    format!("{at} P F {}\n", &text[..text.floor_char_boundary(TEXT)]).into_bytes()
}

/// The whole lines of a chunk with the position behind each; what follows the last newline is left out.
pub fn whole(chunk: &[u8]) -> impl Iterator<Item = (&[u8], usize)> {
    let mut end = 0;
    chunk.split_inclusive(|byte| *byte == b'\n').filter_map(move |line| {
        end += line.len();
        line.strip_suffix(b"\n").map(|line| (line, end))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_shims_lines_are_read() {
        let line = Line::parse(b"2026-11-22T10:00:00.123456Z E P a b \xff").unwrap();
        assert_eq!(line.at.timestamp_subsec_micros(), 123_456);
        assert_eq!((line.stream, line.part, line.text), (LogStream::Stderr, true, &b"a b \xff"[..]));
        assert_eq!(line.shown(), "a b \u{fffd}");
        assert_eq!(Line::parse(b"2026-11-22T10:00:00.123456Z O F ").unwrap().text, b"");
        for bad in ["", "x", "2026-11-22T10:00:00Z O F", "2026-11-22T10:00:00Z X F a", "now O F a"] {
            assert_eq!(Line::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn platform_words_come_back_as_one_line(text in "\\PC{0,40}[\n\r]?\\PC{0,40}") {
            let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
            let bytes = platform(at, &text);
            let lines: Vec<_> = whole(&bytes).collect();
            prop_assert_eq!(lines.len(), 1);
            prop_assert_eq!(lines[0].1, bytes.len());
            let line = Line::parse(lines[0].0).unwrap();
            prop_assert_eq!((line.at, line.stream), (at, LogStream::Platform));
            prop_assert_eq!(line.shown(), text.replace(['\n', '\r'], " "));
        }

        #[test]
        fn no_bytes_break_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for (line, _) in whole(&bytes) {
                if let Some(line) = Line::parse(line) { prop_assert!(line.shown().len() <= TEXT); }
            }
        }
    }
}
