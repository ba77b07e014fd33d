//! Tests of the store: what is there is whole, what failed leaves nothing, callers do not disturb
//! each other.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::fcntl::FlockArg;

use super::*;
use crate::pack::pack;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    (dir, store)
}

fn assert_tmp_empty(store: &Store) {
    assert_eq!(fs::read_dir(store.tmp()).unwrap().count(), 0);
}

/// Packing and unpacking keep the owner, so this works for any user as long as it is himself.
fn image(store: &Store, content: &str) -> Digest {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), content).unwrap();
    let mut bytes = Vec::new();
    pack(dir.path(), 0, 1, &mut bytes).unwrap();
    store.put(bytes.as_slice(), 1 << 20).unwrap()
}

fn record(digest: &Digest) -> ImageRecord {
    ImageRecord { recipe: String::new(), digest: digest.clone(), bytes: 0, packages: Default::default() }
}

#[test]
fn a_blob_is_stored_once_under_its_digest() {
    let (_dir, store) = store();
    let digest = store.put(&b"hello"[..], 5).unwrap();
    assert_eq!(digest.hex(), "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    assert_eq!(store.put(&b"hello"[..], 5).unwrap(), digest);
    assert_eq!(store.blobs().unwrap(), [(digest.clone(), 5)]);
    let mut text = String::new();
    store.open_blob(&digest).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    assert_tmp_empty(&store);
}

#[test]
fn what_cannot_be_stored_leaves_nothing() {
    struct Torn;
    impl Read for Torn {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let (_dir, store) = store();
    assert!(matches!(store.put(&b"hello"[..], 4), Err(StoreError::TooLarge { limit: 4 })));
    assert!(matches!(store.put((&b"hel"[..]).chain(Torn), 100), Err(StoreError::Input(_))));
    let other = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    assert!(matches!(store.put_as(&other, &b"hello"[..], 100), Err(StoreError::Mismatch { .. })));
    assert!(matches!(store.open_blob(&other), Err(StoreError::NotFound { .. })));
    assert_eq!(store.blobs().unwrap(), []);
    assert_tmp_empty(&store);
}

#[test]
fn concurrent_callers_share_one_tree() {
    let (_dir, store) = store();
    let digest = image(&store, "x");
    let inodes: BTreeSet<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (store, digest) = (Store::open(store.root()).unwrap(), digest.clone());
                scope.spawn(move || {
                    let tree = store.tree(&digest, &UnpackLimits::image()).unwrap();
                    assert_eq!(fs::read_to_string(tree.join("file")).unwrap(), "x");
                    fs::metadata(tree).unwrap().ino()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(inodes.len(), 1);
    assert_tmp_empty(&store);
}

#[test]
fn a_refused_archive_leaves_no_tree() {
    let (_dir, store) = store();
    // Not below app/.
    let digest = image(&store, "x");
    let result = store.tree(&digest, &UnpackLimits::package());
    assert!(matches!(result, Err(StoreError::Unpack { .. })), "{result:?}");
    assert_eq!(fs::read_dir(store.root().join("packages")).unwrap().count(), 0);
    assert_tmp_empty(&store);
}

#[test]
fn an_unpacking_that_nobody_wants_is_given_up() {
    let (_dir, store) = store();
    // What does not compress (xorshift), so that it takes several reads.
    let mut state = 1u32;
    let big: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    })
    .take(4_000_000)
    .collect();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), big).unwrap();
    let mut bytes = Vec::new();
    pack(dir.path(), 0, 1, &mut bytes).unwrap();
    let digest = store.put(bytes.as_slice(), 16 << 20).unwrap();
    // Wanted for the first looks, then no more.
    let looks = std::cell::Cell::new(0);
    let wanted = || {
        looks.set(looks.get() + 1);
        looks.get() < 4
    };
    let result = store.tree_while(&digest, &UnpackLimits::image(), &wanted);
    assert!(matches!(result, Err(StoreError::GivenUp { .. })), "{result:?}");
    assert_eq!(looks.get(), 6, "it read on");
    assert_tmp_empty(&store);
    // The next one finds nothing half done.
    store.tree(&digest, &UnpackLimits::image()).unwrap();
}

#[test]
fn a_blob_that_rotted_is_not_unpacked() {
    let (_dir, store) = store();
    let digest = image(&store, "x");
    let path = store.blob_path(&digest);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .and_then(|mut f| io::Write::write_all(&mut f, b"!"))
        .unwrap();
    let result = store.tree(&digest, &UnpackLimits::image());
    assert!(matches!(result, Err(StoreError::Damaged { .. })), "{result:?}");
    assert!(!store.tree_path(&digest, &UnpackLimits::image()).exists());
}

#[test]
fn collection_keeps_what_is_named_kept_or_young() {
    let (_dir, store) = store();
    let named = image(&store, "named");
    let kept = image(&store, "kept");
    let loose = image(&store, "loose");
    let name: ImageName = "ruby".parse().unwrap();
    store.set_image(&name, &named, &record(&named)).unwrap();
    let tree = store.tree(&loose, &UnpackLimits::image()).unwrap();
    let keep = BTreeSet::from([kept.clone()]);

    assert_eq!(store.collect(&keep, Duration::from_secs(3600)).unwrap(), Collected::default());
    let collected = store.collect(&keep, Duration::ZERO).unwrap();
    assert_eq!((collected.blobs, collected.trees), (1, 1));
    assert!(!tree.exists());
    let left: BTreeSet<_> = store.blobs().unwrap().into_iter().map(|(digest, _)| digest).collect();
    assert_eq!(left, BTreeSet::from([named.clone(), kept]));

    assert_eq!(store.image(&name).unwrap().unwrap().0, named);
    assert_eq!(store.images().unwrap(), [(name.clone(), named.clone())]);
    assert_eq!(store.image_record(&name).unwrap(), Some(record(&named)));
    assert!(store.remove_image(&name).unwrap());
    assert!(!store.remove_image(&name).unwrap());
    assert_tmp_empty(&store);
}

