//! The compiled filters against `seccomp/verdicts.txt`: what becomes of every system call number from 0
//! to 470, decided by interpreting the BPF as the kernel does. A change of a list shows as a change of that
//! file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use mogok_shim::seccomp::{FILTER, Instruction};

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const EPERM: u32 = ERRNO | 1;
const ENOSYS: u32 = ERRNO | 38;
const EINVAL: u32 = ERRNO | 22;
const KILL: u32 = 0x8000_0000;

/// `struct seccomp_data` as the words that a filter can load.
fn data(number: u32, arch: u32, arguments: [u64; 6]) -> [u32; 16] {
    let mut words = [0; 16];
    words[0] = number;
    words[1] = arch;
    for (place, argument) in arguments.into_iter().enumerate() {
        words[4 + 2 * place] = argument as u32;
        words[5 + 2 * place] = (argument >> 32) as u32;
    }
    words
}

fn interpret(filter: &[Instruction], data: &[u32; 16]) -> u32 {
    run(filter, data).0
}

fn steps(filter: &[Instruction], data: &[u32; 16]) -> usize {
    run(filter, data).1
}

/// The verdict, and after how many instructions.
fn run(filter: &[Instruction], data: &[u32; 16]) -> (u32, usize) {
    let (mut pc, mut accumulator, mut steps) = (0, 0, 0);
    loop {
        let Instruction { code, jt, jf, k } = filter[pc];
        pc += 1;
        steps += 1;
        let jump = match code {
            0x20 => {
                accumulator = data[k as usize / 4];
                continue;
            }
            0x54 => {
                accumulator &= k;
                continue;
            }
            0x05 => {
                pc += k as usize;
                continue;
            }
            0x06 => return (k, steps),
            0x15 => accumulator == k,
            0x25 => accumulator > k,
            0x35 => accumulator >= k,
            0x45 => accumulator & k != 0,
            other => panic!("the interpreter does not know {other:#x}"),
        };
        pc += usize::from(if jump { jt } else { jf });
    }
}

fn verdict(number: u32, arch: u32, arguments: [u64; 6]) -> u32 {
    interpret(FILTER, &data(number, arch, arguments))
}

fn word(number: u32) -> &'static str {
    let probes = [
        [0; 6],
        [12; 6],
        [u64::MAX; 6],
        [1; 6],
        [0x5412; 6],
        [22; 6],
        [37; 6],
        [0, 6, 35, 0, 0, 0],
        [0x1000_0000; 6],
    ];
    let mut verdicts: Vec<_> = probes.map(|arguments| verdict(number, X86_64, arguments)).to_vec();
    verdicts.dedup();
    match verdicts[..] {
        [ALLOW] => "allow",
        [EPERM] => "EPERM",
        [ENOSYS] => "ENOSYS",
        [EINVAL] => "EINVAL",
        [KILL] => "kill",
        _ => "by argument",
    }
}

#[test]
fn every_number_has_the_verdict_on_record() {
    let record = include_str!("../seccomp/verdicts.txt");
    let mut lines = record.lines();
    for number in 0..=470 {
        let line = lines.next().unwrap();
        let mut fields = line.splitn(3, ' ');
        assert_eq!(fields.next().unwrap(), number.to_string());
        let name = fields.next().unwrap();
        assert_eq!(fields.next().unwrap(), word(number), "{number} {name}");
    }
    assert_eq!(lines.next(), None);
}

/// The kernel runs the filter for every number when it is installed, and for those it may not remember at
/// every call: a search has to stay one.
#[test]
fn no_verdict_without_arguments_takes_long() {
    for number in (0..=470).filter(|number| word(*number) != "by argument") {
        let steps = steps(FILTER, &data(number, X86_64, [0; 6]));
        assert!(steps <= 24, "{number}: {steps} instructions");
    }
}

#[test]
fn other_architectures_are_killed_and_x32_refused() {
    for number in [0, 11, 20, 192] {
        assert_eq!(verdict(number, I386, [0; 6]), KILL);
        assert_eq!(verdict(0x4000_0000 | number, X86_64, [0; 6]), EPERM);
    }
}

