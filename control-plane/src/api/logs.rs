//! Logs as streams of JSON lines. A stream that is followed carries a blank line when nothing was
//! written for a while, so that a client that is gone is noticed; it ends with the log, with the control
//! plane, or after an hour, and the client takes it up again behind the last number it saw.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use mogok_api::control::{LogLine, LogSource};
use mogok_api::error::ErrorCode;
use mogok_api::name::{ProcessName, ProcessType};
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::builds;
use super::extract::{OwnApp, Params};
use super::reply::Failed;
use crate::log_store::{Filter, Follower, LogKey, Start};
use crate::state::AppState;
use crate::turn::Turn;

/// Lines that are given where none are asked for.
const DEFAULT_LINES: usize = 100;
/// Lines that one request gets at most.
const MOST_LINES: usize = 10_000;
/// How long a stream may be silent.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a stream may live: a revoked token must not follow for good.
const LIFE: Duration = Duration::from_secs(60 * 60);

/// Ends the streams of a control plane that stops.
#[derive(Debug, Clone)]
pub(super) struct Stop(pub(super) CancellationToken);

#[derive(Deserialize)]
pub(super) struct Wanted {
    lines: Option<usize>,
    after: Option<u64>,
    #[serde(default)]
    follow: bool,
    source: Option<String>,
    process: Option<String>,
}

impl Wanted {
    fn filter(&self) -> Result<Filter, Failed> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let source = match given(&self.source).as_deref() {
            None => None,
            Some("app") => Some(LogSource::App),
            Some("build") => Some(LogSource::Build),
            Some("router") => Some(LogSource::Router),
            Some("mogok") => Some(LogSource::Mogok),
            Some(other) => {
                let other: String = other.chars().take(80).collect();
                let message = format!("unknown log source {other:?}");
                return Err(Failed::new(ErrorCode::Invalid, message, "use app, build, router or mogok"));
            }
        };
        let process = given(&self.process);
        if let Some(name) = &process
            && name.parse::<ProcessName>().is_err()
        {
            name.parse::<ProcessType>().map_err(|error| Failed::invalid(&error))?;
        }
        Ok(Filter { source, process })
    }

    fn lines(&self) -> Result<usize, Failed> {
        match self.lines {
            Some(lines) if lines > MOST_LINES => Err(Failed::new(
                ErrorCode::Invalid,
                format!("{lines} lines are too many"),
                format!("ask for at most {MOST_LINES}"),
            )),
            lines => Ok(lines.unwrap_or(DEFAULT_LINES)),
        }
    }
}

pub(super) async fn app(
    State(state): State<AppState>,
    Extension(Stop(stop)): Extension<Stop>,
    own: OwnApp,
    Params(wanted): Params<Wanted>,
) -> Result<Response, Failed> {
    let start = match wanted.after {
        Some(seq) => Start::After(seq),
        None => Start::Last(wanted.lines()?),
    };
    answer(&state, stop, &own, own.app.id.into(), start, &wanted).await
}

pub(super) async fn build(
    State(state): State<AppState>,
    Extension(Stop(stop)): Extension<Stop>,
    own: OwnApp,
    Path((_, id)): Path<(String, String)>,
    Params(wanted): Params<Wanted>,
) -> Result<Response, Failed> {
    let build = builds::find(&state, &own.app, &id).await?;
    let start = Start::After(wanted.after.unwrap_or(0));
    answer(&state, stop, &own, build.id.into(), start, &wanted).await
}

async fn answer(
    state: &AppState,
    stop: CancellationToken,
    own: &OwnApp,
    key: LogKey,
    start: Start,
    wanted: &Wanted,
) -> Result<Response, Failed> {
    let filter = wanted.filter()?;
    let body = if wanted.follow {
        let turn = state.follows.take(own.caller.user.id).await?;
        let follower = state.logs.follow(key, start, filter).await?;
        followed(follower, stop, turn)
    } else {
        let lines = match start {
            Start::Last(n) => state.logs.read_last(key, n, filter).await?,
            Start::After(seq) => state.logs.read_after(key, seq, MOST_LINES, filter).await?,
        };
        Body::from(text(&lines))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // A front proxy that gathers output would turn a live log into a late one.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn text(lines: &[LogLine]) -> Bytes {
    let mut text = Vec::new();
    for line in lines {
        // A line is plain data: it cannot fail to be written as JSON.
        if serde_json::to_writer(&mut text, line).is_ok() {
            text.push(b'\n');
        }
    }
    text.into()
}

fn followed(follower: Follower, stop: CancellationToken, turn: Turn) -> Body {
    let end = Instant::now() + LIFE;
    let turns = (follower, stop, turn);
    let chunks = stream::unfold(turns, move |(mut follower, stop, turn)| async move {
        let chunk = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            () = tokio::time::sleep_until(end) => None,
            next = follower.next() => match next {
                Ok(lines) => lines.map(|lines| text(&lines)),
                Err(error) => {
                    tracing::warn!(%error, "cannot follow a log");
                    None
                }
            },
            () = tokio::time::sleep(HEARTBEAT) => Some(Bytes::from_static(b"\n")),
        };
        chunk.map(|chunk| (Ok::<_, Infallible>(chunk), (follower, stop, turn)))
    });
    Body::from_stream(chunks)
}
