//! The bodies of the fuzz targets on stable Rust: every seed, and some thousand changes of each that are the same at
//! every run. `make fuzz` looks further, with coverage.

#![allow(unreachable_pub, reason = "the bodies are public in the fuzz crate")]

#[path = "../fuzz/src/archive.rs"]
mod archive;
#[path = "../fuzz/src/exec.rs"]
mod exec;
#[path = "../fuzz/src/frames.rs"]
mod frames;
#[path = "../fuzz/src/gate.rs"]
mod gate;
#[path = "../fuzz/src/lines.rs"]
mod lines;
#[path = "../fuzz/src/lockfile.rs"]
mod lockfile;
#[path = "../fuzz/src/procfile.rs"]
mod procfile;
#[path = "../fuzz/src/records.rs"]
mod records;
#[path = "../fuzz/src/spec.rs"]
mod spec;

use std::fs;
use std::path::Path;

/// Changes of each seed.
const CHANGES: u64 = 2000;
/// Those of an archive are unpacked to a file system.
const UNPACKED: u64 = 400;
/// Bytes of a changed seed at most.
const LONGEST: usize = 64 << 10;

#[test]
fn archives() {
    // Unpacking gives files to their owners.
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: not root");
        return;
    }
    bounded("archive", UNPACKED, archive::run);
}

#[test]
fn control_frames() {
    bounded("frames", CHANGES, frames::run);
}

#[test]
fn specs() {
    bounded("spec", CHANGES, spec::run);
}

#[test]
fn exec_requests() {
    bounded("exec", CHANGES, exec::run);
}

#[test]
fn output_lines() {
    bounded("lines", CHANGES, lines::run);
}

#[test]
fn log_records() {
    bounded("records", CHANGES, records::run);
}

#[test]
fn request_heads() {
    bounded("gate", CHANGES, gate::run);
}

#[test]
fn lock_files() {
    bounded("lockfile", CHANGES, lockfile::run);
}

#[test]
fn procfiles() {
    bounded("procfile", CHANGES, procfile::run);
}

/// Runs a body on its seeds and on `changes` changes of each. A panic names the seed and the change.
fn bounded(target: &str, changes: u64, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(&dir).expect("seeds").map(|entry| entry.expect("listed").path()).collect();
    paths.sort();
    let seeds: Vec<_> = paths.iter().map(|path| fs::read(path).expect("a seed")).collect();
    assert!(!seeds.is_empty(), "{} has no seeds", dir.display());
    for (path, seed) in paths.iter().zip(&seeds) {
        run(seed);
        for number in 1..=changes {
            let changed = changed(seed, &seeds, number);
            if let Err(panic) = std::panic::catch_unwind(|| run(&changed)) {
                eprintln!("{}, change {number}: {:?}", path.display(), String::from_utf8_lossy(&changed));
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// A few small changes, given by their number: bits, bytes, cuts, repetitions, parts of other seeds.
fn changed(seed: &[u8], seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Xorshift; below `bound`, which is not 0.
    let mut below = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    let mut bytes = seed.to_vec();
    for _ in 0..=below(4) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = below(bytes.len());
        let length = below(bytes.len() - at).min(600);
        match below(7) {
            0 => bytes[at] ^= 1 << below(8),
            1 => bytes[at] = [0, 0xff, b'\n', b'/', b'.', b'0', b'"'][below(7)],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + length)),
            4 => {
                let part = bytes[at..at + length].to_vec();
                bytes.splice(at..at, part);
            }
            5 => {
                let other = &seeds[below(seeds.len())];
                bytes.extend_from_slice(&other[below(other.len().max(1)).min(other.len())..]);
            }
            _ => bytes.insert(at, below(256) as u8),
        }
        bytes.truncate(LONGEST);
    }
    bytes
}
