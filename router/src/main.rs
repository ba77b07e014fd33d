//! The router's program: `run` serves, `nginx-config` prints the configuration of the nginx in
//! front of it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use mogok_api::id::RouterId;
use mogok_router::control::ControlAddress;
use mogok_router::domain::BaseDomain;
use mogok_router::listener::Router;
use mogok_router::nginx::{self, NginxConfig, Tls};
use mogok_router::settings::Settings;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(name = "mogok-router", version, about = "Host to application to instance, balanced per request")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve requests until SIGTERM or SIGINT
    Run(Run),
    /// Print the configuration of the nginx in front of the router
    NginxConfig(Nginx),
}

#[derive(Args)]
struct Run {
    /// Where nginx, or clients, connect to
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// The control plane's node listener
    #[arg(long, value_name = "unix:PATH")]
    control: ControlAddress,
    /// Where the last table and the router's id are kept
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// The domain below which every app has its host
    #[arg(long, value_name = "DOMAIN")]
    base_domain: BaseDomain,
    /// This router's id; without it one is made and kept in the state directory
    #[arg(long, value_name = "UUID")]
    id: Option<RouterId>,
    /// An address whose X-Forwarded-* are believed (repeatable) [default: the loopback addresses]
    #[arg(long, value_name = "ADDR")]
    front: Vec<IpAddr>,
    /// Seconds to the first byte of a response
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    first_byte_timeout: u64,
    /// Seconds that either side may be silent after that
    #[arg(long, value_name = "SECONDS", default_value_t = 55, value_parser = clap::value_parser!(u64).range(1..=3600))]
    rolling_timeout: u64,
    /// Seconds that a stop waits for requests in flight
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=3600))]
    grace: u64,
    /// Requests that one instance may have under way
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    connections_per_instance: u32,
}

#[derive(Args)]
struct Nginx {
    /// Where nginx listens for HTTP
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Where the router listens
    #[arg(long, value_name = "ADDR:PORT")]
    router: SocketAddr,
    /// Where the control plane's public listener is
    #[arg(long, value_name = "ADDR:PORT")]
    control_plane: SocketAddr,
    /// The domain below which every app has its host
    #[arg(long, value_name = "DOMAIN")]
    base_domain: BaseDomain,
    /// Where nginx keeps its pid, log and temporary files
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// Where nginx listens for HTTPS
    #[arg(long, value_name = "ADDR:PORT", requires_all = ["tls_certificate", "tls_key"])]
    tls_listen: Option<SocketAddr>,
    /// The certificate chain for the base domain and everything below it
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    tls_certificate: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    tls_key: Option<PathBuf>,
    /// The user of nginx's workers when it is started as root
    #[arg(long, value_name = "NAME", default_value = "www-data")]
    user: nginx::UserName,
    /// Write here, and make the state directory, instead of printing
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(run) => serve(run),
        Command::NginxConfig(nginx) => configure(nginx),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mogok-router: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(run: Run) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("MOGOK_LOG").unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .init();
    let descriptors = raise_descriptors().context("cannot read the limit of open files")?;
    let mut settings = Settings {
        first_byte: Duration::from_secs(run.first_byte_timeout),
        rolling: Duration::from_secs(run.rolling_timeout),
        grace: Duration::from_secs(run.grace),
        connections_per_instance: run.connections_per_instance as usize,
        ..Settings::default()
    };
    // Every client may need a connection to an instance as well.
    let room = usize::try_from(descriptors / 2).unwrap_or(usize::MAX).saturating_sub(64).max(16);
    settings.clients = settings.clients.min(room);
    if !run.front.is_empty() {
        settings.fronts = run.front;
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(async {
            let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
            let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
            let router = Router::bind(run.listen, run.control, &run.state_dir, run.id, settings).await?;
            tracing::info!(base_domain = %run.base_domain, "router starts");
            router
                .serve(async {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                })
                .await;
            Ok(())
        })
}

/// Lets the process open as many files as it is allowed to; returns how many.
fn raise_descriptors() -> anyhow::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft })
}

fn configure(args: Nginx) -> anyhow::Result<()> {
    let tls = match (args.tls_listen, args.tls_certificate, args.tls_key) {
        (Some(listen), Some(certificate), Some(key)) => {
            Some(Tls { listen, certificate: certificate.try_into()?, key: key.try_into()? })
        }
        _ => None,
    };
    let config = NginxConfig {
        listen: args.listen,
        router: args.router,
        control_plane: args.control_plane,
        base_domain: args.base_domain,
        state: args.state_dir.try_into()?,
        tls,
        user: nix::unistd::geteuid().is_root().then_some(args.user),
    };
    match args.output {
        Some(path) => config.write(&path)?,
        None => print!("{config}"),
    }
    Ok(())
}
