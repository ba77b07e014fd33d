//! A stranger's `Gemfile.lock`: what is read of it is bounded and fit to be printed, and so is why it is not read.

use mogok_control_plane::lockfile::{MAX_BYTES, parse};

pub fn run(data: &[u8]) {
    let lock = match parse(data) {
        Ok(lock) => lock,
        Err(error) => return printable(&error.to_string(), 200),
    };
    assert!(data.len() <= MAX_BYTES && lock.len() <= 10_000 && lock.platforms.len() <= 100);
    // At least six bytes of the file make a gem.
    assert!(lock.len() <= data.len() / 6 + 1);
    for platform in &lock.platforms {
        printable(platform, 64);
    }
    for version in [&lock.ruby, &lock.bundler].into_iter().flatten() {
        assert!(version.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.'), "{version:?}");
        printable(version, 64);
    }
    if let Some(framework) = lock.framework() {
        printable(&framework, 80);
    }
    if let Err(error) = lock.check_platform() {
        printable(&error.to_string(), 1000);
    }
    // Line ends of another system mean the same, but for what they do to a line of just the longest length.
    let other: Vec<u8> =
        data.iter().flat_map(|byte| if *byte == b'\n' { vec![b'\r', b'\n'] } else { vec![*byte] }).collect();
    if data.split(|byte| *byte == b'\n').all(|line| line.len() < 4000) && other.len() <= MAX_BYTES {
        assert_eq!(parse(&other), Ok(lock));
    }
}

fn printable(text: &str, longest: usize) {
    assert!(text.chars().count() <= longest && !text.chars().any(char::is_control), "{text:?}");
}
