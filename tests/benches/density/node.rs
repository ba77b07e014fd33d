//! A node of the benchmark's own: a real agent on a temporary state directory, with its own cgroup, pool and table,
//! and what the control plane does about it: wanted sets, heartbeats, the event stream.
//!
//! Invariant: whatever happens, the node is purged when this goes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mogok_api::agent::client::{AgentAddress, AgentClient, Follow};
use mogok_api::agent::{AgentEvent, DesiredMessage, InstanceDetail};
use mogok_api::app::{HealthCheck, Limits, RestartPolicy};
use mogok_api::id::{Epoch, InstanceId};
use mogok_api::instance::{ContainerKind, InstanceSpec, Phase};
use mogok_images::Store;
use mogok_images::store::ImageRecord;
use mogok_tests::leak;
use mogok_tests::platform::bin_dir;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const NAME: &str = "mogok-bench-density";
/// Between two heartbeats of the control plane.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Between two tries to reach an agent that is starting.
const AGAIN: Duration = Duration::from_millis(1);
/// For everything that should have long happened.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) struct Node {
    dir: tempfile::TempDir,
    agent: Option<Child>,
    client: AgentClient,
    epoch: Epoch,
    version: u64,
    wanted: BTreeMap<InstanceId, InstanceSpec>,
    /// Where every instance is, as the agent's events tell.
    phases: BTreeMap<InstanceId, Phase>,
    events: Option<Follow<AgentEvent>>,
}

impl Node {
    pub(super) fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(NAME).tempdir_in("/tmp")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        make_image(dir.path())?;
        let client = AgentClient::new(AgentAddress::Unix(dir.path().join("agent.sock")), None)?;
        Ok(Self {
            dir,
            agent: None,
            client,
            epoch: Epoch::new(),
            version: 0,
            wanted: BTreeMap::new(),
            phases: BTreeMap::new(),
            events: None,
        })
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// What there is of it on the host; the journal and the directories of gone instances are kept for a while.
    pub(super) fn look(&self) -> Result<leak::Host> {
        let host = leak::Host::look(&[NAME])?.and_files(&self.state_dir(), &["gone", "journal"]);
        match &self.agent {
            Some(agent) => host.and_descriptors(agent.id()),
            None => Ok(host),
        }
    }

    /// Starts the agent and follows it; the time until it has told what it has.
    pub(super) async fn start(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let log = File::options().create(true).append(true).open(self.dir.path().join("agent.log"))?;
        let agent = Command::new(bin_dir().join("mogok-agent"))
            .arg("run")
            .args(["--state-dir".as_ref(), self.state_dir().as_os_str()])
            .args(["--store".as_ref(), self.dir.path().join("store").as_os_str()])
            .args(["--socket".as_ref(), self.dir.path().join("agent.sock").as_os_str()])
            .args(["--pool", "10.92.0.0/16", "--port-range", "20000-29999"])
            .args(["--cgroup", NAME, "--cgroup-parent", "/"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot run mogok-agent: run make release, or set MOGOK_BIN_DIR")?;
        self.agent = Some(agent);
        self.phases.clear();
        loop {
            match self.client.events(None).await {
                Ok(events) => self.events = Some(events),
                Err(error) => {
                    ensure!(begin.elapsed() < PATIENCE, "the agent does not answer: {error}\n{}", self.log());
                    let left = self.agent.as_mut().map(Child::try_wait).transpose()?.flatten();
                    ensure!(left.is_none(), "the agent left:\n{}", self.log());
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
            self.event().await?;
            return Ok(begin.elapsed());
        }
    }

    /// Kills the agent as the kernel would, and waits for its end.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.events = None;
        if let Some(mut agent) = self.agent.take() {
            agent.kill()?;
            agent.wait()?;
        }
        Ok(())
    }

    pub(super) fn agent_pid(&self) -> Result<u32> {
        Ok(self.agent.as_ref().context("no agent runs")?.id())
    }

    /// Wants these as well, and those no more.
    pub(super) async fn change(&mut self, more: Vec<InstanceSpec>, fewer: Vec<InstanceId>) -> Result<()> {
        self.wanted.extend(more.iter().map(|spec| (spec.id, spec.clone())));
        for id in &fewer {
            self.wanted.remove(id);
        }
        let (epoch, from) = (self.epoch, self.version);
        self.version += 1;
        let version = self.version;
        let message = DesiredMessage::Delta { epoch, from, version, upsert: more, remove: fewer };
        self.send(&message).await
    }

    /// Wants exactly these.
    pub(super) async fn want(&mut self, instances: Vec<InstanceSpec>) -> Result<()> {
        self.wanted = instances.iter().map(|spec| (spec.id, spec.clone())).collect();
        self.version += 1;
        let message = DesiredMessage::Snapshot { epoch: self.epoch, version: self.version, instances };
        self.send(&message).await
    }

    async fn send(&self, message: &DesiredMessage) -> Result<()> {
        let ack = self.client.desired(message).await?;
        ensure!(!ack.need_snapshot && ack.version == self.version, "the agent did not take it: {ack:?}");
        Ok(())
    }

    /// Takes the next event in.
    async fn event(&mut self) -> Result<()> {
        let events = self.events.as_mut().context("no events are followed")?;
        let event = tokio::time::timeout(PATIENCE, events.next()).await.context("the agent is silent")??;
        match event.context("the agent ended its events")? {
            AgentEvent::Snapshot { instances, .. } => {
                self.phases = instances.into_iter().map(|status| (status.id, status.phase)).collect();
            }
            AgentEvent::Changed { instance, .. } => {
                if let Some(failure) = &instance.failure {
                    bail!("{} failed: {failure:?}\n{}", instance.id, self.log());
                }
                self.phases.insert(instance.id, instance.phase);
            }
            AgentEvent::Removed { id, .. } => drop(self.phases.remove(&id)),
            AgentEvent::Warned { .. } | AgentEvent::Heartbeat { .. } => {}
        }
        Ok(())
    }

    /// Until all that are wanted are up and none else is there.
    pub(super) async fn until_as_wanted(&mut self) -> Result<()> {
        self.until(Self::is_as_wanted).await
    }

    async fn until(&mut self, done: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            let up = self.phases.values().filter(|phase| **phase == Phase::Up).count();
            ensure!(
                Instant::now() < deadline,
                "{up} of {} are up, {} are there\n{}",
                self.wanted.len(),
                self.phases.len(),
                self.log()
            );
            self.event().await?;
        }
        Ok(())
    }

    fn is_as_wanted(&self) -> bool {
        // By number first: this is asked at every event.
        self.phases.len() == self.wanted.len()
            && self.phases.iter().all(|(id, phase)| *phase == Phase::Up && self.wanted.contains_key(id))
    }

    /// How long one takes from the wish to its first answer; it is removed again.
    pub(super) async fn one(&mut self) -> Result<Duration> {
        let spec = instance();
        let id = spec.id;
        let begin = Instant::now();
        self.change(vec![spec], vec![]).await?;
        // Of this one alone: to look at all takes longer the more there are.
        self.until(|node| node.phases.get(&id) == Some(&Phase::Up)).await?;
        let took = begin.elapsed();
        self.change(vec![], vec![id]).await?;
        self.until(|node| !node.phases.contains_key(&id)).await?;
        Ok(took)
    }

    /// Nothing happens for so long, but for what an idle control plane sends.
    pub(super) async fn idle(&mut self, quiet: Duration) -> Result<()> {
        let end = tokio::time::Instant::now() + quiet;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return Ok(()),
                _ = heartbeat.tick() => {
                    let (epoch, version) = (self.epoch, self.version);
                    self.send(&DesiredMessage::Heartbeat { epoch, version }).await?;
                }
                event = async { self.events.as_mut().context("no events are followed")?.next().await.context("events") } => {
                    let event = event?.context("the agent ended its events")?;
                    ensure!(
                        matches!(event, AgentEvent::Heartbeat { .. } | AgentEvent::Warned { .. }),
                        "a node at rest tells of {event:?}"
                    );
                }
            }
        }
    }

