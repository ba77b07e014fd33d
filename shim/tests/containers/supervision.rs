//! What the shim does while the program runs and when it ends.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use mogok_shim::client::{Client, ClientError};
use mogok_shim::spec::file;

use crate::harness::{Case, DEADLINE, skip, until};

#[test]
fn a_killed_program_gives_its_signal() {
    if skip() {
        return;
    }
    for script in ["kill -9 $$", "kill -SEGV $$", "exec sleep 1000"] {
        let container = Case::script(script).start();
        if script.starts_with("exec") {
            container.client().signal(libc::SIGTERM, false).unwrap();
        }
        let exit = container.wait();
        let expected = match script {
            "kill -9 $$" => libc::SIGKILL,
            "kill -SEGV $$" => libc::SIGSEGV,
            _ => libc::SIGTERM,
        };
        assert_eq!((exit.code, exit.signal), (None, Some(expected)), "{script}");
    }
}

#[test]
fn a_killed_init_gives_the_signal_and_takes_everything_along() {
    if skip() {
        return;
    }
    let container = Case::script("sleep 1000 & sleep 1000 & echo up; wait").start();
    container.await_line("up");
    assert!(container.processes().len() >= 4);
    let init = mogok_shim::sys::pidfd::open(container.started().init_pid).unwrap();
    mogok_shim::sys::pidfd::send_signal(&init, libc::SIGKILL).unwrap();
    assert_eq!(container.wait().signal, Some(libc::SIGKILL));
    assert!(container.processes().is_empty());
}

#[test]
fn a_kill_of_the_cgroup_is_seen() {
    if skip() {
        return;
    }
    let container = Case::script("sleep 1000 & sleep 1000").start();
    fs::write(container.spec.cgroup.join("cgroup.kill"), "1").unwrap();
    assert_eq!(container.wait().signal, Some(libc::SIGKILL));
}

#[test]
fn a_signal_to_all_reaches_background_processes() {
    if skip() {
        return;
    }
    let script =
        "setsid sh -c 'trap \"echo background; exit\" TERM; echo ready; while :; do sleep 0.01; done' &
        trap 'echo main; wait; exit 3' TERM; while :; do sleep 0.01; done";
    let container = Case::script(script).start();
    container.await_line("ready");
    container.client().signal(libc::SIGTERM, true).unwrap();
    assert_eq!(container.wait().code, Some(3));
    let lines: Vec<_> = container.log().into_iter().map(|(_, line)| line).collect();
    assert!(lines.contains(&"background".into()) && lines.contains(&"main".into()), "{lines:?}");
}

#[test]
fn a_full_queue_of_signals_does_not_keep_a_stop_away() {
    if skip() {
        return;
    }
    let mut case = Case::command(&["/probe", "queue"]);
    if crate::isolation::probe(&mut case).is_none() {
        return;
    }
    let container = case.start();
    container.await_line("full");
    container.client().signal(libc::SIGTERM, true).unwrap();
    assert_eq!(container.wait().code, Some(9));
}

#[test]
fn orphans_are_taken_in() {
    if skip() {
        return;
    }
    let script = "for i in 1 2 3 4 5; do (sh -c 'exit 0' &) ; done; echo done; exec sleep 1000";
    let container = Case::script(script).start();
    container.await_line("done");
    // Init and the program.
    until("no zombie is left", || container.processes().len() == 2);
}

#[test]
fn what_the_program_leaves_running_ends_with_it_and_does_not_hold_the_log() {
    if skip() {
        return;
    }
    let before = Instant::now();
    let container = Case::script("setsid sleep 1000 & echo last").start();
    assert_eq!(container.wait().code, Some(0));
    assert!(before.elapsed() < DEADLINE);
    assert!(container.processes().is_empty());
    assert_eq!(container.log(), [('O', "last".to_owned())]);
}

#[test]
fn a_killed_shim_takes_its_container_along() {
    if skip() {
        return;
    }
    let mut container = Case::script("sleep 1000 & echo up; wait").start();
    container.await_line("up");
    container.shim.kill().unwrap();
    container.shim.wait().unwrap();
    until("the container is gone", || container.processes().is_empty());
}

