//! The program's two output pipes, read into the log.
//!
//! An idle container costs two small buffers. When output comes faster than those take it, large ones are
//! mapped and the pipe is widened; a second after the last of it they are given back, with one wake-up.
//! Invariant: nothing here waits for the program, and while output is being dropped no more than
//! [`QUIET`] × [`READS_A_TURN`] bytes are read in [`FLOOD_PAUSE`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;

use super::output::{Output, Stream};

/// Bytes read at once, usually and in a flood that is kept.
const QUIET: usize = 16 << 10;
const FLOOD: usize = 256 << 10;
/// Bytes of a pipe, usually (pipe(7)) and in a flood that is kept. A host whose root has many wide pipes, or
/// whose `fs.pipe-max-size` is lower, refuses; the pipe then stays as it is.
const PIPE: i32 = 64 << 10;
const WIDE_PIPE: i32 = 1 << 20;
const READS_A_TURN: u32 = 4;
/// Without a large read before the large buffers go.
const CALM: Duration = Duration::from_secs(1);
/// While output is being dropped, so that a flood costs the host little.
const FLOOD_PAUSE: Duration = Duration::from_millis(5);
/// After so many reads in a row that find little and come quickly (one alone is also what a reader sees that is faster than a
/// flood): a program that writes byte by byte, or in packets
/// (`O_DIRECT`, pipe(2)), costs the host no more than one that does not.
const LITTLE: usize = 4 << 10;
const LITTLE_READS: u32 = 16;
const LITTLE_PAUSE: Duration = Duration::from_millis(2);
/// For the last output: what holds the pipes has been killed, so this is only a bound. A pipe holds 1 MiB.
const DRAIN: Duration = Duration::from_secs(2);
const DRAIN_BYTES: usize = 8 << 20;

/// A pipe of the program's, until its end.
#[derive(Debug)]
struct Source {
    stream: Stream,
    pipe: Option<OwnedFd>,
}

#[derive(Debug)]
pub(crate) struct Intake {
    sources: [Source; 2],
    buffer: Vec<u8>,
    /// When the large buffers go, while they are there.
    calm_at: Option<Instant>,
    paused_until: Option<Instant>,
    /// The last read found little, as did so many before it.
    little: Option<(Instant, u32)>,
}

