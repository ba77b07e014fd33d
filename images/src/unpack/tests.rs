//! Every hostile archive we know of is refused by name, and nothing it holds is written outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

/// A directory to unpack into, in a directory that must stay as it is.
struct Target {
    outer: tempfile::TempDir,
}

impl Target {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir(outer.path().join("into")).unwrap();
        fs::write(outer.path().join("secret"), "untouched").unwrap();
        Self { outer }
    }

    fn tree(&self) -> PathBuf {
        self.outer.path().join("into")
    }

    /// Unpacks, and holds what [`judge`] says of the same archive against how that went.
    #[track_caller]
    fn unpack(&self, bytes: &[u8], limits: &UnpackLimits) -> Result<(), UnpackError> {
        let result = unpack(bytes, bytes.len() as u64, &self.tree(), limits);
        let judged = judge(bytes, bytes.len() as u64, limits);
        assert_eq!(format!("{judged:?}"), format!("{result:?}"));
        result
    }

    fn assert_nothing_outside(&self) {
        let mut names: Vec<_> =
            fs::read_dir(self.outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["into", "secret"]);
        assert_eq!(fs::read_to_string(self.outer.path().join("secret")).unwrap(), "untouched");
        assert_eq!(fs::metadata(self.outer.path().join("secret")).unwrap().nlink(), 1);
    }
}

struct Tar {
    builder: Builder<Vec<u8>>,
}

impl Tar {
    fn new() -> Self {
        Self { builder: Builder::new(Vec::new()) }
    }

    /// With the names as they are: the builder's own methods refuse what an attacker writes.
    fn raw(mut self, kind: u8, mode: u32, name: &[u8], link: &[u8], content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name);
        gnu.linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(mode);
        let uid = nix::unistd::Uid::effective().as_raw();
        header.set_uid(uid.into());
        header.set_gid(nix::unistd::Gid::effective().as_raw().into());
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.builder.append(&header, content).unwrap();
        self
    }

    fn dir(self, name: &str) -> Self {
        self.raw(b'5', 0o755, name.as_bytes(), b"", b"")
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.raw(b'0', 0o644, name.as_bytes(), b"", content)
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(b'2', 0o777, name.as_bytes(), target.as_bytes(), b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(b'1', 0o644, name.as_bytes(), target.as_bytes(), b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// Ownership of packages is forced, which only root can do.
fn is_root() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        eprintln!("SKIP: giving files to 1000:1000 needs root");
    }
    root
}

fn refusal(tar: Tar, limits: &UnpackLimits) -> (String, Refusal) {
    let target = Target::new();
    let result = target.unpack(&tar.bytes(), limits);
    target.assert_nothing_outside();
    match result {
        Err(UnpackError::Refused { entry, refusal }) => (entry.to_string(), refusal),
        other => panic!("not refused: {other:?}"),
    }
}

#[track_caller]
fn assert_refused(tar: Tar, entry: &str, check: fn(&Refusal) -> bool) {
    let (named, refusal) = refusal(tar, &UnpackLimits::package());
    assert_eq!(named, entry);
    assert!(check(&refusal), "{refusal:?}");
}

#[test]
fn a_good_package_is_written_with_its_attributes() {
    if !is_root() {
        return;
    }
    let tar = Tar::new()
        .dir("./")
        .dir("app/")
        .raw(b'0', 0o755, b"app/bin/run", b"", b"#!/bin/sh\n")
        .hard_link("app/bin/again", "app/bin/run")
        .symlink("app/etc", "/etc")
        .file("./app/./deep//er/file", b"x");
    for bytes in [tar.bytes()].iter().flat_map(|tar| [tar.clone(), zstd(tar)]) {
        let target = Target::new();
        target.unpack(&bytes, &UnpackLimits::package()).unwrap();
        let meta = fs::metadata(target.tree().join("app/bin/run")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.nlink()), (0o755, 1000, 1000, 2));
        assert_eq!(meta.mtime(), 1_700_000_000);
        // Made on the way, and owned as everything else.
        assert_eq!(fs::metadata(target.tree().join("app/deep/er")).unwrap().uid(), 1000);
        assert_eq!(fs::read_link(target.tree().join("app/etc")).unwrap(), PathBuf::from("/etc"));
        assert_eq!(fs::symlink_metadata(target.tree().join("app/etc")).unwrap().uid(), 1000);
        target.assert_nothing_outside();
    }
}

