use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use tempfile::TempDir;

use super::segments::{SEGMENT_BYTES, SEGMENTS};
use super::*;

fn store() -> (TempDir, LogStore, AppId) {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path());
    (dir, store, AppId::new())
}

fn put(store: &LogStore, app: AppId, line: &str) -> u64 {
    store.append(app, Utc::now(), LogSource::App, "web.1", line).unwrap()
}

fn batch(n: usize, bytes: usize) -> Vec<NewLine> {
    let line = |i: usize| format!("{i} {}", "x".repeat(bytes)).into_bytes();
    let new =
        |i| NewLine { at: Utc::now(), source: LogSource::App, process: "web.1".to_owned(), line: line(i) };
    (0..n).map(new).collect()
}

async fn all(store: &LogStore, app: AppId) -> Vec<LogLine> {
    store.read_after(app, 0, usize::MAX, Filter::default()).await.unwrap()
}

fn files(dir: &TempDir, app: AppId) -> Vec<PathBuf> {
    let dir = dir.path().join("logs").join(app.to_string());
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn numbers_go_on_after_a_restart_and_a_torn_line_is_cut() {
    let (dir, store, app) = store();
    assert_eq!(put(&store, app, "one"), 1);
    assert_eq!(put(&store, app, "two"), 2);
    drop(store);
    let file = files(&dir, app).pop().unwrap();
    for torn in ["3 17950000001234", "\0\0\0\0\0\0", "no record at all\n", "3 1795"] {
        OpenOptions::new().append(true).open(&file).unwrap().write_all(torn.as_bytes()).unwrap();
        let store = LogStore::open(dir.path());
        let lines = all(&store, app).await;
        assert_eq!(lines.iter().map(|l| l.line.as_str()).collect::<Vec<_>>(), ["one", "two"], "{torn:?}");
    }
    let store = LogStore::open(dir.path());
    assert_eq!(put(&store, app, "three"), 3);
    assert_eq!(all(&store, app).await.len(), 3);
}

#[tokio::test]
async fn a_tail_of_zeros_longer_than_any_record_is_cut() {
    let (dir, store, app) = store();
    put(&store, app, "one");
    drop(store);
    let file = files(&dir, app).pop().unwrap();
    OpenOptions::new().append(true).open(&file).unwrap().write_all(&[0; 100_000]).unwrap();
    let store = LogStore::open(dir.path());
    assert_eq!(put(&store, app, "two"), 2);
    assert_eq!(all(&store, app).await.len(), 2);
}

#[tokio::test]
async fn the_files_are_bounded_and_the_oldest_lines_go() {
    let (dir, store, app) = store();
    for _ in 0..10 {
        store.append_all(app, &batch(1000, 1000)).unwrap();
    }
    let files = files(&dir, app);
    assert_eq!(files.len(), SEGMENTS);
    for file in files {
        assert!(fs::metadata(file).unwrap().len() <= SEGMENT_BYTES);
    }
    let lines = all(&store, app).await;
    assert!(lines.len() > 4000, "{}", lines.len());
    assert_eq!(lines.last().unwrap().seq, 10_000);
    assert!(lines.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1));
    let last = store.read_last(app, 3000, Filter::default()).await.unwrap();
    assert_eq!(last, lines[lines.len() - 3000..]);
    let after = store.read_after(app, 9_990, 5, Filter::default()).await.unwrap();
    assert_eq!(after.iter().map(|l| l.seq).collect::<Vec<_>>(), [9_991, 9_992, 9_993, 9_994, 9_995]);
    // A restart that finds an empty newest file goes on with the number in its name.
    drop(store);
    let newest = self::files(&dir, app).pop().unwrap();
    let base: u64 = newest.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    fs::write(newest, "").unwrap();
    assert_eq!(put(&LogStore::open(dir.path()), app, "again"), base);
}

