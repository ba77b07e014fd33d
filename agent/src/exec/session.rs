//! One program with its client: their streams in both directions until the first of them is gone, and
//! then the end of whatever is left.
//!
//! Invariants: no more than two frames wait for the client and one piece of input for the program; the
//! place of the program is given back when its helper has been reaped.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use mogok_api::agent::client::ExecReader;
use mogok_api::agent::exec::{ExecExit, ExecFrame, ExecInput, ExecOutput};
use mogok_shim::protocol::exec::{ExecEnd, ExecOrder};
use mogok_shim::protocol::frame::{self, HEADER};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, watch};

use super::Place;
use super::helper::Started;
use super::streams::{Input, Streams, pump};
use crate::fail_point;

/// For the helper to end its program (it takes five seconds at most) and itself.
const END: Duration = Duration::from_secs(10);
/// For a client to take the last frames.
const LAST_FRAMES: Duration = Duration::from_secs(10);
const SIGKILL: u8 = 9;

/// A program that runs in a container, without a client yet.
#[derive(Debug)]
pub struct Running {
    helper: Started,
    _place: Place,
}

/// The client's side of the connection is of no more use.
struct ClientGone;

impl Running {
    pub(super) fn new(helper: Started, place: Place) -> Self {
        Self { helper, _place: place }
    }

    /// Connects the program with its client, and returns when nothing of it is left.
    pub async fn serve(self, client: impl AsyncRead + AsyncWrite + Unpin) {
        let Self { helper, _place } = self;
        let Started { process, socket, program, ends } = helper;
        match streams(socket, ends) {
            Ok((socket, streams)) => {
                let (hear, tell) = socket.into_split();
                converse(client, streams, hear, tell).await;
            }
            Err(error) => tracing::error!(%error, "cannot watch the streams of a program"),
        }
        fail_point!(ExecEnded, ignored);
        // The helper's socket and the streams are closed: it ends the program, and then itself.
        if tokio::time::timeout(END, process.ended()).await.is_err() {
            tracing::warn!(pid = process.pid(), "killing a helper that does not end");
            drop(process.kill());
            process.ended().await;
        }
        // Its death signal has done this, unless the program had refused to have one.
        let _ = pidfd_send_signal(&program, Signal::KILL);
    }

    /// Ends the program: its client did not come.
    pub async fn abandon(self) {
        self.serve(tokio::io::empty()).await;
    }
}

fn streams(socket: StdUnixStream, ends: super::helper::Ends) -> std::io::Result<(UnixStream, Streams)> {
    socket.set_nonblocking(true)?;
    Ok((UnixStream::from_std(socket)?, Streams::new(ends)?))
}

async fn converse(
    client: impl AsyncRead + AsyncWrite + Unpin,
    streams: Streams,
    hear: OwnedReadHalf,
    tell: OwnedWriteHalf,
) {
    let (reader, writer) = split(client);
    let (output, waiting) = mpsc::channel(1);
    let taken = Arc::new(Notify::new());
    let (ended, has_ended) = watch::channel(false);
    let outputs = join_all(
        streams
            .outputs
            .into_iter()
            .map(|(kind, stream)| pump(kind, stream, has_ended.clone(), output.clone())),
    );
    let program = async {
        let told = async {
            let exit = exit(hear).await;
            ended.send_replace(true);
            exit
        };
        let (exit, _) = tokio::join!(told, outputs);
        // When it cannot be sent the client is gone, which is noticed elsewhere.
        drop(output.send(ExecOutput::Exit(exit)).await);
        drop(output);
    };
    let out = async { tokio::join!(program, write(writer, waiting, taken.clone())).1 };
    tokio::select! {
        _ = out => {}
        _ = read(reader, streams.input, tell, &taken) => {}
        () = overdue(has_ended.clone()) => {}
    }
}

/// Some time after the program's end.
async fn overdue(mut ended: watch::Receiver<bool>) {
    // Its sender lives as long as the conversation.
    let _ = ended.wait_for(|ended| *ended).await;
    tokio::time::sleep(LAST_FRAMES).await;
}

/// How the program ended. A helper that leaves without a word was killed, and has taken it along.
async fn exit(mut helper: OwnedReadHalf) -> ExecExit {
    let told = async {
        let mut header = [0; HEADER];
        helper.read_exact(&mut header).await.ok()?;
        let mut body = vec![0; frame::length(header).ok()?];
        helper.read_exact(&mut body).await.ok()?;
        frame::decode::<ExecEnd>(&body).ok()
    };
    let number = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    match told.await {
        Some(ExecEnd { code: Some(code), .. }) => ExecExit::Code(number(code)),
        Some(ExecEnd { signal: Some(signal), .. }) => ExecExit::Signal(number(signal)),
        _ => ExecExit::Signal(SIGKILL),
    }
}

/// Sends the client what is waiting for it, until there is no more.
async fn write(
    mut client: impl AsyncWrite + Unpin,
    mut waiting: mpsc::Receiver<ExecOutput>,
    taken: Arc<Notify>,
) -> Result<(), ClientGone> {
    loop {
        let output = tokio::select! {
            biased;
            () = taken.notified() => ExecOutput::Taken,
            output = waiting.recv() => match output {
                Some(output) => output,
                None => break,
            },
        };
        client.write_all(&output.encode()).await.map_err(|_| ClientGone)?;
        client.flush().await.map_err(|_| ClientGone)?;
    }
    client.shutdown().await.map_err(|_| ClientGone)
}

/// Takes what the client sends, until it is gone or says what it must not.
async fn read(
    client: impl AsyncRead + Unpin,
    mut input: Input,
    mut helper: OwnedWriteHalf,
    taken: &Notify,
) -> ClientGone {
    let mut client = ExecReader::new(client);
    let mut piece = Vec::new();
    loop {
        let message = tokio::select! {
            message = client.next::<ExecInput>() => message,
            done = input.write(&mut piece), if !piece.is_empty() => {
                if done {
                    piece.clear();
                    taken.notify_one();
                }
                continue;
            }
        };
        match message {
            // One piece at a time.
            Ok(Some(ExecInput::Stdin(_))) if !piece.is_empty() => return ClientGone,
            Ok(Some(ExecInput::Stdin(bytes))) if bytes.is_empty() => match input.end() {
                Some(last) => piece = last,
                None => taken.notify_one(),
            },
            Ok(Some(ExecInput::Stdin(bytes))) => piece = bytes,
            Ok(Some(ExecInput::Resize(size))) => input.resize(size),
            Ok(Some(ExecInput::Signal(number))) => {
                let order = frame::encode(&ExecOrder::Signal(number.into()));
                // A helper that is gone has no program to signal.
                if let Ok(order) = order {
                    drop(helper.write_all(&order).await);
                }
            }
            Ok(None) => return ClientGone,
            Err(error) => {
                tracing::debug!(error = %crate::chain(&error), "a client of a program is gone");
                return ClientGone;
            }
        }
    }
}