#[test]
fn arguments_decide() {
    let clone = |flags| verdict(56, X86_64, [flags, 0, 0, 0, 0, 0]);
    assert_eq!(clone(17), ALLOW);
    // A thread of glibc's.
    assert_eq!(clone(0x3d_0f00), ALLOW);
    for bit in [17, 25, 26, 27, 28, 29, 30] {
        assert_eq!(clone(1 << bit | 17), EPERM, "bit {bit}");
    }
    let ioctl = |request| verdict(16, X86_64, [0, request, 0, 0, 0, 0]);
    assert_eq!(ioctl(0x5401), ALLOW);
    for request in [0x5412, 0x541c, 0x5423, 0x8906, 0x8907, 0x8010_8906, 0x8010_8907] {
        assert_eq!(ioctl(request), EPERM);
        // The kernel looks at 32 bits only.
        assert_eq!(ioctl(request | 1 << 32), EPERM);
    }
    let socket = |family, kind, protocol| verdict(41, X86_64, [family, kind, protocol, 0, 0, 0]);
    for (family, kind, protocol) in
        [(1, 1, 0), (1, 5, 0), (2, 1 | 0o2_004_000, 6), (10, 2, 17), (10, 1, 0), (16, 3, 0)]
    {
        assert_eq!(socket(family, kind, protocol), ALLOW, "{family} {kind} {protocol}");
    }
    for family in (0..64).filter(|family| ![1, 2, 10, 16].contains(family)) {
        assert_eq!(socket(family, 1, 0), EPERM, "family {family}");
    }
    for (family, kind, protocol) in
        [(2, 3, 1), (2, 2, 1), (2, 5, 0), (2, 1, 132), (2, 1, 262), (10, 2, 136), (16, 3, 12), (16, 3, 15)]
    {
        assert_eq!(socket(family, kind, protocol), EPERM, "{family} {kind} {protocol}");
    }
    let fcntl = |command| verdict(72, X86_64, [0, command, 0, 0, 0, 0]);
    // F_SETFL, F_SETLK, F_SETLKW, F_DUPFD_CLOEXEC; then F_OFD_SETLK, F_OFD_SETLKW and F_SETLEASE.
    assert!([4, 6, 7, 1030].map(fcntl).iter().all(|verdict| *verdict == ALLOW));
    assert_eq!([37, 38, 37 | 1 << 32, 1024].map(fcntl), [EPERM; 4]);
    for call in [188, 189, 190] {
        let attribute = |size| verdict(call, X86_64, [0, 0, 0, size, 0, 0]);
        assert_eq!([0, 512, 513, 65_536, 1 << 32].map(attribute), [ALLOW, ALLOW, EPERM, EPERM, EPERM]);
    }
    let advice = |advice| verdict(28, X86_64, [0, 4096, advice, 0, 0, 0]);
    assert!((0..30).filter(|one| ![12, 25].contains(one)).all(|one| advice(one) == ALLOW));
    assert_eq!([advice(12), advice(25), advice(12 | 1 << 32)], [EPERM; 3]);
    let process = |option| verdict(157, X86_64, [option, 1, 0, 0, 0, 0]);
    assert_eq!([22, 62, 67].map(process), [EPERM; 3]);
    assert_eq!([1, 15, 38, 41].map(process), [ALLOW; 4]);
    // Pages of the host's pool of huge ones: by mmap, shmget and memfd_create, of each size.
    let mapped = |flags| verdict(9, X86_64, [0, 4096, 3, flags, u64::MAX, 0]);
    let shared = |flags| verdict(29, X86_64, [0, 4096, flags, 0, 0, 0]);
    let file = |flags| verdict(319, X86_64, [0, flags, 0, 0, 0, 0]);
    // MAP_PRIVATE with MAP_ANONYMOUS, and MAP_STACK and MAP_NORESERVE too.
    assert_eq!([mapped(0x22), mapped(0x2_4022), shared(0o1600), file(3)], [ALLOW; 4]);
    for size in [0, 21 << 26, 30 << 26] {
        assert_eq!([mapped(0x4_0022 | size), shared(0o5600 | size), file(4 | size)], [EPERM; 3]);
    }
    for kind in [0x2000, 0x6000] {
        assert_eq!(verdict(133, X86_64, [0, kind | 0o600, 0, 0, 0, 0]), EPERM);
        assert_eq!(verdict(259, X86_64, [0, 0, kind | 0o600, 0, 0, 0]), EPERM);
    }
    assert_eq!(verdict(259, X86_64, [0, 0, 0x1000 | 0o600, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(135, X86_64, [0xffff_ffff, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(135, X86_64, [0x0004_0000, 0, 0, 0, 0, 0]), EPERM);
}

/// What servers and libraries set, and what the kernel would keep without charging anybody.
#[test]
fn options_of_sockets_are_those_that_keep_nothing() {
    let option = |level, name| verdict(54, X86_64, [0, level, name, 0, 0, 0]);
    let refused = |level| -> Vec<u64> { (0..256).filter(|name| option(level, *name) == EPERM).collect() };
    assert_eq!(refused(1), [26, 29, 35, 37, 51, 63, 64, 65]);
    assert_eq!(refused(17), [100, 104]);
    assert_eq!(refused(6), [14, 31, 32, 38]);
    assert_eq!(refused(0), [35, 39, 41, 42, 46, 48]);
    assert_eq!(refused(41), [6, 20, 27, 32, 42, 46, 48, 54, 55, 57, 59]);
    assert!(refused(270).is_empty());
    for level in (0..300).filter(|level| ![0, 1, 6, 17, 41, 270].contains(level)) {
        assert_eq!(refused(level).len(), 256, "level {level}");
    }
    let asked = |level, name| verdict(55, X86_64, [0, level, name, 0, 0, 0]);
    assert_eq!(
        [asked(6, 35), asked(6, 35 | 1 << 32), asked(6, 11), asked(1, 35)],
        [EPERM, EPERM, ALLOW, ALLOW]
    );
    // The kernel looks at 32 bits only.
    assert_eq!(option(41 | 1 << 32, 6), EPERM);
    assert_eq!(option(41, 6 | 1 << 32), EPERM);
}

#[test]
fn every_entry_has_its_reason() {
    let lists = [
        include_str!("../seccomp/app.json"),
        include_str!("../seccomp/absent.json"),
        include_str!("../seccomp/invalid.json"),
    ];
    for json in lists {
        let filters: serde_json::Value = serde_json::from_str(json).unwrap();
        for filter in filters.as_object().unwrap().values() {
            for rule in filter["filter"].as_array().unwrap() {
                let reason = rule["comment"].as_str().unwrap_or_default();
                assert!(reason.len() > 8, "{rule}");
            }
        }
    }
}
