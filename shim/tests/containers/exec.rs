//! Programs that join a running container: the same sandbox as the app's, their streams, their end, and
//! the end of everything around them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use mogok_shim::protocol::StepFailed;
use mogok_shim::protocol::exec::{self, Exec, ExecEnd, ExecOrder, ExecReport, Size};
use mogok_shim::sealed::Sealed;
use mogok_shim::sys::pidfd;

use crate::harness::{Case, Container, DEADLINE, skip, until};
use crate::isolation::{probe, refusals};

fn sealed() -> &'static Sealed {
    static SEALED: OnceLock<Sealed> = OnceLock::new();
    SEALED.get_or_init(|| Sealed::copy_of(env!("CARGO_BIN_EXE_mogok-shim").as_ref()).unwrap())
}

fn script(script: &str) -> Exec {
    command(&["/bin/sh", "-c", script])
}

fn command(command: &[&str]) -> Exec {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    Exec { command, env: vec![], cwd: None, user: None, terminal: None }
}

/// A helper, and our ends of everything.
struct Joined {
    helper: Child,
    socket: UnixStream,
    report: ExecReport,
    /// The program's pidfd, then its terminal.
    fds: Vec<OwnedFd>,
    stdin: Option<File>,
    stdout: File,
    stderr: File,
}

fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = std::io::pipe().unwrap();
    (OwnedFd::from(reader).into(), writer.into())
}

fn join(container: &Container, request: &Exec) -> Joined {
    join_by(container, request, &sealed().path())
}

fn join_by(container: &Container, request: &Exec, program: &std::path::Path) -> Joined {
    let (socket, theirs) = UnixStream::pair().unwrap();
    let mut helper = Command::new(program);
    helper.args(["exec", "--state-dir"]).arg(container.dir.path());
    helper.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit());
    let helper = helper.spawn().unwrap();
    let (stdin, to_stdin) = std::io::pipe().unwrap();
    let ((stdout, to_stdout), (stderr, to_stderr)) = (pipe(), pipe());
    let init = pidfd::open(container.started().init_pid).unwrap();
    let mut fds = vec![init.as_fd()];
    if request.terminal.is_none() {
        fds.extend([stdin.as_fd(), to_stdout.as_fd(), to_stderr.as_fd()]);
    }
    exec::send(&socket, request, &fds).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let (report, fds) = exec::receive(&socket).unwrap();
    let stdin = Some(File::from(OwnedFd::from(to_stdin)));
    Joined { helper, socket, report, fds, stdin, stdout, stderr }
}

impl Joined {
    fn failed(mut self) -> StepFailed {
        assert!(!self.helper.wait().unwrap().success());
        match self.report {
            ExecReport::Failed(failed) => failed,
            ExecReport::Started => panic!("it started"),
        }
    }

    fn end(&mut self) -> ExecEnd {
        assert_eq!(self.report, ExecReport::Started);
        let end = exec::receive(&self.socket).unwrap().0;
        assert!(self.helper.wait().unwrap().success());
        end
    }

    fn program_ends(&self) {
        let pidfd = self.fds[0].as_fd();
        until("the program ends", || pidfd::send_signal(pidfd, 0).is_err());
    }

    /// What it prints on standard output; it must succeed.
    fn output(mut self) -> String {
        self.stdin = None;
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).unwrap();
        self.stderr.read_to_string(&mut err).unwrap();
        assert_eq!(self.end(), ExecEnd { code: Some(0), signal: None }, "{out}{err}");
        out
    }
}

fn idle() -> Container {
    Case::script("exec sleep 1000").start()
}

#[test]
fn it_finds_itself_exactly_where_the_app_is() {
    if skip() {
        return;
    }
    let show = "cd /proc/self; for n in user pid mnt net ipc uts cgroup; do readlink ns/$n; done
        grep -E '^(Umask|Uid|Gid|Groups|SigBlk|Cap|NoNewPrivs|Seccomp)' status; cat limits cgroup oom_score_adj
        ls fd >/tmp/fds; wc -l </tmp/fds; env | grep -v PWD | sort; id -u";
    let container = Case::script(&format!("({show}) >/tmp/app; echo ready; exec sleep 1000")).start();
    container.await_line("ready");
    let app = join(&container, &command(&["/bin/cat", "/tmp/app"])).output();
    let joined = join(&container, &script(&format!("({show})"))).output();
    assert!(app.contains("CapBnd:\t0000000000000000") && app.contains("1000\n"), "{app}");
    assert_eq!(joined, app);
    // Shells ignore some by themselves.
    let ignored = join(&container, &command(&["/bin/grep", "SigIgn", "/proc/self/status"])).output();
    assert_eq!(ignored, "SigIgn:\t0000000000000000\n");
}

