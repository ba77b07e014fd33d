//! The tenant as attacker: a static program that runs unchanged in a container of this platform, of runc or
//! of LXC, and prints one JSON line a check, `{"check", "threat", "held", "answer"}`.
//!
//! `probe run` makes every check in a process of its own, since a check may be killed for it. Invariant:
//! where a runtime lets an attempt through, no harm is done to the host: files are opened, not written,
//! and calls are made with arguments that the kernel refuses after the check of permission.

use std::process::ExitCode;

mod bomb;
mod calls;
mod check;
mod devices;
mod files;
mod identity;
mod network;
mod processes;
mod procfs;
mod raw;

use check::Check;

/// All checks, in the order of the report.
fn all() -> Vec<Check> {
    [
        identity::checks(),
        processes::checks(),
        procfs::checks(),
        devices::checks(),
        files::checks(),
        calls::checks(),
        network::checks(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["run"] => check::run(&all()),
        ["one", name] => check::one(&all(), name),
        ["bomb", name] => bomb::run(name),
        ["wait"] => processes::wait(),
        ["watch"] => processes::watch(),
        ["euid"] => identity::print_effective_user(),
        _ => {
            eprintln!("usage: probe run | one CHECK | bomb NAME | wait | watch | euid");
            ExitCode::from(2)
        }
    }
}
