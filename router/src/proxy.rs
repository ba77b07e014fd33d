//! One request: host -> app -> instance -> response, or the page that says why not.
//!
//! Invariant: a request is sent again only when nothing of it was sent, or when it changes nothing
//! (RFC 9110, section 9.2.2), has no body, and met the closing of a connection that was used before.

mod body;
mod forward;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use chrono::Utc;
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use mogok_api::linger::Lingering;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use body::RouterBody;
use forward::Forwarded;

use crate::access::Access;
use crate::client::RequestBody;
use crate::domain::split_host;
use crate::fault::Fault;
use crate::headers;
use crate::health;
use crate::logs::LogQueue;
use crate::settings::Settings;
use crate::stream::{Peer, Verdict};
use crate::table::{App, Tables};
use crate::tunnel::Tunnel;

/// What all requests share.
pub struct Proxy {
    pub settings: Settings,
    pub tables: Arc<Tables>,
    pub logs: Arc<LogQueue>,
    /// Whether the control plane's stream is up.
    pub connected: Arc<AtomicBool>,
    /// The port that clients connect to.
    pub port: u16,
    pub counts: Counts,
    /// Set when the router stops.
    pub stopping: CancellationToken,
    /// Connections and tunnels, which a stop waits for.
    pub tasks: TaskTracker,
}

/// Since the start.
#[derive(Debug, Default)]
pub struct Counts {
    pub requests: AtomicU64,
    /// Refused by the gate.
    pub refused: AtomicU64,
    /// With a host that no app has.
    pub unknown_host: AtomicU64,
}

impl Proxy {
    /// Answers a request; never fails, since every failure has its page.
    ///
    /// # Errors
    /// None.
    pub async fn answer(
        self: Arc<Self>,
        peer: Arc<Peer>,
        request: Request<Incoming>,
    ) -> Result<Response<RouterBody>, Infallible> {
        let under_way = peer.under_way();
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        let verdict = peer.take();
        let mut response = match verdict {
            Verdict::Refused(violation) => {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(code = "H26", peer = %peer.ip, %violation, "request refused");
                Fault::BadRequest.page(request.headers()).map(RouterBody::page)
            }
            Verdict::Pass | Verdict::Last => self.route(&peer, request, verdict).await,
        };
        if verdict == Verdict::Last && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|body| body.marked(under_way)))
    }

    /// Finds the app, or says that there is none.
    async fn route(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        request: Request<Incoming>,
        verdict: Verdict,
    ) -> Response<RouterBody> {
        let Some(host) = request.headers().get(HOST).cloned() else {
            // The gate lets none through without; this is for the type.
            return Fault::BadRequest.page(request.headers()).map(RouterBody::page);
        };
        let name = split_host(host.as_bytes()).map_or(&b""[..], |(name, _)| name);
        let (app, ready) = {
            let table = self.tables.load();
            (table.app(name).cloned(), table.position.is_some())
        };
        match app {
            Some(app) => self.serve(peer, request, verdict, &host, name, app).await,
            None if health::is_asked(peer, name, &request) => health::page(self).map(RouterBody::page),
            None => {
                self.counts.unknown_host.fetch_add(1, Ordering::Relaxed);
                let (parts, body) = request.into_parts();
                drop(Lingering::new(body));
                // Without any table it is not known what is unknown.
                let fault = if ready { Fault::UnknownHost } else { Fault::Platform };
                fault.page(&parts.headers).map(RouterBody::page)
            }
        }
    }

    /// Serves a request of an app, with its log line.
    async fn serve(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        mut request: Request<Incoming>,
        verdict: Verdict,
        host: &HeaderValue,
        name: &[u8],
        app: Arc<App>,
    ) -> Response<RouterBody> {
        let upgrade = verdict == Verdict::Last
            && !request.headers().contains_key(TRANSFER_ENCODING)
            && request.headers().contains_key(UPGRADE);
        let client = upgrade.then(|| hyper::upgrade::on(&mut request));
        let (mut parts, incoming) = request.into_parts();
        let accept = parts.headers.get(http::header::ACCEPT).cloned();
        let origin = headers::to_instance(&mut parts.headers, peer, self.port, upgrade);
        let mut access = Access {
            app: Arc::clone(&app),
            logs: Arc::clone(&self.logs),
            at: Utc::now(),
            began: Instant::now(),
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            host: host.clone(),
            request_id: origin.request_id,
            forwarded: origin.forwarded,
            https: origin.https,
            instance: None,
            connect: None,
            status: None,
            bytes: 0,
            // Holds when this future is dropped before its end.
            fault: Some(Fault::ClientInterrupted),
        };
        let (body, progress) = RequestBody::new(incoming);
        let outgoing = forward::outgoing(parts, body);
        match self.forward(peer, name, app, outgoing, progress, &mut access).await {
            Ok(Forwarded { mut response, sender, mut ticket, progress }) => {
                ticket.answered();
                access.status = Some(response.status());
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    if let Some(client) = client {
                        let instance = hyper::upgrade::on(&mut response);
                        let (mut parts, _) = response.into_parts();
                        headers::to_client(&mut parts.headers, true);
                        parts.extensions.clear();
                        let tunnel = Tunnel { client, instance, access, _ticket: ticket };
                        self.tasks.spawn(tunnel.run(self.settings.rolling, self.stopping.clone()));
                        return Response::from_parts(parts, RouterBody::page(bytes::Bytes::new()));
                    }
                    return self.fail(Fault::BadResponse, accept, access);
                }
                let (mut parts, incoming) = response.into_parts();
                headers::to_client(&mut parts.headers, false);
                parts.extensions.clear();
                parts.version = http::Version::HTTP_11;
                let body = body::AppBody::new(
                    incoming,
                    sender,
                    ticket,
                    access,
                    progress,
                    Arc::clone(peer),
                    self.settings.rolling,
                );
                Response::from_parts(parts, RouterBody::app(body))
            }
            Err(fault) => self.fail(fault, accept, access),
        }
    }

    fn fail(&self, fault: Fault, accept: Option<HeaderValue>, mut access: Access) -> Response<RouterBody> {
        let mut headers = http::HeaderMap::new();
        headers.extend(accept.map(|accept| (http::header::ACCEPT, accept)));
        let page = fault.page(&headers);
        access.fault = Some(fault);
        access.status = Some(page.status());
        access.bytes = page.body().len() as u64;
        page.map(RouterBody::page)
    }
}
