//! Container create -> program executed -> exit -> removed, against `runc run`, `lxc-execute` and
//! `bwrap` in the same run; memory of an idle shim; start-up of the `mogok` command.
//!
//! Ours is what the agent does for a container without a network of its own: cgroup with limits,
//! spec, shim, sandbox with all isolation, exit status on disk, cgroup removed.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mogok_agent::cgroup::Cgroups;
use mogok_api::app::Limits;
use mogok_api::id::InstanceId;
use mogok_shim::client::Client;
use mogok_shim::spec::{Log, Spec, Writable, file};
use mogok_tests::bench::{self, Row, median, milliseconds};
use mogok_tests::platform::bin_dir;
use mogok_tests::program::{run, wait_until};
use tempfile::TempDir;

const ROUNDS: usize = 60;
const NAME: &str = "mogok-bench";
const ID_BASE: u32 = 1_000_000;

struct Bench {
    dir: TempDir,
    rootfs: PathBuf,
    cgroups: Cgroups,
    limits: Limits,
}

fn main() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this benchmark makes containers: run it as root");
    let bench = Bench::new()?;
    let mut rows = bench.against_peers()?;
    rows.extend(bench.idle_shim()?);
    rows.push(command_start()?);
    bench.cgroups.remove_root();
    bench::report("container", &rows)
}

