//! `config list|get|set|unset`. A change makes a new release; a running app moves to it.

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use mogok_api::control::{Config as Vars, ConfigChange, Configured};
use mogok_api::name::ConfigVar;

use crate::context::Context;
use crate::progress;

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// List all config vars
    List,
    /// Print one value
    Get { name: ConfigVar },
    /// Set config vars
    Set {
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = pair)]
        pairs: Vec<(ConfigVar, String)>,
    },
    /// Remove config vars
    Unset {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<ConfigVar>,
    },
}

fn pair(text: &str) -> Result<(ConfigVar, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE, for example GREETING=hello")?;
    let name = name.parse().map_err(|error: mogok_api::name::InvalidName| error.to_string())?;
    Ok((name, value.to_owned()))
}

pub(crate) fn config(context: &Context, command: Config) -> Result<()> {
    let client = context.client()?;
    let path = format!("/v1/apps/{}/config", context.app()?);
    match command {
        Config::List => context.output.show(&client.get::<Vars>(&path)?, lines),
        Config::Get { name } => {
            let vars: Vars = client.get(&path)?;
            let Some(value) = vars.get(&name) else {
                bail!("{name} is not set: 'mogok config list' shows what is")
            };
            context.output.show(value, Clone::clone)
        }
        Config::Set { pairs } => {
            let change: ConfigChange = pairs.into_iter().map(|(name, value)| (name, Some(value))).collect();
            change_vars(context, &change)
        }
        Config::Unset { names } => {
            let change: ConfigChange = names.into_iter().map(|name| (name, None)).collect();
            change_vars(context, &change)
        }
    }
}

/// Changes them, and waits until the app runs with them, if it runs.
fn change_vars(context: &Context, change: &ConfigChange) -> Result<()> {
    let client = context.client()?;
    let app = context.app()?;
    let made: Configured = client.patch(&format!("/v1/apps/{app}/config"), change)?;
    context.output.show(&made.config, lines)?;
    if let Some(deploy) = made.deploy {
        progress::wait(&client, &app, deploy)
            .context("the vars are set in a new release, which does not run: 'mogok rollback' goes back")?;
    }
    Ok(())
}

fn lines(vars: &Vars) -> String {
    vars.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}
