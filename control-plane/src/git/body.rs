//! The request body on its way into a git process: unpacked where the client packed it, counted, and
//! read to its end also when git wants no more, because a client that still sends does not listen.

use std::io::Write;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use flate2::write::GzDecoder;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;

/// How long a client may be silent while it sends.
const SILENCE: Duration = Duration::from_secs(60);
/// Packed bytes that are unpacked in one step; gzip makes at most about 1000 times as many of them.
const PIECE: usize = 4096;

/// Why a body was not taken to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Git took more than the cap.
    TooLarge,
    /// Not the gzip it is said to be.
    BadGzip,
    /// The client went away or fell silent.
    Broken,
}

/// Copies the body into git's standard input and closes it. What comes after git has closed it is discarded,
/// however much that is: the caller bounds the time.
pub(super) async fn pump(body: Body, gzip: bool, stdin: ChildStdin, cap: u64) -> Result<(), Refused> {
    let mut chunks = body.into_data_stream();
    let mut sink = Sink { stdin: Some(stdin), taken: 0, cap };
    let mut decoder = gzip.then(|| GzDecoder::new(Vec::new()));
    loop {
        let next = tokio::time::timeout(SILENCE, chunks.next()).await.map_err(|_| Refused::Broken)?;
        let Some(chunk) = next else { break };
        let chunk: Bytes = chunk.map_err(|_| Refused::Broken)?;
        if sink.stdin.is_none() {
            continue;
        }
        let Some(decoder) = &mut decoder else {
            sink.take(&chunk).await?;
            continue;
        };
        for piece in chunk.chunks(PIECE) {
            decoder.write_all(piece).map_err(|_| Refused::BadGzip)?;
            let unpacked = std::mem::take(decoder.get_mut());
            sink.take(&unpacked).await?;
        }
    }
    if let Some(decoder) = decoder {
        let rest = decoder.finish().map_err(|_| Refused::BadGzip)?;
        sink.take(&rest).await?;
    }
    Ok(())
}

struct Sink {
    /// Nothing once git has closed its end: it has heard enough, and says why in its answer.
    stdin: Option<ChildStdin>,
    taken: u64,
    cap: u64,
}

impl Sink {
    async fn take(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        self.taken += bytes.len() as u64;
        if self.taken > self.cap {
            return Err(Refused::TooLarge);
        }
        if stdin.write_all(bytes).await.is_err() {
            self.stdin = None;
        }
        Ok(())
    }
}
