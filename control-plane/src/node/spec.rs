//! From rows to the container: everything an agent needs for one instance, a pure function of app,
//! release and instance, so that every control plane at every time says the same.

use mogok_api::app::{HealthCheck, Limits, RestartPolicy};
use mogok_api::instance::{ContainerKind, InstanceSpec};

use crate::release::release_env;
use crate::store::apps::AppRow;
use crate::store::instances::InstanceRow;
use crate::store::releases::ReleaseRow;

/// Seconds between SIGTERM and SIGKILL.
const STOP_GRACE_S: u32 = 30;

/// The spec of an instance; nothing when the release has no such process type.
pub(super) fn of(app: &AppRow, release: &ReleaseRow, instance: &InstanceRow) -> Option<InstanceSpec> {
    let command = release.processes.get(&instance.process.kind)?;
    Some(InstanceSpec {
        id: instance.id,
        app: app.name.clone(),
        process: instance.process.clone(),
        release: Some(release.number),
        kind: ContainerKind::App,
        image: release.image.clone(),
        image_digest: release.image_digest.clone(),
        package: Some(release.package.clone()),
        package_mounts: Vec::new(),
        blobs: Vec::new(),
        output: None,
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), shell_line(command)],
        env: release_env(app, release, &instance.process, instance.id),
        limits: Limits::app(),
        grants: Default::default(),
        listens: instance.process.kind.is_web(),
        health: HealthCheck::default(),
        restart: RestartPolicy::Always,
        stop_grace_s: STOP_GRACE_S,
        max_runtime_s: None,
    })
}

/// The command as the shell gets it. One simple command replaces the shell (`exec`), so that no idle shell
/// stays beside the program; with anything else the shell waits for what it runs when SIGTERM reaches both, and
/// leaves with its status, for the container ends with the shell.
fn shell_line(command: &str) -> String {
    let command = command.trim();
    let first = command.split_ascii_whitespace().next().unwrap_or_default();
    let program = !first.is_empty()
        && first.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b'+'))
        && !SHELL_WORDS.contains(&first);
    let one = !command.contains(['|', '&', ';', '(', ')', '<', '>', '`', '\n', '\r']);
    if program && one { format!("exec {command}") } else { format!("trap 'exit $?' TERM\n{command}") }
}

/// What a shell does itself (POSIX shell command language: reserved words and special built-ins).
const SHELL_WORDS: &[&str] = &[
    ".", "alias", "break", "case", "cd", "command", "continue", "eval", "exec", "exit", "export", "for",
    "if", "read", "readonly", "return", "set", "shift", "test", "times", "trap", "type", "ulimit", "umask",
    "unset", "until", "wait", "while",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_simple_command_replaces_the_shell() {
        for (command, line) in [
            ("bundle exec puma -p $PORT", "exec bundle exec puma -p $PORT"),
            ("  bin/rails server ", "exec bin/rails server"),
            ("cd sub && ./run", "trap 'exit $?' TERM\ncd sub && ./run"),
            ("cd sub", "trap 'exit $?' TERM\ncd sub"),
            ("A=1 ./run", "trap 'exit $?' TERM\nA=1 ./run"),
            ("exec ./run", "trap 'exit $?' TERM\nexec ./run"),
            ("./a; ./b", "trap 'exit $?' TERM\n./a; ./b"),
            ("$PROGRAM x", "trap 'exit $?' TERM\n$PROGRAM x"),
            ("", "trap 'exit $?' TERM\n"),
        ] {
            assert_eq!(shell_line(command), line);
        }
    }
}
