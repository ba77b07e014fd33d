//! Programs in running containers, through the agent's API and the command: streams, terminals, ends of every
//! kind, refusals, and an agent that dies in between.

use std::io::Write;
use std::process::{Command, Stdio};

use mogok_api::agent::client::{ClientError, ExecEvent, ExecReceiver, ExecSender};
use mogok_api::agent::exec::{ExecExit, ExecRequest, TerminalSize};
use mogok_api::error::ErrorCode;
use mogok_api::id::InstanceId;
use mogok_api::instance::{InstanceSpec, Phase};
use nix::sys::signal::Signal;

use crate::host::{Host, PATIENCE, instance, on_a_node, pause};

pub(crate) fn script(script: &str) -> ExecRequest {
    ExecRequest {
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: [].into(),
        cwd: None,
        user: None,
        terminal: None,
    }
}

/// A container that does nothing.
pub(crate) async fn idle(host: &mut Host) -> InstanceSpec {
    let spec = instance("exec sleep 1000");
    host.want(std::slice::from_ref(&spec)).await;
    host.until_phase(spec.id, Phase::Up).await;
    spec
}

async fn next(receiver: &mut ExecReceiver) -> ExecEvent {
    tokio::time::timeout(PATIENCE, receiver.next()).await.unwrap().unwrap()
}

/// Standard output, error output and the end.
pub(crate) async fn rest(receiver: &mut ExecReceiver) -> (String, String, ExecExit) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match next(receiver).await {
            ExecEvent::Stdout(bytes) => out.extend(bytes),
            ExecEvent::Stderr(bytes) => err.extend(bytes),
            ExecEvent::Exit(exit) => {
                return (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), exit);
            }
        }
    }
}

/// Reads until the program has printed `text`.
async fn until_printed(receiver: &mut ExecReceiver, text: &str) -> String {
    let mut out = String::new();
    while !out.contains(text) {
        match next(receiver).await {
            ExecEvent::Stdout(bytes) => out.push_str(&String::from_utf8(bytes).unwrap()),
            other => panic!("{other:?} after {out:?}"),
        }
    }
    out
}

async fn exec(host: &Host, id: InstanceId, request: &ExecRequest) -> (ExecSender, ExecReceiver) {
    host.client.exec(id, request).await.unwrap_or_else(|error| panic!("{error:?}\n{}", host.log()))
}

pub(crate) async fn refused(host: &Host, id: InstanceId, request: &ExecRequest) -> (ErrorCode, String) {
    match host.client.exec(id, request).await {
        Err(ClientError::Refused { source, .. }) => (source.code, source.message),
        other => panic!("{other:?}"),
    }
}

/// What a script prints that goes well.
pub(crate) async fn run(host: &Host, id: InstanceId, text: &str) -> String {
    let (_sender, mut receiver) = exec(host, id, &script(text)).await;
    let (out, err, exit) = rest(&mut receiver).await;
    assert_eq!((exit, err.as_str()), (ExecExit::Code(0), ""), "{out}");
    out
}

/// Waits until nothing but the app is left: pid 1 and its program.
async fn until_alone(host: &Host, id: InstanceId) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while host.processes(id).len() != 2 {
        assert!(std::time::Instant::now() < deadline, "{:?}\n{}", host.processes(id), host.log());
        pause().await;
    }
}

#[test]
fn streams_signals_and_the_end_travel() {
    on_a_node(async |host| {
        let id = idle(host).await.id;
        let request = ExecRequest {
            env: [("NEW".to_owned(), "new".to_owned())].into(),
            cwd: Some("/etc".to_owned()),
            user: Some("1001:1002".parse().unwrap()),
            ..script("echo $PATH $NEW $PWD $(id -u) $(id -g); echo err >&2; cat; exit 7")
        };
        let (sender, mut receiver) = exec(host, id, &request).await;
        let sent = tokio::spawn(async move {
            let line = [b"0123456789".repeat(9_999), b"\n".to_vec()].concat();
            sender.stdin(&line).await.unwrap();
            sender.end_of_stdin().await.unwrap();
            // Dropped only with the receiver, or the program would be ended.
            sender
        });
        let (out, err, exit) = rest(&mut receiver).await;
        let (first, second) = out.split_once('\n').unwrap();
        assert_eq!((first, second.len()), ("/bin new /etc 1001 1002", 99_991));
        assert_eq!((err.as_str(), exit), ("err\n", ExecExit::Code(7)));
        drop(sent.await.unwrap());

        let (sender, mut receiver) = exec(host, id, &script("echo up; exec sleep 1000")).await;
        until_printed(&mut receiver, "up\n").await;
        // Input that nobody reads is in nobody's way.
        let flood = tokio::spawn({
            let sender = sender.clone();
            async move { sender.stdin(&[0; 1 << 20]).await }
        });
        sender.signal(15).await.unwrap();
        assert_eq!(rest(&mut receiver).await.2, ExecExit::Signal(15));
        flood.abort();
        until_alone(host, id).await;
    });
}

