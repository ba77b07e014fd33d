//! Log files as the agent reads them, whoever wrote them: any bytes are lines or are passed over.

use mogok_agent::logs::journal::{Cursor, Stretch};
use mogok_agent::logs::line::{Line, TEXT, whole};

pub fn run(data: &[u8]) {
    let mut last = 0;
    for (line, end) in whole(data) {
        assert!(end > last && data[end - 1] == b'\n' && end - last == line.len() + 1);
        last = end;
        if let Some(line) = Line::parse(line) {
            assert!(line.shown().len() <= TEXT);
        }
        if let Some(stretch) = Stretch::parse(line) {
            assert!(stretch.start <= stretch.end);
            assert_eq!(Stretch::parse(stretch.to_string().as_bytes()), Some(stretch));
        }
        if let Some(cursor) = std::str::from_utf8(line).ok().and_then(|text| text.parse::<Cursor>().ok()) {
            assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor));
        }
    }
}
