//! Every mistake gets an error that names it and says what to do next.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use mogok_tests::program::{both, wait_until};
use mogok_tests::{Developer, Platform};

fn contains_all(text: &str, wanted: &[&str]) {
    for part in wanted {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn names_accounts_and_ownership() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let ann = platform.developer("ann@example.com")?;
    let bob = platform.developer("bob@example.com")?;
    let app = ann.create("rack", "hello")?;

    for (name, wanted) in [("Hello!", "invalid app name"), ("portal", "reserved"), ("hello", "taken")] {
        contains_all(&bob.mogok_fails(&app, &["create", name, "--no-remote"])?, &[name, wanted]);
    }
    contains_all(&ann.mogok_fails(&app, &["create", "second", "--no-remote"])?, &["free", "1"]);

    // Somebody else's app: not shown, not pushed to.
    contains_all(&bob.mogok_fails(&app, &["info"])?, &["hello"]);
    let pushed = bob.try_git(
        &app.dir,
        &[
            "-c",
            "credential.helper=",
            "push",
            &format!("http://x:{}@git.mogok.localhost:8080/hello.git", token(&bob)?),
            "master",
        ],
    )?;
    assert!(!pushed.status.success());
    contains_all(&both(&pushed), &["no app hello belongs to bob@example.com", "mogok create hello"]);

    // Before anything was pushed, built or started.
    contains_all(&ann.mogok_fails(&app, &["start"])?, &["mogok build"]);
    contains_all(&ann.mogok_fails(&app, &["build"])?, &["git push mogok master"]);
    let answer = platform.visit(&app, "/")?;
    assert_eq!(answer.error_code(), Some("H81"), "{}", answer.body);
    assert_eq!(platform.visitor().get("nothing.mogok.localhost", "/", &[])?.status, 404);

    // Wrong password, revoked token.
    let mut login = ann.command(&app.dir, &["login", "ann@example.com"]);
    let wrong = login.env("MOGOK_PASSWORD", "not the password").output()?;
    contains_all(&both(&wrong), &["password"]);
    let revoked = token(&ann)?;
    ann.mogok(&app, &["logout"])?;
    let mut whoami = ann.command(&app.dir, &["whoami"]);
    let refused = whoami.env("MOGOK_TOKEN", revoked).output()?;
    assert!(!refused.status.success());
    contains_all(&both(&refused), &["mogok login"]);
    platform.finish()
}

/// The secret that the command keeps for this developer.
fn token(dev: &Developer) -> Result<String> {
    let text = std::fs::read_to_string(dev.home().join(".config/mogok/credentials.json"))?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    Ok(value["platforms"]["http://api.mogok.localhost:8080"]["token"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn sources_that_cannot_be_built() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.create("rack", "hello")?;
    let read = |path: &str| std::fs::read_to_string(app.dir.join(path));
    let (gemfile, lock) = (read("Gemfile")?, read("Gemfile.lock")?);

    std::fs::remove_file(app.dir.join("Gemfile.lock"))?;
    dev.push(&app)?;
    contains_all(&dev.mogok_fails(&app, &["build"])?, &["Gemfile.lock", "bundle lock"]);

    std::fs::remove_file(app.dir.join("Gemfile"))?;
    dev.push(&app)?;
    contains_all(&dev.mogok_fails(&app, &["build"])?, &["Gemfile"]);

    dev.write(&app, "Gemfile", &gemfile)?;
    dev.write(&app, "Gemfile.lock", &lock)?;
    dev.write(&app, "Procfile", "web: true\nthis is no process\n")?;
    dev.push(&app)?;
    contains_all(&dev.mogok_fails(&app, &["build"])?, &["Procfile", "line 2", "this is no process"]);

    dev.write(&app, "Procfile", "web: true\n")?;
    dev.write(&app, "Gemfile", &format!("{gemfile}\ngem \"no-such-gem\"\n"))?;
    dev.write(
        &app,
        "Gemfile.lock",
        &lock
            .replace("    rack (", "    no-such-gem (1.0)\n    rack (")
            .replace("\n  rack\n", "\n  no-such-gem\n  rack\n"),
    )?;
    dev.push(&app)?;
    contains_all(
        &dev.mogok_fails(&app, &["build"])?,
        &["build failed", "no-such-gem", "not found in any source", "bundle lock"],
    );

    // Gems of the repository, none of which is there.
    dev.write(&app, "Gemfile", &gemfile)?;
    dev.write(&app, "Gemfile.lock", &lock)?;
    dev.write(&app, "vendor/cache/.keep", "")?;
    dev.push(&app)?;
    contains_all(
        &dev.mogok_fails(&app, &["build"])?,
        &["build failed", "vendor/cache of the commit lacks gems", "bundle cache"],
    );
    dev.git(&app, &["rm", "-r", "--quiet", "vendor"])?;

    // What the build writes to is a file.
    dev.write(&app, ".mogok", "")?;
    dev.push(&app)?;
    contains_all(
        &dev.mogok_fails(&app, &["build"])?,
        &["the build program stopped", "/app/.mogok", "must be directories"],
    );
    dev.git(&app, &["rm", "--quiet", ".mogok"])?;

    // A native extension that no compiler takes.
    dev.write(&app, "Gemfile", &format!("ENV['MAKEFLAGS'] = 'CFLAGS=--no-such-option'\n{gemfile}"))?;
    dev.write(&app, "Gemfile.lock", &lock)?;
    dev.push(&app)?;
    contains_all(
        &dev.mogok_fails(&app, &["build"])?,
        &[
            "build failed",
            "native extension of puma 6.6.0 did not compile",
            "unrecognized command-line option",
        ],
    );
    platform.finish()
}

#[test]
fn apps_that_crash_or_never_listen() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.create("rack", "hello")?;

    dev.write(&app, "Procfile", "web: echo about to fail; exit 7\n")?;
    dev.push(&app)?;
    dev.mogok(&app, &["build"])?;
    contains_all(&dev.mogok_fails(&app, &["start"])?, &["exited with status 7", "about to fail"]);
    wait_until("the H10 page", Duration::from_secs(20), || {
        platform.visit(&app, "/").is_ok_and(|answer| answer.error_code() == Some("H10"))
    })?;
    // The first restart comes at once; from the second on the crash can be seen waiting.
    wait_until("ps shows the crash", Duration::from_secs(20), || {
        dev.mogok(&app, &["ps"])
            .is_ok_and(|text| ["crashed", "status 7", "about to fail"].iter().all(|part| text.contains(part)))
    })?;
    let mut log = String::new();
    wait_until("the verdict is in the log", Duration::from_secs(10), || {
        log = dev.mogok(&app, &["logs"]).unwrap_or_default();
        log.contains("mogok[deploy]: start failed")
    })?;
    // The cause stands before it.
    let at = |what: &str| log.find(what).with_context(|| format!("{what:?} is not in: {log}"));
    let verdict = at("mogok[deploy]: start failed: web.1 did not come up: exited with status 7")?;
    assert!(at("app[web.1]: about to fail")? < verdict, "{log}");
    assert!(at("mogok[web.1]: exited with status 7")? < verdict, "{log}");

    dev.write(&app, "Procfile", "web: sleep 1000\n")?;
    dev.push(&app)?;
    dev.mogok(&app, &["build"])?;
    contains_all(&dev.mogok_fails(&app, &["start"])?, &["R10"]);

    // A stop from another shell is what counts, and the start does not claim to have succeeded.
    let mut start = dev.command(&app.dir, &["start"]);
    let starting = start.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    wait_until("the start is under way", Duration::from_secs(20), || {
        dev.mogok(&app, &["ps"]).is_ok_and(|text| text.contains("starting"))
    })?;
    wait_until("the page says that it boots", Duration::from_secs(10), || {
        platform.visit(&app, "/").is_ok_and(|answer| answer.error_code() == Some("H20"))
    })?;
    dev.mogok(&app, &["stop"])?;
    let started = starting.wait_with_output()?;
    assert_eq!(started.status.code(), Some(1), "{started:?}");
    contains_all(&both(&started), &["later change of hello took over", "mogok ps"]);
    platform.finish()
}
