//! Cuts a stream of bytes into lines of at most [`LINE`] bytes; a longer line becomes several parts.
//!
//! Invariant: the parts of a line put together are the line, and at most one line is held.

use memchr::memchr;

/// Bytes of the longest line that stays whole.
pub const LINE: usize = 10_000;

/// A line, or a part of one that goes on in the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    Full,
    Part,
}

/// One stream; the beginning of a line waits here for its end.
#[derive(Debug, Default)]
pub struct Lines {
    held: Vec<u8>,
}

impl Lines {
    /// Takes what was read; `emit` gets each piece that it completes.
    pub fn push(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(Piece, &[u8])) {
        while !bytes.is_empty() {
            let room = LINE - self.held.len();
            let end = memchr(b'\n', &bytes[..bytes.len().min(room + 1)]);
            match end {
                // Most lines come whole.
                Some(end) if self.held.is_empty() => emit(Piece::Full, &bytes[..end]),
                Some(end) => {
                    self.held.extend_from_slice(&bytes[..end]);
                    emit(Piece::Full, &self.held);
                    self.held.clear();
                }
                None if bytes.len() > room => {
                    self.held.extend_from_slice(&bytes[..room]);
                    emit(Piece::Part, &self.held);
                    self.held.clear();
                    bytes = &bytes[room..];
                    continue;
                }
                None => {
                    self.held.extend_from_slice(bytes);
                    return;
                }
            }
            bytes = &bytes[end.map_or(bytes.len(), |end| end + 1)..];
        }
    }

    /// Gives back what held a long line.
    pub fn shrink(&mut self) {
        self.held.shrink_to_fit();
    }

    /// The last line, when the stream ended without a newline.
    pub fn end(&mut self, emit: &mut impl FnMut(Piece, &[u8])) {
        if !self.held.is_empty() {
            emit(Piece::Full, &self.held);
        }
        self.held = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<(Piece, Vec<u8>)> {
        let mut pieces = Vec::new();
        let mut lines = Lines::default();
        let mut emit = |piece, bytes: &[u8]| pieces.push((piece, bytes.to_vec()));
        for chunk in chunks {
            lines.push(chunk, &mut emit);
        }
        lines.end(&mut emit);
        pieces
    }

    #[test]
    fn lines_are_joined_over_reads() {
        assert_eq!(
            cut(&[b"a", b"b\n\nc", b"d"]),
            [(Piece::Full, b"ab".to_vec()), (Piece::Full, vec![]), (Piece::Full, b"cd".to_vec())]
        );
    }

    #[test]
    fn a_line_of_the_limit_stays_whole_and_one_more_byte_splits_it() {
        let whole = [vec![b'x'; LINE], b"\n".to_vec()].concat();
        assert_eq!(cut(&[&whole]), [(Piece::Full, vec![b'x'; LINE])]);
        let long = [vec![b'x'; LINE + 1], b"\n".to_vec()].concat();
        assert_eq!(cut(&[&long]), [(Piece::Part, vec![b'x'; LINE]), (Piece::Full, b"x".to_vec())]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_wherever_reads_end(
            lines in prop::collection::vec((0_usize..25_000).prop_map(|n| vec![b'y'; n]), 0..6),
            reads in prop::collection::vec(1_usize..17_000, 1..8),
        ) {
            let stream = lines.join(&b'\n');
            let mut chunks = Vec::new();
            let (mut rest, mut sizes) = (stream.as_slice(), reads.iter().cycle());
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                chunks.push(chunk);
                rest = after;
            }
            let mut joined = Vec::new();
            for (piece, bytes) in cut(&chunks) {
                prop_assert!(bytes.len() <= LINE);
                prop_assert!(piece == Piece::Full || bytes.len() == LINE);
                joined.extend(bytes);
                if piece == Piece::Full { joined.push(b'\n'); }
            }
            let expected = if stream.is_empty() || stream.ends_with(b"\n") { stream } else { [stream, b"\n".to_vec()].concat() };
            prop_assert_eq!(joined, expected);
        }
    }
}
