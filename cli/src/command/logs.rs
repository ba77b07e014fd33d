//! `logs`: the app's own output, the router's request lines and the platform's words, in one stream.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use mogok_api::name::ProcessName;

use crate::context::Context;

/// How often a followed stream that broke is taken up again.
const RECONNECTS: u32 = 60;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on as new lines arrive
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines
    #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    lines: u32,
    /// Only from this source: app, build, router or mogok
    #[arg(long, value_parser = ["app", "build", "router", "mogok"])]
    source: Option<String>,
    /// Only of this process, for example web.1
    #[arg(long)]
    process: Option<ProcessName>,
}

pub(crate) fn logs(context: &Context, args: &Logs) -> Result<()> {
    let client = context.client()?;
    let mut filter = String::new();
    if let Some(source) = &args.source {
        filter.push_str(&format!("&source={source}"));
    }
    if let Some(process) = &args.process {
        filter.push_str(&format!("&process={process}"));
    }
    let path = format!("/v1/apps/{}/logs?follow={}{filter}", context.app()?, args.follow);
    let mut position = format!("&lines={}", args.lines);
    let mut failures = 0;
    loop {
        match client.log(&format!("{path}{position}")) {
            Ok(lines) => {
                for line in lines {
                    let Ok(line) = line else { break };
                    failures = 0;
                    position = format!("&after={}", line.seq);
                    context.output.line(&line, ToString::to_string)?;
                }
            }
            Err(error) if error.code().is_some() || failures >= RECONNECTS || !args.follow => {
                return Err(error.into());
            }
            Err(_) => {}
        }
        if !args.follow {
            return Ok(());
        }
        failures += 1;
        std::thread::sleep(Duration::from_millis(500));
    }
}
