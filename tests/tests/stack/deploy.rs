//! From `git push` to a served page, and everything a developer does to an app afterwards.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use mogok_api::control::{Build, BuildState, Process, Release};
use mogok_api::instance::Phase;
use mogok_tests::Platform;
use mogok_tests::program::wait_until;

#[test]
fn a_pushed_app_is_built_started_and_served() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.deploy("rack", "hello")?;

    let answer = platform.visit(&app, "/")?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body.contains("hello from rack"), "{}", answer.body);
    assert_eq!(platform.variable(&app, "MOGOK_PROCESS")?.as_deref(), Some("web.1"));
    assert_eq!(platform.variable(&app, "MOGOK_RELEASE")?.as_deref(), Some("v1"));

    let processes: Vec<Process> = dev.json(&app, &["ps"])?;
    assert_eq!(processes.len(), 1);
    assert_eq!(processes[0].phase, Phase::Up);
    assert_eq!(processes[0].name.to_string(), "web.1");

    let builds: Vec<Build> = dev.json(&app, &["builds"])?;
    assert_eq!(builds[0].state, BuildState::Succeeded);
    assert_eq!(builds[0].commit, dev.git(&app, &["rev-parse", "HEAD"])?.trim());

    // The router hands its lines over in batches.
    wait_until("the request is in the log", Duration::from_secs(10), || {
        dev.mogok(&app, &["logs", "--source", "router"])
            .is_ok_and(|log| log.contains("router[router]: at=info method=GET path=\"/\""))
    })?;
    let log = dev.mogok(&app, &["logs", "-n", "1000"])?;
    assert!(log.contains("build["), "no build line:\n{log}");
    assert!(log.contains("app[web.1]: "), "no line of the app:\n{log}");
    platform.finish()
}

#[test]
fn config_rollback_and_restart_make_what_they_say() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.deploy("rack", "hello")?;
    let shows = |wanted: Option<&str>| -> Result<()> {
        let found = platform.variable(&app, "GREETING")?;
        ensure!(found.as_deref() == wanted, "GREETING is {found:?}, not {wanted:?}");
        Ok(())
    };

    shows(None)?;
    dev.mogok(&app, &["config", "set", "GREETING=bonjour"])?;
    wait_until("the new release serves", Duration::from_secs(30), || shows(Some("bonjour")).is_ok())?;
    let releases: Vec<Release> = dev.json(&app, &["releases"])?;
    assert_eq!(releases.iter().map(|release| release.number.get()).collect::<Vec<_>>(), [2, 1]);
    assert!(releases[0].current);

    dev.mogok(&app, &["rollback"])?;
    shows(None)?;
    let releases: Vec<Release> = dev.json(&app, &["releases"])?;
    assert_eq!(releases[0].number.get(), 3, "a rollback is a new release");

    let before: Vec<Process> = dev.json(&app, &["ps"])?;
    dev.mogok(&app, &["restart"])?;
    // The old one may still be draining when the new one serves.
    wait_until("only the new instance is left", Duration::from_secs(30), || {
        dev.json::<Vec<Process>>(&app, &["ps"])
            .is_ok_and(|after| after.len() == 1 && after[0].instance != before[0].instance)
    })?;
    assert_eq!(platform.visit(&app, "/")?.status, 200);

    // What the app does not run with is said at once, and what ran goes on.
    let refused = dev.mogok_fails(&app, &["config", "set", "RUBYOPT=-rno_such_library"])?;
    assert!(refused.contains("mogok rollback") && refused.contains("web.1 did not come up"), "{refused}");
    assert_eq!(platform.visit(&app, "/")?.status, 200);
    dev.mogok(&app, &["rollback"])?;
    platform.finish()
}

/// 100 MB in one file that packs to some KB: deployed, and at hand as the cache of the next build.
#[test]
fn data_as_regular_as_it_gets_is_deployed() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.create("rack", "regular")?;
    dev.write(&app, "db/seeds.csv", &"0,0,0,0,0\n".repeat(10_000_000))?;
    dev.commit(&app, "seeds")?;
    dev.push(&app)?;
    dev.mogok(&app, &["build"])?;
    dev.mogok(&app, &["start"])?;
    assert_eq!(platform.visit(&app, "/")?.status, 200);
    dev.mogok(&app, &["build"])?;
    let builds: Vec<Build> = dev.json(&app, &["builds"])?;
    assert_eq!(builds[0].state, BuildState::Succeeded);
    assert!(dev.mogok(&app, &["logs", "-n", "1000"])?.contains("gems of v1 are at hand"));
    platform.finish()
}

#[test]
fn an_unchanged_lock_file_is_not_installed_again() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.deploy("rack", "hello")?;
    dev.write(&app, "public.txt", "changed")?;
    dev.push(&app)?;
    let log = dev.mogok(&app, &["build"])?;
    assert!(!log.contains("Installing puma"), "puma was installed again:\n{log}");
    let releases: Vec<Release> = dev.json(&app, &["releases"])?;
    assert_eq!(releases[0].number.get(), 2);
    platform.finish()
}

/// Directories of what belongs to apps, below the state directory.
/// (`agent/gone` keeps a log for one more minute, for a control plane that has not read it yet.)
const KEPT_OF_APPS: [&str; 8] = [
    "agent/instances",
    "control-plane/build-logs",
    "control-plane/logs",
    "control-plane/repos",
    "control-plane/store/blobs/sha256",
    "control-plane/store/packages",
    "store/blobs/sha256",
    "store/packages",
];

/// The paths of a directory's entries; of one that does not exist none.
fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[test]
fn a_destroyed_app_leaves_nothing_and_frees_its_name() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.deploy("rack", "hello")?;
    // A second release, and a build that is under way.
    dev.write(&app, "public.txt", "changed")?;
    dev.push(&app)?;
    dev.mogok(&app, &["build"])?;
    dev.mogok(&app, &["build", "--detach"])?;
    dev.mogok(&app, &["destroy", "--confirm", "hello"])?;
    assert_eq!(platform.visit(&app, "/")?.status, 404);
    let mut left = Vec::new();
    let nothing = wait_until("nothing of the app is on the disk", Duration::from_secs(60), || {
        left = KEPT_OF_APPS.iter().flat_map(|dir| entries(&platform.state_dir().join(dir))).collect();
        left.is_empty()
    });
    ensure!(nothing.is_ok(), "left: {left:?}");
    assert_eq!(platform.agent(&["ps", "--json"])?.trim(), "[]");
    let other = platform.developer("bob@example.com")?;
    other.create("rack", "hello")?;
    platform.finish()
}
