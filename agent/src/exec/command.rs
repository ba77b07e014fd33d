//! `mogok-agent exec`: a program in a running container with the caller's own streams, terminal and
//! signals, and its exit status as the command's.
//!
//! Invariant: the caller's terminal is as it was before, however this ends.

use std::io::{IsTerminal, Read, Write, stderr, stdin};
use std::thread;

use anyhow::{Context, Result};
use mogok_api::agent::client::{AgentClient, ExecError, ExecEvent, ExecSender};
use mogok_api::agent::exec::{ExecRequest, MAX_PAYLOAD, TerminalSize};
use mogok_api::id::InstanceId;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Where the caller has no terminal to ask.
const SIZE: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// The size that a terminal for the program should have.
#[must_use]
pub fn terminal_size() -> TerminalSize {
    rustix::termios::tcgetwinsize(stdin())
        .map_or(SIZE, |size| TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// Executes it and stays to its end; the exit status to leave with.
///
/// # Errors
/// When it is not started, or the connection to it breaks.
pub async fn exec(
    client: &AgentClient,
    id: InstanceId,
    request: &ExecRequest,
    out: &mut impl Write,
) -> Result<u8> {
    let (sender, mut receiver) = client.exec(id, request).await?;
    let _raw = request.terminal.and_then(|_| RawMode::enter());
    tokio::spawn(hand_input_on(sender.clone(), read_input()));
    tokio::spawn(hand_signals_on(sender, request.terminal.is_some()));
    loop {
        match receiver.next().await.context("lost the program, which is being ended")? {
            ExecEvent::Stdout(bytes) => {
                out.write_all(&bytes)?;
                out.flush()?;
            }
            ExecEvent::Stderr(bytes) => stderr().write_all(&bytes)?,
            ExecEvent::Exit(exit) => return Ok(exit.status()),
        }
    }
}

/// Standard input in pieces, then an empty one. By a thread of its own, which ends with this program: a read from
/// a terminal cannot be called off.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        let mut buffer = [0; MAX_PAYLOAD];
        loop {
            let read = stdin().read(&mut buffer).unwrap_or(0);
            if sender.blocking_send(buffer[..read].to_vec()).is_err() || read == 0 {
                return;
            }
        }
    });
    receiver
}

async fn hand_input_on(sender: ExecSender, mut input: mpsc::Receiver<Vec<u8>>) -> Result<(), ExecError> {
    while let Some(piece) = input.recv().await {
        if piece.is_empty() {
            return sender.end_of_stdin().await;
        }
        sender.stdin(&piece).await?;
    }
    Ok(())
}

async fn hand_signals_on(sender: ExecSender, terminal: bool) -> Result<()> {
    let take = |kind| signal(kind).context("cannot take signals");
    let mut resized = take(SignalKind::window_change())?;
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    let mut signals = Vec::new();
    for kind in kinds {
        signals.push((u8::try_from(kind.as_raw_value())?, take(kind)?));
    }
    loop {
        tokio::select! {
            Some(()) = resized.recv(), if terminal => sender.resize(terminal_size()).await?,
            number = any(&mut signals) => sender.signal(number).await?,
        }
    }
}

/// The next of these signals that comes.
async fn any(signals: &mut [(u8, Signal)]) -> u8 {
    std::future::poll_fn(|context| {
        for (number, signal) in signals.iter_mut() {
            if signal.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(*number);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// The caller's terminal, handing every key on as it is.
struct RawMode(Termios);

impl RawMode {
    fn enter() -> Option<Self> {
        let before = stdin().is_terminal().then(|| tcgetattr(stdin()).ok())??;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal is gone, if anything.
        let _ = tcsetattr(stdin(), SetArg::TCSANOW, &self.0);
    }
}
