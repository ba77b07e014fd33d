//! `/__mogok/health`, for the operator on the router's own machine: which table is in force and
//! what the router carries. Only for a loopback peer that asks for an address or `localhost`, not
//! through nginx, so that no visitor gets it and no app loses a path.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use serde::Serialize;

use crate::proxy::Proxy;
use crate::stream::Peer;

/// The path.
pub const PATH: &str = "/__mogok/health";

#[derive(Debug, Serialize)]
struct Health {
    /// The version of the table in force; `null` before the first.
    version: Option<u64>,
    epoch: Option<mogok_api::id::Epoch>,
    hosts: usize,
    /// Whether the control plane's stream is up.
    control_plane: bool,
    /// Instances out of the table with requests in flight.
    draining: usize,
    requests: u64,
    refused: u64,
    unknown_host: u64,
    log_lines_waiting: usize,
    log_lines_dropped: u64,
}

/// Whether the request, whose host no app has, is for this page.
#[must_use]
pub fn is_asked<B>(peer: &Peer, host: &[u8], request: &Request<B>) -> bool {
    let local = host == b"localhost"
        || std::str::from_utf8(host).is_ok_and(|host| {
            host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        });
    peer.ip.to_canonical().is_loopback()
        && local
        && request.uri().path() == PATH
        && !request.headers().contains_key("x-forwarded-for")
}

/// 200 with a table, 503 without.
#[must_use]
pub fn page(proxy: &Proxy) -> Response<Bytes> {
    let table = proxy.tables.load();
    let health = Health {
        version: table.position.map(|position| position.version),
        epoch: table.position.map(|position| position.epoch),
        hosts: table.len(),
        control_plane: proxy.connected.load(Ordering::Relaxed),
        draining: proxy.tables.draining().len(),
        requests: proxy.counts.requests.load(Ordering::Relaxed),
        refused: proxy.counts.refused.load(Ordering::Relaxed),
        unknown_host: proxy.counts.unknown_host.load(Ordering::Relaxed),
        log_lines_waiting: proxy.logs.waiting(),
        log_lines_dropped: proxy.logs.dropped(),
    };
    // The type has string keys only, so that it always has a JSON form.
    let mut response = Response::new(serde_json::to_vec(&health).unwrap_or_default().into());
    if table.position.is_none() {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}
