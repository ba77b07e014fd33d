//! `build, builds`: a build is a thing of the platform; this command only watches it, so a lost
//! connection or Ctrl-C leaves it running.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use mogok_api::control::client::Client;
use mogok_api::control::{Build, BuildState, NewBuild};
use mogok_api::id::BuildId;
use mogok_api::name::AppName;

use crate::context::Context;
use crate::git;
use crate::output::{ago, table};

/// How often a broken log stream is taken up again.
const RECONNECTS: u32 = 30;

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Branch, tag or commit of the pushed repository
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Builds {
    #[command(subcommand)]
    command: Option<BuildsCommand>,
}

#[derive(Debug, Subcommand)]
enum BuildsCommand {
    /// Show the log of a build (the newest by default) and follow it to its end
    Log { id: Option<BuildId> },
    /// Cancel a build (the newest by default)
    Cancel { id: Option<BuildId> },
}

pub(crate) fn start(context: &Context, args: Start) -> Result<()> {
    let client = context.client()?;
    let app = context.app()?;
    let build: Build =
        client.post(&format!("/v1/apps/{app}/builds"), &NewBuild { reference: args.reference.clone() })?;
    if args.reference.is_none() && git::remote_url().is_some() {
        warn_if_not_pushed(&build);
    }
    if args.detach {
        return context.output.show(&build, |build| format!("build {} queued", build.id));
    }
    follow(context, &client, &app, build.id)
}

fn warn_if_not_pushed(build: &Build) {
    if let Some(head) = git::head().filter(|head| *head != build.commit) {
        let short = |hash: &str| hash.chars().take(7).collect::<String>();
        eprintln!(
            "note: this builds {} as pushed, not your {}: 'git push mogok' first if you meant that",
            short(&build.commit),
            short(&head)
        );
    }
}

/// Streams the log until the build has ended, over as many connections as it takes.
fn follow(context: &Context, client: &Client, app: &AppName, id: BuildId) -> Result<()> {
    let mut after = 0;
    let mut failures = 0;
    loop {
        let stream = client.log(&format!("/v1/apps/{app}/builds/{id}/log?after={after}&follow=true"));
        match stream {
            Ok(lines) => {
                for line in lines {
                    let Ok(line) = line else { break };
                    after = line.seq;
                    failures = 0;
                    context.output.line(&line, |line| line.line.clone())?;
                }
            }
            Err(error) if error.code().is_some() => return Err(error.into()),
            Err(_) => {}
        }
        match client.get::<Build>(&format!("/v1/apps/{app}/builds/{id}")) {
            Ok(build) if build.state.ended() => return finish(context, app, &build),
            Err(error) if error.code().is_some() || failures >= RECONNECTS => return Err(error.into()),
            _ => {}
        }
        failures += 1;
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn finish(context: &Context, app: &AppName, build: &Build) -> Result<()> {
    match build.state {
        BuildState::Succeeded => {
            if context.output.json {
                return context.output.line(build, |_| String::new());
            }
            let release = build.release.map_or_else(String::new, |release| format!(" {release}"));
            eprintln!("built{release} of {app}");
            Ok(())
        }
        BuildState::Cancelled => bail!("the build was cancelled"),
        _ => bail!("build failed: {}", build.reason.as_deref().unwrap_or("no reason given")),
    }
}

pub(crate) fn builds(context: &Context, args: Builds) -> Result<()> {
    let client = context.client()?;
    let app = context.app()?;
    let builds: Vec<Build> = client.get(&format!("/v1/apps/{app}/builds"))?;
    let chosen = |id: Option<BuildId>| match id.or_else(|| builds.first().map(|build| build.id)) {
        Some(id) => Ok(id),
        None => bail!("{app} has no builds yet: run 'mogok build'"),
    };
    match args.command {
        None => context.output.show(&builds, |builds| list(builds)),
        Some(BuildsCommand::Log { id }) => follow(context, &client, &app, chosen(id)?),
        Some(BuildsCommand::Cancel { id }) => {
            let id = chosen(id)?;
            let build: Build =
                client.post(&format!("/v1/apps/{app}/builds/{id}/cancel"), &serde_json::json!({}))?;
            context.output.show(&build, |build| format!("build {} cancelled", build.id))
        }
    }
}

fn list(builds: &[Build]) -> String {
    let rows: Vec<_> = builds
        .iter()
        .map(|build| {
            let state = serde_json::to_value(build.state).unwrap_or_default();
            vec![
                build.id.to_string(),
                state.as_str().unwrap_or_default().to_owned(),
                build.commit.chars().take(7).collect(),
                build.release.map_or_else(|| "-".to_owned(), |release| release.to_string()),
                ago(build.created_at),
                build.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(&["ID", "STATE", "COMMIT", "RELEASE", "CREATED", "REASON"], &rows)
}