#[test]
fn the_shim_survives_what_is_sent_to_its_group_and_the_end_of_the_agent() {
    if skip() {
        return;
    }
    let container = Case::script("exec sleep 1000").start();
    let shim = mogok_shim::sys::pidfd::open(container.started().shim_pid).unwrap();
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE, libc::SIGUSR1] {
        mogok_shim::sys::pidfd::send_signal(&shim, signal).unwrap();
    }
    assert_eq!(&container.client().hello().unwrap(), container.started());
}

#[test]
fn the_exit_is_on_disk_and_the_shim_stays_until_it_may_go() {
    if skip() {
        return;
    }
    let container = Case::script("exit 5").start();
    let exit = container.wait();
    let on_disk = fs::read(container.dir.path().join(file::EXIT)).unwrap();
    assert_eq!(serde_json::from_slice::<mogok_shim::protocol::Exit>(&on_disk).unwrap(), exit);
    assert_eq!(container.client().wait(DEADLINE).unwrap(), exit);
    let socket = container.dir.path().join(file::SOCKET);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    container.quit();
    assert!(!socket.exists());
}

#[test]
fn a_running_container_is_not_let_go() {
    if skip() {
        return;
    }
    let container = Case::script("exec sleep 1000").start();
    let refused = container.client().quit().unwrap_err();
    assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
    let refused = container.client().signal(99, true).unwrap_err();
    assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
    container.client().hello().unwrap();
}

#[test]
fn bad_and_idle_clients_keep_nobody_waiting() {
    if skip() {
        return;
    }
    let container = Case::script("exec sleep 1000").start();
    let connect = || UnixStream::connect(container.dir.path().join(file::SOCKET)).unwrap();
    for garbage in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x02{}", b"\0\0\0\x01"] {
        connect().write_all(garbage).unwrap();
    }
    let idle: Vec<_> = (0..20).map(|_| connect()).collect();
    let mut half = connect();
    half.write_all(b"\0\0\0\x07\"he").unwrap();
    container.client().hello().unwrap();
    drop(idle);
}