#[test]
fn streams_are_apart_and_the_end_of_input_travels() {
    if skip() {
        return;
    }
    let container = idle();
    let mut joined = join(&container, &script("cat; echo err >&2; exit 7"));
    joined.stdin.take().unwrap().write_all(b"in").unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    joined.stdout.read_to_string(&mut out).unwrap();
    joined.stderr.read_to_string(&mut err).unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("in", "err\n"));
    assert_eq!(joined.end(), ExecEnd { code: Some(7), signal: None });
    until("nothing but the app is left", || container.processes().len() == 2);
}

#[test]
fn signals_are_handed_on_and_told() {
    if skip() {
        return;
    }
    let container = idle();
    let mut joined =
        join(&container, &script("trap 'echo usr1' USR1; echo up; while :; do sleep 0.01; done"));
    let mut line = [0; 3];
    joined.stdout.read_exact(&mut line).unwrap();
    exec::send(&joined.socket, &ExecOrder::Signal(libc::SIGUSR1), &[]).unwrap();
    let mut line = [0; 5];
    joined.stdout.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"usr1\n");
    exec::send(&joined.socket, &ExecOrder::Signal(libc::SIGTERM), &[]).unwrap();
    assert_eq!(joined.end(), ExecEnd { code: None, signal: Some(libc::SIGTERM) });
}

#[test]
fn what_was_asked_for_is_had() {
    if skip() {
        return;
    }
    let asked = Exec {
        env: vec!["HOME=/tmp".into(), "NEW=1".into()],
        cwd: Some("/etc".into()),
        user: Some((1001, 1002)),
        ..script("echo $HOME $NEW $PATH; pwd; id -u; id -g")
    };
    assert_eq!(join(&idle(), &asked).output(), "/tmp 1 /bin\n/etc\n1001\n1002\n");
}

#[test]
fn a_failed_step_is_named() {
    if skip() {
        return;
    }
    let container = idle();
    let failed = |request: &Exec| {
        let failed = join(&container, request).failed();
        (failed.step, failed.errno)
    };
    let step = |step: &str, errno| (step.to_owned(), errno);
    assert_eq!(failed(&command(&["/no/such"])), step("execute", libc::ENOENT));
    assert_eq!(failed(&command(&["/bin"])), step("execute", libc::EACCES));
    for (cwd, errno) in
        [("/proc/self/fd/1", libc::ENOENT), ("/proc/1/root", libc::EACCES), ("/proc/2/cwd", libc::ELOOP)]
    {
        let request = Exec { cwd: Some(cwd.into()), ..script("true") };
        let found = failed(&request);
        assert_eq!(found, step("working_directory", errno), "{cwd}");
    }
    for user in [(0, 0), (65_536, 1), (u32::MAX, u32::MAX)] {
        assert_eq!(failed(&Exec { user: Some(user), ..script("id") }), step("request", libc::EINVAL));
    }
    until("nothing but the app is left", || container.processes().len() == 2);
    let unsealed = join_by(&container, &script("true"), env!("CARGO_BIN_EXE_mogok-shim").as_ref());
    assert_eq!(unsealed.failed().step, "sealed");
}

#[test]
fn the_dead_are_not_joined() {
    if skip() {
        return;
    }
    let container = idle();
    let init = pidfd::open(container.started().init_pid).unwrap();
    pidfd::send_signal(&init, libc::SIGKILL).unwrap();
    container.wait();
    let (socket, theirs) = UnixStream::pair().unwrap();
    let mut helper = Command::new(sealed().path())
        .args(["exec", "--state-dir"])
        .arg(container.dir.path())
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let null = File::open("/dev/null").unwrap();
    let fds = [init.as_fd(), null.as_fd(), null.as_fd(), null.as_fd()];
    exec::send(&socket, &script("true"), &fds).unwrap();
    let (report, _) = exec::receive::<ExecReport>(&socket).unwrap();
    assert!(matches!(&report, ExecReport::Failed(failed) if failed.step == "join_namespaces"), "{report:?}");
    helper.wait().unwrap();
}

#[test]
fn a_client_that_goes_away_ends_the_program_whatever_it_ignores() {
    if skip() {
        return;
    }
    let container = idle();
    for ignored in ["", "trap '' HUP TERM INT;"] {
        let mut joined =
            join(&container, &script(&format!("{ignored} sleep 999 & echo up; while :; do sleep 1; done")));
        joined.stdout.read_exact(&mut [0; 3]).unwrap();
        joined.socket.shutdown(std::net::Shutdown::Both).unwrap();
        joined.program_ends();
        joined.helper.wait().unwrap();
        until("nothing but the app is left", || container.processes().len() == 2);
    }
}

