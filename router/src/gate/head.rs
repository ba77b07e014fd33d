//! One request head as bytes -> what the gate must know of it, or why it is refused (RFC 9112).
//! Stricter than the RFC where the RFC lets servers differ: no bare LF, no folding, no list and no
//! repetition of Content-Length, no transfer coding but `chunked`, no lower-case methods.

use super::{MAX_HEADERS, Violation, leading_blank};
use crate::domain::split_host;

/// How a request's body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    None,
    Length(u64),
    Chunked,
}

/// What the gate needs of an accepted head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub body: Body,
    /// Asks for another protocol, has no body, and it is not HTTP/2 in plain text (which nobody
    /// behind the router speaks, and which some clients offer with every request).
    pub upgrade: bool,
}

/// Parses one head, its blank line included.
///
/// # Errors
/// The first violation in the order of the lines; then what the head as a whole breaks.
pub fn parse(head: &[u8]) -> Result<Head, Violation> {
    let mut lines = Lines { rest: &head[leading_blank(head)..] };
    let first = lines.next().ok_or(Violation::RequestLine)??;
    let request = request_line(first)?;

    let mut host = None;
    let mut length = None;
    let mut chunked = false;
    let mut upgrade = None;
    let mut connection_upgrade = false;
    let mut count = 0;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        count += 1;
        if count > MAX_HEADERS {
            return Err(Violation::TooManyHeaders);
        }
        let (name, value) = header(line)?;
        // Names by length first: most headers are none of these.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                host = Some(first_of(host, value, Violation::DuplicateHost)?);
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                length = Some(first_of(length, content_length(value)?, Violation::ContentLength)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked || request.version_1_0 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Violation::TransferEncoding);
                }
                chunked = true;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                upgrade = Some(!value.eq_ignore_ascii_case(b"h2c"));
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                connection_upgrade |=
                    value.split(|b| *b == b',').any(|token| trim(token).eq_ignore_ascii_case(b"upgrade"));
            }
            6 if name.eq_ignore_ascii_case(b"expect") && !value.eq_ignore_ascii_case(b"100-continue") => {
                return Err(Violation::Expect);
            }
            _ => {}
        }
    }

    let host = host.ok_or(Violation::NoHost)?;
    let (name, port) = split_host(host).ok_or(Violation::Host)?;
    if let Some((authority, default_port)) = request.authority {
        let (other, other_port) = split_host(authority).ok_or(Violation::Target)?;
        if !name.eq_ignore_ascii_case(other)
            || port.unwrap_or(default_port) != other_port.unwrap_or(default_port)
        {
            return Err(Violation::HostMismatch);
        }
    }
    let body = match (length, chunked) {
        (Some(_), true) => return Err(Violation::LengthAndEncoding),
        (None, true) => Body::Chunked,
        (Some(length), false) => Body::Length(length),
        (None, false) => Body::None,
    };
    let upgrade = connection_upgrade
        && upgrade == Some(true)
        && !request.version_1_0
        && matches!(body, Body::None | Body::Length(0));
    Ok(Head { body, upgrade })
}

/// `value`, unless there was one before.
fn first_of<T>(before: Option<T>, value: T, violation: Violation) -> Result<T, Violation> {
    match before {
        None => Ok(value),
        Some(_) => Err(violation),
    }
}

/// The lines of a head, each ended by CR LF and without another CR or LF in it.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Lines<'a> {
    type Item = Result<&'a [u8], Violation>;
    fn next(&mut self) -> Option<Self::Item> {
        let end = self.rest.iter().position(|b| *b == b'\n')?;
        let line = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Some(match line.split_last() {
            Some((b'\r', line)) => Ok(line),
            _ => Err(Violation::LineEnding),
        })
    }
}

struct RequestLine<'a> {
    version_1_0: bool,
    /// Of an absolute-form target: the authority, and the scheme's port.
    authority: Option<(&'a [u8], u16)>,
}

fn request_line(line: &[u8]) -> Result<RequestLine<'_>, Violation> {
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Violation::RequestLine);
    };
    if !(1..=24).contains(&method.len())
        || !method.iter().all(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_'))
        // A router is no tunnel and no mirror.
        || method == b"CONNECT"
        || method == b"TRACE"
    {
        return Err(Violation::Method);
    }
    let version_1_0 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => return Err(Violation::Version),
    };
    let clean = target.iter().all(|b| *b > b' ' && *b != 0x7f && *b != b'#')
        && (target.is_ascii() || std::str::from_utf8(target).is_ok());
    if !clean {
        return Err(Violation::Target);
    }
    let authority = match target {
        [b'/', ..] => None,
        b"*" if method == b"OPTIONS" => None,
        _ => Some(absolute(target).ok_or(Violation::Target)?),
    };
    Ok(RequestLine { version_1_0, authority })
}

/// The authority of `http://authority/path`.
fn absolute(target: &[u8]) -> Option<(&[u8], u16)> {
    let after = |scheme: &[u8]| {
        (target.len() > scheme.len() && target[..scheme.len()].eq_ignore_ascii_case(scheme))
            .then(|| &target[scheme.len()..])
    };
    let (rest, port) = match after(b"http://") {
        Some(rest) => (rest, 80),
        None => (after(b"https://")?, 443),
    };
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    Some((&rest[..end], port))
}

fn header(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Violation::Folded);
    }
    let colon = line.iter().position(|b| *b == b':').ok_or(Violation::Header)?;
    let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
    if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
        return Err(Violation::Header);
    }
    if value.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
        return Err(Violation::Header);
    }
    Ok((name, value))
}

/// Digits only and fewer than would overflow: no sign, no list, no space within.
fn content_length(value: &[u8]) -> Result<u64, Violation> {
    if !(1..=18).contains(&value.len()) {
        return Err(Violation::ContentLength);
    }
    value.iter().try_fold(0_u64, |length, digit| {
        if digit.is_ascii_digit() {
            Ok(length * 10 + u64::from(digit - b'0'))
        } else {
            Err(Violation::ContentLength)
        }
    })
}

/// `tchar` of RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}
