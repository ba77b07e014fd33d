//! Heads of requests, as the router's gate sees them: how the bytes are cut does not matter, and what is accepted
//! has one host, one length and no line that another server would read as two.

use mogok_router::gate::{Gate, Violation, parse};

/// What a gate said of a whole connection.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    passed: usize,
    refused: Option<Violation>,
    heads: u64,
    last: Option<u64>,
}

/// The first byte says how the others are cut.
pub fn run(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let whole = feed(bytes, bytes.len().max(1));
    // Where a gate refuses a head that is too long or hopeless before it is whole, it passes no more for that.
    assert_eq!(feed(bytes, usize::from(*cut) + 1), whole);
    assert!(whole.passed <= bytes.len());
    if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n")
        && parse(&bytes[..end + 4]).is_ok()
    {
        accepted(&bytes[..end + 4]);
    }
}

fn feed(bytes: &[u8], piece: usize) -> Seen {
    let mut gate = Gate::default();
    let (mut passed, mut refused) = (0, None);
    for end in (piece..bytes.len()).step_by(piece).chain([bytes.len()]) {
        let fed = gate.feed(&bytes[passed..end]);
        passed += fed.pass;
        if fed.refused.is_some() {
            refused = fed.refused;
            break;
        }
    }
    Seen { passed, refused, heads: gate.heads(), last: gate.last() }
}

/// Read once more, plainly.
fn accepted(head: &[u8]) {
    let (mut hosts, mut lengths, mut codings) = (0, 0, 0);
    let start = head.iter().position(u8::is_ascii_uppercase).expect("a method");
    for (number, line) in head[start..].split(|byte| *byte == b'\n').enumerate() {
        if line == b"\r" {
            break;
        }
        let line = line.strip_suffix(b"\r").expect("no bare line feed");
        assert!(!line.contains(&b'\r') && !line.contains(&0), "{line:?}");
        if number == 0 {
            continue;
        }
        assert!(!line.starts_with(b" ") && !line.starts_with(b"\t"), "folded: {line:?}");
        let colon = line.iter().position(|byte| *byte == b':').expect("a header");
        let name = line[..colon].to_ascii_lowercase();
        hosts += usize::from(name == b"host");
        lengths += usize::from(name == b"content-length");
        codings += usize::from(name == b"transfer-encoding");
    }
    assert!(hosts == 1 && lengths + codings <= 1, "{hosts} hosts, {lengths} lengths, {codings} codings");
}
