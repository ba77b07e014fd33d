//! The strict gate: reads the raw bytes of a client's connection ahead of hyper, so that what two
//! servers could read differently is refused before anything is routed. hyper repairs some of it
//! in silence (it drops a Content-Length beside a Transfer-Encoding, for one), so afterwards it
//! could no longer be seen.
//!
//! Invariant: hyper gets a head only whole and accepted, and never a byte after a refused one.
//! Pure: bytes in, verdicts out; [`crate::stream`] does the I/O.

mod head;
#[cfg(test)]
mod tests;

pub use head::{Body, Head, parse};

/// The largest head, request line and blank line included, in bytes.
pub const MAX_HEAD: usize = 32 * 1024;
/// The most header lines.
pub const MAX_HEADERS: usize = 100;
/// Blank lines before a request line that are forgiven (RFC 9112, section 2.2), in bytes.
const MAX_LEADING_BLANK: usize = 4;

/// What is wrong with a request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("head larger than 32 KiB")]
    TooLarge,
    #[error("more than 100 header lines")]
    TooManyHeaders,
    #[error("malformed request line")]
    RequestLine,
    #[error("malformed or refused method")]
    Method,
    #[error("malformed request target")]
    Target,
    #[error("HTTP version other than 1.0 and 1.1")]
    Version,
    #[error("line not ended by CR LF")]
    LineEnding,
    #[error("malformed header line")]
    Header,
    #[error("folded header line")]
    Folded,
    #[error("no Host")]
    NoHost,
    #[error("more than one Host")]
    DuplicateHost,
    #[error("malformed Host")]
    Host,
    #[error("target and Host name different hosts")]
    HostMismatch,
    #[error("malformed or repeated Content-Length")]
    ContentLength,
    #[error("Transfer-Encoding other than chunked")]
    TransferEncoding,
    #[error("both Content-Length and Transfer-Encoding")]
    LengthAndEncoding,
    #[error("expectation other than 100-continue")]
    Expect,
}

/// What to do with the bytes that were fed.
#[derive(Debug, PartialEq, Eq)]
pub struct Fed {
    /// So many from the first may go to hyper.
    pub pass: usize,
    /// The head after those is refused: nothing more may go.
    pub refused: Option<Violation>,
}

/// Where the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start of a head of which so many bytes were searched for its end.
    Head {
        searched: usize,
    },
    /// Within a body of which so many bytes are still to come.
    Body {
        left: u64,
    },
    /// No head can follow: the connection ends after this request, or becomes a tunnel.
    Last,
    Refused,
}

/// One connection's gate.
#[derive(Debug)]
pub struct Gate {
    state: State,
    /// Heads accepted or refused so far.
    heads: u64,
    /// The number of the head after which the connection is [`State::Last`].
    last: Option<u64>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { state: State::Head { searched: 0 }, heads: 0, last: None }
    }
}

impl Gate {
    /// Heads seen so far, a refused one included.
    #[must_use]
    pub fn heads(&self) -> u64 {
        self.heads
    }

    /// The head (counted from 1) that must be the connection's last: its body is chunked, so the
    /// gate does not follow where it ends, or it asks for an upgrade.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// Whether the connection is between requests or within a head.
    #[must_use]
    pub fn awaits_head(&self) -> bool {
        matches!(self.state, State::Head { .. })
    }

    /// Looks at the bytes that follow those passed so far. What is not passed must be fed again,
    /// with more behind it.
    pub fn feed(&mut self, bytes: &[u8]) -> Fed {
        let mut pass = 0;
        loop {
            let rest = &bytes[pass..];
            match self.state {
                State::Last => return Fed { pass: bytes.len(), refused: None },
                State::Refused => return Fed { pass, refused: None },
                State::Body { left } => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    pass += taken;
                    let left = left - taken as u64;
                    if left > 0 {
                        self.state = State::Body { left };
                        return Fed { pass, refused: None };
                    }
                    self.state = State::Head { searched: 0 };
                }
                State::Head { searched } => {
                    if rest.is_empty() {
                        return Fed { pass, refused: None };
                    }
                    if let Some(violation) = hopeless(rest) {
                        return self.refuse(pass, violation);
                    }
                    let Some(end) = head_end(rest, searched) else {
                        if rest.len() >= MAX_HEAD {
                            return self.refuse(pass, Violation::TooLarge);
                        }
                        self.state = State::Head { searched: rest.len() };
                        return Fed { pass, refused: None };
                    };
                    let verdict = if end > MAX_HEAD { Err(Violation::TooLarge) } else { parse(&rest[..end]) };
                    match verdict {
                        Err(violation) => return self.refuse(pass, violation),
                        Ok(head) => {
                            self.heads += 1;
                            pass += end;
                            self.state = match head.body {
                                Body::Chunked => State::Last,
                                Body::Length(left) if left > 0 => State::Body { left },
                                _ if head.upgrade => State::Last,
                                _ => State::Head { searched: 0 },
                            };
                            if self.state == State::Last {
                                self.last = Some(self.heads);
                            }
                        }
                    }
                }
            }
        }
    }

    fn refuse(&mut self, pass: usize, violation: Violation) -> Fed {
        self.state = State::Refused;
        self.heads += 1;
        Fed { pass, refused: Some(violation) }
    }
}

/// Where the head ends (one past its blank line). A blank line ended by a bare LF counts, so that
/// such a head is refused at once instead of being waited for.
fn head_end(bytes: &[u8], searched: usize) -> Option<usize> {
    let mut at = searched.saturating_sub(2);
    // The blank lines before the request line are not its end.
    let start = leading_blank(bytes);
    at = at.max(start);
    while let Some(found) = bytes[at..].iter().position(|b| *b == b'\n') {
        let next = at + found + 1;
        match bytes.get(next..) {
            Some([b'\n', ..]) => return Some(next + 1),
            Some([b'\r', b'\n', ..]) => return Some(next + 2),
            _ => at = next,
        }
    }
    None
}

/// The length of the forgiven blank lines.
fn leading_blank(bytes: &[u8]) -> usize {
    let mut length = 0;
    while length < MAX_LEADING_BLANK && bytes[length..].starts_with(b"\r\n") {
        length += 2;
    }
    length
}

/// Whether the start of a head cannot become a request: TLS on the wrong port, or noise.
fn hopeless(bytes: &[u8]) -> Option<Violation> {
    let first = bytes[leading_blank(bytes)..].first()?;
    (!first.is_ascii_uppercase() && *first != b'\r').then_some(Violation::Method)
}
