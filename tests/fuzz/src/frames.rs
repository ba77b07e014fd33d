//! Frames of the control socket: every stream of bytes is a row of messages and then an end or an error;
//! what was read says the same when it is written again.

use mogok_shim::protocol::frame::{self, FrameError};
use mogok_shim::protocol::{MAX_FRAME, Reply, Report, Request};

pub fn run(data: &[u8]) {
    let mut stream = data;
    // Each frame takes at least its header away.
    while let Ok(request) = frame::receive::<Request>(&mut stream) {
        let again = frame::encode(&request).expect("a request that was read fits a frame");
        let back: Request = frame::receive(&mut again.as_slice()).expect("what was written is read");
        assert_eq!(back, request);
    }
    match frame::receive::<Reply>(&mut &data[..]) {
        Ok(reply) => {
            let again = frame::encode(&reply).expect("a reply that was read fits a frame");
            let back: Reply = frame::receive(&mut again.as_slice()).expect("what was written is read");
            assert_eq!(back, reply);
        }
        Err(FrameError::TooLong(length)) => assert!(length > MAX_FRAME),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    drop(frame::decode::<Report>(data));
}
