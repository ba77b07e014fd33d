//! Ours: what the agent does for a container. Cgroup with limits, spec, shim, sandbox with all isolation, exit
//! status on disk, cgroup removed.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mogok_agent::cgroup::{Cgroup, Cgroups};
use mogok_agent::shim::{Process, Spawner, launch};
use mogok_api::app::Limits;
use mogok_api::id::InstanceId;
use mogok_shim::client::Client;
use mogok_shim::protocol::exec::{self, Exec, ExecEnd, ExecReport};
use mogok_shim::sealed::Sealed;
use mogok_shim::spec::{Log, Spec, Writable, file};
use mogok_shim::sys::pidfd;
use mogok_tests::platform::bin_dir;
use tokio::runtime::{Builder, Runtime};

const ID_BASE: u32 = 1_000_000;
/// A program that does nothing has long ended by then.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Engine {
    dir: PathBuf,
    rootfs: PathBuf,
    cgroups: Cgroups,
    runtime: Runtime,
    spawner: Spawner,
}

/// One that runs.
pub(super) struct Container {
    pub(super) state: PathBuf,
    pub(super) cgroup: Cgroup,
    pub(super) process: Process,
    init_pid: i32,
}

/// A root file system of nothing but busybox.
pub(super) fn rootfs(dir: &Path) -> Result<PathBuf> {
    let rootfs = dir.join("rootfs");
    for name in ["bin", "dev", "proc", "sys", "tmp", "etc", "app", "run", "usr"] {
        fs::create_dir_all(rootfs.join(name))?;
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).context("install busybox-static")?;
    for name in ["true", "sleep", "sh"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name))?;
    }
    Ok(rootfs)
}

/// The shim up to where it looks at its arguments.
pub(super) fn shim_alone() -> Result<()> {
    let mut shim = Command::new(bin_dir().join("mogok-shim"));
    let status = shim.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    ensure!(status.code() == Some(2), "it ended with {status}");
    Ok(())
}

impl Engine {
    /// `name` is that of its cgroup root.
    pub(super) fn new(dir: &Path, rootfs: &Path, name: &str) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self {
            dir: dir.to_owned(),
            rootfs: rootfs.to_owned(),
            cgroups: Cgroups::detect(name)?,
            runtime,
            spawner: Spawner::start()?,
        })
    }

    pub(super) fn finish(&self) {
        self.cgroups.remove_root();
    }

    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// One container from nothing to nothing.
    pub(super) fn once(&self, netns: Option<BorrowedFd<'_>>) -> Result<()> {
        let container = self.start(&["/bin/true"], netns)?;
        let exit = self.end(container)?;
        ensure!(exit == Some(0), "exit status {exit:?}");
        Ok(())
    }

    /// The cgroups of a container and nothing else.
    pub(super) fn cgroups_alone(&self) -> Result<()> {
        self.cgroups.create(&InstanceId::new(), &Limits::app())?.remove()?;
        Ok(())
    }

    pub(super) fn start(&self, command: &[&str], netns: Option<BorrowedFd<'_>>) -> Result<Container> {
        let id = InstanceId::new();
        let cgroup = self.cgroups.create(&id, &Limits::app())?;
        let state = self.dir.join(id.to_string());
        fs::create_dir(&state)?;
        fs::write(state.join(file::SPEC), serde_json::to_vec(&self.spec(id, &cgroup, command))?)?;
        let (process, started) = self.runtime.block_on(async {
            let (process, pending) = launch(&self.spawner, &bin_dir().join("mogok-shim"), &state, netns)?;
            pending.report(PATIENCE).await.map(|started| (process, started))
        })?;
        Ok(Container { state, cgroup, process, init_pid: started.init_pid })
    }

    /// Waits for the end of its program, lets its shim go and removes the rest; the exit status.
    pub(super) fn end(&self, container: Container) -> Result<Option<i32>> {
        let exit = Client::connect(&container.state, PATIENCE)?.wait(PATIENCE)?;
        Client::connect(&container.state, PATIENCE)?.quit()?;
        self.runtime.block_on(container.process.ended());
        container.cgroup.remove()?;
        fs::remove_dir_all(container.state)?;
        Ok(exit.code)
    }

    /// Joins `true` into a container; after how long it was executed.
    pub(super) fn exec(&self, container: &Container, program: &Sealed) -> Result<Duration> {
        let begin = Instant::now();
        let init = pidfd::open(container.init_pid)?;
        let (ours, theirs) = UnixStream::pair()?;
        let mut helper = Command::new(program.path())
            .args(["exec".as_ref(), "--state-dir".as_ref(), container.state.as_os_str()])
            .stdin(OwnedFd::from(theirs))
            .spawn()?;
        let (stdin, stdout, stderr) = (std::io::pipe()?, std::io::pipe()?, std::io::pipe()?);
        let request =
            Exec { command: vec!["/bin/true".into()], env: vec![], cwd: None, user: None, terminal: None };
        let fds = [init.as_fd(), stdin.0.as_fd(), stdout.1.as_fd(), stderr.1.as_fd()];
        exec::send(&ours, &request, &fds)?;
        let (report, _program) = exec::receive::<ExecReport>(&ours)?;
        let executed = begin.elapsed();
        ensure!(report == ExecReport::Started, "the helper reported {report:?}");
        let (end, _) = exec::receive::<ExecEnd>(&ours)?;
        ensure!(end.code == Some(0), "it ended with {end:?}");
        drop(ours);
        helper.wait()?;
        Ok(executed)
    }

    fn spec(&self, id: InstanceId, cgroup: &Cgroup, command: &[&str]) -> Spec {
        Spec {
            id: id.to_string(),
            hostname: "bench".to_owned(),
            layers: vec![self.rootfs.clone()],
            writable: Writable::Tmpfs { bytes: 64 << 20, inodes: 4096 },
            binds: Vec::new(),
            files: Vec::new(),
            id_base: ID_BASE,
            uid: 1000,
            gid: 1000,
            cgroup: cgroup.v2_path().to_owned(),
            cgroups_v1: cgroup.v1_paths().to_vec(),
            disk_limits: vec![],
            command: command.iter().map(|&word| word.to_owned()).collect(),
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/".to_owned(),
            open_files: 1024,
            file_bytes: None,
            tmp_bytes: 16 << 20,
            log: Log { file_bytes: 1 << 20, files: 2, rate_bytes: 1 << 20 },
        }
    }
}
