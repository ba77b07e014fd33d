//! Waiting for a deploy: a line that changes in place on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mogok_api::control::client::Client;
use mogok_api::control::{Deploy, DeployState, Process};
use mogok_api::name::AppName;

/// Longer than any deploy may take: boot timeout, drain and stop grace.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often in a row the platform may be away, half a second each.
const MAX_FAILURES: u32 = 60;

/// Waits until the deploy has ended, and fails as it failed.
pub(crate) fn wait(client: &Client, app: &AppName, deploy: Deploy) -> Result<Deploy> {
    let terminal = io::stderr().is_terminal();
    let started = Instant::now();
    let mut deploy = deploy;
    let mut shown = String::new();
    let mut failures = 0;
    while deploy.state == DeployState::Running && started.elapsed() < PATIENCE {
        let message = deploy.message.clone().unwrap_or_else(|| format!("{} under way", deploy.action));
        let message = crate::output::without_controls(&message);
        if terminal {
            eprint!("\r\x1b[K{message} ({}s)", started.elapsed().as_secs());
            io::stderr().flush()?;
        } else if message != shown {
            eprintln!("{message}");
        }
        shown = message;
        let seconds = if terminal { 1 } else { 25 };
        match client.get(&format!("/v1/apps/{app}/deploys/{}?wait={seconds}", deploy.id)) {
            Ok(newer) => {
                deploy = newer;
                failures = 0;
            }
            // The deploy is the platform's: it goes on while the platform restarts.
            Err(error) if error.passing() && failures < MAX_FAILURES => {
                failures += 1;
                std::thread::sleep(Duration::from_millis(500));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if terminal {
        eprint!("\r\x1b[K");
    }
    match deploy.state {
        DeployState::Succeeded => Ok(deploy),
        DeployState::Superseded => bail!(
            "a later change of {app} took over before the {} was done: 'mogok ps' shows what runs now",
            deploy.action
        ),
        DeployState::Failed => {
            show_last_lines(client, app);
            bail!(
                "{} failed: {} (see 'mogok ps' and 'mogok logs')",
                deploy.action,
                deploy.message.as_deref().unwrap_or("no reason given")
            )
        }
        DeployState::Running => bail!("{} is still under way: see 'mogok ps'", deploy.action),
    }
}

/// What the crashed instances wrote last, so that the reason is where the developer looks.
fn show_last_lines(client: &Client, app: &AppName) {
    let Ok(processes) = client.get::<Vec<Process>>(&format!("/v1/apps/{app}/ps")) else { return };
    for process in processes.iter().filter(|process| process.failure.is_some()) {
        for line in &process.last_lines {
            eprintln!("  {}: {}", process.name, crate::output::without_controls(line));
        }
    }
}
