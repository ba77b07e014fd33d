//! `mogok-agent`: the agent of an app server, and the operator's commands to look at it.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use mogok_agent::config::{self, Config, Settings};
use mogok_agent::exec::command as exec;
use mogok_agent::host::{self, Requirement};
use mogok_agent::{inspect, purge, run};
use mogok_api::agent::exec::{ExecRequest, ExecUser};
use mogok_api::id::InstanceId;
use tracing_subscriber::EnvFilter;

const SOCKET: &str = "/run/mogok/agent.sock";

/// The container supervisor of a mogok app server
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent; its containers go on when it ends
    Run(Box<Settings>),
    /// List the containers
    Ps {
        #[command(flatten)]
        agent: Agent,
    },
    /// Show one container in full
    Inspect {
        id: InstanceId,
        #[command(flatten)]
        agent: Agent,
    },
    /// Print the output of a container
    Logs {
        id: InstanceId,
        /// Go on as it comes
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        agent: Agent,
    },
    /// Execute a program in a running container, with this command's streams, signals and exit status
    Exec {
        id: InstanceId,
        /// Give it a terminal
        #[arg(short, long)]
        tty: bool,
        /// UID or UID:GID in the container, not 0 [default: the app's]
        #[arg(long)]
        user: Option<ExecUser>,
        /// Its working directory [default: the app's]
        #[arg(long)]
        cwd: Option<String>,
        /// NAME=VALUE, over the app's environment; may be given again
        #[arg(long, value_parser = variable)]
        env: Vec<(String, String)>,
        /// Socket of the agent
        #[arg(long, env = "MOGOK_AGENT_SOCKET", default_value = SOCKET)]
        socket: PathBuf,
        /// Absolute path of the program in the container, and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Make every process of a container stand still, until it is thawed or stopped
    Freeze {
        id: InstanceId,
        /// Socket of the agent
        #[arg(long, env = "MOGOK_AGENT_SOCKET", default_value = SOCKET)]
        socket: PathBuf,
    },
    /// Let a frozen container go on
    Thaw {
        id: InstanceId,
        /// Socket of the agent
        #[arg(long, env = "MOGOK_AGENT_SOCKET", default_value = SOCKET)]
        socket: PathBuf,
    },
    /// Take memory back from a container, page cache first
    Reclaim {
        id: InstanceId,
        /// How much
        bytes: u64,
        #[command(flatten)]
        agent: Agent,
    },
    /// Print what happens to containers
    Events {
        /// Go on as it happens
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        agent: Agent,
    },
    /// Tell what this host lacks to run containers
    Check {
        /// Path of mogok-shim [default: beside this program]
        #[arg(long)]
        shim: Option<PathBuf>,
        #[arg(long)]
        json: bool,
    },
    /// Stop and remove everything that an agent made on this host, but images and packages
    Purge {
        #[arg(long)]
        state_dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Agent {
    /// Socket of the agent
    #[arg(long, env = "MOGOK_AGENT_SOCKET", default_value = SOCKET)]
    socket: PathBuf,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What a check does in a namespace of its own is no news of the host.
    let usual = if matches!(cli.command, Command::Check { .. }) { "warn" } else { "info" };
    let filter = EnvFilter::try_from_env("MOGOK_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    match execute(cli.command) {
        Ok(code) => code,
        // Who read the output has seen enough.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mogok-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether it was the writing of output that failed: what connections tell is wrapped in errors of their own.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let plain = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    let of_json = || error.downcast_ref::<serde_json::Error>()?.io_error_kind();
    plain.or_else(of_json) == Some(std::io::ErrorKind::BrokenPipe)
}

fn execute(command: Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let mut out = std::io::stdout().lock();
    match command {
        Command::Run(settings) => runtime.block_on(run::run(Config::new(*settings)?))?,
        Command::Ps { agent } => {
            runtime.block_on(inspect::ps(&inspect::client(&agent.socket)?, agent.json, &mut out))?;
        }
        Command::Inspect { id, agent } => {
            let client = inspect::client(&agent.socket)?;
            runtime.block_on(inspect::inspect(&client, id, agent.json, &mut out))?;
        }
        Command::Logs { id, follow, agent } => {
            let client = inspect::client(&agent.socket)?;
            runtime.block_on(inspect::logs(&client, id, follow, agent.json, &mut out))?;
        }
        Command::Exec { id, tty, user, cwd, env, socket, command } => {
            let terminal = tty.then(exec::terminal_size);
            let request = ExecRequest { command, env: env.into_iter().collect(), cwd, user, terminal };
            let client = inspect::client(&socket)?;
            return Ok(runtime.block_on(exec::exec(&client, id, &request, &mut out))?.into());
        }
        Command::Freeze { id, socket } => runtime.block_on(inspect::client(&socket)?.freeze(id))?,
        Command::Thaw { id, socket } => runtime.block_on(inspect::client(&socket)?.thaw(id))?,
        Command::Reclaim { id, bytes, agent } => {
            let client = inspect::client(&agent.socket)?;
            runtime.block_on(inspect::reclaim(&client, id, bytes, agent.json, &mut out))?;
        }
        Command::Events { follow, agent } => {
            let client = inspect::client(&agent.socket)?;
            runtime.block_on(inspect::events(&client, follow, agent.json, &mut out))?;
        }
        Command::Check { shim, json } => {
            let shim = match shim {
                Some(shim) => shim,
                None => std::env::current_exe()?.with_file_name("mogok-shim"),
            };
            let mut found = host::check();
            let missing = (!shim.is_file()).then(|| format!("there is no {}: give --shim", shim.display()));
            found.push(Requirement { name: "shim", missing });
            if json {
                let found: std::collections::BTreeMap<_, _> =
                    found.iter().map(|requirement| (requirement.name, &requirement.missing)).collect();
                serde_json::to_writer(&mut out, &found)?;
                writeln!(out)?;
            } else {
                for requirement in &found {
                    let missing = requirement.missing.as_deref().unwrap_or("ok");
                    writeln!(out, "{:<24} {missing}", requirement.name)?;
                }
            }
            if found.iter().any(|requirement| requirement.missing.is_some()) {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Purge { state_dir } => {
            runtime.block_on(purge::purge(&config::state_dir(Some(state_dir))?))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
