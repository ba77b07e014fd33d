//! A stranger's Procfile: an accepted one says the same when it is written down again, a refused one is told of in
//! words that a terminal can take.

use std::fmt::Write;

use mogok_control_plane::procfile::{MAX_BYTES, MAX_COMMAND, MAX_TYPES, parse};

pub fn run(data: &[u8]) {
    let processes = match parse(data) {
        Ok(processes) => processes,
        Err(error) => {
            let words = error.to_string();
            // Eighty characters, each escaped at most.
            assert!(words.len() < 1500 && !words.chars().any(char::is_control), "{words:?}");
            return;
        }
    };
    assert!(data.len() <= MAX_BYTES && (1..=MAX_TYPES).contains(&processes.commands.len()));
    let mut again = String::new();
    for (kind, command) in &processes.commands {
        assert!(!command.is_empty() && command.len() <= MAX_COMMAND && command.trim() == command);
        assert!(!command.chars().any(|c| c.is_control() && c != '\t'), "{command:?}");
        writeln!(again, "{kind}: {command}").expect("a string takes all");
    }
    assert_eq!(parse(again.as_bytes()).expect("what was written is read"), processes);
}
