//! `mogok-control-plane`: reads its settings, starts the logging and runs the server until SIGTERM.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use mogok_api::app::Plan;
use mogok_control_plane::config::Config;
use mogok_control_plane::store::Store;
use mogok_control_plane::{plan, server};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(name = "mogok-control-plane", version, about = "The control plane of mogok")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API, git, builds, deploys and routes until SIGTERM
    Run(Box<Config>),
    /// Put an account on a plan; the control plane may be running
    Plan(GrantPlan),
}

#[derive(Args)]
struct GrantPlan {
    /// Directory of everything the control plane keeps on disk
    #[arg(long, env = "MOGOK_STATE_DIR")]
    state_dir: PathBuf,
    /// Database; an SQLite file in the state directory where absent
    #[arg(long, env = "MOGOK_DATABASE")]
    database: Option<String>,
    /// The account's e-mail address
    email: String,
    /// free or paid
    #[arg(value_parser = plan::parse)]
    plan: Plan,
}

fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("MOGOK_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let command = Arguments::parse().command;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(async {
        let config = match command {
            Command::Run(config) => config,
            Command::Plan(grant) => return grant_plan(grant).await,
        };
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let asked = stop.clone();
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("asked to stop");
            asked.cancel();
        });
        server::run(*config, stop).await.context("the control plane ended")
    })
}

async fn grant_plan(grant: GrantPlan) -> anyhow::Result<()> {
    let file = grant.state_dir.join("mogok.db");
    anyhow::ensure!(
        grant.database.is_some() || file.exists(),
        "{} does not exist: name the state directory of a control plane that has run",
        file.display()
    );
    let url = grant.database.unwrap_or_else(|| Store::sqlite_url(&file));
    let store = Store::open(&url).await?;
    let Some((user, _)) = store.user_by_email(&grant.email).await? else {
        anyhow::bail!("no account {:?}: 'mogok signup' makes one", grant.email)
    };
    store.set_plan(user.id, grant.plan).await?;
    println!("{} is on the {} plan", grant.email, plan::name(grant.plan));
    Ok(())
}
