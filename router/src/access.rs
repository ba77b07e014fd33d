//! What is remembered of one request, and the line it leaves in the app's log when it ends,
//! however it ends: the line is written when this is dropped, so none can be forgotten.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use http::{HeaderValue, Method, StatusCode, Uri};
use mogok_api::route::RouterLog;

use crate::fault::Fault;
use crate::instance::Instance;
use crate::logs::LogQueue;
use crate::table::App;

/// The longest path and query in a line, in bytes.
const MAX_PATH: usize = 2000;

pub struct Access {
    pub app: Arc<App>,
    pub logs: Arc<LogQueue>,
    pub at: DateTime<Utc>,
    pub began: Instant,
    pub method: Method,
    pub uri: Uri,
    pub host: HeaderValue,
    pub request_id: HeaderValue,
    pub forwarded: HeaderValue,
    pub https: bool,
    pub instance: Option<Arc<Instance>>,
    pub connect: Option<Duration>,
    pub status: Option<StatusCode>,
    pub bytes: u64,
    /// Set when it did not go as the app or the client meant it.
    pub fault: Option<Fault>,
}

impl Access {
    /// logfmt, as developers know it from other routers.
    fn line(&self) -> String {
        let mut line = String::with_capacity(320);
        // Writing to a String does not fail.
        let _ = match self.fault {
            None => write!(line, "at=info"),
            Some(fault) => write!(line, "at=error code={} desc=\"{}\"", fault.code(), fault.description()),
        };
        let _ = write!(line, " method={} path=\"", self.method);
        let path = self.uri.path_and_query().map_or("*", |path| path.as_str());
        escape(&mut line, path.as_bytes(), MAX_PATH);
        line.push_str("\" host=");
        escape(&mut line, self.host.as_bytes(), 300);
        line.push_str(" request_id=");
        escape(&mut line, self.request_id.as_bytes(), 200);
        line.push_str(" fwd=\"");
        escape(&mut line, self.forwarded.as_bytes(), 300);
        line.push('"');
        if let Some(instance) = &self.instance {
            let _ = write!(line, " instance={}", instance.process);
        }
        if let Some(connect) = self.connect {
            let _ = write!(line, " connect={}ms", connect.as_millis());
        }
        let _ = write!(line, " service={}ms", self.began.elapsed().as_millis());
        let status = self.status.or_else(|| self.fault.map(Fault::status));
        if let Some(status) = status {
            let _ = write!(line, " status={}", status.as_u16());
        }
        let protocol = if self.https { "https" } else { "http" };
        let _ = write!(line, " bytes={} protocol={protocol}", self.bytes);
        line
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let line = RouterLog { at: self.at, app: self.app.name.clone(), line: self.line() };
        self.logs.push(line, &self.app.lines_dropped);
    }
}

/// Appends what a line may hold: printable ASCII without quotes and backslashes as it is, the rest
/// as `\xNN`, so that no client can end a line or a value.
fn escape(line: &mut String, text: &[u8], limit: usize) {
    for byte in text.iter().take(limit) {
        match byte {
            b'"' | b'\\' => {
                line.push('\\');
                line.push(char::from(*byte));
            }
            b' '..=b'~' => line.push(char::from(*byte)),
            _ => {
                let _ = write!(line, "\\x{byte:02x}");
            }
        }
    }
    if text.len() > limit {
        line.push_str("...");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_a_value_or_a_line() {
        let mut line = String::new();
        escape(&mut line, b"a\"b\\c\nd\xff\x1b", 100);
        assert_eq!(line, r#"a\"b\\c\x0ad\xff\x1b"#);
        line.clear();
        escape(&mut line, b"abcdef", 3);
        assert_eq!(line, "abc...");
    }
}
