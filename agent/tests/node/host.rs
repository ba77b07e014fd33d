//! A node of its own for a test: an agent in a fresh network namespace, with state directory, store,
//! cgroup and an image of busybox. What the test leaves is purged, also when it fails.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mogok_api::agent::client::{AgentAddress, AgentClient};
use mogok_api::agent::{DesiredAck, DesiredMessage, LogRecord};
use mogok_api::app::{HealthCheck, Limits, RestartPolicy};
use mogok_api::id::{Epoch, InstanceId};
use mogok_api::instance::{ContainerKind, InstanceSpec, InstanceStatus, Phase};
use mogok_images::Store;
use mogok_images::store::ImageRecord;
use mogok_tests::{leak, network};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest wait for something that should happen; only a failing test waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Host {
    dir: tempfile::TempDir,
    pub(crate) shim: PathBuf,
    arguments: Vec<String>,
    cgroup: String,
    epoch: Epoch,
    version: u64,
    agent: Option<Child>,
    pub(crate) client: AgentClient,
    before: leak::Host,
}

/// The shim's program, or why the test cannot run.
fn prerequisites() -> Result<PathBuf, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".into());
    }
    let name = if cfg!(feature = "failpoints") { "failpoints/mogok-shim" } else { "mogok-shim" };
    let beside = Path::new(env!("CARGO_BIN_EXE_mogok-agent")).with_file_name(name);
    let shim = std::env::var_os("MOGOK_SHIM").map_or(beside, PathBuf::from);
    if !shim.is_file() {
        return Err(format!(
            "there is no {}: run make build (make faults), or set MOGOK_SHIM",
            shim.display()
        ));
    }
    if !Path::new("/bin/busybox").is_file() {
        return Err("there is no /bin/busybox: install busybox-static".into());
    }
    Ok(shim)
}

/// Runs a test on a node of its own.
pub(crate) fn on_a_node(test: impl AsyncFnOnce(&mut Host) + Send + 'static) {
    on_a_node_with(&[], test);
}

