//! Compiles the system call filters of `seccomp/*.json` to BPF at build time, so that the shim neither
//! parses nor compiles anything when a container starts.

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// Calls that the list does not know yet: from the first unassigned number when it was written (6.11)
/// to well beyond. Programs probe for new calls and fall back on ENOSYS, not on EPERM.
const UNKNOWN: std::ops::RangeInclusive<i64> = 463..=511;
const ENOSYS: u32 = 38;

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=seccomp");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("cargo names the architecture")?;
    if arch != "x86_64" {
        bail!("seccomp/*.json lists the system calls of x86_64, not of {arch}: add a list for it");
    }
    let out = env::var_os("OUT_DIR").context("cargo names the output directory")?;
    for name in ["app", "absent"] {
        let path = format!("seccomp/{name}.json");
        let json = fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
        let mut filters = seccompiler::compile_from_json(json, TargetArch::x86_64)
            .with_context(|| format!("cannot compile {path}"))?;
        let program = filters.remove(name).with_context(|| format!("{path} has no filter {name:?}"))?;
        write(Path::new(&out), name, &program)?;
    }
    let rules: BTreeMap<_, _> = UNKNOWN.map(|number| (number, vec![])).collect();
    let unknown =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(ENOSYS), TargetArch::x86_64)?;
    write(Path::new(&out), "unknown", &BpfProgram::try_from(unknown)?)
}

/// A program as the kernel's `struct sock_filter[]`: code, two jump offsets, operand, in native order.
fn write(out: &Path, name: &str, program: &BpfProgram) -> Result<()> {
    let text: String = program
        .iter()
        .map(|op| {
            format!("Instruction {{ code: {}, jt: {}, jf: {}, k: {} }},\n", op.code, op.jt, op.jf, op.k)
        })
        .collect();
    let path = out.join(format!("{name}.rs"));
    fs::write(&path, format!("[\n{text}]")).with_context(|| format!("cannot write {}", path.display()))
}