#[test]
fn a_request_of_a_later_version_is_refused_and_the_next_is_answered() {
    if skip() {
        return;
    }
    use mogok_shim::protocol::{Reply, Request, frame};
    let container = Case::script("exec sleep 1000").start();
    let mut stream = UnixStream::connect(container.dir.path().join(file::SOCKET)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    for unknown in [serde_json::json!("dance"), serde_json::json!({"dance": {"partner": 1}})] {
        frame::send(&mut stream, &unknown).unwrap();
        let reply: Reply = frame::receive(&mut stream).unwrap();
        assert!(matches!(&reply, Reply::Refused(why) if why.contains("versions 1 to 2")), "{reply:?}");
    }
    // More fields than are known do not matter.
    frame::send(&mut stream, &serde_json::json!({"signal": {"signal": 0, "all": true, "why": "x"}})).unwrap();
    assert!(
        matches!(frame::receive(&mut stream).unwrap(), Reply::Refused(why) if why.starts_with("signal 0"))
    );
    frame::send(&mut stream, &Request::Hello).unwrap();
    assert!(matches!(frame::receive(&mut stream).unwrap(), Reply::Started(_)));
}

#[test]
fn many_requests_in_one_go_are_answered_in_order() {
    if skip() {
        return;
    }
    use mogok_shim::protocol::{Reply, Request, frame};
    let container = Case::script("exec sleep 1000").start();
    let mut stream = UnixStream::connect(container.dir.path().join(file::SOCKET)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let hello = frame::encode(&Request::Hello).unwrap();
    stream.write_all(&hello.repeat(50)).unwrap();
    frame::send(&mut stream, &Request::Wait).unwrap();
    for _ in 0..50 {
        let reply: Reply = frame::receive(&mut stream).unwrap();
        assert_eq!(reply, Reply::Started(container.started().clone()));
    }
    Client::connect(container.dir.path(), DEADLINE).unwrap().signal(libc::SIGKILL, true).unwrap();
    let reply: Reply = frame::receive(&mut stream).unwrap();
    assert!(matches!(reply, Reply::Exited(exit) if exit.signal == Some(libc::SIGKILL)));
}

#[test]
fn long_lines_come_in_parts_and_the_last_needs_no_newline() {
    if skip() {
        return;
    }
    let container = Case::script("head -c 25000 /dev/zero | tr '\\0' x; echo; printf end").start();
    container.wait();
    assert_eq!(container.log(), [('O', "x".repeat(25_000)), ('O', "end".to_owned())]);
    let log = fs::read_to_string(container.dir.path().join("log/00000000000000000000.log")).unwrap();
    let kinds: Vec<_> = log.lines().map(|line| &line[28..31]).collect();
    assert_eq!(kinds, ["O P", "O P", "O F", "O F"]);
}

#[test]
fn a_flood_neither_fills_the_disk_nor_stops_the_program() {
    if skip() {
        return;
    }
    let mut case = Case::script("yes 0123456789 | head -c 4000000; echo the end >&2");
    case.spec.log = mogok_shim::spec::Log { file_bytes: 64 << 10, files: 3, rate_bytes: 100_000 };
    let container = case.start();
    assert_eq!(container.wait().code, Some(0));
    let log = container.log();
    let bytes: u64 = fs::read_dir(container.dir.path().join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes <= 3 * (64 << 10), "{bytes}");
    assert!(
        log.iter()
            .any(|(stream, line)| *stream == 'E' && line.starts_with("mogok: ") && line.contains("dropped"))
    );
}

#[test]
fn without_a_cap_every_line_of_a_flood_is_kept_and_its_memory_given_back() {
    if skip() {
        return;
    }
    const LINES: usize = 300_000;
    let mut case = Case::script(&format!("seq 1 {LINES}; echo end; exec sleep 1000"));
    case.spec.log = mogok_shim::spec::Log { file_bytes: 1 << 20, files: 100, rate_bytes: 0 };
    let container = case.start();
    container.await_line("end");
    let log = container.log();
    assert_eq!(log.len(), LINES + 1);
    assert!(log.iter().zip(1..=LINES).all(|((_, line), number)| *line == number.to_string()));
    // The large buffers alone are 768 KiB.
    until("the large buffers are given back", || {
        let rollup =
            fs::read_to_string(format!("/proc/{}/smaps_rollup", container.started().shim_pid)).unwrap();
        let anonymous = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
        anonymous.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() < 600
    });
}

#[test]
fn a_second_run_goes_on_with_the_log() {
    if skip() {
        return;
    }
    let container = Case::script("echo once").start();
    container.wait();
    container.client().quit().unwrap();
    until("the first shim has left", || !container.dir.path().join(file::SOCKET).exists());
    let again = || Case::shim(container.dir.path()).stdout(std::process::Stdio::null()).spawn().unwrap();
    // The lock goes with the process.
    let mut shim = None;
    until("the second run has ended", || {
        let running = shim.get_or_insert_with(again);
        match running.try_wait().unwrap() {
            Some(_) => {
                shim = None;
                false
            }
            None => container.dir.path().join(file::EXIT).exists() && container.log().len() == 2,
        }
    });
    assert_eq!(container.log(), [('O', "once".to_owned()), ('O', "once".to_owned())]);
    container.client().quit().unwrap();
    assert!(shim.unwrap().wait().unwrap().success());
}

#[test]
fn a_shim_killed_at_any_moment_leaves_nothing() {
    if skip() {
        return;
    }
    // From before its first step to well after the program runs.
    for moment in 0..40_u64 {
        let mut case = Case::script("sleep 1000 & exec sleep 1000");
        let image = (moment % 4 == 0).then(|| case.disk_image(8 << 20));
        if let Some(path) = image.clone() {
            case.spec.writable = mogok_shim::spec::Writable::Image { path };
        }
        let mut container = case.spawn();
        std::thread::sleep(Duration::from_micros(moment * 400));
        container.kill_shim();
        until("the container is gone", || container.processes().is_empty());
        if let Some(image) = image {
            let image = image.to_str().unwrap().to_owned();
            until("the loop device is free", || !crate::storage::loop_backings().contains(&image));
        }
    }
}
