//! `create, apps, info, destroy, open`.

use std::io::{IsTerminal, stdin};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use clap::Args;
use mogok_api::control::{App, NewApp, Platform, Process};
use mogok_api::error::ErrorCode;
use mogok_api::instance::Phase;
use mogok_api::name::AppName;

use crate::context::Context;
use crate::git;
use crate::output::{ago, table};
use crate::password;

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// 3 to 30 lower-case letters, digits and hyphens; the app's host name
    name: AppName,
    /// Leave this git repository as it is
    #[arg(long)]
    no_remote: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Destroy {
    /// The app's name again, instead of being asked for it
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
}

pub(crate) fn create(context: &Context, args: Create) -> Result<()> {
    let client = context.client()?;
    let in_repository = !args.no_remote && git::in_repository()?;
    let platform: Platform = client.get("/v1/platform")?;
    if in_repository {
        // Before there is an app that would be left without a remote.
        git::check_remote(&platform.git_url, &args.name)?;
    }
    let app: App = client.post("/v1/apps", &NewApp { name: args.name })?;
    let mut remote = "no git remote added".to_owned();
    if in_repository {
        git::add_remote(&platform.git_url, &app.name)?;
        remote = format!(
            "git remote 'mogok' added; deploy with: git push mogok {} && mogok build && mogok start",
            git::to_push()
        );
    }
    context.output.show(&app, |app| {
        let hint = if in_repository || args.no_remote {
            String::new()
        } else {
            format!(
                "\nhere is no git repository: run 'git init', then 'git remote add mogok {}'",
                app.git_url
            )
        };
        format!("created {} at {}\n{remote}{hint}", app.name, app.url)
    })
}

pub(crate) fn list(context: &Context) -> Result<()> {
    let apps: Vec<App> = context.client()?.get("/v1/apps")?;
    context.output.show(&apps, |apps| {
        if apps.is_empty() {
            return "no apps yet: 'mogok create NAME' makes one".to_owned();
        }
        let rows: Vec<_> = apps
            .iter()
            .map(|app| {
                let release = app.release.map_or_else(|| "-".to_owned(), |release| release.to_string());
                let state = if app.running { "running" } else { "stopped" };
                vec![app.name.to_string(), state.to_owned(), release, app.url.clone()]
            })
            .collect();
        table(&["NAME", "STATE", "RELEASE", "URL"], &rows)
    })
}

fn fetch(context: &Context) -> Result<App> {
    Ok(context.client()?.get(&format!("/v1/apps/{}", context.app()?))?)
}

/// The state of an app that is wanted to run, with those of its processes that do not.
fn running(context: &Context, app: &App) -> Result<String> {
    let processes: Vec<Process> = context.client()?.get(&format!("/v1/apps/{}/ps", app.name))?;
    let down = processes.iter().filter(|process| process.phase != Phase::Up).count();
    Ok(match down {
        0 => "running".to_owned(),
        _ => format!("running, but {down} of {} processes are not up: see 'mogok ps'", processes.len()),
    })
}

pub(crate) fn info(context: &Context) -> Result<()> {
    let app = fetch(context)?;
    let state = if app.running { running(context, &app)? } else { "stopped".to_owned() };
    context.output.show(&app, |app| {
        let formation: Vec<_> = app.formation.iter().map(|(kind, count)| format!("{kind}={count}")).collect();
        let release = app.release.map_or_else(|| "none".to_owned(), |release| release.to_string());
        format!(
            "name       {}\nstate      {state}\nrelease    {release}\nformation  {}\nurl        {}\ngit        {}\n\
             created    {}",
            app.name,
            formation.join(" "),
            app.url,
            app.git_url,
            ago(app.created_at),
        )
    })
}

pub(crate) fn destroy(context: &Context, args: &Destroy) -> Result<()> {
    let name = context.app()?;
    let confirmed = match &args.confirm {
        Some(confirm) => confirm.clone(),
        None if stdin().is_terminal() => password::ask(&format!(
            "This removes {name}, its releases, config and logs for good. Type its name to go on: "
        ))?,
        None => bail!("destroying {name} needs --confirm {name}"),
    };
    if confirmed != name.as_str() {
        bail!("{confirmed:?} is not {name:?}: nothing was destroyed", name = name.as_str());
    }
    let client = context.client()?;
    client.delete(&format!("/v1/apps/{name}"))?;
    // The platform stops the processes first; wait for the end so that the name is free again.
    for _ in 0..240 {
        match client.get::<App>(&format!("/v1/apps/{name}")) {
            Err(error) if error.code() == Some(ErrorCode::NotFound) => {
                return context
                    .output
                    .show(&serde_json::json!({ "destroyed": name }), |_| format!("destroyed {name}"));
            }
            Err(error) => return Err(error.into()),
            Ok(_) => std::thread::sleep(std::time::Duration::from_millis(250)),
        }
    }
    bail!(
        "{name} is still being destroyed: its processes take long to stop; 'mogok apps' shows when it is gone"
    )
}

pub(crate) fn open(context: &Context) -> Result<()> {
    let app = fetch(context)?;
    context.output.show(&app, |app| app.url.clone())?;
    if !context.output.json && std::io::stdout().is_terminal() {
        let opened =
            Command::new("xdg-open").arg(&app.url).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if opened.is_err() {
            eprintln!("xdg-open is not installed: open the URL yourself");
        }
    }
    Ok(())
}