/// The same, with more arguments for the agent.
pub(crate) fn on_a_node_with(arguments: &[&str], test: impl AsyncFnOnce(&mut Host) + Send + 'static) {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let shim = match prerequisites() {
        Ok(shim) => shim,
        Err(reason) => return eprintln!("SKIP: {reason}"),
    };
    // The namespace belongs to this thread and to what it spawns.
    let outcome = std::thread::spawn(move || {
        if let Err(error) = network::enter_own_namespace() {
            return eprintln!("SKIP: {error:#}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut host = Host::new(shim, arguments);
            host.start().await;
            test(&mut host).await;
            host.leave_nothing();
        });
    });
    if let Err(panic) = outcome.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Host {
    fn new(shim: PathBuf, arguments: Vec<String>) -> Self {
        let dir = tempfile::Builder::new().prefix("agent-").tempdir_in("/tmp").unwrap();
        make_image(dir.path());
        let socket = dir.path().join("agent.sock");
        let client = AgentClient::new(AgentAddress::Unix(socket), None).unwrap();
        let tail: String = dir.path().to_string_lossy().chars().rev().take(6).collect();
        let cgroup = format!("mogok-life-{}-{tail}", std::process::id());
        let before = leak::Host::look(&[&dir.path().to_string_lossy(), &cgroup]).unwrap();
        Self { dir, shim, arguments, cgroup, epoch: Epoch::new(), version: 0, agent: None, client, before }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Starts the agent and waits until it answers.
    pub(crate) async fn start(&mut self) {
        self.spawn();
        let deadline = Instant::now() + PATIENCE;
        while self.client.node().await.is_err() {
            assert!(Instant::now() < deadline, "the agent does not answer:\n{}", self.log());
            assert!(self.agent_runs(), "the agent left:\n{}", self.log());
            pause().await;
        }
    }

    /// Has the agent that was started not left yet?
    pub(crate) fn agent_runs(&mut self) -> bool {
        self.agent.as_mut().is_some_and(|agent| agent.try_wait().unwrap().is_none())
    }

    /// What there is of this node on the host.
    pub(crate) fn look(&self) -> leak::Host {
        let found = leak::Host::look(&[&self.dir.path().to_string_lossy(), &self.cgroup]).unwrap();
        // What is gone is kept for a while for whoever reads its output.
        let found = found.and_files(&self.state_dir(), &["gone", "journal"]);
        match &self.agent {
            Some(agent) => found.and_descriptors(agent.id()).unwrap(),
            None => found,
        }
    }

    /// The same once it does not change any more: namespaces are made ahead, connections close a moment later.
    pub(crate) async fn settled(&self) -> leak::Host {
        let deadline = Instant::now() + PATIENCE;
        let mut last = self.look();
        let mut since = Instant::now();
        while since.elapsed() < Duration::from_millis(500) {
            pause().await;
            let now = self.look();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            assert!(Instant::now() < deadline, "{last:#?}");
        }
        last
    }

    /// The shims of this node.
    pub(crate) fn shims(&self) -> Vec<i32> {
        let shims = mogok_agent::shim::shims_below(&self.state_dir().join("instances")).unwrap();
        shims.into_iter().map(|(pid, _)| pid).collect()
    }

    /// Starts the agent.
    pub(crate) fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.path().join("agent.log")).unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_mogok-agent"))
            .arg("run")
            .args(["--state-dir".as_ref(), self.state_dir().as_os_str()])
            .args(["--store".as_ref(), self.dir.path().join("store").as_os_str()])
            .args(["--socket".as_ref(), self.dir.path().join("agent.sock").as_os_str()])
            .args(["--shim".as_ref(), self.shim.as_os_str()])
            .args(["--pool", "10.91.0.0/24", "--cgroup", &self.cgroup, "--cgroup-parent", "/"])
            .args(&self.arguments)
            .env("MOGOK_LOG", "info")
            .env("MOGOK_FAILPOINTS", self.dir.path().join("failpoints.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.agent = Some(agent);
    }

    /// Ends the agent with a signal and waits for it.
    pub(crate) fn end(&mut self, signal: Signal) {
        let mut agent = self.agent.take().unwrap();
        // One that has left by itself takes no signal.
        let _ = kill(Pid::from_raw(i32::try_from(agent.id()).unwrap()), signal);
        agent.wait().unwrap();
    }

    pub(crate) fn agent_pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    /// Children of the agent with that name.
    pub(crate) fn children_of_the_agent(&self, name: &str) -> Vec<i32> {
        let mut children = self.children();
        children.retain(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
        });
        children
    }

    /// Children of the agent that have ended and were not reaped.
    pub(crate) fn zombies(&self) -> Vec<i32> {
        let mut children = self.children();
        children.retain(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('Z'))
        });
        children
    }

    fn children(&self) -> Vec<i32> {
        let agent = self.agent_pid();
        let of_thread = |thread: std::fs::DirEntry| {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()).collect::<Vec<_>>()
        };
        let threads = std::fs::read_dir(format!("/proc/{agent}/task")).unwrap();
        threads.map(Result::unwrap).flat_map(of_thread).collect()
    }

    /// What the agent logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// Wants exactly these.
    pub(crate) async fn want(&mut self, instances: &[InstanceSpec]) -> DesiredAck {
        self.version += 1;
        let message = DesiredMessage::Snapshot {
            epoch: self.epoch,
            version: self.version,
            instances: instances.to_vec(),
        };
        self.client.desired(&message).await.unwrap()
    }

    pub(crate) async fn status(&self, id: InstanceId) -> Option<InstanceStatus> {
        self.client.instances().await.unwrap().into_iter().find(|status| status.id == id)
    }

    /// Waits until the status is as it should be.
    pub(crate) async fn until(
        &self,
        id: InstanceId,
        good: impl Fn(&InstanceStatus) -> bool,
    ) -> InstanceStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(id).await;
            if let Some(status) = &status
                && good(status)
            {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "{status:#?}\n{}", self.log());
            pause().await;
        }
    }

    pub(crate) async fn until_phase(&self, id: InstanceId, phase: Phase) -> InstanceStatus {
        self.until(id, |status| status.phase == phase).await
    }

    /// Waits until the agent knows nothing of it any more.
    pub(crate) async fn until_gone(&self, id: InstanceId) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(status) = self.status(id).await {
            assert!(Instant::now() < deadline, "{status:#?}\n{}", self.log());
            pause().await;
        }
    }

    /// All output that the agent has behind a cursor, up to a line that contains `last`.
    pub(crate) async fn lines(&self, after: Option<&str>, last: &str) -> Vec<LogRecord> {
        let mut stream = self.client.logs(after).await.unwrap();
        let mut records: Vec<LogRecord> = Vec::new();
        while records.last().is_none_or(|record| !record.line.contains(last)) {
            let next = tokio::time::timeout(PATIENCE, stream.next()).await;
            let next = next.unwrap_or_else(|_| panic!("no line {last:?} after {records:#?}\n{}", self.log()));
            records.push(next.unwrap().unwrap());
        }
        records
    }

    /// An answer of an instance's web server, which listens anew after each.
    pub(crate) fn get(&self, endpoint: SocketAddr) -> String {
        let deadline = Instant::now() + PATIENCE;
        let ask = || {
            let mut stream = TcpStream::connect_timeout(&endpoint, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        // A connection that waits while nc listens anew is reset, one that comes then is refused.
        let gap = |error: &std::io::Error| {
            matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
        };
        loop {
            match ask() {
                Ok(answer) => return answer,
                Err(error) if gap(&error) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("{endpoint}: {error}\n{}", self.log()),
            }
        }
    }

    /// The v2 cgroup that holds all containers of this node.
    pub(crate) fn cgroup_dir(&self) -> PathBuf {
        let found = Command::new("find")
            .args(["/sys/fs/cgroup", "-path", "*/unified/*", "-name", &self.cgroup])
            .output()
            .unwrap();
        let unified = String::from_utf8(found.stdout).unwrap();
        let found = match unified.lines().next() {
            Some(path) => path.to_owned(),
            None => {
                let all =
                    Command::new("find").args(["/sys/fs/cgroup", "-name", &self.cgroup]).output().unwrap();
                String::from_utf8(all.stdout).unwrap().lines().next().unwrap().to_owned()
            }
        };
        found.into()
    }

    /// The cgroup of this node in the v1 hierarchy of a controller, where there is one.
    pub(crate) fn cgroup_of(&self, controller: &str) -> Option<PathBuf> {
        let top = Path::new("/sys/fs/cgroup").join(controller);
        let found = Command::new("find").arg(top).args(["-name", &self.cgroup]).output().unwrap();
        String::from_utf8(found.stdout).unwrap().lines().next().map(PathBuf::from)
    }

    /// Names of the cgroups of containers.
    pub(crate) fn containers(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.cgroup_dir()).unwrap().map(Result::unwrap);
        entries
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect()
    }

    /// Processes of a container.
    pub(crate) fn processes(&self, id: InstanceId) -> Vec<i32> {
        let procs = std::fs::read_to_string(self.cgroup_dir().join(id.to_string()).join("cgroup.procs"));
        procs.unwrap().lines().map(|pid| pid.parse().unwrap()).collect()
    }

    /// Takes the node down as an operator would, and looks for what is left.
    fn leave_nothing(&mut self) {
        self.purge();
        let left: Vec<_> = std::fs::read_dir(self.state_dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != "lock" && name != "node-id")
            .collect();
        assert!(left.is_empty(), "left in the state directory: {left:?}");
        let after = leak::Host::look(&[&self.dir.path().to_string_lossy(), &self.cgroup]).unwrap();
        self.before.compare(&after).unwrap();
        // Again it does nothing.
        self.purge();
    }

    fn purge(&mut self) {
        if self.agent.is_some() {
            self.end(if std::thread::panicking() { Signal::SIGKILL } else { Signal::SIGTERM });
        }
        let purged = Command::new(env!("CARGO_BIN_EXE_mogok-agent"))
            .args(["purge".as_ref(), "--state-dir".as_ref(), self.state_dir().as_os_str()])
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&purged.stderr).into_owned();
        assert!(purged.status.success() || std::thread::panicking(), "purge: {words}\n{}", self.log());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.purge();
        }
    }
}

pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// A root file system of nothing but busybox, as an image of the store.
fn make_image(dir: &Path) {
    let root = dir.join("rootfs");
    for path in ["bin", "etc", "tmp", "app", "proc", "sys", "dev", "run", "root"] {
        std::fs::create_dir_all(root.join(path)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in
        ["sh", "nc", "sleep", "echo", "cat", "head", "dd", "true", "kill", "id", "printf", "tail", "awk"]
    {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::os::unix::fs::chown(root.join("app"), Some(1000), Some(1000)).unwrap();
    let packed = dir.join("image.tar.zst");
    mogok_images::pack::pack(&root, 0, 1, File::create(&packed).unwrap()).unwrap();
    let store = Store::open(dir.join("store")).unwrap();
    let digest = store.put(File::open(&packed).unwrap(), 1 << 30).unwrap();
    let (recipe, packages) = (String::new(), [].into());
    let record = ImageRecord { recipe, digest: digest.clone(), bytes: 0, packages };
    store.set_image(&"busybox".parse().unwrap(), &digest, &record).unwrap();
}

/// An instance that runs a shell script.
pub(crate) fn instance(script: &str) -> InstanceSpec {
    InstanceSpec {
        id: InstanceId::new(),
        app: "fugafuga".parse().unwrap(),
        process: "worker.1".parse().unwrap(),
        release: Some("v1".parse().unwrap()),
        kind: ContainerKind::App,
        image: "busybox".parse().unwrap(),
        image_digest: None,
        package: None,
        package_mounts: vec![],
        blobs: vec![],
        output: None,
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: [("PATH".to_owned(), "/bin".to_owned())].into(),
        limits: Limits { memory_bytes: 64 << 20, disk_bytes: 16 << 20, disk_inodes: 1024, ..Limits::app() },
        grants: Default::default(),
        listens: false,
        health: HealthCheck::default(),
        restart: RestartPolicy::Always,
        stop_grace_s: 10,
        max_runtime_s: None,
    }
}

/// An instance that answers every connection with `hello`.
pub(crate) fn web() -> InstanceSpec {
    InstanceSpec {
        process: "web.1".parse().unwrap(),
        listens: true,
        ..instance("echo serving; while true; do echo hello | nc -l -p $PORT; done")
    }
}
