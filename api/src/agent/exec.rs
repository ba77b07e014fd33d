//! A program in a running container: `POST /v1/instances/{id}/exec` with an [`ExecRequest`].
//!
//! The request asks to upgrade to [`PROTOCOL`]. A program that does not start is a plain error reply; one that
//! runs is `101 Switching Protocols`, and from then on frames go both ways: one byte of kind, a 4-byte
//! big-endian length of at most [`MAX_PAYLOAD`], and the payload. The client sends [`ExecInput`], the agent
//! [`ExecOutput`], at last `Exit`. One piece of input may be under way: the next goes when the agent has answered
//! `Taken`, so that a signal or a resize never waits behind input that the program does not read. A client
//! that closes the connection ends the program. Invariant: no buffer grows beyond two frames.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the connection is upgraded to.
pub const PROTOCOL: &str = "mogok-exec/1";
/// Bytes that one frame carries.
pub const MAX_PAYLOAD: usize = 16 << 10;
const HEADER: usize = 5;

/// What is to be executed. It runs in the app's own sandbox, with its environment and limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Absolute path of the program in the container, then its arguments.
    pub command: Vec<String>,
    /// Variables over those of the app.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Absolute path of its working directory; the app's where absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// The app's user where absent.
    #[serde(default)]
    pub user: Option<ExecUser>,
    /// With a terminal of this size; without, input, output and error output are apart.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
}

/// User and group inside a container; never root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecUser {
    pub uid: u32,
    pub gid: u32,
}

/// A user that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no user: give UID or UID:GID, numbers from 1 to 65534")]
pub struct InvalidUser(String);

impl FromStr for ExecUser {
    type Err = InvalidUser;

    /// `UID` or `UID:GID`. Names are not looked up: the image's `/etc/passwd` is the tenant's.
    fn from_str(text: &str) -> Result<Self, InvalidUser> {
        let id = |text: &str| text.parse().ok().filter(|id| (1..=65_534).contains(id));
        let (uid, gid) = text.split_once(':').unwrap_or((text, text));
        match (id(uid), id(gid)) {
            (Some(uid), Some(gid)) => Ok(Self { uid, gid }),
            _ => Err(InvalidUser(text.chars().take(40).collect())),
        }
    }
}

/// In characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// What the client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    /// For the program to read; empty at its end.
    Stdin(Vec<u8>),
    /// The terminal's new size.
    Resize(TerminalSize),
    /// A signal, by number.
    Signal(u8),
}

/// What the agent sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// Standard output, or all output of a terminal.
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// The last piece of input was passed on, or the program does not read any more.
    Taken,
    /// The program has ended, and this was all its output.
    Exit(ExecExit),
}

/// How the program ended: exactly one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecExit {
    Code(u8),
    Signal(u8),
}

impl ExecExit {
    /// As a shell has it: 128 and more for a signal.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}

/// Bytes that are no frame of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFrame {
    #[error("a frame of {0} bytes is longer than the {MAX_PAYLOAD} allowed")]
    TooLong(usize),
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    #[error("a frame of kind {kind} with {length} bytes")]
    Payload { kind: u8, length: usize },
}

/// One direction's messages.
pub trait ExecFrame: Sized {
    /// Kind and payload.
    fn parts(&self) -> (u8, Vec<u8>);

    /// The message of these parts.
    ///
    /// # Errors
    /// When there is none.
    fn from_parts(kind: u8, payload: &[u8]) -> Result<Self, InvalidFrame>;

    /// Its frame. A payload of more than [`MAX_PAYLOAD`] is cut by whoever sends it, not here.
    fn encode(&self) -> Vec<u8> {
        let (kind, payload) = self.parts();
        // Longer than this the other side refuses it.
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut frame = Vec::with_capacity(HEADER + payload.len());
        frame.push(kind);
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&payload);
        frame
    }
}

impl ExecFrame for ExecInput {
    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Stdin(bytes) => (0, bytes.clone()),
            Self::Resize(TerminalSize { rows, columns }) => {
                (1, [rows.to_be_bytes(), columns.to_be_bytes()].concat())
            }
            Self::Signal(number) => (2, vec![*number]),
        }
    }

    fn from_parts(kind: u8, payload: &[u8]) -> Result<Self, InvalidFrame> {
        match (kind, payload) {
            (0, bytes) => Ok(Self::Stdin(bytes.to_vec())),
            (1, &[a, b, c, d]) => Ok(Self::Resize(TerminalSize {
                rows: u16::from_be_bytes([a, b]),
                columns: u16::from_be_bytes([c, d]),
            })),
            (2, &[number]) => Ok(Self::Signal(number)),
            (1 | 2, _) => Err(InvalidFrame::Payload { kind, length: payload.len() }),
            _ => Err(InvalidFrame::Kind(kind)),
        }
    }
}

