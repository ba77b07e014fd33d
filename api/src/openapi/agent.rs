//! The routes of the agent API.

use utoipa::openapi::OpenApi;
use utoipa::openapi::path::HttpMethod::{Delete, Get, Head, Post, Put};
use utoipa::openapi::schema::Type;

use super::document::{Document, Route};
use crate::agent::exec::{ExecRequest, PROTOCOL};
use crate::agent::{
    AgentEvent, BlobInfo, DesiredAck, DesiredMessage, InstanceDetail, LogRecord, NodeInfo, ReclaimRequest,
    Reclaimed,
};
use crate::instance::InstanceStatus;

/// The OpenAPI document of the agent API.
#[must_use]
pub fn agent() -> OpenApi {
    let log = |summary| {
        Route::new(summary)
            .query("after", Type::String, "cursor of the last record already seen")
            .query("follow", Type::Boolean, "go on as new records arrive")
            .stream::<LogRecord>()
    };
    Document::new("mogok agent")
        .route(Get, "/v1/node", Route::new("What the node is").reply::<NodeInfo>())
        .route(
            Post,
            "/v1/desired",
            Route::new("The wanted set: snapshot, delta or heartbeat")
                .body::<DesiredMessage>()
                .reply::<DesiredAck>(),
        )
        .route(Get, "/v1/instances", Route::new("All containers").list::<InstanceStatus>())
        .route(Get, "/v1/instances/{id}", Route::new("One container in full").reply::<InstanceDetail>())
        .route(
            Get,
            "/v1/events",
            Route::new("A snapshot of all containers, then every change")
                .query("after", Type::Integer, "sequence number of the last event already seen")
                .query("follow", Type::Boolean, "go on as new events happen")
                .stream::<AgentEvent>(),
        )
        .route(Get, "/v1/instances/{id}/logs", log("Output of one container"))
        .route(
            Post,
            "/v1/instances/{id}/exec",
            Route::new("A program in a running container").body::<ExecRequest>().upgrade(PROTOCOL),
        )
        .route(
            Post,
            "/v1/instances/{id}/freeze",
            Route::new("Make every process of a container that is up stand still").empty(),
        )
        .route(Post, "/v1/instances/{id}/thaw", Route::new("Let a frozen container go on").empty())
        .route(
            Post,
            "/v1/instances/{id}/reclaim",
            Route::new("Have the kernel take memory back from a running container, page cache first")
                .body::<ReclaimRequest>()
                .reply::<Reclaimed>(),
        )
        .route(Get, "/v1/logs", log("Output of all containers"))
        .route(
            Get,
            "/v1/blobs",
            Route::new("The blobs of the node's store, but for base images").list::<BlobInfo>(),
        )
        .route(Head, "/v1/blobs/{digest}", Route::new("Is the blob in the node's store?").empty())
        .route(Get, "/v1/blobs/{digest}", Route::new("Read a blob").bytes())
        .route(Put, "/v1/blobs/{digest}", Route::new("Store a blob").bytes_body().empty())
        .route(Delete, "/v1/blobs/{digest}", Route::new("Drop a blob that nothing uses").empty())
        .build()
}
