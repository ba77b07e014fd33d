//! What is taken from and given to a message's headers on its way through (RFC 9110, section 7.6):
//! hop-by-hop fields go, and what says where a request came from is the router's word, never the
//! client's.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{
    CONNECTION, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::domain::split_host;
use crate::fault::ERROR_HEADER;
use crate::stream::Peer;

static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
static REQUEST_START: HeaderName = HeaderName::from_static("x-request-start");
/// The id of a request; its rule is in [`is_request_id`].
pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Fields with which a client could pass for another, or for a request by other means, and which
/// the router does not set: application frameworks believe them (Rack prefers `Forwarded`; a CGI
/// takes `Proxy` for `HTTP_PROXY`).
static UNTRUE: [HeaderName; 7] = [
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-forwarded-scheme"),
    HeaderName::from_static("x-forwarded-ssl"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("proxy"),
];

/// What a request's headers said, for its log line.
#[derive(Debug, Clone)]
pub struct Origin {
    pub request_id: HeaderValue,
    pub forwarded: HeaderValue,
    pub https: bool,
}

/// Makes a client's headers those of the request to the instance. With `upgrade` the wish to
/// change the protocol is kept.
pub fn to_instance(headers: &mut HeaderMap, peer: &Peer, local_port: u16, upgrade: bool) -> Origin {
    let protocol = if upgrade { headers.get(UPGRADE).cloned() } else { None };
    remove_hop_by_hop(headers);
    headers.remove(TE);
    headers.remove(EXPECT);
    headers.remove(PROXY_AUTHORIZATION);
    headers.remove(FORWARDED);
    for name in &UNTRUE {
        headers.remove(name);
    }
    remove_underscored(headers);

    let trusted = |name: &HeaderName, rule: fn(&[u8]) -> bool| {
        let value = if peer.front { headers.get(name) } else { None };
        value.filter(|value| rule(value.as_bytes())).cloned()
    };
    let forwarded =
        trusted(&FORWARDED_FOR, |value| !value.is_empty()).unwrap_or_else(|| peer.address.clone());
    let https = trusted(&FORWARDED_PROTO, |value| value == b"https").is_some();
    let port = trusted(&FORWARDED_PORT, |value| {
        (1..=5).contains(&value.len()) && value.iter().all(u8::is_ascii_digit)
    })
    .unwrap_or_else(|| {
        let named = headers.get(HOST).and_then(|host| split_host(host.as_bytes())).and_then(|host| host.1);
        HeaderValue::from(named.unwrap_or(if https { 443 } else { local_port }))
    });
    let request_id = headers
        .get(&REQUEST_ID)
        .filter(|id| is_request_id(id.as_bytes()))
        .cloned()
        .unwrap_or_else(new_request_id);

    headers.insert(&FORWARDED_FOR, forwarded.clone());
    headers.insert(&FORWARDED_PROTO, HeaderValue::from_static(if https { "https" } else { "http" }));
    headers.insert(&FORWARDED_PORT, port);
    headers.insert(&REQUEST_ID, request_id.clone());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    headers.insert(&REQUEST_START, HeaderValue::from(u64::try_from(now.as_millis()).unwrap_or_default()));
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    Origin { request_id, forwarded, https }
}

/// Makes an instance's headers those of the response to the client.
pub fn to_client(headers: &mut HeaderMap, upgrade: bool) {
    let protocol = if upgrade { headers.get(UPGRADE).cloned() } else { None };
    remove_hop_by_hop(headers);
    headers.remove(PROXY_AUTHENTICATE);
    // The router's own word.
    headers.remove(&ERROR_HEADER);
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let listed: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            // Those that frame or route the message cannot be named away.
            .filter(|name| name != HOST && name != http::header::CONTENT_LENGTH)
            .collect();
        for name in listed {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    headers.remove(&KEEP_ALIVE);
    headers.remove(&PROXY_CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    headers.remove(UPGRADE);
}

/// Servers that hand headers on as environment variables cannot tell `X_Forwarded_For` from
/// `X-Forwarded-For`. nginx drops such names too.
fn remove_underscored(headers: &mut HeaderMap) {
    if headers.keys().any(|name| name.as_str().contains('_')) {
        let names: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// A client's id is kept when it has 20 to 200 characters that are safe in any log.
#[must_use]
pub fn is_request_id(id: &[u8]) -> bool {
    (20..=200).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_+=/.".contains(b))
}

thread_local! {
    /// The state of this thread's ids, seeded once from the system.
    static IDS: (RandomState, Cell<u64>) = (RandomState::new(), const { Cell::new(0) });
}

/// 64 bits that are well mixed, without a system call: a keyed hash of a counter.
#[must_use]
pub fn random() -> u64 {
    IDS.with(|(keys, counter)| {
        counter.set(counter.get().wrapping_add(1));
        keys.hash_one(counter.get())
    })
}

fn new_request_id() -> HeaderValue {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random().to_ne_bytes());
    bytes[8..].copy_from_slice(&random().to_ne_bytes());
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut text))
        .unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static(value))
            })
            .collect()
    }

    #[test]
    fn a_client_cannot_pass_for_another() {
        let peer = Peer::new([192, 0, 2, 7].into(), false);
        let mut headers = map(&[
            ("host", "a.b:8080"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "443"),
            ("x_forwarded_for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-host", "evil"),
            ("connection", "x-forwarded-for, x-secret, host"),
            ("x-secret", "1"),
            ("transfer-encoding", "chunked"),
            ("keep-alive", "1"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
        ]);
        let origin = to_instance(&mut headers, &peer, 80, false);
        assert_eq!(origin.forwarded, "192.0.2.7");
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-port"], "8080");
        assert_eq!(headers["host"], "a.b:8080");
        for name in [
            "x_forwarded_for",
            "forwarded",
            "x-forwarded-host",
            "x-secret",
            "connection",
            "transfer-encoding",
            "keep-alive",
            "te",
            "upgrade",
        ] {
            assert!(!headers.contains_key(name), "{name}");
        }
    }

    #[test]
    fn the_front_is_believed() {
        let peer = Peer::new([127, 0, 0, 1].into(), true);
        let mut headers = map(&[
            ("host", "a.b"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "8443"),
        ]);
        let origin = to_instance(&mut headers, &peer, 80, false);
        assert!(origin.https);
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-port"], "8443");
    }

    #[test]
    fn request_ids_are_kept_when_safe_and_made_when_not() {
        let peer = Peer::new([127, 0, 0, 1].into(), false);
        let mut good = map(&[("host", "a"), ("x-request-id", "0123456789-0123456789")]);
        assert_eq!(to_instance(&mut good, &peer, 80, false).request_id, "0123456789-0123456789");
        for bad in ["short", "0123456789 0123456789", "0123456789\"0123456789"] {
            let mut headers = map(&[("host", "a"), ("x-request-id", bad)]);
            let id = to_instance(&mut headers, &peer, 80, false).request_id;
            assert!(uuid::Uuid::try_parse(id.to_str().unwrap()).is_ok(), "{id:?}");
        }
        assert_ne!(random(), random());
    }

    #[test]
    fn an_upgrade_keeps_its_protocol() {
        let peer = Peer::new([127, 0, 0, 1].into(), false);
        let mut headers =
            map(&[("host", "a"), ("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        to_instance(&mut headers, &peer, 80, true);
        assert_eq!(headers["connection"], "upgrade");
        assert_eq!(headers["upgrade"], "websocket");
    }
}
