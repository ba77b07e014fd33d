//! The routes of the public API.

use utoipa::openapi::OpenApi;
use utoipa::openapi::path::HttpMethod::{Delete, Get, Patch, Post};
use utoipa::openapi::schema::Type;

use super::document::{Document, Route};
use crate::control::{
    Account, App, Build, Config, ConfigChange, Configured, Credentials, Deploy, Formation, LogLine, NewApp,
    NewBuild, Platform, Process, Release, Rollback, Session, Token,
};

/// The OpenAPI document of the public API.
#[must_use]
pub fn control() -> OpenApi {
    let act = |summary| Route::new(summary).reply::<Deploy>();
    Document::new("mogok")
        .route(Get, "/v1/platform", Route::new("Where the platform's parts are").reply::<Platform>())
        .route(Post, "/v1/signup", Route::new("Make an account").body::<Credentials>().reply::<Session>())
        .route(Post, "/v1/login", Route::new("Make a token").body::<Credentials>().reply::<Session>())
        .route(Post, "/v1/logout", Route::new("Revoke the token in use").empty())
        .route(Get, "/v1/whoami", Route::new("The account of the token").reply::<Account>())
        .route(Get, "/v1/tokens", Route::new("The account's tokens").list::<Token>())
        .route(Delete, "/v1/tokens/{id}", Route::new("Revoke a token").empty())
        .route(Post, "/v1/apps", Route::new("Create an app").body::<NewApp>().reply::<App>())
        .route(Get, "/v1/apps", Route::new("The account's apps").list::<App>())
        .route(Get, "/v1/apps/{app}", Route::new("One app").reply::<App>())
        .route(Delete, "/v1/apps/{app}", Route::new("Remove an app and everything of it").empty())
        .route(Get, "/v1/apps/{app}/config", Route::new("Config vars").reply::<Config>())
        .route(
            Patch,
            "/v1/apps/{app}/config",
            Route::new("Set config vars; null unsets").body::<ConfigChange>().reply::<Configured>(),
        )
        .route(Post, "/v1/apps/{app}/builds", Route::new("Start a build").body::<NewBuild>().reply::<Build>())
        .route(Get, "/v1/apps/{app}/builds", Route::new("Builds, newest first").list::<Build>())
        .route(Get, "/v1/apps/{app}/builds/{id}", Route::new("One build").reply::<Build>())
        .route(
            Get,
            "/v1/apps/{app}/builds/{id}/log",
            Route::new("The build's log")
                .query("after", Type::Integer, "seq of the last line already seen")
                .query("follow", Type::Boolean, "go on until the build has ended")
                .stream::<LogLine>(),
        )
        .route(Post, "/v1/apps/{app}/builds/{id}/cancel", Route::new("Cancel a build").reply::<Build>())
        .route(Get, "/v1/apps/{app}/releases", Route::new("Releases, newest first").list::<Release>())
        .route(
            Post,
            "/v1/apps/{app}/rollback",
            Route::new("Go back to an earlier release").body::<Rollback>().reply::<Deploy>(),
        )
        .route(Post, "/v1/apps/{app}/start", act("Run the current release"))
        .route(Post, "/v1/apps/{app}/stop", act("Stop all processes"))
        .route(Post, "/v1/apps/{app}/restart", act("Replace all processes"))
        .route(
            Get,
            "/v1/apps/{app}/formation",
            Route::new("How many of each process type").reply::<Formation>(),
        )
        .route(
            Patch,
            "/v1/apps/{app}/formation",
            Route::new("Change how many of each process type").body::<Formation>().reply::<Deploy>(),
        )
        .route(
            Get,
            "/v1/apps/{app}/deploys/{id}",
            Route::new("One deploy")
                .query("wait", Type::Integer, "seconds to wait for its end, at most 30")
                .reply::<Deploy>(),
        )
        .route(Get, "/v1/apps/{app}/ps", Route::new("The app's processes").list::<Process>())
        .route(
            Get,
            "/v1/apps/{app}/logs",
            Route::new("The app's log")
                .query("lines", Type::Integer, "how many of the last lines")
                .query("after", Type::Integer, "seq of the last line already seen")
                .query("follow", Type::Boolean, "go on as new lines arrive")
                .query("source", Type::String, "app, build, router or mogok")
                .query("process", Type::String, "for example web.1")
                .stream::<LogLine>(),
        )
        .build()
}
