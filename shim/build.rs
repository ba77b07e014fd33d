//! Compiles the system call lists of `seccomp/*.json` to one BPF program at build time, so that the shim
//! neither parses nor compiles anything when a container starts.
//!
//! seccompiler reads the lists and compiles their argument checks; [`dispatch`] joins the results.

use std::path::Path;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use seccompiler::{BpfProgram, TargetArch};

#[path = "build/dispatch.rs"]
mod dispatch;

/// Calls that the list does not know yet: from the first unassigned number when it was written (6.11)
/// to well beyond. Programs probe for new calls and fall back on ENOSYS, not on EPERM.
const UNKNOWN: std::ops::RangeInclusive<u32> = 463..=511;
/// `SECCOMP_RET_ALLOW` and `SECCOMP_RET_ERRNO` of linux/seccomp.h.
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const EPERM: u32 = ERRNO | 1;
const ENOSYS: u32 = ERRNO | 38;
const EINVAL: u32 = ERRNO | 22;

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=seccomp");
    println!("cargo::rerun-if-changed=build");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("cargo names the architecture")?;
    if arch != "x86_64" {
        bail!("seccomp/*.json lists the system calls of x86_64, not of {arch}: add a list for it");
    }
    let [app, absent, invalid] = [compile("app")?, compile("absent")?, compile("invalid")?];
    let leaves = (0..=*UNKNOWN.end())
        .map(|number| {
            // What programs probe for is absent whatever else a list says of it.
            let known = dispatch::specialize(&absent, number)? == dispatch::verdict(ALLOW);
            if UNKNOWN.contains(&number) || !known {
                return Ok(dispatch::verdict(ENOSYS));
            }
            // Of what is there, but not for this.
            if dispatch::specialize(&invalid, number)? != dispatch::verdict(ALLOW) {
                return Ok(dispatch::verdict(EINVAL));
            }
            dispatch::specialize(&app, number)
        })
        .collect::<Result<_>>()?;
    let out = env::var_os("OUT_DIR").context("cargo names the output directory")?;
    write(Path::new(&out), &dispatch::program(leaves, dispatch::verdict(EPERM))?)
}

fn compile(name: &str) -> Result<BpfProgram> {
    let path = format!("seccomp/{name}.json");
    let json = fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    // Whole calls are absent or invalid: how they are answered does not look at arguments.
    if name != "app" && json.windows(6).any(|word| word == b"\"args\"") {
        bail!("{path} has a rule with args, which would be answered without looking at them");
    }
    let mut filters = seccompiler::compile_from_json(&json[..], TargetArch::x86_64)
        .with_context(|| format!("cannot compile {path}"))?;
    filters.remove(name).with_context(|| format!("{path} has no filter {name:?}"))
}

/// The program as the kernel's `struct sock_filter[]`: code, two jump offsets, operand, in native order.
fn write(out: &Path, program: &BpfProgram) -> Result<()> {
    let text: String = program
        .iter()
        .map(|op| {
            format!("Instruction {{ code: {}, jt: {}, jf: {}, k: {} }},\n", op.code, op.jt, op.jf, op.k)
        })
        .collect();
    let path = out.join("filter.rs");
    fs::write(&path, format!("[\n{text}]")).with_context(|| format!("cannot write {}", path.display()))
}
