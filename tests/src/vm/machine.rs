//! One QEMU process: a machine without a network whose disks forget everything. Killed when dropped, and by
//! the kernel when this program dies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::disk::Disks;

/// Enough for a memory bomb in a container beside the tests.
const MEMORY: &str = "1536";
/// Two, so that a set of CPUs can be less than all. The second is off until init has had the kernel patch itself
/// (tests/vm/init): QEMU 7.2 at times lets one CPU run on with a breakpoint that another has taken out of the code
/// (`Oops: int3`).
const CPUS: &str = "2";

pub(super) struct Machine {
    qemu: Child,
    said: PathBuf,
}

impl Machine {
    /// Boots the kernel and root file system of `base` with `disks` as second and third one. `dir` gets what it says:
    /// `console` is the kernel's, `said` that of its init.
    pub(super) fn start(suite: &str, base: &Path, disks: &Disks, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let said = dir.join("said");
        for file in [&said, &dir.join("console")] {
            fs::write(file, "")?;
        }
        let disk = |id: &str, image: &Path| {
            format!(
                "if=none,id={id},file={},format=raw,snapshot=on,cache=unsafe,discard=unmap",
                image.display()
            )
        };
        let serial = |path: &Path| format!("file:{}", path.display());
        let log = fs::File::create(dir.join("qemu"))?;
        let qemu = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-name", &format!("mogok-test-{suite}")])
            .args(["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "qemu64"])
            .args(["-smp", CPUS, "-m", MEMORY])
            .arg("-kernel")
            .arg(base.join("vmlinuz"))
            // Built into Debian's cloud kernels, unlike virtio: no initramfs is needed.
            .args(["-drive", &disk("root", &base.join("root.img")), "-device", "nvme,drive=root,serial=root"])
            .args(["-drive", &disk("tests", &disks.tests), "-device", "virtio-blk-pci,drive=tests"])
            .args(["-drive", &disk("swap", &disks.swap), "-device", "virtio-blk-pci,drive=swap"])
            .args(["-serial", &serial(&dir.join("console")), "-serial", &serial(&said)])
            .args([
                "-append",
                "root=/dev/nvme0n1 rw rootflags=noinit_itable init=/init console=ttyS0 loglevel=5 panic=-1 oops=panic maxcpus=1 \
                 mitigations=off audit=0 nokaslr norandmaps",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run setpriv and QEMU")?;
        Ok(Self { qemu, said })
    }

    pub(super) fn is_running(&mut self) -> Result<bool> {
        Ok(self.qemu.try_wait()?.is_none())
    }

    /// All that its init has said.
    pub(super) fn said(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.said)?).into_owned())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails when it has ended by itself, as it should.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The last lines of the kernel and of QEMU.
pub(super) fn console_end(dir: &Path) -> String {
    let mut text = String::new();
    for file in ["console", "qemu"] {
        let all = fs::read(dir.join(file)).unwrap_or_default();
        let all = String::from_utf8_lossy(&all);
        let lines: Vec<&str> = all.lines().collect();
        for line in &lines[lines.len().saturating_sub(40)..] {
            text += &format!("  {line}\n");
        }
    }
    text
}
