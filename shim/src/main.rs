//! `mogok-shim run --state-dir DIR [--netns-fd N]`: one container, from start to end.
//!
//! Messages go to standard error, which the agent makes the file `shim.log`; standard output carries the
//! report and nothing else.

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use mogok_shim::run::{Arguments, run};

const USAGE: &str = "usage: mogok-shim run --state-dir DIR [--netns-fd N]";

fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args_os().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("mogok-shim: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Arguments> {
    if arguments.next()? != "run" {
        return None;
    }
    let (mut state_dir, mut netns) = (None, None);
    while let Some(option) = arguments.next() {
        let value = arguments.next()?;
        match option.to_str()? {
            "--state-dir" => state_dir = Some(value.into()),
            "--netns-fd" => netns = Some(value.to_str()?.parse().ok()?),
            _ => return None,
        }
    }
    Some(Arguments { state_dir: state_dir?, netns })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<Arguments> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_command_line_is_all_or_nothing() {
        let expected = |netns| Some(Arguments { state_dir: "/s".into(), netns });
        assert_eq!(parsed("run --state-dir /s"), expected(None));
        assert_eq!(parsed("run --netns-fd 3 --state-dir /s"), expected(Some(3)));
        for wrong in ["", "run", "stop --state-dir /s", "run --state-dir", "run --state-dir /s x", "run -x y"]
        {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
