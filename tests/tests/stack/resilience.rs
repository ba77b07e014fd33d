//! `kill -9` of each part while a visitor sends a request every 20 ms: no container is lost, and
//! requests fail only while the router itself is down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mogok_api::control::Process;
use mogok_api::instance::Phase;
use mogok_tests::program::wait_until;
use mogok_tests::{App, Developer, Platform};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One request every 20 ms until told to stop; the times at which one failed, and how many were sent.
struct Load {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<(Vec<Instant>, u32)>,
}

/// A bound on the load, should the test hang.
const MAX_REQUESTS: u32 = 15_000;

impl Load {
    fn start(platform: &Platform, app: &App) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (visitor, host, stopped) = (platform.visitor(), platform.host(app), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let (mut failures, mut sent) = (Vec::new(), 0);
            while !stopped.load(Ordering::Relaxed) && sent < MAX_REQUESTS {
                let begin = Instant::now();
                if !visitor.get(&host, "/", &[]).is_ok_and(|answer| answer.status == 200) {
                    failures.push(Instant::now());
                }
                sent += 1;
                thread::sleep(Duration::from_millis(20).saturating_sub(begin.elapsed()));
            }
            (failures, sent)
        });
        Self { stop, thread }
    }

    fn finish(self) -> Result<(Vec<Instant>, u32)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the load's thread panicked"))
    }
}

/// Kills a part and waits until its successor runs; returns when that was.
fn kill_part(platform: &Platform, part: &str) -> Result<(Instant, Instant)> {
    let old = platform.pid(part)?;
    let begin = Instant::now();
    kill(Pid::from_raw(old), Signal::SIGKILL).with_context(|| format!("cannot kill {part}"))?;
    wait_until(&format!("{part} is started again"), Duration::from_secs(20), || {
        platform.pid(part).is_ok_and(|pid| pid != old)
    })?;
    Ok((begin, Instant::now()))
}

fn only_process(dev: &Developer, app: &App) -> Result<Process> {
    let processes: Vec<Process> = dev.json(app, &["ps"])?;
    ensure!(processes.len() == 1, "{} processes", processes.len());
    processes.into_iter().next().context("no process")
}

#[test]
fn killed_parts_lose_no_container_and_no_request_but_the_routers_own() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.deploy("rack", "hello")?;
    let before = only_process(&dev, &app)?;

    for part in ["agent", "control-plane", "router"] {
        let load = Load::start(&platform, &app);
        thread::sleep(Duration::from_secs(1));
        let (killed, _) = kill_part(&platform, part)?;
        let back = || dev.json::<Vec<Process>>(&app, &["ps"]).is_ok();
        wait_until("the platform answers again", Duration::from_secs(30), back)?;
        wait_until("the app answers again", Duration::from_secs(30), || {
            platform.visit(&app, "/").is_ok_and(|answer| answer.status == 200)
        })?;
        let served_again = Instant::now();
        thread::sleep(Duration::from_secs(3));
        let (failures, sent) = load.finish()?;
        eprintln!("{part}: {sent} requests, {} failed", failures.len());
        if part == "router" {
            let outside = failures.iter().filter(|at| **at < killed || **at > served_again).count();
            assert_eq!(outside, 0, "requests failed while the router was up");
        } else {
            assert_eq!(failures.len(), 0, "requests failed when {part} was killed");
        }
    }

    wait_until("ps is right", Duration::from_secs(30), || {
        only_process(&dev, &app).is_ok_and(|process| process.phase == Phase::Up)
    })?;
    let after = only_process(&dev, &app)?;
    assert_eq!(after.instance, before.instance, "the container was replaced");
    assert_eq!(after.restarts, before.restarts, "the container was restarted");

    // And the platform still does its work.
    dev.mogok(&app, &["restart"])?;
    assert_eq!(platform.visit(&app, "/")?.status, 200);
    platform.finish()
}

#[test]
fn a_killed_nginx_is_replaced_though_its_workers_live_on() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.create("rack", "hello")?;
    kill_part(&platform, "nginx")?;
    wait_until("nginx answers again", Duration::from_secs(20), || dev.mogok(&app, &["info"]).is_ok())?;
    platform.finish()
}

#[test]
fn a_second_agent_of_the_same_name_is_refused_before_it_touches_anything() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.deploy("rack", "hello")?;
    let refused = platform.second_agent()?;
    assert!(refused.contains("another agent uses"), "{refused}");
    assert_eq!(platform.visit(&app, "/")?.status, 200);
    platform.finish()
}