#[test]
fn paths_that_leave_the_tree_are_refused() {
    let file = |name: &str| Tar::new().file(name, b"x");
    assert_refused(file("/etc/cron.d/x"), "/etc/cron.d/x", |r| *r == Refusal::Absolute);
    assert_refused(file("app/../../secret"), "app/../../secret", |r| *r == Refusal::ParentDirectory);
    assert_refused(file(".."), "..", |r| *r == Refusal::ParentDirectory);
    assert_refused(file("secret"), "secret", |r| *r == Refusal::OutsideApp);
    assert_refused(file("app"), "app", |r| *r == Refusal::OutsideApp);
    assert_refused(Tar::new().symlink("app", "/"), "app", |r| *r == Refusal::OutsideApp);
    assert_refused(Tar::new().dir("application/"), "application/", |r| *r == Refusal::OutsideApp);
}

#[test]
fn nothing_is_written_through_a_symlink() {
    if !is_root() {
        return;
    }
    for target in ["..", "../..", "/", "/tmp", ".", "missing"] {
        let tar = Tar::new().dir("app/").symlink("app/link", target).file("app/link/secret", b"x");
        assert_refused(tar, "app/link/secret", |r| *r == Refusal::ThroughNonDirectory);
    }
    // Nor onto one, nor by a directory that takes its place.
    let tar = Tar::new().dir("app/").symlink("app/link", "../../secret").file("app/link", b"x");
    assert_refused(tar, "app/link", |r| *r == Refusal::Duplicate);
    let tar = Tar::new().dir("app/").symlink("app/link", "../..").dir("app/link");
    assert_refused(tar, "app/link", |r| *r == Refusal::Duplicate);
}

#[test]
fn hard_links_stay_among_the_files_of_the_archive() {
    if !is_root() {
        return;
    }
    for target in
        ["/etc/passwd", "../secret", "app/../../secret", "app/missing", "app", "app/link", "app/out/secret"]
    {
        let tar = Tar::new()
            .dir("app/")
            .symlink("app/link", "../../secret")
            .symlink("app/out", "../..")
            .hard_link("app/hard", target);
        assert_refused(tar, "app/hard", |r| matches!(r, Refusal::LinkOut { .. }));
    }
}

#[test]
fn devices_and_unknown_types_are_refused() {
    for kind in *b"346" {
        let tar = Tar::new().raw(kind, 0o644, b"app/dev", b"", b"");
        assert_refused(tar, "app/dev", |r| *r == Refusal::Device);
    }
    assert_refused(Tar::new().raw(b'S', 0o644, b"app/s", b"", b""), "app/s", |r| *r == Refusal::Sparse);
    for kind in *b"ADMNVXZ9" {
        let tar = Tar::new().raw(kind, 0o644, b"app/x", b"", b"");
        assert_refused(tar, "app/x", |r| matches!(r, Refusal::UnknownType { .. }));
    }
    let (_, refused) = refusal(Tar::new().raw(b'4', 0o644, b"dev/sda", b"", b""), &UnpackLimits::image());
    assert_eq!(refused, Refusal::Device);
}

