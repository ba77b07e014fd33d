//! Newline-delimited JSON off the wire, one value per line. A line may be as long as the stream's
//! bound and not a byte more, however the sender cuts it into chunks; empty lines are skipped, so a
//! sender can use them to show that it lives.

use serde::de::DeserializeOwned;

/// A line that cannot become a value.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("a line of the stream is longer than {limit} bytes")]
    TooLong { limit: usize },
    #[error("a line of the stream is not the expected JSON")]
    Json(#[source] serde_json::Error),
}

/// Collects bytes and hands out values.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were handed out already.
    consumed: usize,
    /// Bytes behind `consumed` that hold no newline, so that no byte is searched twice.
    searched: usize,
    limit: usize,
}

impl Decoder {
    /// Lines of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), consumed: 0, searched: 0, limit }
    }

    /// Takes bytes as they come. Call [`Self::value`] until it is empty before the next chunk: that is what
    /// keeps the buffer within the limit and one chunk.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        self.buffer.extend_from_slice(chunk);
    }

    /// The next value, or nothing when its line has not ended yet.
    ///
    /// # Errors
    /// A line that is too long or not JSON of this shape; the stream is of no use afterwards.
    pub fn value<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LineError> {
        loop {
            let rest = &self.buffer[self.consumed..];
            let Some(end) = rest[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = rest.len();
                if rest.len() > self.limit {
                    return Err(LineError::TooLong { limit: self.limit });
                }
                return Ok(None);
            };
            let end = self.searched + end;
            if end > self.limit {
                return Err(LineError::TooLong { limit: self.limit });
            }
            let line = &rest[..end];
            let value = (!line.trim_ascii().is_empty()).then(|| serde_json::from_slice(line));
            self.consumed += end + 1;
            self.searched = 0;
            if let Some(value) = value {
                return value.map(Some).map_err(LineError::Json);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_over_the_limit_is_refused_with_and_without_its_end() {
        let mut decoder = Decoder::new(4);
        decoder.push(b"1234\n12345");
        assert_eq!(decoder.value::<u32>().unwrap(), Some(1234));
        assert!(matches!(decoder.value::<u32>(), Err(LineError::TooLong { limit: 4 })));
        let mut decoder = Decoder::new(4);
        decoder.push(b"12345\n");
        assert!(matches!(decoder.value::<u32>(), Err(LineError::TooLong { .. })));
        let mut decoder = Decoder::new(4);
        decoder.push(b"{\n");
        assert!(matches!(decoder.value::<u32>(), Err(LineError::Json(_))));
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_values(values in prop::collection::vec(any::<u32>(), 0..20), cut in 1usize..9) {
            let text: String = values.iter().map(|value| format!("{value}\n\n")).collect();
            let mut decoder = Decoder::new(16);
            let mut got = Vec::new();
            for chunk in text.as_bytes().chunks(cut) {
                decoder.push(chunk);
                while let Some(value) = decoder.value::<u32>().unwrap() {
                    got.push(value);
                }
            }
            prop_assert_eq!(got, values);
        }
    }
}
