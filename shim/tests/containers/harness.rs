//! Real containers for tests: a busybox image, a cgroup, the shim, and what it left behind.
//!
//! A [`Case`] is a spec to change; [`Case::start`] gives a [`Container`] that cleans everything up when it is
//! dropped. Invariant: nothing is sent to any network, and only processes and cgroups made here are ended.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mogok_shim::client::Client;
use mogok_shim::protocol::{Exit, Report, Started};
use mogok_shim::spec::{Log, Spec, Writable, file};
use tempfile::TempDir;

/// For anything that the kernel or a small program does, in an emulated machine too.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// User and group of the program inside.
pub(crate) const USER: u32 = 1000;
const BUSYBOX: &str = "/bin/busybox";
/// First id of the first container; far from the host's own.
const FIRST_ID: u32 = 1 << 24;

/// Why containers cannot be made here, if so. Printed, and the test returns.
pub(crate) fn skip() -> bool {
    let reason = if !nix::unistd::geteuid().is_root() {
        "not root"
    } else if !Path::new(BUSYBOX).exists() {
        "no static busybox at /bin/busybox"
    } else if cgroup_v2().is_none() {
        "no cgroup v2 tree"
    } else {
        return false;
    };
    eprintln!("SKIP: {reason}");
    true
}

/// Where the v2 tree is mounted: alone, or beside v1 on a hybrid host.
pub(crate) fn cgroup_v2() -> Option<&'static Path> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.join("cgroup.controllers").exists())
}

/// A directory tree with busybox: what an image is to the shim. Made once and kept in `target`.
pub(crate) fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let image = tmp.join("busybox-image");
        if !image.exists() {
            let dir = TempDir::new_in(tmp).unwrap();
            fill_image(dir.path());
            // Another process may have been faster.
            if fs::rename(dir.path(), &image).is_ok() {
                let _ = dir.keep();
            }
        }
        image
    })
}

fn fill_image(root: &Path) {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["bin", "etc", "app", "tmp", "proc", "sys", "dev"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    let applets = Command::new(BUSYBOX).arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }
    fs::write(root.join("etc/passwd"), "app:x:1000:1000::/app:/bin/sh\n").unwrap();
    std::os::unix::fs::chown(root.join("app"), Some(USER), Some(USER)).unwrap();
}

/// A container that is not started yet: change `spec` as the test needs it.
pub(crate) struct Case {
    pub(crate) dir: TempDir,
    pub(crate) spec: Spec,
    cgroups: Cgroups,
}

/// The cgroups of one container, with what is in them; removed in the end.
pub(crate) struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn make(id: &str) -> Self {
        let mut cgroups = Self(vec![cgroup_v2().unwrap().join(id)]);
        for controller in ["memory", "pids"] {
            let hierarchy = Path::new("/sys/fs/cgroup").join(controller);
            if hierarchy.join("cgroup.procs").exists() {
                cgroups.0.push(hierarchy.join(id));
            }
        }
        for cgroup in &cgroups.0 {
            fs::create_dir(cgroup).unwrap();
        }
        cgroups
    }

    fn processes(&self) -> Vec<i32> {
        let procs = fs::read_to_string(self.0[0].join("cgroup.procs")).unwrap_or_default();
        procs.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    fn kill(&self) {
        // Nothing of this fails when the test passed; what fails then is not to hide the test's own failure.
        let _ = fs::write(self.0[0].join("cgroup.kill"), "1");
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.kill();
        let deadline = Instant::now() + DEADLINE;
        for cgroup in &self.0 {
            while fs::remove_dir(cgroup).is_err() && cgroup.exists() && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
    }
}

impl Case {
    /// One that runs a shell script.
    pub(crate) fn script(script: &str) -> Self {
        Self::command(&["/bin/sh", "-c", script])
    }

    pub(crate) fn command(command: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("mogok-shim-test-{}-{number}", std::process::id());
        let dir = TempDir::with_prefix("mogok-shim-").unwrap();
        let cgroups = Cgroups::make(&id);
        let spec = Spec {
            hostname: id.clone(),
            id,
            layers: vec![image().to_owned()],
            writable: Writable::Tmpfs { bytes: 16 << 20, inodes: 4096 },
            binds: vec![],
            files: vec![],
            id_base: FIRST_ID + number * 65_536,
            uid: USER,
            gid: USER,
            cgroup: cgroups.0[0].clone(),
            cgroups_v1: cgroups.0[1..].to_vec(),
            disk_limits: vec![],
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: vec!["PATH=/bin".into(), "HOME=/app".into()],
            cwd: "/app".into(),
            open_files: 256,
            file_bytes: None,
            tmp_bytes: 4 << 20,
            log: Log { file_bytes: 1 << 20, files: 4, rate_bytes: 1 << 20 },
        };
        Self { dir, spec, cgroups }
    }

    /// A file with a fresh ext4 of that size, for [`Writable::Image`].
    pub(crate) fn disk_image(&self, bytes: u64) -> PathBuf {
        let path = self.dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&path).status().unwrap();
        assert!(made.success(), "mkfs.ext4: {made}");
        path
    }

    /// The command that starts a shim in `dir`.
    pub(crate) fn shim(dir: &Path) -> Command {
        let mut shim = Command::new(env!("CARGO_BIN_EXE_mogok-shim"));
        shim.args(["run", "--state-dir"]).arg(dir).stdin(Stdio::null());
        shim
    }

    /// Starts the shim, which makes a network namespace, and reads its report.
    pub(crate) fn start(self) -> Container {
        let shim = Self::shim(self.dir.path());
        self.start_with(shim)
    }

    /// Hands it the network namespace of this thread.
    pub(crate) fn start_in_current_network(self) -> Container {
        let mut shim = Command::new("/bin/sh");
        shim.args(["-c", "exec 3</proc/self/ns/net \"$0\" run --state-dir \"$1\" --netns-fd 3"])
            .arg(env!("CARGO_BIN_EXE_mogok-shim"))
            .arg(self.dir.path())
            .stdin(Stdio::null());
        self.start_with(shim)
    }

    fn start_with(self, mut shim: Command) -> Container {
        let Self { dir, spec, cgroups } = self;
        fs::write(dir.path().join(file::SPEC), serde_json::to_vec(&spec).unwrap()).unwrap();
        let log = File::create(dir.path().join("shim.log")).unwrap();
        let mut shim = shim.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(shim.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let report = serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!("report {line:?}: {error}; {}", fs::read_to_string(dir.path().join("shim.log")).unwrap())
        });
        Container { dir, spec, shim, report, cgroups }
    }

    /// Starts the shim and reads nothing of it.
    pub(crate) fn spawn(self) -> Unheard {
        let Self { dir, spec, cgroups } = self;
        fs::write(dir.path().join(file::SPEC), serde_json::to_vec(&spec).unwrap()).unwrap();
        let (out, log) = (Stdio::null(), File::create(dir.path().join("shim.log")).unwrap());
        let shim = Self::shim(dir.path()).stdout(out).stderr(log).spawn().unwrap();
        Unheard { shim, cgroups, _dir: dir }
    }

    /// Starts it and waits for its end.
    pub(crate) fn run(self) -> Outcome {
        let container = self.start();
        let exit = container.wait();
        let log = container.log();
        container.quit();
        Outcome { exit, log }
    }
}

