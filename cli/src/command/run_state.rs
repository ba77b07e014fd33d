//! `start, stop, restart, ps, scale`: what of the app runs.

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory};
use mogok_api::control::{App, Deploy, Formation, Process};
use mogok_api::name::ProcessType;

use crate::command::Cli;
use crate::context::Context;
use crate::git;
use crate::output::{ago, table};
use crate::progress;

#[derive(Debug, Args)]
pub(crate) struct Scale {
    /// TYPE=COUNT, for example web=3; shows the formation when absent
    #[arg(value_name = "TYPE=COUNT", value_parser = count)]
    counts: Vec<(ProcessType, u32)>,
}

fn count(text: &str) -> Result<(ProcessType, u32), String> {
    let (kind, count) = text.split_once('=').ok_or("expected TYPE=COUNT, for example web=2")?;
    let kind = kind.parse().map_err(|error: mogok_api::name::InvalidName| error.to_string())?;
    let count =
        count.parse().map_err(|_| format!("{count:?} is no possible number of instances, for example 2"))?;
    Ok((kind, count))
}

/// One count of each type: which of two is meant cannot be known.
fn formation(counts: &[(ProcessType, u32)]) -> Result<Formation, clap::Error> {
    let mut formation = Formation::new();
    for (kind, count) in counts {
        if formation.insert(kind.clone(), *count).is_some() {
            let message = format!("{kind} is given more than once: give one count of each process type");
            return Err(Cli::command().error(ErrorKind::ArgumentConflict, message));
        }
    }
    Ok(formation)
}

fn act(context: &Context, action: &str) -> Result<Deploy> {
    let client = context.client()?;
    let app = context.app()?;
    let deploy: Deploy = client.post(&format!("/v1/apps/{app}/{action}"), &serde_json::json!({}))?;
    progress::wait(&client, &app, deploy)
}

pub(crate) fn start(context: &Context) -> Result<()> {
    let deploy = act(context, "start")?;
    let app: App = context.client()?.get(&format!("/v1/apps/{}", context.app()?))?;
    let processes: Vec<Process> = context.client()?.get(&format!("/v1/apps/{}/ps", app.name))?;
    let serves = processes.iter().any(|process| process.name.kind.is_web());
    context.output.show(&deploy, |_| {
        if serves { format!("started {} at {}", app.name, app.url) } else { format!("started {}", app.name) }
    })
}

pub(crate) fn stop(context: &Context) -> Result<()> {
    let deploy = act(context, "stop")?;
    let app = context.app()?;
    context.output.show(&deploy, |_| format!("stopped {app}"))
}

pub(crate) fn restart(context: &Context) -> Result<()> {
    let deploy = act(context, "restart")?;
    let app = context.app()?;
    context.output.show(&deploy, |_| format!("restarted {app}"))
}

pub(crate) fn ps(context: &Context) -> Result<()> {
    let app = context.app()?;
    let client = context.client()?;
    let processes: Vec<Process> = client.get(&format!("/v1/apps/{app}/ps"))?;
    let built = !processes.is_empty() || client.get::<App>(&format!("/v1/apps/{app}"))?.release.is_some();
    context.output.show(&processes, |processes| {
        if processes.is_empty() {
            return if built {
                format!("no processes: 'mogok start' starts {app}")
            } else {
                format!(
                    "no processes, nothing of {app} was built yet: 'git push mogok {}', then 'mogok build' \
                     and 'mogok start'",
                    git::to_push()
                )
            };
        }
        let rows: Vec<_> = processes
            .iter()
            .map(|process| {
                vec![
                    process.name.to_string(),
                    process.phase.to_string(),
                    process.release.to_string(),
                    ago(process.since),
                    process.restarts.to_string(),
                    reason(process),
                ]
            })
            .collect();
        let mut text = table(&["PROCESS", "STATE", "RELEASE", "SINCE", "RESTARTS", "REASON"], &rows);
        for process in processes.iter().filter(|process| process.failure.is_some()) {
            for line in &process.last_lines {
                text.push_str(&format!("  {}: {line}\n", process.name));
            }
        }
        text
    })
}

fn reason(process: &Process) -> String {
    match (&process.failure, &process.exit) {
        (Some(failure), _) => failure.message.clone(),
        (None, Some(exit)) => exit.to_string(),
        (None, None) => String::new(),
    }
}

pub(crate) fn scale(context: &Context, args: &Scale) -> Result<()> {
    let change = formation(&args.counts).unwrap_or_else(|usage| usage.exit());
    let client = context.client()?;
    let app = context.app()?;
    let path = format!("/v1/apps/{app}/formation");
    if !change.is_empty() {
        let deploy: Deploy = client.patch(&path, &change)?;
        progress::wait(&client, &app, deploy)?;
    }
    let formation: Formation = client.get(&path)?;
    context.output.show(&formation, |formation| {
        formation.iter().map(|(kind, count)| format!("{kind}={count}\n")).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_that_is_given_twice_is_a_usage_error_that_names_it() {
        let counts = |texts: &[&str]| texts.iter().map(|text| count(text).unwrap()).collect::<Vec<_>>();
        assert_eq!(formation(&counts(&["web=1", "worker=2"])).unwrap().len(), 2);
        let refused = formation(&counts(&["web=1", "worker=2", "web=1"])).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(refused.to_string().contains("web is given more than once"), "{refused}");
    }
}
