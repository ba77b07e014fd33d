use futures_util::StreamExt;
use mogok_api::agent::{LogRecord, LogStream};

use super::*;
use crate::instance::sample_spec;
use crate::ledger::Record;

struct Node {
    dir: tempfile::TempDir,
    ledger: Ledger,
    logs: Arc<Logs>,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let logs = Arc::new(Logs::open(dir.path(), ledger.clone()).unwrap());
        Self { dir, ledger, logs }
    }

    fn restarted(self) -> Self {
        let logs = Arc::new(Logs::open(self.dir.path(), self.ledger.clone()).unwrap());
        for id in self.ledger.list().unwrap() {
            logs.watch(id);
        }
        Self { logs, ..self }
    }

    fn instance(&self) -> InstanceId {
        let record = Record::new(sample_spec(), 1 << 20);
        self.ledger.store(&record).unwrap();
        self.logs.watch(record.id());
        record.id()
    }

    fn print(&self, id: InstanceId, text: &str) {
        let dir = Source::Shim.dir(&self.ledger.dir(id));
        let mut log = Appender::open(&dir, Bounds { file_bytes: 4096, files: 4 }).unwrap();
        let line = String::from_utf8(line::platform(Utc::now(), text)).unwrap().replacen(" P F ", " O F ", 1);
        log.append(line.as_bytes()).unwrap();
        self.logs.collect(id);
    }

    async fn read(&self, after: Option<&str>, only: Option<InstanceId>) -> Vec<LogRecord> {
        let after = after.map(|cursor| cursor.parse().unwrap());
        let chunks: Vec<_> = self.logs.stream(after, only, false).collect().await;
        let bytes: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.unwrap()).collect();
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn texts(records: &[LogRecord]) -> Vec<&str> {
    records.iter().map(|record| record.line.as_str()).collect()
}

#[tokio::test]
async fn cursors_hold_over_a_restart_and_after_the_instance_is_gone() {
    let node = Node::new();
    let (one, two) = (node.instance(), node.instance());
    node.logs.say(one, "started");
    node.print(one, "1 a");
    node.print(two, "2 a");
    node.print(one, "1 b");
    let all = node.read(None, None).await;
    assert_eq!(texts(&all), ["started", "1 a", "2 a", "1 b"]);
    assert_eq!(all[0].stream, LogStream::Platform);
    assert_eq!(texts(&node.read(None, Some(one)).await), ["started", "1 a", "1 b"]);

    let node = node.restarted();
    node.print(two, "2 b");
    node.logs.say(one, "exited with status 0");
    node.logs.retire(one).unwrap();
    for (index, record) in all.iter().enumerate() {
        let rest = node.read(Some(&record.cursor), None).await;
        let expected = ["started", "1 a", "2 a", "1 b", "2 b", "exited with status 0"];
        assert_eq!(texts(&rest), expected[index + 1..]);
    }
    // It was only just removed, so the sweep leaves it.
    node.logs.sweep();
    assert_eq!(texts(&node.read(None, Some(one)).await).last(), Some(&"exited with status 0"));
}

#[tokio::test]
async fn a_cursor_of_another_journal_starts_at_the_beginning() {
    let node = Node::new();
    let id = node.instance();
    node.print(id, "a");
    assert_eq!(texts(&node.read(Some("other-500-20"), None).await), ["a"]);
}

#[tokio::test]
async fn a_stretch_larger_than_a_batch_is_streamed_whole() {
    let node = Node::new();
    let id = node.instance();
    let dir = Source::Shim.dir(&node.ledger.dir(id));
    let mut log = Appender::open(&dir, Bounds { file_bytes: 300_000, files: 100 }).unwrap();
    let text = "x".repeat(9_000);
    let expected: Vec<String> = (0..150).map(|n| format!("{n} {text}")).collect();
    for line in &expected {
        log.append(&line::platform(Utc::now(), line)).unwrap();
    }
    while node.logs.collect(id) {}
    let all = node.read(None, None).await;
    assert_eq!(texts(&all), expected);
    let rest = node.read(Some(&all[77].cursor), None).await;
    assert_eq!(rest.len(), 150 - 78);
}