#[tokio::test]
async fn filters_choose_source_type_and_process() {
    let (_dir, store, app) = store();
    for (source, process) in [
        (LogSource::App, "web.1"),
        (LogSource::App, "web.10"),
        (LogSource::App, "webhook.1"),
        (LogSource::Router, "router"),
    ] {
        store.append(app, Utc::now(), source, process, "x").unwrap();
    }
    let processes = async |source, process: Option<&str>| {
        let filter = Filter { source, process: process.map(str::to_owned) };
        let lines = store.read_last(app, 10, filter).await.unwrap();
        lines.into_iter().map(|l| l.process).collect::<Vec<_>>()
    };
    assert_eq!(processes(None, Some("web")).await, ["web.1", "web.10"]);
    assert_eq!(processes(None, Some("web.1")).await, ["web.1"]);
    assert_eq!(processes(Some(LogSource::Router), None).await, ["router"]);
    assert_eq!(processes(Some(LogSource::Build), None).await, Vec::<String>::new());
    assert!(store.read_last(AppId::new(), 10, Filter::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_follower_gets_every_line_once() {
    let (_dir, store, app) = store();
    let writer = {
        let store = store.clone();
        std::thread::spawn(move || {
            for _ in 0..2000 {
                put(&store, app, "line");
            }
        })
    };
    // Begun somewhere in the middle of the writing.
    let mut follower = store.follow(app, Start::Last(10_000), Filter::default()).await.unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&2000) {
        seen.extend(follower.next().await.unwrap().unwrap().into_iter().map(|l| l.seq));
    }
    assert_eq!(seen, (1..=2000).collect::<Vec<_>>());
    writer.join().unwrap();
    let mut resumed = store.follow(app, Start::After(1990), Filter::default()).await.unwrap();
    let lines = resumed.next().await.unwrap().unwrap();
    assert_eq!(lines.iter().map(|l| l.seq).collect::<Vec<_>>(), (1991..=2000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_slow_follower_is_told_what_it_missed() {
    let (_dir, store, app) = store();
    put(&store, app, "first");
    let mut follower = store.follow(app, Start::Last(1), Filter::default()).await.unwrap();
    assert_eq!(follower.next().await.unwrap().unwrap().len(), 1);
    store.append_all(app, &batch(10_000, 1000)).unwrap();
    let lines = follower.next().await.unwrap().unwrap();
    assert_eq!(lines[0].source, LogSource::Mogok);
    assert_eq!(lines[0].line, format!("{} lines are no longer kept", lines[1].seq - 2));
    let mut last = lines.last().unwrap().seq;
    while last < 10_001 {
        let lines = follower.next().await.unwrap().unwrap();
        assert_eq!(lines[0].seq, last + 1);
        last = lines.last().unwrap().seq;
    }
}

#[tokio::test]
async fn a_closed_log_ends_its_followers_also_after_a_restart() {
    let (dir, store, _) = store();
    let build = BuildId::new();
    store.append(build, Utc::now(), LogSource::Build, "build", "hello").unwrap();
    let mut follower = store.follow(build, Start::After(0), Filter::default()).await.unwrap();
    assert_eq!(follower.next().await.unwrap().unwrap().len(), 1);
    assert!(!store.is_closed(build));
    store.close(build).unwrap();
    assert!(follower.next().await.unwrap().is_none());
    drop((store, follower));
    let store = LogStore::open(dir.path());
    assert!(store.is_closed(build));
    let mut follower = store.follow(build, Start::After(0), Filter::default()).await.unwrap();
    assert_eq!(follower.next().await.unwrap().unwrap().len(), 1);
    assert!(follower.next().await.unwrap().is_none());
    assert_eq!(store.keys().unwrap(), [LogKey::Build(build)]);
    assert_eq!(store.append(build, Utc::now(), LogSource::Build, "build", "late").unwrap(), 2);
    assert!(store.is_closed(build));
    assert_eq!(store.read_last(build, 9, Filter::default()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_removed_log_is_gone_and_ends_its_followers() {
    let (_dir, store, app) = store();
    put(&store, app, "one");
    let mut follower = store.follow(app, Start::After(0), Filter::default()).await.unwrap();
    follower.next().await.unwrap().unwrap();
    store.remove(app).unwrap();
    assert!(follower.next().await.unwrap().is_none());
    assert!(store.keys().unwrap().is_empty());
    store.remove(app).unwrap();
    put(&store, app, "late");
    assert!(store.keys().unwrap().is_empty(), "a late line made the log anew");
}

#[tokio::test]
async fn hundreds_of_apps_do_not_need_hundreds_of_descriptors() {
    let (_dir, store, first) = store();
    put(&store, first, "one");
    let mut follower = store.follow(first, Start::Last(0), Filter::default()).await.unwrap();
    let apps: Vec<_> = (0..300).map(|_| AppId::new()).collect();
    for round in 1..=2 {
        for app in &apps {
            assert_eq!(put(&store, *app, "x"), round);
        }
    }
    assert!(lock(&store.inner.open).logs.len() <= MAX_OPEN);
    // The one with a reader stayed open: a line still wakes it.
    put(&store, first, "two");
    assert_eq!(follower.next().await.unwrap().unwrap()[0].line, "two");
}
