//! The command line: one file per group of commands, this one names them all.

mod account;
mod apps;
mod build;
mod config;
mod credential;
mod logs;
mod releases;
mod run_state;

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand};
use mogok_api::name::AppName;

use crate::context::Context;

/// Deploy applications with git push.
#[derive(Debug, Parser)]
#[command(name = "mogok", version, about, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Are results and errors to be JSON?
    pub(crate) fn json(&self) -> bool {
        self.global.json
    }
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The app; by default the one of the git remote 'mogok'
    #[arg(long, short, global = true, env = "MOGOK_APP", value_name = "NAME")]
    pub(crate) app: Option<AppName>,
    /// URL of the platform's API
    #[arg(long, global = true, env = "MOGOK_API", value_name = "URL")]
    pub(crate) api: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an account on the platform and log in
    Signup(account::Login),
    /// Log in and keep the token
    ///
    /// Each login makes a token. An account has 100 of them: one more revokes the one that was not used for the
    /// longest time. A script that logs in every time should keep its token in MOGOK_TOKEN, or end with
    /// 'mogok logout'.
    Login(account::Login),
    /// Revoke the token and forget it
    Logout,
    /// Show who is logged in
    Whoami,
    /// Create an app and add it to this git repository as remote 'mogok'
    Create(apps::Create),
    /// List your apps
    Apps,
    /// Show an app
    Info,
    /// Remove an app and everything of it
    Destroy(apps::Destroy),
    /// Build the pushed source into a release
    Build(build::Start),
    /// List builds, show a build's log, or cancel a build
    Builds(build::Builds),
    /// Run the current release
    Start,
    /// Stop all processes of the app
    Stop,
    /// Replace all processes by new ones of the same release
    Restart,
    /// List the app's processes
    Ps,
    /// Show or set how many instances of each process type run (web=2 worker=1)
    Scale(run_state::Scale),
    /// Show the app's log
    Logs(logs::Logs),
    /// List, read, set or unset config vars
    #[command(subcommand)]
    Config(config::Config),
    /// List releases
    Releases,
    /// Go back to an earlier release (the previous one by default)
    Rollback(releases::To),
    /// Open the app in a browser
    Open,
    /// Print a completion script for a shell
    Completion(Completion),
    /// Hand the token to git (used by the credential helper that 'mogok create' sets up)
    #[command(hide = true)]
    GitCredential(credential::GitCredential),
}

#[derive(Debug, Args)]
struct Completion {
    /// bash, zsh, fish, elvish or powershell
    shell: clap_complete::Shell,
}

pub(crate) fn run(cli: Cli) -> Result<()> {
    if let Command::Completion(Completion { shell }) = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "mogok", &mut std::io::stdout());
        return Ok(());
    }
    let context = Context::new(&cli.global)?;
    match cli.command {
        Command::Signup(args) => account::signup(&context, args),
        Command::Login(args) => account::login(&context, args),
        Command::Logout => account::logout(&context),
        Command::Whoami => account::whoami(&context),
        Command::Create(args) => apps::create(&context, args),
        Command::Apps => apps::list(&context),
        Command::Info => apps::info(&context),
        Command::Destroy(args) => apps::destroy(&context, &args),
        Command::Open => apps::open(&context),
        Command::Build(args) => build::start(&context, args),
        Command::Builds(args) => build::builds(&context, args),
        Command::Start => run_state::start(&context),
        Command::Stop => run_state::stop(&context),
        Command::Restart => run_state::restart(&context),
        Command::Ps => run_state::ps(&context),
        Command::Scale(args) => run_state::scale(&context, &args),
        Command::Logs(args) => logs::logs(&context, &args),
        Command::Config(command) => config::config(&context, command),
        Command::Releases => releases::list(&context),
        Command::Rollback(args) => releases::rollback(&context, &args),
        Command::GitCredential(args) => credential::answer(&context, &args),
        Command::Completion(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../docs/cli.md");

    #[test]
    fn every_command_is_documented() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            assert!(PAGE.contains(&format!("| `mogok {name}")), "docs/cli.md says nothing of mogok {name}");
            for option in command.get_arguments().filter_map(|argument| argument.get_long()) {
                let long = format!("[--{option}");
                let row =
                    PAGE.lines().find(|line| line.contains(&format!("| `mogok {name}"))).unwrap_or_default();
                assert!(row.contains(&long), "docs/cli.md says nothing of mogok {name} {long}");
            }
        }
    }

    #[test]
    fn the_help_of_login_says_when_a_token_ends() {
        let mut cli = Cli::command();
        let help = cli.find_subcommand_mut("login").unwrap().render_long_help().to_string();
        assert!(help.contains("An account has 100 of them"), "{help}");
    }

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mogok", &mut script);
            let script = String::from_utf8_lossy(&script);
            assert!(script.contains("rollback") && script.contains("destroy"), "{shell}");
        }
    }
}
