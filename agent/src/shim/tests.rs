//! A shim of protocol version 1, byte by byte as it was when that version was made: a container outlives
//! many agents, so the agent of today must speak with the shim of then. The double stands for that shim;
//! its words are not made by the code under test.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use super::*;

const HELLO: &str = r#""hello""#;
const SIGNAL: &str = r#"{"signal":{"signal":15,"all":true}}"#;
const WAIT: &str = r#""wait""#;
const QUIT: &str = r#""quit""#;
const STARTED: &str = r#"{"started":{"version":1,"shim_pid":4711,"shim_start_time":100,"init_pid":4712,"init_start_time":101,"boot_id":"b","at_us":1700000000000000}}"#;
const DONE: &str = r#""done""#;
const REFUSED: &str = r#"{"refused":"the program runs: end it first"}"#;
const EXITED: &str = r#"{"exited":{"code":3,"signal":null,"at_us":1700000001000000}}"#;

/// A shim that expects these requests, a connection each, and answers them so.
fn double(dir: &Path, exchanges: &'static [(&'static str, &'static str)]) -> JoinHandle<()> {
    let listener = UnixListener::bind(dir.join("shim.sock")).unwrap();
    std::thread::spawn(move || {
        for (request, reply) in exchanges {
            let (mut stream, _) = listener.accept().unwrap();
            let mut frame = vec![0; 4 + request.len()];
            stream.read_exact(&mut frame).unwrap();
            assert_eq!(frame, wire(request), "not what version 1 expects");
            stream.write_all(&wire(reply)).unwrap();
        }
    })
}

fn wire(json: &str) -> Vec<u8> {
    let length = u8::try_from(json.len()).unwrap();
    [&[0, 0, 0, length], json.as_bytes()].concat()
}

#[tokio::test]
async fn a_shim_of_version_1_is_greeted_signalled_waited_for_and_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let shim = Shim::new(dir.path().to_owned());
    let old = double(
        dir.path(),
        &[(HELLO, STARTED), (SIGNAL, DONE), (QUIT, REFUSED), (WAIT, EXITED), (SIGNAL, EXITED), (QUIT, DONE)],
    );
    let started = shim.hello().await.unwrap();
    assert_eq!((started.version, started.shim_pid, started.init_start_time), (1, 4711, 101));
    shim.signal_all(15).await.unwrap();
    assert!(matches!(shim.quit().await, Err(ShimError::Refused(_))));
    assert_eq!(shim.wait().await.unwrap().code, Some(3));
    shim.signal_all(15).await.unwrap();
    shim.quit().await.unwrap();
    old.join().unwrap();
}

#[test]
fn the_files_of_a_shim_of_version_1_and_of_a_later_one_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let bare =
        |text: &'static str| text.split_once(':').and_then(|(_, rest)| rest.strip_suffix('}')).unwrap();
    std::fs::write(dir.path().join("started.json"), bare(STARTED)).unwrap();
    std::fs::write(dir.path().join("exit.json"), bare(EXITED)).unwrap();
    assert_eq!(read_started(dir.path()).unwrap().init_pid, 4712);
    assert_eq!(read_exit(dir.path()).unwrap().code, Some(3));
    // An agent that was taken back finds what it knows among what it does not.
    let later = bare(STARTED).replace(r#""version":1"#, r#""version":9,"unheard_of":{"a":[1]}"#);
    std::fs::write(dir.path().join("started.json"), later).unwrap();
    let started = read_started(dir.path()).unwrap();
    assert_eq!((started.version, started.oldest), (9, 1));
}

#[tokio::test]
async fn a_shim_that_understands_only_later_agents_is_not_asked() {
    let dir = tempfile::tempdir().unwrap();
    let later = STARTED.split_once(':').unwrap().1.strip_suffix('}').unwrap();
    let later = later.replace(r#""version":1"#, r#""version":9,"oldest":8"#);
    std::fs::write(dir.path().join("started.json"), later).unwrap();
    let shim = Shim::new(dir.path().to_owned());
    let refused = shim.signal_all(15).await.unwrap_err();
    assert!(matches!(refused, ShimError::Version { .. }), "{refused}");
    assert!(refused.to_string().contains("versions 8 to 9"), "{refused}");
    assert!(matches!(shim.quit().await, Err(ShimError::Version { .. })));
}
