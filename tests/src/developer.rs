//! A developer: a home directory, the `mogok` command, git, and applications.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::platform;
use crate::program::{both, run, text};

/// Somebody with an account.
#[derive(Debug)]
pub struct Developer {
    home: TempDir,
    api: String,
}

/// An application in a working directory with a git repository.
#[derive(Debug)]
pub struct App {
    pub name: String,
    pub dir: PathBuf,
}

impl Developer {
    /// Signs up with the platform at `api`.
    ///
    /// # Errors
    /// When the sign-up fails.
    pub fn sign_up(api: &str, email: &str) -> Result<Self> {
        let developer = Self { home: TempDir::new()?, api: api.to_owned() };
        developer.mogok_in(developer.home.path(), &["signup", email])?;
        Ok(developer)
    }

    /// Its home directory.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The `mogok` command as this developer would type it, not yet started.
    #[must_use]
    pub fn command(&self, dir: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(platform::bin_dir().join("mogok"));
        self.environment(&mut command);
        command.args(args).current_dir(dir).stdin(Stdio::null());
        command
    }

    fn environment(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("MOGOK_API", &self.api)
            .env("MOGOK_PASSWORD", "correct horse battery")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_AUTHOR_NAME", "Developer")
            .env("GIT_AUTHOR_EMAIL", "developer@example.com")
            .env("GIT_COMMITTER_NAME", "Developer")
            .env("GIT_COMMITTER_EMAIL", "developer@example.com");
    }

    /// Runs `mogok` in a directory, whatever its exit status.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn try_mogok(&self, dir: &Path, args: &[&str]) -> Result<Output> {
        self.command(dir, args).output().context("cannot run mogok")
    }

    fn mogok_in(&self, dir: &Path, args: &[&str]) -> Result<String> {
        let output = self.try_mogok(dir, args)?;
        ensure!(output.status.success(), "mogok {} failed: {}", args.join(" "), both(&output));
        Ok(text(&output.stdout))
    }

    /// Runs `mogok` in the app's directory and returns what it prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn mogok(&self, app: &App, args: &[&str]) -> Result<String> {
        self.mogok_in(&app.dir, args)
    }

    /// Runs `mogok` in the app's directory and returns its complaint.
    ///
    /// # Errors
    /// When it succeeds, against expectation.
    pub fn mogok_fails(&self, app: &App, args: &[&str]) -> Result<String> {
        let output = self.try_mogok(&app.dir, args)?;
        ensure!(!output.status.success(), "mogok {} succeeded: {}", args.join(" "), both(&output));
        Ok(both(&output))
    }

    /// Runs `mogok ... --json` and reads the value.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json<T: DeserializeOwned>(&self, app: &App, args: &[&str]) -> Result<T> {
        let text = self.mogok(app, &[args, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("mogok {} printed {text}", args.join(" ")))
    }

    /// Runs git in the app's directory, whatever its exit status.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn try_git(&self, dir: &Path, args: &[&str]) -> Result<Output> {
        let mut command = Command::new("git");
        self.environment(&mut command);
        command.args(args).current_dir(dir).stdin(Stdio::null()).output().context("cannot run git")
    }

    /// Runs git in the app's directory.
    ///
    /// # Errors
    /// When it fails.
    pub fn git(&self, app: &App, args: &[&str]) -> Result<String> {
        let output = self.try_git(&app.dir, args)?;
        ensure!(output.status.success(), "git {} failed: {}", args.join(" "), both(&output));
        Ok(both(&output))
    }

    /// A working copy of a sample application under `tests/fixtures`, with one commit, and an app of
    /// this name on the platform.
    ///
    /// # Errors
    /// When git or the platform refuses.
    pub fn create(&self, fixture: &str, name: &str) -> Result<App> {
        let dir = self.home.path().join(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(fixture);
        run("cp", &["-r", &source.to_string_lossy(), &dir.to_string_lossy()])?;
        let app = App { name: name.to_owned(), dir };
        self.git(&app, &["init", "--quiet", "--initial-branch=master"])?;
        self.commit(&app, "first commit")?;
        self.mogok(&app, &["create", name])?;
        Ok(app)
    }

    /// Writes a file of the app's source.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, app: &App, path: &str, content: &str) -> Result<()> {
        let path = app.dir.join(path);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Commits all there is.
    ///
    /// # Errors
    /// When git fails.
    pub fn commit(&self, app: &App, message: &str) -> Result<()> {
        self.git(app, &["add", "--all"])?;
        self.git(app, &["commit", "--quiet", "--allow-empty", "--message", message]).map(drop)
    }

    /// Commits all there is and pushes it.
    ///
    /// # Errors
    /// When git fails or the platform refuses.
    pub fn push(&self, app: &App) -> Result<()> {
        self.commit(app, "change")?;
        self.git(app, &["push", "--quiet", "mogok", "master"]).map(drop)
    }

    /// From the sample to a running app: create, push, build, start.
    ///
    /// # Errors
    /// When a step fails.
    pub fn deploy(&self, fixture: &str, name: &str) -> Result<App> {
        let app = self.create(fixture, name)?;
        self.push(&app)?;
        self.mogok(&app, &["build"])?;
        self.mogok(&app, &["start"])?;
        Ok(app)
    }
}
