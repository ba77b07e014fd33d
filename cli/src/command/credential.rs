//! The git credential helper (gitcredentials(7)): answers `get` for the platform's git host with the
//! stored token as the password, and ignores `store` and `erase`.

use std::collections::HashMap;
use std::io::{BufRead, stdin};

use anyhow::Result;
use clap::Args;

use crate::context::Context;

#[derive(Debug, Args)]
pub(crate) struct GitCredential {
    /// get, store or erase
    operation: String,
}

pub(crate) fn answer(context: &Context, args: &GitCredential) -> Result<()> {
    if args.operation != "get" {
        return Ok(());
    }
    let mut asked = HashMap::new();
    // git sends a handful of lines; more than that is not git.
    for line in stdin().lock().lines().take(64) {
        let line = line?;
        let Some((key, value)) = line.split_once('=') else { break };
        asked.insert(key.to_owned(), value.to_owned());
    }
    let api = url::Url::parse(&context.api)?;
    let host = asked.get("host").map(String::as_str).unwrap_or_default();
    let expected = api.host_str().and_then(|host| host.strip_prefix("api.")).unwrap_or_default();
    let port = api.port().map(|port| format!(":{port}")).unwrap_or_default();
    let ours = asked.get("protocol").map(String::as_str) == Some(api.scheme())
        && host == format!("git.{expected}{port}");
    if !ours {
        return Ok(());
    }
    match context.entry() {
        Some(entry) => println!("username=mogok\npassword={}", entry.token),
        None => eprintln!("mogok: you are not logged in to {}: run 'mogok login'", context.api),
    }
    Ok(())
}
