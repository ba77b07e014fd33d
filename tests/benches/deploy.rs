//! From push to the first page for the Sinatra and the Rails app: cold, with an unchanged
//! `Gemfile.lock`, and what `start` adds to the app's own boot.
//!
//! The app's own work is what it would cost anywhere: for a start, from the execution of its program to
//! the log line of its server that it listens; for a rebuild, the steps that the build itself times.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use mogok_api::control::LogLine;
use mogok_tests::bench::{self, Row, in_milliseconds, median};
use mogok_tests::{App, Developer, Platform};

const STARTS: usize = 5;

fn main() -> Result<()> {
    let Some(platform) = Platform::start()? else { bail!("the platform cannot run here") };
    let dev = platform.developer("bench@example.com")?;
    platform.grant_paid_plan("bench@example.com")?;
    let mut rows = Vec::new();
    for (fixture, title) in [("sinatra", "Sinatra"), ("rails", "Rails")] {
        let app = dev.create(fixture, fixture)?;
        let cold = push_build_serve(&platform, &dev, &app, true)?;
        rows.push(Row::alone(&format!("{title}: push -> build -> start -> 200, cold"), "ms", cold, 60_000.0));
        fs::write(app.dir.join("CHANGES"), "changed\n")?;
        let again = push_build_serve(&platform, &dev, &app, false)?;
        rows.push(Row::alone(&format!("{title}: push -> build done, lock unchanged"), "ms", again, 20_000.0));
        fs::write(app.dir.join("CHANGES"), "changed again\n")?;
        dev.push(&app)?;
        let (build, own) = rebuild(&dev, &app)?;
        rows.push(Row::alone(&format!("{title}: unchanged rebuild, whole"), "ms", build, 20_000.0));
        rows.push(Row::alone(
            &format!("{title}: unchanged rebuild, beyond the app's own work"),
            "ms",
            build - own,
            2_000.0,
        ));
        let mut beyond = Vec::new();
        for _ in 0..STARTS {
            dev.mogok(&app, &["stop"])?;
            beyond.push(start(&platform, &dev, &app)?);
        }
        rows.push(Row::alone(
            &format!("{title}: start -> 200, beyond the app's own boot"),
            "ms",
            median(&mut beyond),
            100.0,
        ));
    }
    bench::report("deploy", &rows)?;
    platform.finish()
}

/// Milliseconds from the push to the first page.
fn push_build_serve(platform: &Platform, dev: &Developer, app: &App, first: bool) -> Result<f64> {
    let begin = Instant::now();
    dev.push(app)?;
    dev.mogok(app, &["build"])?;
    if first {
        dev.mogok(app, &["start"])?;
    }
    first_page(platform, app)?;
    Ok(in_milliseconds(begin.elapsed()))
}

fn first_page(platform: &Platform, app: &App) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while platform.visit(app, "/")?.status != 200 {
        if Instant::now() > deadline {
            bail!("{} does not answer 200", app.name);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Milliseconds of the whole build, and of the app's own work in it: asset compilation.
fn rebuild(dev: &Developer, app: &App) -> Result<(f64, f64)> {
    let begin = Instant::now();
    let log = dev.mogok(app, &["build"])?;
    let whole = in_milliseconds(begin.elapsed());
    let own = log
        .lines()
        .filter(|line| line.contains("assets"))
        .filter_map(|line| {
            line.split(['(', ' '])
                .find_map(|word| word.strip_suffix("s)").or(word.strip_suffix('s'))?.parse::<f64>().ok())
        })
        .sum::<f64>();
    Ok((whole, own * 1000.0))
}

/// Milliseconds from `mogok start` to the first page, less those of the app's own boot.
fn start(platform: &Platform, dev: &Developer, app: &App) -> Result<f64> {
    let called = Utc::now();
    let starting = dev.command(&app.dir, &["start"]).spawn()?;
    first_page(platform, app)?;
    let whole = Utc::now() - called;
    starting.wait_with_output()?;
    // The last lines of a start reach the log a little later than its first page the visitor.
    std::thread::sleep(Duration::from_secs(1));
    let text = dev.mogok(app, &["logs", "-n", "200", "--process", "web.1", "--json"])?;
    let lines: Vec<LogLine> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let at = |what: &str| -> Result<DateTime<Utc>> {
        let found = lines.iter().rev().find(|line| line.at >= called && line.line.contains(what));
        found
            .map(|line| line.at)
            .with_context(|| format!("no log line with {what:?} since {called} in\n{text}"))
    };
    let boot = at("Listening on")? - at("started")?;
    Ok(in_milliseconds((whole - boot).to_std().unwrap_or_default()))
}
