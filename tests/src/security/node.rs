//! A node to look into: a real agent in this thread's network namespace, with state directory, store and
//! cgroup of its own, and images that are spoilt after they were unpacked, as no archive could be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mogok_api::agent::client::{AgentAddress, AgentClient};
use mogok_api::agent::{DesiredMessage, InstanceDetail, LogStream};
use mogok_api::app::{HealthCheck, Limits, RestartPolicy};
use mogok_api::id::{Epoch, InstanceId};
use mogok_api::instance::{ContainerKind, InstanceSpec, InstanceStatus, Phase};
use mogok_images::Store;
use mogok_images::store::ImageRecord;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PROBE, make_root, set_user_id};
use crate::platform::bin_dir;
use crate::program::{run, wait_until};

/// Longest wait for something that should happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
const POOL: &str = "10.91.0.0/24";

/// An agent with its store, socket and cgroup.
pub(super) struct Node {
    pub(super) dir: tempfile::TempDir,
    agent: Child,
    runtime: tokio::runtime::Runtime,
    pub(super) client: AgentClient,
    epoch: Epoch,
    version: u64,
    wanted: Vec<InstanceSpec>,
}

impl Node {
    pub(super) fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mogok-security-").tempdir_in("/tmp")?;
        let socket = dir.path().join("agent.sock");
        let agent = Command::new(bin_dir().join("mogok-agent"))
            .arg("run")
            .args(["--state-dir".as_ref(), dir.path().join("state").as_os_str()])
            .args(["--store".as_ref(), dir.path().join("store").as_os_str()])
            .args(["--socket".as_ref(), socket.as_os_str()])
            .args(["--pool", POOL, "--cgroup", &format!("mogok-security-{}", std::process::id())])
            // The more a container may reach, the more there is to refuse.
            .args(["--egress", "internet"])
            .env("MOGOK_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("agent.log"))?)
            .spawn()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = AgentClient::new(AgentAddress::Unix(socket), None)?;
        let node = Self { dir, agent, runtime, client, epoch: Epoch::new(), version: 0, wanted: Vec::new() };
        wait_until("the agent answers", PATIENCE, || node.healthy().is_ok())?;
        Ok(node)
    }

    /// Packs an image and hands it to the store; `spoil` does what no archive can, to the unpacked tree.
    pub(super) fn image(&mut self, name: &str, spoil: impl Fn(&Path) -> Result<()>) -> Result<()> {
        let root = self.dir.path().join(format!("root-{name}"));
        make_root(&root)?;
        fs::write(root.join("etc/image"), name)?;
        let packed = self.dir.path().join("image.tar.zst");
        mogok_images::pack::pack(&root, 0, 1, fs::File::create(&packed)?)?;
        fs::remove_dir_all(&root)?;
        let store = Store::open(self.dir.path().join("store"))?;
        let digest = store.put(fs::File::open(&packed)?, 1 << 30)?;
        let record =
            ImageRecord { recipe: String::new(), digest: digest.clone(), bytes: 0, packages: [].into() };
        store.set_image(&name.parse()?, &digest, &record)?;
        // The first container unpacks it.
        let spec = InstanceSpec { image: name.parse()?, ..self.spec(ContainerKind::App, &[PROBE, "euid"]) };
        let ended = self.run(&spec)?;
        ensure!(
            ended.lines.iter().any(|line| line == "1000"),
            "{name}: {:?} {:?}",
            ended.status,
            ended.lines
        );
        let found = run("find", &[&self.dir.path().join("store").to_string_lossy(), "-path", "*/etc/image"])?;
        let tree = found
            .lines()
            .find(|path| fs::read_to_string(path).is_ok_and(|text| text == name))
            .and_then(|path| Path::new(path).ancestors().nth(2).map(PathBuf::from))
            .context("the image was not unpacked")?;
        set_user_id(&tree)?;
        spoil(&tree)
    }