#[test]
fn a_killed_helper_takes_the_program_along() {
    if skip() {
        return;
    }
    let container = idle();
    let mut joined = join(&container, &script("while :; do sleep 1; done"));
    joined.helper.kill().unwrap();
    joined.helper.wait().unwrap();
    joined.program_ends();
}

#[test]
fn everything_ends_with_the_container() {
    if skip() {
        return;
    }
    let container = idle();
    let mut joined =
        join(&container, &script("trap '' HUP TERM; setsid sleep 999 & echo up; while :; do sleep 1; done"));
    joined.stdout.read_exact(&mut [0; 3]).unwrap();
    container.client().signal(libc::SIGKILL, true).unwrap();
    assert_eq!(joined.end(), ExecEnd { code: None, signal: Some(libc::SIGKILL) });
    container.wait();
    assert_eq!(container.processes(), [0_i32; 0]);
    container.quit();
}

#[test]
fn a_terminal_is_the_containers_own() {
    if skip() {
        return;
    }
    let container = idle();
    let text = "tty; stty size; test -t 0 -a -t 1 -a -t 2 && echo three; exec 3</dev/tty && echo control
        stat -c %u $(tty); trap 'echo int; exit 3' INT; echo up; while :; do sleep 0.01; done";
    let terminal = Some(Size { rows: 30, columns: 100 });
    let mut joined = join(&container, &Exec { terminal, ..script(text) });
    assert_eq!(joined.report, ExecReport::Started);
    let mut master = File::from(joined.fds.pop().unwrap());
    let mut shown = String::new();
    let mut buffer = [0; 256];
    while !shown.contains("up\r\n") {
        let read = master.read(&mut buffer).unwrap();
        shown.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    assert_eq!(shown, "/dev/pts/0\r\n30 100\r\nthree\r\ncontrol\r\n1000\r\nup\r\n");
    master.write_all(b"\x03").unwrap();
    assert_eq!(joined.end(), ExecEnd { code: Some(3), signal: None });
    // A terminal that is closed hangs its session up.
    let mut joined = join(&container, &Exec { terminal, ..script("while :; do sleep 1; done") });
    drop(joined.fds.pop());
    assert_eq!(joined.end(), ExecEnd { code: None, signal: Some(libc::SIGHUP) });
}

#[test]
fn every_dangerous_call_is_refused_here_too() {
    if skip() {
        return;
    }
    let mut case = Case::script("exec sleep 1000");
    if probe(&mut case).is_none() {
        return;
    }
    assert_eq!(join(&case.start(), &command(&["/probe"])).output().trim_end(), refusals());
}

#[test]
fn the_helper_cannot_be_overwritten_nor_looked_into() {
    if skip() {
        return;
    }
    let mut case = Case::script(
        // No process is made for a look, so that no moment is missed on a slow machine.
        "while :; do for p in /proc/[0-9]*; do n=; { read -r n < $p/comm; } 2>/dev/null
         case $n in mogok-exec) echo seen; cat $p/environ $p/maps 2>/dev/null; ls $p/fd/ 2>/dev/null\n          ls $p/root/ 2>/dev/null; readlink $p/exe; ls -l $p/fd 2>/dev/null;; esac; done; done",
    );
    let layer = case.dir.path().join("layer");
    std::fs::create_dir_all(layer.join("app")).unwrap();
    let attack = layer.join("app/attack");
    std::fs::write(&attack, "#!/proc/self/exe\n").unwrap();
    std::fs::set_permissions(&attack, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    case.spec.layers.insert(0, layer);
    let container = case.start();
    // The program's process is the helper's copy for a moment, and that is when it may be looked at.
    until("the app has seen it", || {
        join(&container, &command(&["/bin/true"])).output();
        container.log().iter().any(|(_, line)| line == "seen")
    });
    // The kernel resolves the interpreter while the caller is still the helper: that is executed, inside.
    let mut attacked = join(&container, &command(&["/app/attack"]));
    if attacked.report == ExecReport::Started {
        assert_ne!(attacked.end().code, Some(0));
    }
    // A moment later it is the program, whose own things may be seen.
    let mut log = container.log();
    log.retain(|(_, line)| ["memfd", "mogok", "socket:", "pidfd"].iter().any(|word| line.contains(word)));
    assert!(log.is_empty(), "the app saw something of it: {log:?}");
    let program = std::fs::read(env!("CARGO_BIN_EXE_mogok-shim")).unwrap();
    assert!(std::fs::read(sealed().path()).unwrap() == program);
}
