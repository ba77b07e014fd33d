//! `mogok-shim run --state-dir DIR [--netns-fd N]`: one container, from start to end.
//! `mogok-shim exec --state-dir DIR`: one program more in a running one.
//!
//! Messages go to standard error, which the agent makes the file `shim.log`; standard output carries the
//! report and nothing else.

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use mogok_shim::exec;
use mogok_shim::run::{Arguments, run};

const USAGE: &str =
    "usage: mogok-shim run --state-dir DIR [--netns-fd N]\n       mogok-shim exec --state-dir DIR";

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Run(Arguments),
    Exec { state_dir: PathBuf },
}

fn main() -> ExitCode {
    let Some(command) = parse(std::env::args_os().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let ended = match command {
        Command::Run(arguments) => run(&arguments),
        Command::Exec { state_dir } => exec::run(&state_dir),
    };
    match ended {
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

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Command> {
    let command = arguments.next()?;
    let (mut state_dir, mut netns) = (None, None);
    while let Some(option) = arguments.next() {
        let value = arguments.next()?;
        match option.to_str()? {
            "--state-dir" => state_dir = Some(value.into()),
            "--netns-fd" => netns = Some(value.to_str()?.parse().ok()?),
            _ => return None,
        }
    }
    let state_dir = state_dir?;
    match (command.to_str()?, netns) {
        ("run", netns) => Some(Command::Run(Arguments { state_dir, netns })),
        ("exec", None) => Some(Command::Exec { state_dir }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<Command> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_command_line_is_all_or_nothing() {
        let expected = |netns| Some(Command::Run(Arguments { state_dir: "/s".into(), netns }));
        assert_eq!(parsed("run --state-dir /s"), expected(None));
        assert_eq!(parsed("run --netns-fd 3 --state-dir /s"), expected(Some(3)));
        assert_eq!(parsed("exec --state-dir /s"), Some(Command::Exec { state_dir: "/s".into() }));
        for wrong in [
            "",
            "run",
            "exec",
            "exec --state-dir /s --netns-fd 3",
            "stop --state-dir /s",
            "run --state-dir",
            "run --state-dir /s x",
            "run -x y",
        ] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
