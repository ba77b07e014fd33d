//! Reading a password: from an option's file, the environment, a pipe, or the terminal without echo.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, Result, bail};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

/// The password, by `MOGOK_PASSWORD`, from the terminal (twice when `confirm`), or a line of stdin.
pub(crate) fn read(confirm: bool) -> Result<String> {
    if let Ok(password) = std::env::var("MOGOK_PASSWORD") {
        return Ok(password);
    }
    let password = prompt("Password: ")?;
    if confirm && io::stdin().is_terminal() && prompt("Again: ")? != password {
        bail!("the two passwords differ: nothing was done");
    }
    Ok(password)
}

/// A line from the user; the prompt is shown on a terminal only.
pub(crate) fn ask(question: &str) -> Result<String> {
    if io::stdin().is_terminal() {
        eprint!("{question}");
        io::stderr().flush()?;
    }
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line).context("cannot read from standard input")?;
    if read == 0 {
        bail!("no answer: standard input is at its end");
    }
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

fn prompt(question: &str) -> Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return ask(question);
    }
    let before = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent).context("cannot turn off echo")?;
    let answer = ask(question);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &before).context("cannot turn echo on again")?;
    eprintln!();
    answer
}