impl Intake {
    /// # Errors
    /// When the pipes cannot be made non-blocking.
    pub(crate) fn new(stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) -> Result<Self, Errno> {
        for pipe in [&stdout, &stderr].into_iter().flatten() {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let sources = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)]
            .map(|(stream, pipe)| Source { stream, pipe });
        Ok(Self { sources, buffer: vec![0; QUIET], calm_at: None, paused_until: None, little: None })
    }

    /// The pipes that are to be polled at `now`.
    pub(crate) fn pipes(&mut self, now: Instant) -> [Option<BorrowedFd<'_>>; 2] {
        self.paused_until = self.paused_until.filter(|until| *until > now);
        if self.paused_until.is_some() {
            return [None; 2];
        }
        let [out, err] = &self.sources;
        [out, err].map(|source| source.pipe.as_ref().map(AsFd::as_fd))
    }

    /// When [`Self::tick`] or a paused pipe is to be looked at.
    pub(crate) fn due(&self) -> Option<Instant> {
        [self.paused_until, self.calm_at].into_iter().flatten().min()
    }

    /// Gives the large buffers back when the flood is over.
    pub(crate) fn tick(&mut self, now: Instant, output: &mut Output) {
        if self.calm_at.is_some_and(|at| at <= now) {
            self.shrink(output);
        }
    }

    /// Moves what a pipe holds to the log, a few buffers at most; the bytes it moved.
    pub(crate) fn read(&mut self, place: usize, output: &mut Output) -> usize {
        let mut moved = 0;
        for turn in 0..LITTLE_READS {
            if turn >= READS_A_TURN && !self.finds_little() {
                break;
            }
            let source = &mut self.sources[place];
            let Some(pipe) = &source.pipe else { break };
            match read(pipe, &mut self.buffer) {
                Ok(0) => source.pipe = None,
                Ok(bytes) => {
                    moved += bytes;
                    let dropped = output.take(source.stream, &self.buffer[..bytes]);
                    let full = bytes == self.buffer.len();
                    if bytes >= LITTLE {
                        self.little = None;
                    }
                    if dropped {
                        self.paused_until = Some(Instant::now() + FLOOD_PAUSE);
                        self.shrink(output);
                    } else if full || bytes > QUIET {
                        self.grow(place, output);
                    } else if bytes < LITTLE {
                        let now = Instant::now();
                        let quick = |last: &(Instant, u32)| now.duration_since(last.0) < 5 * LITTLE_PAUSE;
                        let reads = self.little.filter(quick).map_or(1, |(_, reads)| reads.saturating_add(1));
                        self.little = Some((now, reads));
                        if self.finds_little() {
                            self.paused_until = Some(now + LITTLE_PAUSE);
                        }
                    }
                    // Behind a packet there may be another one.
                    if !full && !self.finds_little() {
                        break;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => source.pipe = None,
            }
        }
        moved
    }

    /// Many reads in a row found little.
    fn finds_little(&self) -> bool {
        self.little.is_some_and(|(_, reads)| reads >= LITTLE_READS)
    }

    /// Takes what is left in the pipes and closes them.
    pub(crate) fn drain(&mut self, output: &mut Output) {
        let (deadline, mut left) = (Instant::now() + DRAIN, DRAIN_BYTES);
        while left > 0 && self.sources.iter().any(|source| source.pipe.is_some()) {
            let moved = self.read(0, output) + self.read(1, output);
            left = left.saturating_sub(moved);
            let Some(wait) = deadline.checked_duration_since(Instant::now()) else { break };
            if moved == 0 {
                let open = self.sources.iter().filter_map(|source| source.pipe.as_ref());
                let mut fds: Vec<_> = open.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
                let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
                // Of nothing there is nothing to wait for.
                if fds.is_empty() || poll(&mut fds, wait) == Ok(0) {
                    break;
                }
            }
        }
        for source in &mut self.sources {
            source.pipe = None;
        }
        self.shrink(output);
    }

    fn grow(&mut self, place: usize, output: &mut Output) {
        if self.calm_at.is_none() {
            self.buffer = vec![0; FLOOD];
            output.widen();
        }
        self.calm_at = Some(Instant::now() + CALM);
        resize(self.sources[place].pipe.as_ref(), WIDE_PIPE);
    }

    fn shrink(&mut self, output: &mut Output) {
        if self.calm_at.take().is_some() {
            self.buffer = vec![0; QUIET];
            output.narrow();
            for source in &self.sources {
                resize(source.pipe.as_ref(), PIPE);
            }
        }
    }
}

/// Best effort: the host may refuse a wider pipe, and a narrower one must hold what is in it.
fn resize(pipe: Option<&OwnedFd>, bytes: i32) {
    if let Some(pipe) = pipe
        && fcntl(pipe, FcntlArg::F_GETPIPE_SZ) != Ok(bytes)
    {
        let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(bytes));
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::{pipe, pipe2, write};

    use super::*;
    use crate::spec::Log;

    fn output(dir: &std::path::Path) -> Output {
        let bounds = Log { file_bytes: 1 << 20, files: 2, rate_bytes: 1 << 20 };
        Output::open(std::fs::File::open(dir).unwrap(), "log", bounds).unwrap()
    }

    #[test]
    fn what_was_left_in_closed_pipes_is_taken_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = output(dir.path());
        let left = |text: &[u8]| {
            let (reader, writer) = pipe().unwrap();
            write(writer, text).unwrap();
            Some(reader)
        };
        let mut intake = Intake::new(left(b"out\n"), left(b"err\n")).unwrap();
        let begun = Instant::now();
        intake.drain(&mut output);
        assert!(begun.elapsed() < DRAIN / 2, "{:?}", begun.elapsed());
        output.end();
        let log = std::fs::read_to_string(dir.path().join("log/00000000000000000000.log")).unwrap();
        assert!(log.contains(" O F out\n") && log.contains(" E F err\n"), "{log}");
    }

    /// A pipe that keeps packets apart gives one at each read, and its writer waits when there are sixteen.
    #[test]
    fn packets_are_taken_many_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = output(dir.path());
        let (reader, writer) = pipe2(OFlag::O_DIRECT).unwrap();
        let mut intake = Intake::new(Some(reader), None).unwrap();
        let mut packets = || {
            for _ in 0..16 {
                assert_eq!(write(&writer, b"packet\n"), Ok(7));
            }
            let first = intake.read(0, &mut output) / 7;
            let rest: usize = (first..16).map(|_| intake.read(0, &mut output) / 7).sum();
            assert_eq!(first + rest, 16);
            first
        };
        assert_eq!(packets(), 1);
        // Unless this thread was kept waiting between them, from the second time on.
        assert!((0..100).any(|_| packets() == 16));
    }
}