impl Bench {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(NAME).tempdir()?;
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "dev", "proc", "sys", "tmp", "etc", "app", "run", "usr"] {
            fs::create_dir_all(rootfs.join(name))?;
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).context("install busybox-static")?;
        for name in ["true", "sleep", "sh"] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name))?;
        }
        Ok(Self { dir, rootfs, cgroups: Cgroups::detect(NAME)?, limits: Limits::app() })
    }

    fn spec(&self, id: InstanceId, command: &[&str]) -> Result<(PathBuf, mogok_agent::cgroup::Cgroup)> {
        let cgroup = self.cgroups.create(&id, &self.limits)?;
        let state = self.dir.path().join(id.to_string());
        fs::create_dir(&state)?;
        let spec = Spec {
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
            command: command.iter().map(|&word| word.to_owned()).collect(),
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/".to_owned(),
            open_files: 1024,
            file_bytes: None,
            tmp_bytes: 16 << 20,
            log: Log { file_bytes: 1 << 20, files: 2, rate_bytes: 1 << 20 },
        };
        fs::write(state.join(file::SPEC), serde_json::to_vec(&spec)?)?;
        Ok((state, cgroup))
    }

    /// One container from nothing to nothing.
    fn ours(&self) -> Result<()> {
        let (state, cgroup) = self.spec(InstanceId::new(), &["/bin/true"])?;
        let mut shim = Command::new(bin_dir().join("mogok-shim"))
            .args(["run".as_ref(), "--state-dir".as_ref(), state.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut report = String::new();
        shim.stdout.take().context("no pipe")?.read_to_string(&mut report)?;
        ensure!(report.contains("started"), "the shim reported {report}");
        let_go(&state)?;
        shim.wait()?;
        ensure!(fs::read_to_string(state.join(file::EXIT))?.contains("\"code\":0"), "not exited with 0");
        cgroup.remove()?;
        fs::remove_dir_all(state)?;
        Ok(())
    }

    fn against_peers(&self) -> Result<Vec<Row>> {
        let runc = self.runc_bundle()?;
        let lxc = self.lxc_config()?;
        let rootfs = self.rootfs.to_string_lossy().into_owned();
        let (lxc, runc) = (lxc.to_string_lossy().into_owned(), runc.to_string_lossy().into_owned());
        let (mut ours, mut lxc_times, mut runc_times, mut bwrap_times) = (vec![], vec![], vec![], vec![]);
        for round in 0..ROUNDS {
            ours.push(milliseconds(|| self.ours())?);
            lxc_times.push(milliseconds(|| {
                run("lxc-execute", &["-n", &format!("{NAME}-{round}"), "-f", &lxc, "--", "/bin/true"])
                    .map(drop)
            })?);
            runc_times.push(milliseconds(|| {
                run("runc", &["run", "--bundle", &runc, &format!("{NAME}-{round}")]).map(drop)
            })?);
            bwrap_times.push(milliseconds(|| {
                let args = [
                    "--unshare-all",
                    "--ro-bind",
                    &rootfs,
                    "/",
                    "--proc",
                    "/proc",
                    "--dev",
                    "/dev",
                    "/bin/true",
                ];
                run("bwrap", &args).map(drop)
            })?);
        }
        let ours = median(&mut ours);
        let figure = "create -> exec -> exit -> removed, no network";
        Ok(vec![
            Row::alone(figure, "ms", ours, 3.0),
            Row::against(figure, "ms", ours, "lxc-execute", median(&mut lxc_times), 1.0),
            Row::against(figure, "ms", ours, "runc", median(&mut runc_times), 1.0),
            Row::against(figure, "ms", ours, "bwrap", median(&mut bwrap_times), 1.0),
        ])
    }

    /// runc's own default specification, with this root file system and command.
    fn runc_bundle(&self) -> Result<PathBuf> {
        let bundle = self.dir.path().join("bundle");
        fs::create_dir(&bundle)?;
        run("runc", &["spec", "--bundle", &bundle.to_string_lossy()])?;
        let path = bundle.join("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        spec["root"]["path"] = self.rootfs.to_string_lossy().into_owned().into();
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = serde_json::json!(["/bin/true"]);
        fs::write(path, serde_json::to_vec(&spec)?)?;
        Ok(bundle)
    }

    fn lxc_config(&self) -> Result<PathBuf> {
        let path = self.dir.path().join("lxc.conf");
        let text = format!(
            "lxc.rootfs.path = dir:{}\nlxc.uts.name = bench\nlxc.net.0.type = empty\nlxc.mount.auto = proc:mixed\n\
             lxc.apparmor.profile = unconfined\nlxc.autodev = 0\n",
            self.rootfs.display()
        );
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Memory of a shim that holds an idle container.
    fn idle_shim(&self) -> Result<Vec<Row>> {
        let (state, cgroup) = self.spec(InstanceId::new(), &["/bin/sleep", "600"])?;
        let mut shim = Command::new(bin_dir().join("mogok-shim"))
            .args(["run".as_ref(), "--state-dir".as_ref(), state.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        wait_until("the container runs", Duration::from_secs(10), || state.join(file::STARTED).exists())?;
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", shim.id()))?;
        cgroup.kill()?;
        let_go(&state)?;
        shim.wait()?;
        cgroup.remove()?;
        let kib = |name: &str| {
            let line = rollup.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|number| number.parse::<f64>().ok()).unwrap_or(f64::NAN)
        };
        Ok(vec![
            Row::alone("idle shim, PSS", "KiB", kib("Pss:"), 1024.0),
            Row::alone("idle shim, RSS", "KiB", kib("Rss:"), 2048.0),
            Row::alone("idle shim, private anonymous", "KiB", kib("Anonymous:"), 150.0),
        ])
    }
}

/// Waits for the end of the container's program and lets its shim go.
fn let_go(state: &Path) -> Result<()> {
    let within = Duration::from_secs(10);
    Client::connect(state, within)?.wait(within)?;
    Client::connect(state, within)?.quit()?;
    Ok(())
}

/// The command alone, without the platform: usage, parsing, files.
fn command_start() -> Result<Row> {
    let program = bin_dir().join("mogok");
    let home = tempfile::tempdir()?;
    let start = |program: &Path| -> Result<()> {
        let mut command = Command::new(program);
        command.args(["completion", "bash"]).env("HOME", home.path()).stdout(Stdio::null());
        ensure!(command.status()?.success(), "mogok failed");
        Ok(())
    };
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(milliseconds(|| start(&program))?);
    }
    Ok(Row::alone("mogok command, without the platform", "ms", median(&mut times), 10.0))
}
