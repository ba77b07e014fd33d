//! Making the container and starting its program, step by step: layers, cgroup, disk, network, output
//! file, spec, shim. Each step that fails is named in the failure, and takes back those before it.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use mogok_api::app::Limits;
use mogok_api::instance::{FailureCode, InstanceSpec};
use mogok_api::name::Digest;
use mogok_images::{Store, StoreError, UnpackLimits};
use mogok_shim::protocol::Started;
use mogok_shim::spec::file;

use super::cleanup;
use super::output::{self, OutputError};
use super::sandbox::{self, Parts};
use super::state::{Event, State};
use super::{Instance, ending};
use crate::cgroup::CgroupError;
use crate::disk::DiskError;
use crate::fail_point;
use crate::ledger::{LedgerError, Run, atomic};
use crate::network::{Demand, NetworkError};
use crate::shim::{self, LaunchError};

/// A shim that has not reported by then is stuck.
const REPORT_DEADLINE: Duration = Duration::from_secs(30);

/// The step at which a start failed.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("image {0} is not on this node: build it there")]
    NoImage(mogok_api::name::ImageName),
    #[error("image {image} has digest {found} on this node, not {wanted}")]
    OtherImage { image: mogok_api::name::ImageName, found: Digest, wanted: Digest },
    #[error("layers")]
    Layers(#[from] StoreError),
    #[error("cgroup")]
    Cgroup(#[from] CgroupError),
    #[error("disk")]
    Disk(#[from] DiskError),
    #[error("network")]
    Network(#[from] NetworkError),
    #[error("output")]
    Output(#[from] OutputError),
    #[error("spec")]
    Spec(#[from] LedgerError),
    #[error("remains of the last run")]
    Remains(#[from] std::io::Error),
    #[error(transparent)]
    Shim(#[from] LaunchError),
    #[error("stopped before it had started")]
    Unwanted,
    #[error("a blocking step did not finish")]
    Join(#[from] tokio::task::JoinError),
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoint::Injected),
}

impl Instance {
    /// From `Starting` on.
    pub(super) async fn start(&mut self) {
        match self.make_and_launch().await {
            Ok(started) => self.started(&started),
            Err(error) => {
                self.stop_shim().await;
                cleanup::run(&self.node.ground, self.id()).await;
                self.record.run = None;
                if self.record.state == State::Aborting {
                    return self.apply(Event::StartFailed);
                }
                self.cannot_start(&crate::chain(&error));
            }
        }
    }

    /// The node could not start it: from here it goes on like any other failed run.
    pub(super) fn cannot_start(&mut self, why: &str) {
        self.fail(FailureCode::CannotStart, why.to_owned());
        self.record.exit = None;
        self.say(&format!("cannot start: {why}"));
        self.plan_restart(Duration::ZERO);
        self.apply(Event::StartFailed);
    }

    /// A start that an earlier agent had begun: its shim runs and reports through `started.json`.
    pub(super) async fn resume_start(&mut self) {
        let dir = self.node.ground.ledger.dir(self.id());
        let report = async {
            loop {
                if let Some(started) = shim::read_started(&dir) {
                    return started;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let ended = async {
            if let Some(process) = &self.process {
                process.ended().await;
            }
        };
        let started = tokio::select! {
            biased;
            started = report => Some(started),
            () = ended => shim::read_started(&dir),
            () = tokio::time::sleep(REPORT_DEADLINE) => None,
        };
        if let Some(started) = started {
            return self.started(&started);
        }
        self.stop_shim().await;
        cleanup::run(&self.node.ground, self.id()).await;
        self.record.run = None;
        self.apply(Event::Lost);
    }

    fn started(&mut self, started: &Started) {
        if let Some(run) = &mut self.record.run {
            run.init_pid = Some(started.init_pid);
            run.started_at = micros(started.at_us);
        }
        // How the last run ended stays to be seen until this one has come up.
        self.say("started");
        self.apply(Event::Started);
        fail_point!(Started, ignored);
    }

    /// Between two steps: is it still worth going on?
    fn still_wanted(&mut self) -> Result<(), StartError> {
        if !self.unwanted() {
            return Ok(());
        }
        if self.record.state == State::Starting {
            self.apply(Event::Unwanted);
        }
        Err(StartError::Unwanted)
    }

    async fn make_and_launch(&mut self) -> Result<Started, StartError> {
        let id = self.id();
        let dir = self.node.ground.ledger.dir(id);
        let spec = self.record.spec.clone();
        let id_base = self.record.uid_base;

        let images = self.node.images.clone();
        let store = self.node.store.clone();
        let (wanted, wish) = (spec.clone(), self.wish.clone());
        let still = move || !wish.borrow().unwanted;
        let layers = tokio::task::spawn_blocking(move || layers(&images, &store, &wanted, &still)).await?;
        // First: an unpacking that was given up for that is no failure.
        self.still_wanted()?;
        let layers = layers?;
        fail_point!(Layers);

        let node = self.node.clone();
        let limits: Limits = spec.limits.clone();
        let (cgroup, disk) = tokio::task::spawn_blocking(move || {
            let cgroup = node.ground.cgroups.create(&id, &limits)?;
            fail_point!(Cgroup);
            let disk =
                node.ground.disks.create(&id, limits.disk_bytes, limits.disk_inodes, (id_base, id_base))?;
            fail_point!(Disk);
            Ok::<_, StartError>((cgroup, disk))
        })
        .await??;
        self.still_wanted()?;

        if self.netns.is_none() {
            // An earlier agent's namespace ended with its last process, but its link and port are still held.
            self.node.network.detach(id).await?;
            let attachment = self.node.network.attach(id, Demand::of(&spec)).await?;
            fail_point!(Attached);
            self.netns = Some(attachment.netns);
            self.record.allocation = Some(attachment.allocation);
            self.store();
            fail_point!(AttachmentRecorded);
            self.publish();
        }
        self.still_wanted()?;

        let output = spec.output.as_ref().map(|_| output::make(&dir, id_base)).transpose()?;
        let store = &self.node.store;
        let parts = Parts {
            layers: layers.root,
            disk,
            id_base,
            cgroup: cgroup.v2_path().to_owned(),
            cgroups_v1: cgroup.v1_paths().to_vec(),
            disk_limits: cgroup.disk_limits(&spec.limits),
            blobs: spec
                .blobs
                .iter()
                .map(|mount| (store.blob_path(&mount.digest), mount.path.clone()))
                .collect(),
            packages: layers.mounts,
            output,
            nameservers: self.node.network.resolvers().to_vec(),
        };
        atomic::write_json(&dir.join(file::SPEC), &sandbox::spec(&spec, parts), atomic::Durability::Kill)?;
        shim::forget(&dir)?;
        fail_point!(SpecWritten);

        let log_start = self.node.logs.end_of(id);
        let netns = self.netns.as_ref().map(|netns| netns.as_fd());
        let (process, pending) = shim::launch(&self.node.spawner, &self.node.config.shim, &dir, netns)?;
        // Noted before its report: from here on an agent that follows finds the shim by this.
        self.record.run = Some(Run {
            boot_id: self.node.ground.boot_id.clone(),
            shim_pid: process.pid(),
            shim_start_time: process.start_time(),
            init_pid: None,
            log_start,
            started_at: Utc::now(),
        });
        // From here on a failure ends it.
        self.process = Some(process);
        self.store();
        fail_point!(RunRecorded);
        let started = pending.report(REPORT_DEADLINE).await?;
        fail_point!(Reported);
        Ok(started)
    }

    /// Ends the shim of a start that failed. Its container is killed by its cgroup.
    async fn stop_shim(&mut self) {
        if let Some(process) = self.process.take() {
            ending::end_shim(&process).await;
        }
    }
}

/// The unpacked layers of a container.
struct Layers {
    /// Top one first.
    root: Vec<PathBuf>,
    /// Host path and container path.
    mounts: Vec<(PathBuf, String)>,
}

fn layers(
    images: &Store,
    store: &Store,
    spec: &InstanceSpec,
    wanted: &dyn Fn() -> bool,
) -> Result<Layers, StartError> {
    let (digest, image) =
        images.image(&spec.image)?.ok_or_else(|| StartError::NoImage(spec.image.clone()))?;
    if let Some(wanted) = &spec.image_digest
        && *wanted != digest
    {
        let (image, wanted) = (spec.image.clone(), wanted.clone());
        return Err(StartError::OtherImage { image, found: digest, wanted });
    }
    let mut root = Vec::new();
    if let Some(package) = &spec.package {
        root.push(store.tree_while(package, &UnpackLimits::package(), wanted)?);
    }
    root.push(image);
    let mounts = spec
        .package_mounts
        .iter()
        .map(|mount| {
            Ok((store.tree_while(&mount.digest, &UnpackLimits::package(), wanted)?, mount.path.clone()))
        })
        .collect::<Result<_, StoreError>>()?;
    Ok(Layers { root, mounts })
}

fn micros(at_us: u64) -> DateTime<Utc> {
    i64::try_from(at_us).ok().and_then(DateTime::from_timestamp_micros).unwrap_or_else(Utc::now)
}