    pub(super) fn spec(&self, kind: ContainerKind, command: &[&str]) -> InstanceSpec {
        InstanceSpec {
            id: InstanceId::new(),
            app: "fugafuga".parse().unwrap_or_else(|_| unreachable!("a good name")),
            process: "worker.1".parse().unwrap_or_else(|_| unreachable!("a good name")),
            release: None,
            kind,
            image: "probe".parse().unwrap_or_else(|_| unreachable!("a good name")),
            image_digest: None,
            package: None,
            package_mounts: vec![],
            blobs: vec![],
            output: None,
            command: command.iter().map(|&word| word.to_owned()).collect(),
            env: [("PATH".to_owned(), "/bin".to_owned())].into(),
            limits: Limits {
                memory_bytes: 128 << 20,
                disk_bytes: 32 << 20,
                disk_inodes: 2048,
                ..Limits::app()
            },
            grants: Default::default(),
            listens: false,
            health: HealthCheck::default(),
            restart: RestartPolicy::Never,
            stop_grace_s: 1,
            max_runtime_s: None,
        }
    }

    /// Wants this one more.
    pub(super) fn add(&mut self, spec: &InstanceSpec) -> Result<()> {
        self.wanted.push(spec.clone());
        self.send()
    }

    /// Wants it no more, and waits until nothing of it is left.
    pub(super) fn remove(&mut self, id: InstanceId) -> Result<()> {
        self.wanted.retain(|wanted| wanted.id != id);
        self.send()?;
        wait_until("the container is removed", PATIENCE, || {
            self.status(id).is_ok_and(|status| status.is_none())
        })
    }

    /// Runs one to its end.
    pub(super) fn run(&mut self, spec: &InstanceSpec) -> Result<Ended> {
        self.add(spec)?;
        let status = self.until(spec.id, |status| status.phase == Phase::Exited)?;
        let lines = self.lines(spec.id)?;
        self.remove(spec.id)?;
        Ok(Ended { status, lines })
    }

    /// Waits until the status is as it should be.
    pub(super) fn until(
        &self,
        id: InstanceId,
        good: impl Fn(&InstanceStatus) -> bool,
    ) -> Result<InstanceStatus> {
        let mut last = None;
        let waited = wait_until("the container gets on", PATIENCE, || {
            last = self.status(id).ok().flatten();
            last.as_ref().is_some_and(&good)
        });
        waited.with_context(|| format!("{last:?}"))?;
        last.context("no status")
    }

    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(super) fn agent_pid(&self) -> u32 {
        self.agent.id()
    }

    pub(super) fn detail(&self, id: InstanceId) -> Result<InstanceDetail> {
        Ok(self.runtime.block_on(self.client.instance(id))?)
    }

    /// Does the agent answer?
    pub(super) fn healthy(&self) -> Result<()> {
        self.runtime.block_on(self.client.node())?;
        Ok(())
    }

    fn status(&self, id: InstanceId) -> Result<Option<InstanceStatus>> {
        let all = self.runtime.block_on(self.client.instances())?;
        Ok(all.into_iter().find(|status| status.id == id))
    }

    /// Its output up to the agent's word on its end.
    fn lines(&self, id: InstanceId) -> Result<Vec<String>> {
        self.runtime.block_on(async {
            let mut stream = self.client.logs(None).await?;
            let mut lines = Vec::new();
            loop {
                let record = tokio::time::timeout(PATIENCE, stream.next()).await;
                let record = record.context("the log does not end")??.context("the log broke off")?;
                let ended = record.stream == LogStream::Platform
                    && ["exited", "killed", "cannot", "ended"]
                        .iter()
                        .any(|word| record.line.starts_with(word));
                if record.instance == id {
                    if ended {
                        return Ok(lines);
                    }
                    lines.push(record.line);
                }
            }
        })
    }

    fn send(&mut self) -> Result<()> {
        self.version += 1;
        let (epoch, version, instances) = (self.epoch, self.version, self.wanted.clone());
        self.runtime.block_on(self.client.desired(&DesiredMessage::Snapshot {
            epoch,
            version,
            instances,
        }))?;
        Ok(())
    }

    /// Takes the node down, containers included.
    pub(super) fn stop(&mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.agent.id())?), Signal::SIGTERM)?;
        self.agent.wait()?;
        let state = self.dir.path().join("state");
        let purge = ["purge", "--state-dir", &state.to_string_lossy()].map(ToOwned::to_owned);
        let agent = bin_dir().join("mogok-agent");
        run(&agent.to_string_lossy(), &purge.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Ok(None) = self.agent.try_wait() {
            let _ = self.stop();
        }
    }
}

/// How a container ended, and what it had printed.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: InstanceStatus,
    pub(super) lines: Vec<String>,
}
