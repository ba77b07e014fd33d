//! One BPF program out of the linear ones that seccompiler makes: a binary search over the system call
//! numbers, whose leaves are the linear programs' own verdicts and argument checks.
//!
//! The kernel runs a new filter once for every number it knows, to remember which are always allowed
//! (kernel/seccomp.c, `seccomp_cache_prepare`): 470 times 1,500 instructions are a millisecond of each start,
//! 470 times ten are not. Invariant: for every number the program answers as its leaf does.

use anyhow::{Context, Result, ensure};
use seccompiler::{BpfProgram, sock_filter};

const LOAD: u16 = 0x20;
const RETURN: u16 = 0x06;
const JUMP: u16 = 0x05;
const JUMP_IF_GREATER_OR_EQUAL: u16 = 0x35;
const JUMP_IF_EQUAL: u16 = 0x15;
/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const KILL_PROCESS: u32 = 0x8000_0000;

/// What becomes of one number: instructions that end in a verdict, with no jump out of them.
pub(crate) type Leaf = Vec<sock_filter>;

/// A verdict without conditions.
pub(crate) fn verdict(action: u32) -> Leaf {
    vec![instruction(RETURN, 0, 0, action)]
}

/// What is left of a linear program once the number is known.
pub(crate) fn specialize(program: &BpfProgram, number: u32) -> Result<Leaf> {
    let (mut at, mut loaded) = (0, 0);
    loop {
        let op = program.get(at).context("the program has no end")?;
        match op.code {
            LOAD if op.k == NUMBER => loaded = number,
            LOAD if op.k == ARCHITECTURE => loaded = AUDIT_ARCH_X86_64,
            LOAD => return reachable(program, at),
            RETURN => return Ok(verdict(op.k)),
            JUMP => at += op.k as usize,
            JUMP_IF_EQUAL => at += usize::from(if loaded == op.k { op.jt } else { op.jf }),
            other => anyhow::bail!(
                "seccompiler has begun to use instruction {other:#x} before it loads an argument"
            ),
        }
        at += 1;
    }
}

/// The instructions from `start` to the last one that can be reached from there; all jumps lead forward and
/// count from where they stand, so the piece works anywhere.
fn reachable(program: &BpfProgram, start: usize) -> Result<Leaf> {
    let mut reached = vec![false; program.len()];
    let mut last = start;
    reached[start] = true;
    for at in start..program.len() {
        if !reached[at] {
            continue;
        }
        last = at;
        let op = &program[at];
        let next = match op.code {
            RETURN => vec![],
            JUMP => vec![op.k as usize],
            code if code & 0x07 == JUMP => vec![op.jt.into(), op.jf.into()],
            _ => vec![0],
        };
        for step in next {
            *reached.get_mut(at + 1 + step).context("a jump leads out of the program")? = true;
        }
    }
    Ok(program[start..=last].to_vec())
}

/// The whole program: `leaves[n]` for number n, `beyond` for all others.
pub(crate) fn program(leaves: Vec<Leaf>, beyond: Leaf) -> Result<BpfProgram> {
    let mut ranges: Vec<(u32, Leaf)> = Vec::new();
    for (number, leaf) in leaves.into_iter().chain([beyond]).enumerate() {
        if ranges.last().is_none_or(|(_, last)| *last != leaf) {
            ranges.push((u32::try_from(number)?, leaf));
        }
    }
    let mut program = vec![
        instruction(LOAD, 0, 0, ARCHITECTURE),
        instruction(JUMP_IF_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        instruction(RETURN, 0, 0, KILL_PROCESS),
        instruction(LOAD, 0, 0, NUMBER),
    ];
    program.extend(search(&ranges)?);
    ensure!(program.len() <= 4096, "{} instructions are more than the kernel takes", program.len());
    Ok(program)
}

/// Ranges by their first number; the number is loaded.
fn search(ranges: &[(u32, Leaf)]) -> Result<BpfProgram> {
    if let [(_, leaf)] = ranges {
        return Ok(leaf.clone());
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let (first, _) = upper.first().context("no number has a verdict")?;
    let lower = search(lower)?;
    let mut program = match u8::try_from(lower.len()) {
        Ok(length) => vec![instruction(JUMP_IF_GREATER_OR_EQUAL, length, 0, *first)],
        // A conditional jump does not reach that far.
        Err(_) => vec![
            instruction(JUMP_IF_GREATER_OR_EQUAL, 0, 1, *first),
            instruction(JUMP, 0, 0, u32::try_from(lower.len())?),
        ],
    };
    program.extend(lower);
    program.extend(search(upper)?);
    Ok(program)
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}
