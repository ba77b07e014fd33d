//! The peers: runc with the specification that it writes itself, lxc-execute with Debian's common
//! configuration. Each runs the same image and the same program.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Column, HOST_PATHS, PROBE, make_root, parse};
use crate::program::run;

/// LXC without AppArmor, which is not on every host, and without a link, as runc's has none.
const LXC: &str = "lxc.include = /usr/share/lxc/config/common.conf\nlxc.net.0.type = empty\nlxc.apparmor.profile = unconfined\n";

/// An image, and an abstract socket of the host.
struct Stage {
    root: PathBuf,
    environment: [String; 2],
    _socket: UnixListener,
}

impl Stage {
    fn new(dir: &Path, name: &str) -> Result<Self> {
        let root = dir.join(name);
        make_root(&root)?;
        let socket = format!("mogok-probe-{name}-{}", std::process::id());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&socket)?)?;
        let environment = [format!("{HOST_PATHS}={}", dir.display()), format!("PROBE_ABSTRACT={socket}")];
        Ok(Self { root, environment, _socket: listener })
    }
}

/// A program's version, as the report says what it was made with.
pub(super) fn version(program: &str, argument: &str) -> String {
    let text = run(program, &[argument]).unwrap_or_default();
    text.lines().next().unwrap_or("not installed").trim().to_owned()
}

pub(super) fn runc(dir: &Path) -> Result<Column> {
    let stage = Stage::new(dir, "runc")?;
    let bundle = dir.join("bundle");
    fs::create_dir(&bundle)?;
    run("runc", &["spec", "--bundle", &bundle.to_string_lossy()])?;
    let path = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    spec["root"]["path"] = stage.root.to_string_lossy().into_owned().into();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!([PROBE, "run"]);
    let environment =
        spec["process"]["env"].as_array_mut().context("runc's specification has no environment")?;
    environment.extend(stage.environment.iter().map(|variable| variable.clone().into()));
    fs::write(path, serde_json::to_vec(&spec)?)?;
    let name = format!("mogok-security-{}", std::process::id());
    let output = run("runc", &["run", "--bundle", &bundle.to_string_lossy(), &name])?;
    Ok(Column { name: "runc", ours: false, findings: parse(output.lines())? })
}

pub(super) fn lxc(dir: &Path) -> Result<Column> {
    let stage = Stage::new(dir, "lxc")?;
    let path = dir.join("lxc.conf");
    let mut text = format!("{LXC}lxc.rootfs.path = dir:{}\n", stage.root.display());
    for variable in &stage.environment {
        text.push_str(&format!("lxc.environment = {variable}\n"));
    }
    fs::write(&path, text)?;
    let name = format!("mogok-security-{}", std::process::id());
    let output = run("lxc-execute", &["-n", &name, "-f", &path.to_string_lossy(), "--", PROBE, "run"])?;
    Ok(Column { name: "lxc-execute", ours: false, findings: parse(output.lines())? })
}
