//! The frame of the control socket: a 4-byte big-endian length and that many bytes of JSON.
//!
//! Invariant: nothing longer than [`MAX_FRAME`] is written, and no buffer is made for a longer one.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MAX_FRAME;

/// Bytes of the length field.
pub const HEADER: usize = 4;

/// A frame that cannot be sent, or that was received and is none.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is longer than the {MAX_FRAME} allowed")]
    TooLong(usize),
    #[error("a frame does not hold the expected JSON")]
    Json(#[source] serde_json::Error),
    #[error("cannot transfer a frame")]
    Io(#[source] io::Error),
}

/// Header and body of one message.
///
/// # Errors
/// When the message is longer than [`MAX_FRAME`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Json)?;
    let length = frame.len() - HEADER;
    match u32::try_from(length) {
        Ok(field) if length <= MAX_FRAME => frame[..HEADER].copy_from_slice(&field.to_be_bytes()),
        _ => return Err(FrameError::TooLong(length)),
    }
    Ok(frame)
}

/// The length that a header announces, in bytes of the body.
///
/// # Errors
/// When it is longer than [`MAX_FRAME`].
pub fn length(header: [u8; HEADER]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_FRAME { Err(FrameError::TooLong(length)) } else { Ok(length) }
}

/// The message in a body.
///
/// # Errors
/// When it is not the JSON of a `T`.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(FrameError::Json)
}

/// Writes one message to a blocking stream.
///
/// # Errors
/// When it is too long or the stream fails.
pub fn send<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?).map_err(FrameError::Io)
}

/// Reads one message from a blocking stream.
///
/// # Errors
/// When the stream fails or ends, or the frame is none.
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, FrameError> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).map_err(FrameError::Io)?;
    let mut body = vec![0; length(header)?];
    stream.read_exact(&mut body).map_err(FrameError::Io)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Request;

    #[test]
    fn a_message_comes_back() {
        let mut wire = encode(&Request::Signal { signal: 15, all: true }).unwrap();
        wire.extend(encode(&Request::Quit).unwrap());
        let mut stream = wire.as_slice();
        assert_eq!(receive::<Request>(&mut stream).unwrap(), Request::Signal { signal: 15, all: true });
        assert_eq!(receive::<Request>(&mut stream).unwrap(), Request::Quit);
        assert!(receive::<Request>(&mut stream).is_err());
    }

    #[test]
    fn a_long_frame_is_refused_before_it_is_read() {
        assert!(matches!(length([0xff; 4]), Err(FrameError::TooLong(_))));
        assert!(matches!(encode(&"x".repeat(MAX_FRAME)), Err(FrameError::TooLong(_))));
        assert_eq!(length((MAX_FRAME as u32).to_be_bytes()).unwrap(), MAX_FRAME);
    }
}
