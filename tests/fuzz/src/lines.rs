//! A program's output, cut into lines: put together again it is the output, wherever reads ended, and no piece
//! is longer than a line may be.

use mogok_shim::supervise::lines::{LINE, Lines, Piece};

pub fn run(data: &[u8]) {
    let Some((first, output)) = data.split_first() else { return };
    // Long lines from few bytes: each byte counts so many times.
    let output = output.repeat(1 + usize::from(*first) % 64);
    let step = 1 + usize::from(*first) * 37;
    let (mut lines, mut joined) = (Lines::default(), Vec::new());
    let mut emit = |piece, bytes: &[u8]| {
        assert!(bytes.len() <= LINE && !bytes.contains(&b'\n'));
        assert!(piece == Piece::Full || bytes.len() == LINE);
        joined.extend_from_slice(bytes);
        if piece == Piece::Full {
            joined.push(b'\n');
        }
    };
    for read in output.chunks(step) {
        lines.push(read, &mut emit);
    }
    lines.end(&mut emit);
    let mut expected = output;
    if expected.last().is_some_and(|byte| *byte != b'\n') {
        expected.push(b'\n');
    }
    assert!(joined == expected, "output was lost or made up");
}