#[test]
fn much_output_comes_whole_whoever_is_slower() {
    on_a_node(async |host| {
        let id = idle(host).await.id;
        let text = "dd if=/dev/zero bs=64k count=256 2>/dev/null; (sleep 1000 &); dd if=/dev/zero bs=1k count=9 2>/dev/null";
        let (_sender, mut receiver) = exec(host, id, &script(text)).await;
        let mut bytes = 0;
        loop {
            match next(&mut receiver).await {
                ExecEvent::Stdout(piece) => bytes += piece.len(),
                ExecEvent::Exit(exit) => break assert_eq!(exit, ExecExit::Code(0)),
                ExecEvent::Stderr(piece) => panic!("{piece:?}"),
            }
            tokio::task::yield_now().await;
        }
        // The last piece too, though what was left in the background holds the pipe.
        assert_eq!(bytes, (256 << 16) + (9 << 10));
    });
}

#[test]
fn a_terminal_is_resized_interrupted_and_hung_up() {
    on_a_node(async |host| {
        let id = idle(host).await.id;
        let text = "trap 'echo int' INT; trap '/bin/busybox stty size' WINCH; /bin/busybox stty size
            while :; do /bin/busybox usleep 10000; done";
        let terminal = Some(TerminalSize { rows: 30, columns: 100 });
        let (sender, mut receiver) = exec(host, id, &ExecRequest { terminal, ..script(text) }).await;
        until_printed(&mut receiver, "30 100\r\n").await;
        sender.resize(TerminalSize { rows: 40, columns: 120 }).await.unwrap();
        until_printed(&mut receiver, "40 120\r\n").await;
        sender.stdin(b"\x03").await.unwrap();
        until_printed(&mut receiver, "int\r\n").await;
        drop((sender, receiver));
        until_alone(host, id).await;
        let (sender, mut receiver) = exec(host, id, &ExecRequest { terminal, ..script("cat") }).await;
        let send = async {
            sender.stdin(b"line\n").await.unwrap();
            sender.end_of_stdin().await.unwrap();
        };
        let ((), (out, _, exit)) = tokio::join!(send, rest(&mut receiver));
        assert!(out.ends_with("line\r\n") && exit == ExecExit::Code(0), "{out:?} {exit:?}");
    });
}

#[test]
fn what_cannot_be_is_refused_by_its_reason() {
    on_a_node(async |host| {
        let spec = idle(host).await;
        let id = spec.id;
        let code = async |host: &Host, request: ExecRequest| refused(host, id, &request).await.0;
        assert_eq!(refused(host, InstanceId::new(), &script("true")).await.0, ErrorCode::NotFound);
        let command = |command: &[&str]| ExecRequest {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            ..script("")
        };
        for wrong in [command(&["/no/such"]), command(&["sh"]), command(&[]), command(&["/bin/sh", "a\0"])] {
            assert_eq!(code(host, wrong).await, ErrorCode::Invalid);
        }
        for cwd in ["/proc/self/fd/0", "/nowhere", "etc"] {
            let request = ExecRequest { cwd: Some(cwd.into()), ..script("true") };
            assert_eq!(code(host, request).await, ErrorCode::Invalid, "{cwd}");
        }
        let mut root = script("id");
        root.user = Some(mogok_api::agent::exec::ExecUser { uid: 0, gid: 0 });
        assert_eq!(code(host, root).await, ErrorCode::Invalid);

        let mut programs = Vec::new();
        for _ in 0..mogok_agent::exec::MOST {
            programs.push(exec(host, id, &script("cat")).await);
        }
        assert_eq!(code(host, script("true")).await, ErrorCode::TooMany);
        drop(programs);
        until_alone(host, id).await;

        let freezer = host.cgroup_dir().join(id.to_string()).join("cgroup.freeze");
        std::fs::write(&freezer, "1").unwrap();
        let (frozen, message) = refused(host, id, &script("true")).await;
        assert!(frozen == ErrorCode::Conflict && message.contains("is frozen"), "{message}");
        std::fs::write(&freezer, "0").unwrap();

        let stubborn = instance("trap '' TERM; echo deaf; while true; do sleep 1; done");
        host.want(std::slice::from_ref(&stubborn)).await;
        host.until_phase(stubborn.id, Phase::Up).await;
        host.lines(None, "deaf").await;
        host.want(&[]).await;
        host.until_phase(stubborn.id, Phase::Stopping).await;
        let (stopping, message) = refused(host, stubborn.id, &script("true")).await;
        assert!(stopping == ErrorCode::Conflict && message.contains("is stopping"), "{message}");
    });
}

