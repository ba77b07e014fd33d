//! The peers: the same root file system and program, each from nothing to nothing with its own defaults.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use mogok_tests::program::run;

pub(super) struct Peers {
    name: String,
    rootfs: String,
    bundle: String,
    /// The bundle of a container that stays.
    idle: String,
    config: String,
    /// The same with a veth pair, which hangs on no bridge.
    veth: String,
}

impl Peers {
    pub(super) fn new(dir: &Path, rootfs: &Path, name: &str) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            rootfs: text(rootfs),
            bundle: text(&runc_bundle(dir, rootfs, "bundle", &["/bin/true"])?),
            idle: text(&runc_bundle(dir, rootfs, "idle", &["/bin/sleep", "600"])?),
            config: text(&lxc_config(dir, rootfs, "lxc.conf", "empty")?),
            veth: text(&lxc_config(
                dir,
                rootfs,
                "lxc-veth.conf",
                "veth\nlxc.net.0.flags = up\nlxc.net.0.ipv4.address = 10.89.0.2/32",
            )?),
        })
    }

    pub(super) fn lxc(&self, name: &str) -> Result<()> {
        let name = format!("{}-{name}", self.name);
        run("lxc-execute", &["-n", &name, "-f", &self.config, "--", "/bin/true"]).map(drop)
    }

    /// With a veth pair and an address, and no firewall.
    pub(super) fn lxc_veth(&self, name: &str) -> Result<()> {
        let name = format!("{}-{name}", self.name);
        run("lxc-execute", &["-n", &name, "-f", &self.veth, "--", "/bin/true"]).map(drop)
    }

    /// By a runtime of the OCI's kind.
    pub(super) fn bundle(&self, runtime: &str, name: &str) -> Result<()> {
        let name = format!("{}-{name}", self.name);
        run(runtime, &["run", "--bundle", &self.bundle, &name]).map(drop)
    }

    /// Runs `work` with the name of a container that stays meanwhile.
    pub(super) fn with_idle_runc<T>(&self, work: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        let name = format!("{}-idle", self.name);
        // Its output would keep ours open.
        let silent = |args: &[&str]| -> Result<()> {
            let mut command = Command::new("runc");
            command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            ensure!(command.status()?.success(), "runc {} failed", args.join(" "));
            Ok(())
        };
        silent(&["run", "--detach", "--bundle", &self.idle, &name])?;
        let outcome = work(&name);
        silent(&["delete", "--force", &name])?;
        outcome
    }

    pub(super) fn runc_exec(&self, name: &str) -> Result<()> {
        run("runc", &["exec", name, "/bin/true"]).map(drop)
    }

    /// What the kernel takes for the namespaces, with the three programs that ask for them.
    pub(super) fn namespaces(&self) -> Result<()> {
        let kinds = ["--user", "--map-root-user", "--pid", "--mount", "--net", "--ipc", "--uts", "--cgroup"];
        let busybox = format!("{}/bin/true", self.rootfs);
        run("unshare", &[&kinds[..], &["--fork", &busybox]].concat()).map(drop)
    }

    pub(super) fn bwrap(&self) -> Result<()> {
        let root = ["--unshare-all", "--ro-bind", &self.rootfs, "/"];
        let rest = ["--proc", "/proc", "--dev", "/dev", "/bin/true"];
        run("bwrap", &[&root[..], &rest[..]].concat()).map(drop)
    }
}

/// runc's own default specification, with this root file system and command.
fn runc_bundle(dir: &Path, rootfs: &Path, name: &str, command: &[&str]) -> Result<PathBuf> {
    let bundle = dir.join(name);
    fs::create_dir(&bundle)?;
    run("runc", &["spec", "--bundle", &text(&bundle)])?;
    let path = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    spec["root"]["path"] = text(rootfs).into();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(command);
    fs::write(path, serde_json::to_vec(&spec)?)?;
    Ok(bundle)
}

fn lxc_config(dir: &Path, rootfs: &Path, name: &str, network: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    let config = format!(
        "lxc.rootfs.path = dir:{}\nlxc.uts.name = bench\nlxc.mount.auto = proc:mixed\n\
         lxc.apparmor.profile = unconfined\nlxc.autodev = 0\nlxc.net.0.type = {network}\n",
        rootfs.display()
    );
    fs::write(&path, config)?;
    Ok(path)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
