//! A whole platform under a temporary directory: `mogok-onehost` with all its parts, stopped with
//! everything it ran when the value is dropped, and checked for leaks by [`Platform::finish`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;
use tempfile::TempDir;

use crate::developer::{App, Developer};
use crate::leak::Host;
use crate::network;
use crate::program::{run, wait_until};
use crate::visitor::{Answer, Visitor};

const BASE_DOMAIN: &str = "mogok.localhost";
const ADDRESS: &str = "127.0.0.1:8080";
/// Every test's platform has a name of its own, so that its cgroups are told apart.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The directory of the programs under test.
#[must_use]
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("MOGOK_BIN_DIR") {
        return PathBuf::from(dir);
    }
    // target/PROFILE/deps/TEST -> target/PROFILE
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default()
}

/// The directory of base images and gem index that `make images` fills.
#[must_use]
pub fn assets_dir() -> PathBuf {
    std::env::var_os("MOGOK_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.mogok"), PathBuf::from)
}

/// Why a test cannot run here, if so. CI counts the printed line as a failure.
#[must_use]
pub fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("not root".to_owned());
    }
    for path in ["store/images", "gem-index/versions"] {
        let path = assets_dir().join(path);
        if !path.exists() {
            return Some(format!("{} is missing: run 'make images'", path.display()));
        }
    }
    for name in ["mogok", "mogok-agent", "mogok-shim", "mogok-control-plane", "mogok-router", "mogok-onehost"]
    {
        let path = bin_dir().join(name);
        if !path.exists() {
            return Some(format!("{} is missing: run 'make build'", path.display()));
        }
    }
    None
}

/// What a test wants other than usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// Variables of the platform's environment.
    pub environment: &'a [(&'a str, &'a str)],
    /// Bytes of a file system of its own for the control plane's directory.
    pub control_plane_bytes: Option<u64>,
}

/// A running platform.
#[derive(Debug)]
pub struct Platform {
    state: TempDir,
    name: String,
    supervisor: Option<Child>,
    before: Host,
    environment: Vec<(String, String)>,
    mounted: Option<PathBuf>,
}