#[test]
fn nothing_is_left_when_the_agent_the_helper_or_the_container_is_killed() {
    on_a_node(async |host| {
        let id = idle(host).await.id;
        let deaf = "trap '' HUP TERM; echo up; while :; do sleep 1; done";
        let terminal = Some(TerminalSize { rows: 1, columns: 1 });
        for terminal in [None, terminal] {
            let (_sender, mut receiver) = exec(host, id, &ExecRequest { terminal, ..script(deaf) }).await;
            until_printed(&mut receiver, "up").await;
            host.end(Signal::SIGKILL);
            until_alone(host, id).await;
            host.start().await;
            host.until_phase(id, Phase::Up).await;
        }
        let open = |host: &Host| std::fs::read_dir(format!("/proc/{}/fd", host.agent_pid())).unwrap().count();
        let (_, mut receiver) = exec(host, id, &script("exit 0")).await;
        rest(&mut receiver).await;
        let before = open(host);
        for _ in 0..3 {
            let (_sender, mut receiver) = exec(host, id, &script(deaf)).await;
            until_printed(&mut receiver, "up").await;
            let joined = *host.processes(id).iter().max().unwrap();
            for helper in host.children_of_the_agent("mogok-exec") {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper), Signal::SIGKILL).unwrap();
            }
            assert_eq!(rest(&mut receiver).await.2, ExecExit::Signal(9), "{joined}");
            until_alone(host, id).await;
        }
        let (_sender, mut receiver) = exec(host, id, &script(deaf)).await;
        until_printed(&mut receiver, "up").await;
        host.want(&[]).await;
        assert_eq!(rest(&mut receiver).await.2, ExecExit::Signal(9));
        host.until_gone(id).await;
        let deadline = std::time::Instant::now() + PATIENCE;
        while open(host) > before
            || !host.children_of_the_agent("mogok-exec").is_empty()
            || !host.zombies().is_empty()
        {
            assert!(std::time::Instant::now() < deadline, "{} descriptors, {before} before", open(host));
            pause().await;
        }
    });
}

#[test]
fn the_command_has_the_programs_streams_and_status() {
    on_a_node(async |host| {
        let id = idle(host).await.id;
        let run = |arguments: &[&str], input: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_mogok-agent"))
                .args(["exec", "--socket"])
                .arg(host.dir().join("agent.sock"))
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            command.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let output = command.wait_with_output().unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        let id = &id.to_string();
        let (status, out, err) =
            run(&["--env", "A=b", id, "--", "/bin/sh", "-c", "cat; echo $A; echo e >&2; exit 3"], "in\n");
        assert_eq!((status, out.as_str(), err.as_str()), (Some(3), "in\nb\n", "e\n"));
        assert_eq!(run(&[id, "--", "/bin/sh", "-c", "kill -9 $$"], "").0, Some(137));
        let (status, out, _) = run(&["-t", id, "--", "/bin/sh", "-c", "test -t 0 && echo terminal"], "");
        assert_eq!((status, out.as_str()), (Some(0), "terminal\r\n"));
        let (status, _, err) = run(&[id, "--", "/no/such"], "");
        assert!(status == Some(1) && err.contains("execute: /no/such"), "{err}");
        assert_eq!(run(&["--user", "root", id, "--", "/bin/true"], "").0, Some(2));
    });
}

#[test]
fn a_container_at_its_limit_of_processes_is_joined_by_none_and_that_is_said() {
    on_a_node(async |host| {
        let mut spec = instance("exec sleep 1000");
        spec.limits.pids = 3;
        host.want(std::slice::from_ref(&spec)).await;
        host.until_phase(spec.id, Phase::Up).await;
        let (code, message) = refused(host, spec.id, &script("true")).await;
        assert_eq!(code, ErrorCode::TooMany);
        assert!(message.contains("at its limit of processes"), "{message}");
        until_alone(host, spec.id).await;
    });
}