impl ExecFrame for ExecOutput {
    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Stdout(bytes) => (16, bytes.clone()),
            Self::Stderr(bytes) => (17, bytes.clone()),
            Self::Taken => (18, vec![]),
            Self::Exit(ExecExit::Code(code)) => (19, vec![*code]),
            Self::Exit(ExecExit::Signal(signal)) => (20, vec![*signal]),
        }
    }

    fn from_parts(kind: u8, payload: &[u8]) -> Result<Self, InvalidFrame> {
        match (kind, payload) {
            (16, bytes) => Ok(Self::Stdout(bytes.to_vec())),
            (17, bytes) => Ok(Self::Stderr(bytes.to_vec())),
            (18, []) => Ok(Self::Taken),
            (19, &[code]) => Ok(Self::Exit(ExecExit::Code(code))),
            (20, &[signal]) => Ok(Self::Exit(ExecExit::Signal(signal))),
            (18..=20, _) => Err(InvalidFrame::Payload { kind, length: payload.len() }),
            _ => Err(InvalidFrame::Kind(kind)),
        }
    }
}

/// Finds the frames in bytes as they come.
#[derive(Debug, Default)]
pub struct ExecDecoder {
    bytes: Vec<u8>,
}

impl ExecDecoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message; nothing while it is not whole.
    ///
    /// # Errors
    /// When the bytes are no frame. A length is refused before its payload is waited for.
    pub fn message<T: ExecFrame>(&mut self) -> Result<Option<T>, InvalidFrame> {
        let Some((&[kind, a, b, c, d], rest)) = self.bytes.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > MAX_PAYLOAD {
            return Err(InvalidFrame::TooLong(length));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let message = T::from_parts(kind, payload)?;
        self.bytes.drain(..HEADER + length);
        Ok(Some(message))
    }

    /// Is nothing of a frame left over?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn users_are_numbers_and_never_root() {
        assert_eq!("7".parse(), Ok(ExecUser { uid: 7, gid: 7 }));
        assert_eq!("7:8".parse(), Ok(ExecUser { uid: 7, gid: 8 }));
        for garbage in ["", "0", "0:7", "7:0", "root", "-1", "65536", "7:", ":7", "7:8:9", "4294967296", " 7"]
        {
            assert!(garbage.parse::<ExecUser>().is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn a_signal_is_a_status_over_128() {
        assert_eq!((ExecExit::Code(7).status(), ExecExit::Signal(9).status()), (7, 137));
        assert_eq!(ExecExit::Signal(255).status(), 255);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let refused = |bytes: &[u8]| {
            let mut decoder = ExecDecoder::default();
            decoder.push(bytes);
            decoder.message::<ExecInput>().unwrap_err()
        };
        assert_eq!(refused(&[0, 0xff, 0, 0, 0]), InvalidFrame::TooLong(0xff00_0000));
        assert_eq!(refused(&[0, 0, 0, 0x40, 1]), InvalidFrame::TooLong(MAX_PAYLOAD + 1));
        assert_eq!(refused(&[3, 0, 0, 0, 0]), InvalidFrame::Kind(3));
        assert_eq!(refused(&[19, 0, 0, 0, 1, 0]), InvalidFrame::Kind(19));
        assert_eq!(refused(&[2, 0, 0, 0, 0]), InvalidFrame::Payload { kind: 2, length: 0 });
        assert_eq!(refused(&[1, 0, 0, 0, 3, 1, 2, 3]), InvalidFrame::Payload { kind: 1, length: 3 });
    }

    fn inputs() -> impl Strategy<Value = ExecInput> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..100).prop_map(ExecInput::Stdin),
            any::<(u16, u16)>().prop_map(|(rows, columns)| ExecInput::Resize(TerminalSize { rows, columns })),
            any::<u8>().prop_map(ExecInput::Signal),
        ]
    }

    fn outputs() -> impl Strategy<Value = ExecOutput> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..100).prop_map(ExecOutput::Stdout),
            prop::collection::vec(any::<u8>(), 0..100).prop_map(ExecOutput::Stderr),
            Just(ExecOutput::Taken),
            any::<u8>().prop_map(|code| ExecOutput::Exit(ExecExit::Code(code))),
            any::<u8>().prop_map(|signal| ExecOutput::Exit(ExecExit::Signal(signal))),
        ]
    }

    fn in_pieces<T: ExecFrame>(messages: &[T], cut: usize) -> Vec<T> {
        let wire: Vec<u8> = messages.iter().flat_map(ExecFrame::encode).collect();
        let mut decoder = ExecDecoder::default();
        let mut got = Vec::new();
        for piece in wire.chunks(cut) {
            decoder.push(piece);
            while let Some(message) = decoder.message().unwrap() {
                got.push(message);
            }
        }
        assert!(decoder.is_empty());
        got
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_messages(
            sent in prop::collection::vec(inputs(), 0..10),
            answered in prop::collection::vec(outputs(), 0..10),
            cut in 1usize..40,
        ) {
            prop_assert_eq!(in_pieces(&sent, cut), sent);
            prop_assert_eq!(in_pieces(&answered, cut), answered);
        }

        #[test]
        fn garbage_is_an_error_or_a_message_and_never_kept(garbage in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = ExecDecoder::default();
            for byte in garbage {
                decoder.push(&[byte]);
                match decoder.message::<ExecInput>() {
                    Ok(_) => prop_assert!(decoder.bytes.len() < HEADER + MAX_PAYLOAD),
                    Err(_) => break,
                }
            }
        }
    }
}