    /// Init and shim of every wanted instance.
    pub(super) async fn pids(&self) -> Result<BTreeMap<InstanceId, (i32, i32)>> {
        let mut pids = BTreeMap::new();
        for id in self.wanted.keys() {
            let InstanceDetail { pid, shim_pid, .. } = self.client.instance(*id).await?;
            pids.insert(*id, (pid.context("no pid")?, shim_pid.context("no shim")?));
        }
        Ok(pids)
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Takes everything of it away, as an operator would.
    pub(super) fn purge(&mut self) -> Result<()> {
        if let Some(agent) = &self.agent {
            kill(Pid::from_raw(i32::try_from(agent.id())?), Signal::SIGTERM)?;
        }
        if let Some(mut agent) = self.agent.take() {
            agent.wait()?;
        }
        self.events = None;
        if !self.state_dir().exists() {
            return Ok(());
        }
        let purged = Command::new(bin_dir().join("mogok-agent"))
            .args(["purge".as_ref(), "--state-dir".as_ref(), self.state_dir().as_os_str()])
            .output()?;
        ensure!(purged.status.success(), "purge: {}", String::from_utf8_lossy(&purged.stderr));
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.kill().and_then(|()| self.purge()) {
            eprintln!("cannot purge the node: {error:#}");
        }
    }
}

/// An image of nothing but busybox.
fn make_image(dir: &Path) -> Result<()> {
    let root = dir.join("rootfs");
    for name in ["bin", "etc", "tmp", "app", "proc", "sys", "dev", "run"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("install busybox-static")?;
    symlink("busybox", root.join("bin/httpd"))?;
    let packed = dir.join("image.tar.zst");
    mogok_images::pack::pack(&root, 0, 1, File::create(&packed)?)?;
    let store = Store::open(dir.join("store"))?;
    let digest = store.put(File::open(&packed)?, 1 << 30)?;
    let record = ImageRecord { recipe: String::new(), digest: digest.clone(), bytes: 0, packages: [].into() };
    Ok(store.set_image(&"busybox".parse()?, &digest, &record)?)
}

/// A web process: it has an address, a host port and an answer, and then it waits in accept(2).
pub(super) fn instance() -> InstanceSpec {
    InstanceSpec {
        id: InstanceId::new(),
        app: "fugafuga".parse().expect("a name"),
        process: "web.1".parse().expect("a name"),
        release: Some("v1".parse().expect("a name")),
        kind: ContainerKind::App,
        image: "busybox".parse().expect("a name"),
        image_digest: None,
        package: None,
        package_mounts: vec![],
        blobs: vec![],
        output: None,
        command: ["/bin/httpd", "-f", "-p", "5000"].map(str::to_owned).to_vec(),
        env: [("PATH".to_owned(), "/bin".to_owned())].into(),
        limits: Limits::app(),
        grants: Default::default(),
        listens: true,
        health: HealthCheck::default(),
        restart: RestartPolicy::Always,
        stop_grace_s: 10,
        max_runtime_s: None,
    }
}