#[test]
fn one_is_removed_only_when_it_is_permitted() {
    let (_dir, store) = store();
    let (named, loose) = (image(&store, "named"), image(&store, "loose"));
    let name: ImageName = "ruby".parse().unwrap();
    store.set_image(&name, &named, &record(&named)).unwrap();
    let tree = store.tree(&loose, &UnpackLimits::image()).unwrap();

    let idle = store.idle().unwrap();
    assert_eq!(idle.iter().map(|blob| &blob.digest).collect::<Vec<_>>(), [&loose]);
    assert!(idle[0].bytes > 0 && idle[0].since < Duration::from_secs(3600));

    assert_eq!(store.remove(&loose, || None::<()>).unwrap(), Removal::Refused);
    assert!(tree.exists() && store.has(&loose));
    assert_eq!(store.remove(&loose, || Some(())).unwrap(), Removal::Removed);
    assert!(!tree.exists() && !store.has(&loose));
    assert_eq!(store.remove(&loose, || Some(())).unwrap(), Removal::Absent);
    assert_tmp_empty(&store);
}

#[test]
fn a_removal_waits_for_nobody() {
    let (_dir, store) = store();
    let (busy, loose) = (image(&store, "busy"), image(&store, "loose"));
    // Somebody unpacks one blob, and makes something else.
    let _workshop = store.workshop().unwrap();
    let unpacker = lock::lock(store.open_blob(&busy).unwrap(), FlockArg::LockExclusive).unwrap();
    assert_eq!(
        store.remove(&busy, || -> Option<()> { panic!("not to be asked") }).unwrap(),
        Removal::Refused
    );
    assert_eq!(store.remove(&loose, || Some(())).unwrap(), Removal::Removed);
    assert!(store.has(&busy));
    drop(unpacker);
    assert_eq!(store.remove(&busy, || Some(())).unwrap(), Removal::Removed);
}

#[test]
fn a_blob_that_goes_while_its_unpacking_waits_has_no_tree() {
    let (_dir, store) = store();
    let digest = image(&store, "x");
    let holder = lock::lock(store.open_blob(&digest).unwrap(), FlockArg::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.tree(&digest, &UnpackLimits::image()));
        // It has the file open from here on.
        let inode = holder.metadata().unwrap().ino();
        let opened = || {
            fs::read_dir("/proc/self/fd")
                .unwrap()
                .flatten()
                .filter(|fd| fs::metadata(fd.path()).is_ok_and(|meta| meta.ino() == inode))
                .count()
        };
        while opened() < 2 {
            assert!(!waiting.is_finished());
            std::thread::yield_now();
        }
        fs::remove_file(store.blob_path(&digest)).unwrap();
        drop(holder);
        let result = waiting.join().unwrap();
        assert!(matches!(result, Err(StoreError::NotFound { .. })), "{result:?}");
    });
    assert!(!store.tree_path(&digest, &UnpackLimits::image()).exists());
}

#[test]
fn opening_sweeps_what_the_dead_left_and_nothing_else() {
    let (_dir, store) = store();
    fs::create_dir_all(store.tmp().join("tree-dead/tree/usr")).unwrap();
    fs::write(store.tmp().join("dead"), "half").unwrap();
    let workshop = store.workshop().unwrap();
    Store::open(store.root()).unwrap();
    assert!(store.tmp().join("dead").exists(), "somebody is at work");
    drop(workshop);
    Store::open(store.root()).unwrap();
    assert_tmp_empty(&store);
}

#[test]
fn package_trees_do_not_outlive_a_boot() {
    let (_dir, store) = store();
    let tree = store.root().join("packages").join("0".repeat(64));
    fs::create_dir(&tree).unwrap();
    Store::open(store.root()).unwrap();
    assert!(tree.exists());
    fs::write(store.root().join("boot"), "another\n").unwrap();
    Store::open(store.root()).unwrap();
    assert!(!tree.exists());
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("SKIP: mounting a small file system needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    // The mount is this thread's own and goes with it.
    let test = move || {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=512k")).unwrap();
        let store = Store::open(&path).unwrap();

        let result = store.put(io::repeat(7).take(1 << 20), 1 << 30);
        assert!(matches!(result, Err(StoreError::DiskFull { .. })), "{result:?}");
        assert_tmp_empty(&store);
        assert_eq!(store.blobs().unwrap(), []);

        // It compresses well and unpacks to more than there is.
        let digest = image(&store, &"x".repeat(600_000));
        let result = store.tree(&digest, &UnpackLimits::image());
        let full = matches!(&result, Err(StoreError::Unpack { source: UnpackError::DiskFull { .. }, .. }));
        assert!(full, "{result:?}");
        assert_tmp_empty(&store);
        assert_eq!(fs::read_dir(store.root().join("trees")).unwrap().count(), 0);
    };
    std::thread::spawn(test).join().unwrap();
}