#[tokio::test]
async fn a_follower_gets_what_comes_later() {
    let node = Node::new();
    let id = node.instance();
    let mut stream = node.logs.stream(None, None, true);
    node.print(id, "late");
    let deadline = Duration::from_secs(10);
    let chunk = tokio::time::timeout(deadline, stream.next()).await.unwrap().unwrap().unwrap();
    let record: LogRecord = serde_json::from_slice(&chunk).unwrap();
    assert_eq!(record.line, "late");
}

#[tokio::test]
async fn who_follows_one_instance_comes_to_its_end() {
    let node = Node::new();
    let (one, other) = (node.instance(), node.instance());
    let follow = |only| node.logs.stream(None, only, true);
    let (mut of_one, mut of_other, mut of_all) = (follow(Some(one)), follow(Some(other)), follow(None));
    let first = of_one.next();
    node.print(one, "first");
    first.await.unwrap().unwrap();
    let rest = tokio::spawn(of_one.collect::<Vec<_>>());
    node.print(one, "last");
    node.logs.retire(one).unwrap();
    // Long before the next sign of life.
    let rest = tokio::time::timeout(KEEPALIVE / 2, rest).await.unwrap().unwrap();
    let bytes: Vec<u8> = rest.into_iter().flat_map(|chunk| chunk.unwrap()).collect();
    let last: LogRecord = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(last.line, "last");
    // The others go on.
    node.print(other, "more");
    of_other.next().await.unwrap().unwrap();
    while !of_all.next().await.unwrap().unwrap().windows(4).any(|word| word == b"more") {}
}

#[test]
fn the_last_lines_are_those_of_the_run() {
    let node = Node::new();
    let id = node.instance();
    node.print(id, "of the run before");
    let from = node.logs.end_of(id);
    for n in 0..30 {
        node.print(id, &format!("line {n}"));
    }
    let last = node.logs.last_lines(id, from);
    assert_eq!((last.len(), last[0].as_str(), last[19].as_str()), (20, "line 10", "line 29"));
    assert_eq!(node.logs.last_lines(id, node.logs.end_of(id)), Vec::<String>::new());
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_told_what_it_missed() {
    let node = Node::new();
    let id = node.instance();
    node.print(id, "first");
    let seen = node.read(None, None).await;
    assert_eq!(texts(&seen), ["first"]);
    // More than the log holds, 4 files of 4096 bytes.
    let from = node.logs.end_of(id);
    for n in 0..100 {
        node.print(id, &format!("{n:0500}"));
    }
    let rest = node.read(Some(&seen[0].cursor), None).await;
    let kept = Segments::new(Source::Shim.dir(&node.ledger.dir(id))).first().unwrap();
    assert!(kept > from);
    let told = format!("mogok: {} bytes of output were dropped before they were read", kept - from);
    assert_eq!((rest[0].stream, rest[0].line.as_str()), (LogStream::Platform, told.as_str()));
    assert_eq!(rest.last().unwrap().line, format!("{:0500}", 99));
    assert_eq!(rest.iter().filter(|record| record.stream == LogStream::Platform).count(), 1);
    // The notice's own cursor stands before the next line.
    assert_eq!(texts(&node.read(Some(&rest[0].cursor), None).await), texts(&rest[1..]));
}

#[tokio::test]
async fn what_a_shim_writes_is_taken_in_without_being_asked_for() {
    let node = Node::new();
    let id = node.instance();
    let run = tokio::spawn(node.logs.clone().run());
    let mut stream = node.logs.stream(None, None, true);
    for n in 0..3 {
        let dir = Source::Shim.dir(&node.ledger.dir(id));
        let mut log = Appender::open(&dir, Bounds { file_bytes: 4096, files: 4 }).unwrap();
        log.append(&line::platform(Utc::now(), &format!("line {n}"))).unwrap();
        let next = tokio::time::timeout(Duration::from_secs(20), stream.next());
        let record: LogRecord = serde_json::from_slice(&next.await.unwrap().unwrap().unwrap()).unwrap();
        assert_eq!(record.line, format!("line {n}"));
    }
    run.abort();
}
