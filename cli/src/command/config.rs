//! `config list|get|set|unset`. A change makes a new release; a running app moves to it.

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use mogok_api::control::{Config as Vars, ConfigChange};
use mogok_api::name::ConfigVar;

use crate::context::Context;

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// List all config vars
    List,
    /// Print one value
    Get { name: ConfigVar },
    /// Set config vars
    Set {
        #[arg(required = true, value_name = "NAME=VALUE")]
        pairs: Vec<String>,
    },
    /// Remove config vars
    Unset {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<ConfigVar>,
    },
}

pub(crate) fn config(context: &Context, command: Config) -> Result<()> {
    let client = context.client()?;
    let path = format!("/v1/apps/{}/config", context.app()?);
    match command {
        Config::List => context.output.show(&client.get::<Vars>(&path)?, lines),
        Config::Get { name } => {
            let vars: Vars = client.get(&path)?;
            let Some(value) = vars.get(&name) else { bail!("{name} is not set") };
            context.output.show(value, Clone::clone)
        }
        Config::Set { pairs } => {
            let mut change = ConfigChange::new();
            for pair in &pairs {
                let (name, value) =
                    pair.split_once('=').with_context(|| format!("{pair:?} is not NAME=VALUE"))?;
                change.insert(name.parse()?, Some(value.to_owned()));
            }
            context.output.show(&client.patch::<Vars>(&path, &change)?, lines)
        }
        Config::Unset { names } => {
            let change: ConfigChange = names.into_iter().map(|name| (name, None)).collect();
            context.output.show(&client.patch::<Vars>(&path, &change)?, lines)
        }
    }
}

fn lines(vars: &Vars) -> String {
    vars.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}