/// A shim that may be at any step.
pub(crate) struct Unheard {
    shim: Child,
    cgroups: Cgroups,
    _dir: TempDir,
}

impl Unheard {
    pub(crate) fn kill_shim(&mut self) {
        self.shim.kill().unwrap();
        self.shim.wait().unwrap();
    }

    pub(crate) fn processes(&self) -> Vec<i32> {
        self.cgroups.processes()
    }
}

/// A started container.
pub(crate) struct Container {
    pub(crate) dir: TempDir,
    pub(crate) spec: Spec,
    pub(crate) shim: Child,
    pub(crate) report: Report,
    cgroups: Cgroups,
}

impl Container {
    pub(crate) fn started(&self) -> &Started {
        match &self.report {
            Report::Started(started) => started,
            Report::Failed(failed) => panic!("not started: {failed}"),
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.dir.path(), DEADLINE).unwrap()
    }

    pub(crate) fn wait(&self) -> Exit {
        self.started();
        self.client().wait(DEADLINE).unwrap()
    }

    /// The log as `(O|E, line)`, parts put together; a record that is just being written is none yet.
    pub(crate) fn log(&self) -> Vec<(char, String)> {
        let mut files: Vec<_> = fs::read_dir(self.dir.path().join(file::LOG_DIR))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        let mut lines = Vec::new();
        let mut part = String::new();
        for file in files {
            let mut text = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
            text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
            for record in text.lines() {
                let mut fields = record.splitn(4, ' ');
                let (time, stream) = (fields.next().unwrap(), fields.next().unwrap());
                assert!(time.ends_with('Z') && time.len() == 27, "{record:?}");
                let full = fields.next().unwrap() == "F";
                part.push_str(fields.next().unwrap());
                if full {
                    lines.push((stream.chars().next().unwrap(), std::mem::take(&mut part)));
                }
            }
        }
        lines
    }

    /// Waits until the log has a line.
    pub(crate) fn await_line(&self, line: &str) {
        until(&format!("line {line:?}"), || self.log().iter().any(|(_, text)| text == line));
    }

    /// Lets the shim of an ended container go, and sees it leave with success.
    pub(crate) fn quit(mut self) {
        self.client().quit().unwrap();
        let status = self.shim.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// Processes in its cgroup.
    pub(crate) fn processes(&self) -> Vec<i32> {
        self.cgroups.processes()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.cgroups.kill();
        if let Ok(None) = self.shim.try_wait() {
            let _ = self.shim.kill();
        }
        let _ = self.shim.wait();
    }
}

/// How a container ended and what it wrote.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exit: Exit,
    pub(crate) log: Vec<(char, String)>,
}

impl Outcome {
    /// Lines of its standard output; the program must have succeeded.
    pub(crate) fn lines(&self) -> Vec<&str> {
        assert_eq!(self.exit.code, Some(0), "{:#?}", self.log);
        self.stream('O')
    }

    pub(crate) fn stream(&self, stream: char) -> Vec<&str> {
        self.log.iter().filter(|(s, _)| *s == stream).map(|(_, line)| line.as_str()).collect()
    }
}

/// Waits for something the kernel or a process does.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
