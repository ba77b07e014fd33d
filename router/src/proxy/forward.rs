//! Choosing an instance, sending the request, waiting for the first byte, and what may be tried
//! again elsewhere.

use std::pin::pin;
use std::sync::Arc;

use http::request::Parts;
use http::{Method, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use tokio::time::{Instant, sleep_until};

use super::Proxy;
use crate::access::Access;
use crate::balance::{self, Limits, MAX_TRIED};
use crate::client::{self, Progress, RequestBody, Sender};
use crate::fault::Fault;
use crate::headers::random;
use crate::instance::{Instance, Ticket};
use crate::stream::Peer;
use crate::table::App;
use mogok_api::route::RouteState;

/// Choices of an instance in all: those that refuse, those that retire meanwhile, and one more
/// after a stale connection.
const MAX_ATTEMPTS: usize = MAX_TRIED + 2;

/// A response of which the head is there.
pub(super) struct Forwarded {
    pub(super) response: Response<Incoming>,
    pub(super) sender: Sender,
    pub(super) ticket: Ticket,
    pub(super) progress: Option<Arc<Progress>>,
}

/// The request as it goes to an instance: HTTP/1.1, target in origin form.
pub(super) fn outgoing(mut parts: Parts, body: RequestBody) -> Request<RequestBody> {
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    if parts.uri.scheme().is_some() {
        parts.uri = match parts.uri.path_and_query() {
            Some(path) => Uri::from(path.clone()),
            None => Uri::default(),
        };
    }
    Request::from_parts(parts, body)
}

/// Why there is no response.
enum Failure {
    /// Nothing was sent; the request comes back.
    Unsent(Box<Request<RequestBody>>),
    /// Sent, perhaps, and no response came.
    Lost(hyper::Error),
    Fault(Fault),
}

impl Proxy {
    /// Sends a request to an instance of the app, whose host is `name`.
    pub(super) async fn forward(
        &self,
        peer: &Peer,
        name: &[u8],
        mut app: Arc<App>,
        mut request: Request<RequestBody>,
        progress: Option<Arc<Progress>>,
        access: &mut Access,
    ) -> Result<Forwarded, Fault> {
        let limits = Limits {
            connections: self.settings.connections_per_instance,
            backlog: self.settings.backlog_per_instance,
        };
        let safe = is_idempotent(request.method());
        let mut tried: Vec<Arc<Instance>> = Vec::new();
        let mut last_fault = None;
        let mut new_only = false;
        for _ in 0..MAX_ATTEMPTS {
            if app.instances.is_empty() || app.state == RouteState::Maintenance {
                return Err(last_fault.unwrap_or(Fault::of_state(app.state)));
            }
            let instance = balance::choose(&app.instances, &tried, limits, random())
                .map_err(|fault| last_fault.unwrap_or(fault))?;
            let Some(ticket) = Ticket::take(instance) else {
                // The table has changed since: what it says now counts.
                app = self.tables.load().app(name).cloned().ok_or(Fault::UnknownHost)?;
                continue;
            };
            let instance = Arc::clone(ticket.instance());
            access.instance = Some(Arc::clone(&instance));

            // A request that must not be sent twice gets a connection that is surely alive.
            let within = if safe { self.settings.upstream_idle } else { self.settings.upstream_idle / 4 };
            let connecting = Instant::now();
            let reused = if new_only { None } else { client::reuse(&instance, within).await };
            let is_reused = reused.is_some();
            let mut sender = match reused {
                Some(sender) => sender,
                None => match client::connect(&instance, self.settings.connect).await {
                    Ok(sender) => sender,
                    Err(Fault::Platform) => return Err(Fault::Platform),
                    Err(fault) => {
                        instance.set_aside(self.settings.aside);
                        last_fault = Some(fault);
                        tried.push(instance);
                        if tried.len() >= MAX_TRIED {
                            return Err(fault);
                        }
                        continue;
                    }
                },
            };
            access.connect = Some(connecting.elapsed());

            let spare = (is_reused && safe && progress.is_none()).then(|| again(&request));
            match self.first_byte(&mut sender, request, progress.as_deref()).await {
                Ok(response) => return Ok(Forwarded { response, sender, ticket, progress }),
                Err(Failure::Fault(fault)) => return Err(fault),
                Err(Failure::Unsent(unsent)) => {
                    request = *unsent;
                    new_only = true;
                }
                Err(Failure::Lost(error)) => match spare {
                    Some(spare) if !error.is_parse() => {
                        request = spare;
                        new_only = true;
                    }
                    _ => return Err(blame(&error, progress.as_deref(), peer)),
                },
            }
        }
        Err(last_fault.unwrap_or(Fault::ClosedWithoutResponse))
    }

    /// Sends, and waits for the head of the response. The time runs from the last byte sent; while
    /// it is the client that does not send, the client's time runs.
    async fn first_byte(
        &self,
        sender: &mut Sender,
        request: Request<RequestBody>,
        progress: Option<&Progress>,
    ) -> Result<Response<Incoming>, Failure> {
        let (wait, rolling) = (self.settings.first_byte, self.settings.rolling);
        let began = Instant::now();
        let first = if progress.is_some() { wait.min(rolling) } else { wait };
        let mut reply = pin!(sender.try_send_request(request));
        let mut timer = pin!(sleep_until(began + first));
        loop {
            tokio::select! {
                biased;
                reply = &mut reply => return reply.map_err(failure),
                () = &mut timer => {}
            }
            let (deadline, fault) = match progress {
                Some(progress) if progress.is_on_client() => {
                    (progress.last().max(began) + rolling, Fault::ClientIdle)
                }
                Some(progress) => (progress.last().max(began) + wait, Fault::Timeout),
                None => (began + wait, Fault::Timeout),
            };
            if Instant::now() >= deadline {
                return Err(Failure::Fault(fault));
            }
            timer.as_mut().reset(deadline);
        }
    }
}

fn failure(mut error: TrySendError<Request<RequestBody>>) -> Failure {
    match error.take_message() {
        Some(request) => Failure::Unsent(Box::new(request)),
        None => Failure::Lost(error.into_error()),
    }
}

/// Whose fault it is that no response came.
fn blame(error: &hyper::Error, progress: Option<&Progress>, peer: &Peer) -> Fault {
    match progress {
        Some(progress) if progress.is_malformed() => Fault::BadRequest,
        Some(progress) if progress.is_failed() => {
            if peer.is_silent() {
                Fault::ClientIdle
            } else {
                Fault::ClientInterrupted
            }
        }
        _ if error.is_parse() => Fault::BadResponse,
        _ => Fault::ClosedWithoutResponse,
    }
}

/// Methods that may be sent twice (RFC 9110, section 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}

/// The same request once more; only for one without a body.
fn again(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::default());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}