#[test]
fn setuid_setgid_and_sticky_are_refused() {
    for mode in [0o4755, 0o2755, 0o1755, 0o6755] {
        let tar = Tar::new().raw(b'0', mode, b"app/su", b"", b"x");
        assert_refused(tar, "app/su", |r| matches!(r, Refusal::Mode { .. }));
        let (_, refused) = refusal(Tar::new().raw(b'0', mode, b"bin/su", b"", b"x"), &UnpackLimits::image());
        assert_eq!(refused, Refusal::Mode { mode });
    }
    assert_refused(Tar::new().raw(b'5', 0o2755, b"app/d", b"", b""), "app/d", |r| {
        matches!(r, Refusal::Mode { .. })
    });
    let target = Target::new();
    let image = Tar::new().raw(b'5', 0o1777, b"tmp", b"", b"").bytes();
    target.unpack(&image, &UnpackLimits::image()).unwrap();
    assert_eq!(fs::metadata(target.tree().join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
}

#[test]
fn a_name_comes_once() {
    if !is_root() {
        return;
    }
    assert_refused(Tar::new().file("app/a", b"1").file("app/./a", b"2"), "app/./a", |r| {
        *r == Refusal::Duplicate
    });
    assert_refused(Tar::new().dir("app/d").dir("app/d/"), "app/d/", |r| *r == Refusal::Duplicate);
    assert_refused(Tar::new().file("app/a", b"1").file("app/a/b", b"2"), "app/a/b", |r| {
        *r == Refusal::ThroughNonDirectory
    });
}

#[test]
fn names_are_capped() {
    let long = |name: &str| {
        let mut data = name.as_bytes().to_vec();
        data.push(0);
        Tar::new().raw(b'L', 0, b"././@LongLink", b"", &data).file("app/short", b"x")
    };
    let (_, refused) = refusal(long(&format!("app/{}", "a".repeat(256))), &UnpackLimits::package());
    assert!(matches!(refused, Refusal::LongName { .. }));
    let (_, refused) = refusal(long(&format!("app/{}", "a/".repeat(600))), &UnpackLimits::package());
    assert!(matches!(refused, Refusal::LongName { .. }));
    let (_, refused) = refusal(long(&format!("app{}", "/a".repeat(64))), &UnpackLimits::package());
    assert_eq!(refused, Refusal::Deep { limit: 64 });
    // The long name counts, not the short one that stands in the header.
    let (named, refused) = refusal(long("app/../../secret"), &UnpackLimits::package());
    assert_eq!((named.as_str(), refused), ("app/../../secret", Refusal::ParentDirectory));
    let (_, refused) = refusal(
        Tar::new().raw(b'L', 0, b"././@LongLink", b"", &vec![b'a'; 70_000]),
        &UnpackLimits::package(),
    );
    assert_eq!(refused, Refusal::Extension { what: "too large" });
    let (_, refused) = refusal(long("app/a\0b"), &UnpackLimits::package());
    assert_eq!(refused, Refusal::BadName);
}

#[test]
fn pax_records_are_judged_like_headers() {
    let pax = |record: &[u8]| Tar::new().raw(b'x', 0, b"pax", b"", record).file("app/a", b"x");
    let (named, refused) = refusal(pax(b"18 path=../secret\n"), &UnpackLimits::package());
    assert_eq!((named.as_str(), refused), ("../secret", Refusal::ParentDirectory));
    let (_, refused) = refusal(pax(b"10 size=9\n"), &UnpackLimits::package());
    assert!(matches!(refused, Refusal::Header { .. }));
    let (_, refused) = refusal(pax(b"22 GNU.sparse.major=1\n"), &UnpackLimits::package());
    assert_eq!(refused, Refusal::Extension { what: "sparse file" });
    let (_, refused) = refusal(pax(b"nonsense"), &UnpackLimits::package());
    assert_eq!(refused, Refusal::Extension { what: "pax record" });
    let global = Tar::new().raw(b'g', 0, b"global", b"", b"18 path=../secret\n").file("app/a", b"x");
    let (_, refused) = refusal(global, &UnpackLimits::package());
    assert_eq!(refused, Refusal::Extension { what: "global header" });
    let (_, refused) =
        refusal(Tar::new().raw(b'x', 0, b"pax", b"", b"14 path=app/b\n"), &UnpackLimits::package());
    assert_eq!(refused, Refusal::Truncated);
}

#[test]
fn bombs_are_refused_before_they_are_written() {
    let limits =
        UnpackLimits { bytes: 10_000, entries: 20, ratio: 10, ratio_from: 4096, ..UnpackLimits::image() };
    let target = Target::new();
    let big = Tar::new().file("big", &[0; 20_000]).bytes();
    match target.unpack(&big, &limits) {
        Err(UnpackError::Refused { refusal: Refusal::TooLarge { limit: 10_000 }, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(!target.tree().join("big").exists());

    let bomb = zstd(&Tar::new().file("bomb", &[0; 8000]).bytes());
    match Target::new().unpack(&bomb, &limits) {
        Err(UnpackError::Refused { refusal: Refusal::Bomb { limit: 10 }, .. }) => {}
        other => panic!("{other:?}"),
    }

    // Nothing but headers: no entry is large, the stream is.
    let headers = (0..100).fold(Tar::new(), |tar, n| tar.dir(&format!("d{n}"))).bytes();
    let roomy = UnpackLimits { entries: 1000, ..limits.clone() };
    match Target::new().unpack(&zstd(&headers), &roomy) {
        Err(UnpackError::Read(_)) => {}
        other => panic!("{other:?}"),
    }
    let generous = UnpackLimits { bytes: 1 << 20, ..limits };
    match Target::new().unpack(&headers, &generous) {
        Err(UnpackError::Entries { limit: 20 }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_package_may_hold_data_as_regular_as_it_likes() {
    // 200 MB that pack to some KB.
    let bytes = zstd(&Tar::new().file("app/seeds.csv", &b"0,0,0,0\n".repeat(25_000_000)).bytes());
    assert!(bytes.len() < 100_000);
    judge(bytes.as_slice(), bytes.len() as u64, &UnpackLimits::package()).unwrap();
    match judge(bytes.as_slice(), bytes.len() as u64, &UnpackLimits::image()) {
        Err(UnpackError::Refused { refusal: Refusal::Bomb { .. }, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn damaged_archives_are_errors() {
    let limits = UnpackLimits::image();
    let good = Tar::new().file("a", &[7; 5000]).bytes();
    for (what, bytes) in [
        ("cut in a file", good[..2000].to_vec()),
        ("cut zstd", zstd(&good)[..30].to_vec()),
        ("garbage", vec![0xaa; 4096]),
        ("flipped header", [&good[..100], b"\xff", &good[101..]].concat()),
    ] {
        assert!(Target::new().unpack(&bytes, &limits).is_err(), "{what}");
    }
    let foreign = {
        let mut header = Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_uid(70_000);
        header.set_gid(0);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_size(0);
        header.set_cksum();
        let mut builder = Builder::new(Vec::new());
        builder.append(&header, io::empty()).unwrap();
        builder.into_inner().unwrap()
    };
    match Target::new().unpack(&foreign, &limits) {
        Err(UnpackError::Refused { refusal: Refusal::Owner { uid: 70_000, .. }, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_directory_itself_may_not_be_a_symlink() {
    let target = Target::new();
    let link = target.outer.path().join("link");
    symlink(target.tree(), &link).unwrap();
    let result = unpack(io::empty(), 0, &link, &UnpackLimits::image());
    assert!(matches!(result, Err(UnpackError::Target { .. })));
}

/// Names that an attacker would try, and their neighbours.
fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("app"),
        Just("a"),
        Just("b"),
        Just(".."),
        Just("."),
        Just(""),
        Just("secret"),
        Just("into"),
        Just("link"),
    ];
    (any::<bool>(), prop::collection::vec(part, 1..5))
        .prop_map(|(absolute, parts)| format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")))
}

fn entry() -> impl Strategy<Value = (u8, String, String, Vec<u8>)> {
    let kind = prop::sample::select(b"0012255xLg34S".to_vec());
    (kind, name(), name(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(
        |(kind, name, link, content)| {
            let content = match kind {
                b'0' => content,
                b'L' => link.clone().into_bytes(),
                b'x' | b'g' => format!("{} path={name}\n", 8 + name.len()).into_bytes(),
                _ => Vec::new(),
            };
            (kind, if name.is_empty() { "a".to_owned() } else { name }, link, content)
        },
    )
}

proptest! {
    #[test]
    fn nothing_is_ever_written_outside(
        entries in prop::collection::vec(entry(), 1..12),
        package in any::<bool>(),
        compressed in any::<bool>(),
    ) {
        let target = Target::new();
        let tar = entries.iter().fold(Tar::new(), |tar, (kind, name, link, content)| {
            tar.raw(*kind, 0o755, name.as_bytes(), link.as_bytes(), content)
        });
        let limits = if package { UnpackLimits::package() } else { UnpackLimits::image() };
        let bytes = if compressed { zstd(&tar.bytes()) } else { tar.bytes() };
        // Refused or not: the point is where it writes.
        drop(target.unpack(&bytes, &limits));
        target.assert_nothing_outside();
        if package {
            for entry in fs::read_dir(target.tree()).unwrap() {
                prop_assert_eq!(entry.unwrap().file_name(), "app");
            }
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_a_tree(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let target = Target::new();
        drop(target.unpack(&bytes, &UnpackLimits::image()));
        target.assert_nothing_outside();
    }
}
