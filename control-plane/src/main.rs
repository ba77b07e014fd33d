//! `mogok-control-plane`: reads its settings, starts the logging and runs the server until SIGTERM.

use anyhow::Context;
use clap::{Parser, Subcommand};
use mogok_control_plane::config::Config;
use mogok_control_plane::server;
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
    Run(Config),
}

fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("MOGOK_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let Command::Run(config) = Arguments::parse().command;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let asked = stop.clone();
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("asked to stop");
            asked.cancel();
        });
        server::run(config, stop).await.context("the control plane ended")
    })
}
