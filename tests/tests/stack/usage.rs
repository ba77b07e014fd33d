//! The command with wrong input, as somebody new would give it: the input is named, the next step too.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use mogok_tests::program::{both, text};
use mogok_tests::{App, Developer, Platform};

/// Runs `mogok` and checks its exit status and the words of its complaint.
fn told(dev: &Developer, app: &App, args: &[&str], status: i32, words: &[&str]) -> Result<()> {
    let output = dev.try_mogok(&app.dir, args)?;
    check(args, &output, status, words)
}

fn check(args: &[&str], output: &Output, status: i32, words: &[&str]) -> Result<()> {
    let said = both(output);
    ensure!(output.status.code() == Some(status), "mogok {args:?}: {:?}: {said}", output.status);
    for word in words {
        ensure!(said.contains(word), "mogok {args:?} does not say {word:?}: {said}");
    }
    Ok(())
}

#[test]
fn every_mistake_is_named_with_what_to_do_next() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let ann = platform.developer("ann@example.com")?;
    let bob = platform.developer("bob@example.com")?;
    let app = ann.create("rack", "hello")?;
    let say = |args: &[&str], status, words: &[&str]| told(&ann, &app, args, status, words);

    // Usage.
    say(&["scale", "web=many"], 2, &["\"many\"", "for example 2"])?;
    say(&["scale", "web"], 2, &["TYPE=COUNT", "web=2"])?;
    say(&["scale", "web=1", "web=2"], 2, &["web is given more than once"])?;
    say(&["config", "set", "GREETING"], 2, &["NAME=VALUE", "GREETING=hello"])?;
    say(&["config", "set", "MOGOK_X=1"], 2, &["MOGOK_"])?;
    say(&["rollback", "three"], 2, &["three", "v1, v2"])?;
    say(&["--app", "No!", "info"], 2, &["No!", "invalid app name"])?;
    say(&["frobnicate"], 2, &["frobnicate", "--help"])?;

    // Before there is anything.
    say(&["ps"], 0, &["nothing of hello was built yet", "git push mogok master", "mogok build"])?;
    say(&["releases"], 0, &["mogok build"])?;
    say(&["builds", "log"], 1, &["hello has no builds yet", "mogok build"])?;
    say(&["build"], 1, &["hello", "git push mogok master"])?;
    say(&["start"], 1, &["mogok build"])?;
    say(&["restart"], 1, &["stopped", "mogok start"])?;
    say(&["rollback"], 1, &["mogok build"])?;
    say(&["rollback", "v7"], 1, &["mogok build"])?;
    say(&["config", "get", "NOTHING"], 1, &["NOTHING is not set", "mogok config list"])?;
    say(&["destroy"], 1, &["--confirm hello"])?;
    say(&["destroy", "--confirm", "other"], 1, &["\"other\" is not \"hello\"", "nothing was destroyed"])?;

    ann.push(&app)?;
    say(&["build", "--ref", "nowhere"], 1, &["nowhere", "git push mogok"])?;
    ann.mogok(&app, &["build"])?;
    say(&["scale", "clock=1"], 1, &["clock", "Procfile"])?;
    say(&["scale", "wbe=0"], 1, &["no process type wbe", "it has web"])?;
    say(&["scale", "web=2"], 1, &["free", "1"])?;
    say(&["rollback", "v7"], 1, &["v7", "mogok releases"])?;
    say(&["rollback", "v1"], 1, &["v1", "mogok releases"])?;

    // Only what the plan does not run.
    ann.write(&app, "Procfile", "worker: sleep 1000\n")?;
    ann.push(&app)?;
    ann.mogok(&app, &["build"])?;
    say(&["start"], 1, &["it has worker", "the free plan runs web processes only"])?;
    say(&["scale", "worker=1"], 1, &["free", "web processes"])?;

    // Where there is no app, somebody else's, no account, no platform.
    let elsewhere = App { name: "none".to_owned(), dir: ann.home().to_owned() };
    told(&ann, &elsewhere, &["info"], 1, &["no app given", "--app NAME", "mogok create NAME"])?;
    told(&ann, &elsewhere, &["--app", "nobodys", "info"], 1, &["nobodys", "mogok apps"])?;
    for args in [&["--app", "hello", "logs"][..], &["--app", "hello", "destroy", "--confirm", "hello"]] {
        told(&bob, &elsewhere, args, 1, &["hello", "mogok apps"])?;
    }
    let mut away = ann.command(&app.dir, &["info"]);
    let away = away.env("MOGOK_API", "http://127.0.0.1:1").env("MOGOK_TOKEN", "x").output()?;
    check(&["info"], &away, 1, &["cannot reach the platform at http://127.0.0.1:1", "MOGOK_API"])?;
    ann.mogok(&app, &["logout"])?;
    say(&["apps"], 1, &["not logged in", "mogok login", "mogok signup"])?;

    // For scripts: the same as a document.
    let output = bob.try_mogok(&app.dir, &["--json", "--app", "hello", "info"])?;
    let document: serde_json::Value =
        serde_json::from_str(&text(&output.stderr)).with_context(|| both(&output))?;
    assert_eq!(document["code"], "not_found");
    assert!(document["message"].as_str().is_some_and(|message| message.contains("hello")), "{document}");
    assert!(document["remedy"].as_str().is_some_and(|remedy| remedy.contains("mogok apps")), "{document}");
    assert_eq!(text(&output.stdout), "");
    platform.finish()
}
