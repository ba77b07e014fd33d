//! What is too large, too slow or too much ends with the limit's name, and nothing is lost.

use std::fs;
use std::io::Read;

use anyhow::{Result, ensure};
use mogok_api::control::{Build, BuildState};
use mogok_tests::platform::Options;
use mogok_tests::program::both;
use mogok_tests::{App, Developer, Platform};

fn contains_all(text: &str, wanted: &[&str]) {
    for part in wanted {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// Bytes that no compression makes fewer.
fn noise(bytes: u64) -> Result<Vec<u8>> {
    let mut noise = Vec::new();
    fs::File::open("/dev/urandom")?.take(bytes).read_to_end(&mut noise)?;
    Ok(noise)
}

/// Pushes a file of so many bytes, which must be refused, and takes its commit back.
fn refused_push(dev: &Developer, app: &App, bytes: u64) -> Result<String> {
    fs::write(app.dir.join("large.bin"), noise(bytes)?)?;
    dev.commit(app, "large")?;
    let pushed = dev.try_git(&app.dir, &["push", "mogok", "master"])?;
    ensure!(!pushed.status.success(), "{bytes} bytes were taken: {}", both(&pushed));
    dev.git(app, &["reset", "--quiet", "--hard", "HEAD~1"])?;
    Ok(both(&pushed))
}

#[test]
fn a_push_over_the_cap_is_refused_by_name() -> Result<()> {
    let environment = [("MOGOK_PUSH_LIMIT_BYTES", "2097152")];
    let options = Options { environment: &environment, ..Options::default() };
    let Some(platform) = Platform::start_with(options)? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.create("rack", "hello")?;
    dev.push(&app)?;
    for bytes in [4_000_000, 40_000_000] {
        let told = refused_push(&dev, &app, bytes)?;
        contains_all(&told, &["2.00 MiB"]);
    }
    // What was there before is still there, and the next push works.
    dev.push(&app)?;
    dev.mogok(&app, &["build"])?;
    platform.finish()
}

#[test]
fn builds_over_their_limits_fail_with_the_limit() -> Result<()> {
    let environment = [
        ("MOGOK_BUILD_SECONDS", "30"),
        ("MOGOK_BUILD_PACKAGE_BYTES", "20000000"),
        ("MOGOK_BUILD_SOURCE_BYTES", "10000000"),
    ];
    let options = Options { environment: &environment, ..Options::default() };
    let Some(platform) = Platform::start_with(options)? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.create("rack", "hello")?;
    let gemfile = fs::read_to_string(app.dir.join("Gemfile"))?;

    fs::write(app.dir.join("large.bin"), noise(11_000_000)?)?;
    dev.push(&app)?;
    contains_all(&dev.mogok_fails(&app, &["build"])?, &["build failed", "the source is larger than 10 MB"]);
    fs::remove_file(app.dir.join("large.bin"))?;

    dev.write(
        &app,
        "Gemfile",
        &format!("4.times {{ |n| File.write(\"/app/x#{{n}}\", Random.bytes(9_000_000)) }}\n{gemfile}"),
    )?;
    dev.push(&app)?;
    contains_all(&dev.mogok_fails(&app, &["build"])?, &["build failed", "larger than 20 MB"]);

    dev.write(&app, "Gemfile", &format!("sleep 600\n{gemfile}"))?;
    dev.push(&app)?;
    contains_all(&dev.mogok_fails(&app, &["build"])?, &["build failed", "timed out after 30 s"]);
    let builds: Vec<Build> = dev.json(&app, &["builds"])?;
    assert!(builds.iter().all(|build| build.state == BuildState::Failed));
    platform.finish()
}

#[test]
fn a_full_disk_of_the_platform_loses_nothing() -> Result<()> {
    let options = Options { control_plane_bytes: Some(64 << 20), ..Options::default() };
    let Some(platform) = Platform::start_with(options)? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.deploy("rack", "hello")?;
    fs::write(app.dir.join("large.bin"), noise(12 << 20)?)?;
    dev.commit(&app, "large")?;

    // All but a few pages: the database can still be read and takes small changes.
    let filler = platform.state_dir().join("control-plane/filler");
    let full = std::io::copy(&mut std::io::repeat(0), &mut fs::File::create(&filler)?);
    assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    fs::File::options().write(true).open(&filler)?.set_len(fs::metadata(&filler)?.len() - (2 << 20))?;

    let pushed = dev.try_git(&app.dir, &["push", "mogok", "master"])?;
    assert!(!pushed.status.success(), "{}", both(&pushed));
    contains_all(&both(&pushed), &["No space left on device"]);
    assert_eq!(platform.visit(&app, "/")?.status, 200);

    fs::remove_file(&filler)?;
    dev.push(&app)?;
    // Now the source has no room.
    let _ = std::io::copy(&mut std::io::repeat(0), &mut fs::File::create(&filler)?);
    fs::File::options().write(true).open(&filler)?.set_len(fs::metadata(&filler)?.len() - (2 << 20))?;
    contains_all(&dev.mogok_fails(&app, &["build"])?, &["build failed", "the platform's disk is full"]);
    fs::remove_file(&filler)?;
    dev.mogok(&app, &["build"])?;
    assert_eq!(platform.visit(&app, "/")?.status, 200);
    platform.finish()
}