impl Platform {
    /// Starts one in this thread's own network namespace; `None` (and a line that says so) when this
    /// machine cannot run it.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start() -> Result<Option<Self>> {
        Self::start_with(Options::default())
    }

    /// As [`Platform::start`], other than usual.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_with(options: Options<'_>) -> Result<Option<Self>> {
        let Some(mut platform) = Self::prepare(options)? else { return Ok(None) };
        platform.run()?;
        Ok(Some(platform))
    }

    /// One that is not started yet.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn prepare(options: Options<'_>) -> Result<Option<Self>> {
        if let Some(reason) = missing() {
            eprintln!("SKIP: {reason}");
            return Ok(None);
        }
        network::enter_own_namespace()?;
        let name = format!("mogok-test-{}-{:03}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let before = Host::look(&[&name])?;
        let state = tempfile::Builder::new().prefix(&name).tempdir()?;
        // The unprivileged parts go through it to their own directories.
        fs::set_permissions(state.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        let environment =
            options.environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment = environment.collect();
        let mut platform = Self { state, name, supervisor: None, before, environment, mounted: None };
        if let Some(bytes) = options.control_plane_bytes {
            let dir = platform.state.path().join("control-plane");
            fs::create_dir(&dir)?;
            let size = format!("size={bytes}");
            run("mount", &["-t", "tmpfs", "-o", &size, "mogok-test", &dir.to_string_lossy()])?;
            platform.mounted = Some(dir);
        }
        Ok(Some(platform))
    }

    /// What the supervisor says, with these options besides its own, when it refuses to run.
    ///
    /// # Errors
    /// When it runs, or cannot be run.
    pub fn refusal(&self, change: impl FnOnce(&mut Command)) -> Result<String> {
        let mut onehost = self.onehost("run");
        change(&mut onehost);
        let output = onehost.output().context("cannot run mogok-onehost")?;
        ensure!(!output.status.success(), "the platform ran");
        Ok(crate::program::both(&output))
    }

    fn onehost(&self, command: &str) -> Command {
        let assets = assets_dir();
        let mut onehost = Command::new(bin_dir().join("mogok-onehost"));
        onehost
            .arg(command)
            .args(["--state-dir".as_ref(), self.state.path().as_os_str()])
            .args(["--image-store".as_ref(), assets.join("store").as_os_str()])
            .args(["--gem-index".as_ref(), assets.join("gem-index").as_os_str()])
            .args(["--listen", ADDRESS, "--base-domain", BASE_DOMAIN, "--name", &self.name])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        onehost
    }

    /// Starts the supervisor and waits until nginx answers for the API.
    ///
    /// # Errors
    /// When that takes longer than a minute; the message holds the platform's log.
    pub fn run(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.log_path())?;
        let mut onehost = self.onehost("run");
        onehost.stdout(log.try_clone()?).stderr(log);
        self.supervisor = Some(onehost.spawn().context("cannot start mogok-onehost")?);
        let ready = wait_until("the platform answers", Duration::from_secs(60), || {
            Visitor::new(ADDRESS)
                .get(&format!("api.{BASE_DOMAIN}"), "/v1/platform", &[])
                .is_ok_and(|answer| answer.status == 200)
        });
        ready.with_context(|| self.log())
    }

    fn log_path(&self) -> PathBuf {
        self.state.path().join("onehost.log")
    }

    /// All that the platform's parts wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|bytes| crate::program::text(&bytes)).unwrap_or_default()
    }

    /// The platform's state directory.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// A new account.
    ///
    /// # Errors
    /// When the sign-up fails.
    pub fn developer(&self, email: &str) -> Result<Developer> {
        Developer::sign_up(&format!("http://api.{BASE_DOMAIN}:8080"), email)
    }

    /// Runs the operator's command of the control plane.
    ///
    /// # Errors
    /// When it fails.
    pub fn grant_paid_plan(&self, email: &str) -> Result<()> {
        let dir = self.state.path().join("control-plane");
        let program = bin_dir().join("mogok-control-plane");
        run(&program.to_string_lossy(), &["plan", "--state-dir", &dir.to_string_lossy(), email, "paid"])
            .map(drop)
    }

    /// The operator's view of the node: `mogok-agent ARGS`.
    ///
    /// # Errors
    /// When it fails.
    pub fn agent(&self, args: &[&str]) -> Result<String> {
        let socket = self.state.path().join("run/agent.sock").to_string_lossy().into_owned();
        let program = bin_dir().join("mogok-agent");
        run(&program.to_string_lossy(), &[args, &["--socket", &socket]].concat())
    }

    /// What an agent of the same name with another state directory says when it is started beside.
    ///
    /// # Errors
    /// When it is not refused.
    pub fn second_agent(&self) -> Result<String> {
        let dir = self.state.path().join("second");
        let output = Command::new(bin_dir().join("mogok-agent"))
            .arg("run")
            .args(["--state-dir".as_ref(), dir.as_os_str()])
            .args(["--store".as_ref(), dir.join("store").as_os_str()])
            .args(["--socket".as_ref(), dir.join("agent.sock").as_os_str()])
            .args(["--cgroup", &self.name, "--cgroup-parent", "/"])
            .stdin(Stdio::null())
            .output()?;
        ensure!(!output.status.success(), "a second agent of the same name ran");
        Ok(crate::program::both(&output))
    }

    /// The pid of a part: `agent`, `control-plane`, `router`, `nginx`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, part: &str) -> Result<i32> {
        let path = self.state.path().join(format!("run/{part}.pid"));
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.split(' ').next().unwrap_or_default().trim().parse()?)
    }

    /// A visitor of the platform's apps.
    #[must_use]
    pub fn visitor(&self) -> Visitor {
        Visitor::new(ADDRESS)
    }

    /// The host name of an app.
    #[must_use]
    pub fn host(&self, app: &App) -> String {
        format!("{}.{BASE_DOMAIN}:8080", app.name)
    }

    /// One `GET` of an app through nginx.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn visit(&self, app: &App, path: &str) -> Result<Answer> {
        self.visitor().get(&self.host(app), path, &[])
    }

    /// A variable of the environment of the instance that answers, as the sample app `rack` shows it.
    ///
    /// # Errors
    /// When the app does not answer 200.
    pub fn variable(&self, app: &App, name: &str) -> Result<Option<String>> {
        let answer = self.visit(app, "/env")?;
        ensure!(answer.status == 200, "HTTP {}: {}", answer.status, answer.body);
        let value = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        Ok(value.map(str::to_owned))
    }

    /// Stops the platform and fails when anything of it is left on the host.
    ///
    /// # Errors
    /// What is left, by name.
    pub fn finish(mut self) -> Result<()> {
        self.down()?;
        if let Some(dir) = self.mounted.take() {
            run("umount", &[&dir.to_string_lossy()])?;
        }
        self.before.compare(&Host::look(&[&self.name])?)
    }

    fn down(&mut self) -> Result<()> {
        let Some(mut supervisor) = self.supervisor.take() else { return Ok(()) };
        let output = self.onehost("down").output().context("cannot run mogok-onehost down")?;
        supervisor.wait()?;
        ensure!(
            output.status.success(),
            "mogok-onehost down failed: {}\n{}",
            crate::program::both(&output),
            self.log()
        );
        Ok(())
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the platform's log ---\n{}", self.log());
        }
        if let Err(error) = self.down() {
            eprintln!("cannot stop the platform: {error:#}");
        }
        if let Some(dir) = self.mounted.take()
            && let Err(error) = run("umount", &[&dir.to_string_lossy()])
        {
            eprintln!("cannot unmount {}: {error:#}", dir.display());
        }
    }
}
