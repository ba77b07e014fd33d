//! The codes of what can go wrong with a request, and the small page that says so. The same code
//! stands in the page, in `X-Mogok-Error` and in the request's log line.

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONNECTION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use mogok_api::route::RouteState;

/// The header that carries the code.
pub static ERROR_HEADER: HeaderName = HeaderName::from_static("x-mogok-error");

/// Why the router answered by itself, or why an answer of the app ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Crashed,
    Backlog,
    Timeout,
    ClosedWithoutResponse,
    NoWebProcess,
    Idle,
    BadResponse,
    ServerInterrupted,
    ConnectTimeout,
    BootTimeout,
    Refused,
    ConnectionLimit,
    BadRequest,
    ClientInterrupted,
    ClientIdle,
    AllSetAside,
    Maintenance,
    NoRelease,
    Platform,
    /// No app has this host. Not an H code: there is no app whose log could show it.
    UnknownHost,
}

impl Fault {
    /// The code, its HTTP status, and what the page says.
    const fn row(self) -> (&'static str, StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::Crashed => ("H10", S::SERVICE_UNAVAILABLE, "The application crashed"),
            Self::Backlog => ("H11", S::SERVICE_UNAVAILABLE, "Too many requests wait for the application"),
            Self::Timeout => ("H12", S::SERVICE_UNAVAILABLE, "The application did not answer in time"),
            Self::ClosedWithoutResponse => {
                ("H13", S::SERVICE_UNAVAILABLE, "The application closed the connection without a response")
            }
            Self::NoWebProcess => {
                ("H14", S::SERVICE_UNAVAILABLE, "The application has no web process running")
            }
            Self::Idle => ("H15", S::SERVICE_UNAVAILABLE, "The application stopped sending"),
            Self::BadResponse => ("H17", S::SERVICE_UNAVAILABLE, "The application sent a malformed response"),
            Self::ServerInterrupted => {
                ("H18", S::SERVICE_UNAVAILABLE, "The application ended its response early")
            }
            Self::ConnectTimeout => {
                ("H19", S::SERVICE_UNAVAILABLE, "The application did not accept the connection in time")
            }
            Self::BootTimeout => ("H20", S::SERVICE_UNAVAILABLE, "The application is still starting"),
            Self::Refused => ("H21", S::SERVICE_UNAVAILABLE, "The application refused the connection"),
            Self::ConnectionLimit => {
                ("H22", S::SERVICE_UNAVAILABLE, "The application has too many connections")
            }
            Self::BadRequest => ("H26", S::BAD_REQUEST, "The request is malformed"),
            Self::ClientInterrupted => ("H27", CLIENT_CLOSED, "The client closed the connection"),
            Self::ClientIdle => ("H28", CLIENT_CLOSED, "The client stopped sending or reading"),
            Self::AllSetAside => {
                ("H34", S::SERVICE_UNAVAILABLE, "No instance of the application accepts connections")
            }
            Self::Maintenance => ("H80", S::SERVICE_UNAVAILABLE, "The application is under maintenance"),
            Self::NoRelease => ("H81", S::SERVICE_UNAVAILABLE, "The application has no release yet"),
            Self::Platform => ("H99", S::SERVICE_UNAVAILABLE, "The platform could not handle the request"),
            Self::UnknownHost => ("unknown-host", S::NOT_FOUND, "There is no application at this address"),
        }
    }

    /// `H12`; for the page, the header and the log line.
    #[must_use]
    pub const fn code(self) -> &'static str {
        self.row().0
    }

    #[must_use]
    pub const fn status(self) -> StatusCode {
        self.row().1
    }

    /// One sentence without a full stop.
    #[must_use]
    pub const fn description(self) -> &'static str {
        self.row().2
    }

    /// Why an app without a usable instance has none.
    #[must_use]
    pub const fn of_state(state: RouteState) -> Self {
        match state {
            RouteState::NoWeb => Self::NoWebProcess,
            RouteState::NoRelease => Self::NoRelease,
            RouteState::Crashed => Self::Crashed,
            // One that runs and has no upstream is about to have one.
            RouteState::Running | RouteState::Booting => Self::BootTimeout,
            RouteState::Maintenance => Self::Maintenance,
        }
    }

    /// The page: JSON for a client that asks for JSON and not for HTML, else HTML.
    #[must_use]
    pub fn page(self, request: &HeaderMap) -> Response<Bytes> {
        let (code, status, description) = self.row();
        let (kind, body) = if wants_json(request) {
            (
                "application/json",
                format!("{{\"error\":{{\"code\":\"{code}\",\"message\":\"{description}.\"}}}}\n"),
            )
        } else {
            (
                "text/html; charset=utf-8",
                format!(
                    "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{description}</title>\
                     </head>\n<body><h1>{description}.</h1><p>Code: {code}</p></body></html>\n"
                ),
            )
        };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(&ERROR_HEADER, HeaderValue::from_static(code));
        if matches!(self, Self::BadRequest | Self::ClientIdle | Self::ClientInterrupted) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// nginx's and everyone's status for a request whose client went away; it is only ever logged.
const CLIENT_CLOSED: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => StatusCode::BAD_REQUEST,
};

fn wants_json(request: &HeaderMap) -> bool {
    let Some(accept) = request.get(ACCEPT).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    accept.contains("json") && !accept.contains("text/html")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_json_for_those_who_ask_for_it() {
        let mut headers = HeaderMap::new();
        let html = Fault::Crashed.page(&headers);
        assert_eq!(html.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        assert_eq!(html.headers()[&ERROR_HEADER], "H10");
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let json = Fault::Crashed.page(&headers);
        let body: serde_json::Value = serde_json::from_slice(json.body()).unwrap();
        assert_eq!(body["error"]["code"], "H10");
        headers.insert(ACCEPT, HeaderValue::from_static("text/html,application/json;q=0.9"));
        assert_eq!(Fault::Crashed.page(&headers).headers()[CONTENT_TYPE], "text/html; charset=utf-8");
    }
}
