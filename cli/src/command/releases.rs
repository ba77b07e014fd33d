//! `releases, rollback`.

use anyhow::Result;
use clap::Args;
use mogok_api::control::{Deploy, Release, Rollback};
use mogok_api::name::ReleaseNumber;

use crate::context::Context;
use crate::output::{ago, table};
use crate::progress;

#[derive(Debug, Args)]
pub(crate) struct To {
    /// The release to go back to, for example v3
    release: Option<ReleaseNumber>,
}

pub(crate) fn list(context: &Context) -> Result<()> {
    let releases: Vec<Release> = context.client()?.get(&format!("/v1/apps/{}/releases", context.app()?))?;
    context.output.show(&releases, |releases| {
        if releases.is_empty() {
            return "no releases yet: 'mogok build' makes one".to_owned();
        }
        let rows: Vec<_> = releases
            .iter()
            .map(|release| {
                vec![
                    release.number.to_string(),
                    if release.current { "current" } else { "" }.to_owned(),
                    release.description.clone(),
                    ago(release.created_at),
                ]
            })
            .collect();
        table(&["RELEASE", "", "DESCRIPTION", "CREATED"], &rows)
    })
}

pub(crate) fn rollback(context: &Context, args: &To) -> Result<()> {
    let client = context.client()?;
    let app = context.app()?;
    let deploy: Deploy = client.post(&format!("/v1/apps/{app}/rollback"), &Rollback { to: args.release })?;
    let deploy = progress::wait(&client, &app, deploy)?;
    context.output.show(&deploy, |deploy| match deploy.release {
        Some(release) => format!("rolled back: {app} is at {release}"),
        None => format!("{app} rolled back"),
    })
}
