//! The other end of the fail points (`mogok_shim::failpoint`): hears every one that agent, shim or child
//! passes, and makes one of them fail or wait.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use mogok_shim::failpoint::FAIL;

/// What is done where the armed point is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Fail,
    /// It waits until the test says otherwise.
    Hold,
}

#[derive(Debug, Default)]
struct State {
    passed: Vec<String>,
    armed: Option<(String, Answer)>,
    reached: bool,
    held: Option<UnixStream>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Wire(Arc<Mutex<State>>);

impl Wire {
    /// Listens at a path until the test program ends.
    pub(crate) fn listen(path: &Path) -> Self {
        let wire = Self::default();
        let listener = UnixListener::bind(path).unwrap();
        let state = wire.0.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = state.clone();
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        wire
    }

    /// The next passage of `point` is answered so, all others let go.
    pub(crate) fn arm(&self, point: &str, answer: Answer) {
        let mut state = self.0.lock().unwrap();
        (state.reached, state.held) = (false, None);
        state.armed = Some((point.to_owned(), answer));
    }

    /// Was the armed point reached?
    pub(crate) fn reached(&self) -> bool {
        self.0.lock().unwrap().reached
    }

    /// Is somebody waiting at the armed point?
    pub(crate) fn holds(&self) -> bool {
        self.0.lock().unwrap().held.is_some()
    }

    /// Lets who waits go on.
    pub(crate) fn release(&self) {
        self.0.lock().unwrap().held = None;
    }

    /// Every point passed since the last call, once each, in order.
    pub(crate) fn take_passed(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let passed = std::mem::take(&mut self.0.lock().unwrap().passed);
        passed.into_iter().filter(|point| seen.insert(point.clone())).collect()
    }
}

fn serve(mut stream: UnixStream, state: &Mutex<State>) {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for point in lines.map_while(Result::ok) {
        let answer = {
            let mut state = state.lock().unwrap();
            let answer = state.armed.take_if(|(armed, _)| *armed == point).map(|(_, answer)| answer);
            state.reached |= answer.is_some();
            if answer == Some(Answer::Hold) {
                // The end of the stream is the answer: when this clone is dropped, as this thread's is at once.
                state.held = Some(stream.try_clone().unwrap());
            }
            state.passed.push(point);
            answer
        };
        let byte = match answer {
            Some(Answer::Hold) => return,
            Some(Answer::Fail) => FAIL,
            None => b'.',
        };
        if stream.write_all(&[byte]).is_err() {
            return;
        }
    }
}
