//! Hostile builds: each ends as a failed build with its reason, and the platform stays responsive.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mogok_tests::{App, Developer, Platform};

/// Puts Ruby code at the head of the Gemfile, which `bundle install` evaluates in the sandbox.
fn attack(dev: &Developer, app: &App, code: &str) -> Result<String> {
    let gemfile = std::fs::read_to_string(app.dir.join("Gemfile"))?;
    let rest = gemfile.split("# attack ends\n").last().unwrap_or_default().to_owned();
    dev.write(app, "Gemfile", &format!("{code}\n# attack ends\n{rest}"))?;
    dev.push(app)?;
    dev.mogok_fails(app, &["build"])
}

/// The API answers within two seconds.
fn responsive(dev: &Developer, app: &App) -> Result<()> {
    let begin = Instant::now();
    dev.mogok(app, &["info"])?;
    ensure!(begin.elapsed() < Duration::from_secs(2), "the API took {:?}", begin.elapsed());
    Ok(())
}

#[test]
fn a_hostile_build_fails_with_its_reason() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let dev = platform.developer("ann@example.com")?;
    let app = dev.create("rack", "hostile")?;
    // Another tenant's app, which keeps answering through all of it.
    let neighbour = platform.developer("bob@example.com")?;
    let other = neighbour.create("rack", "neighbour")?;
    neighbour.write(&other, "secret.txt", "neighbour-word")?;
    neighbour.mogok(&other, &["config", "set", "SECRET_WORD=neighbour-word"])?;
    neighbour.push(&other)?;
    neighbour.mogok(&other, &["build"])?;
    neighbour.mogok(&other, &["start"])?;
    let responsive = |dev: &Developer, app: &App| -> Result<()> {
        responsive(dev, app)?;
        let answer = platform.visit(&other, "/")?;
        ensure!(answer.status == 200, "the neighbour answers {}: {}", answer.status, answer.body);
        Ok(())
    };

    // Ruby's own fork waits for room, for ever if it has to.
    let output = attack(&dev, &app, "loop { fork { sleep 600 } }")?;
    assert!(output.contains("processes: a build may have"), "{output}");
    responsive(&dev, &app)?;

    // A shell's says that there is none.
    let output = attack(&dev, &app, "system('while sleep 600 & do :; done'); abort 'no more forks'")?;
    assert!(output.contains("Cannot fork") && output.contains("build failed: "), "{output}");
    responsive(&dev, &app)?;

    let output = attack(&dev, &app, "File.open('/app/fill', 'w') { |f| loop { f.write('x' * 1_000_000) } }")?;
    assert!(output.contains("larger than a build may write"), "{output}");

    let files = "(0..).each { |n| File.write(\"/app/fill#{n}\", 'x' * 100_000_000) }";
    let output = attack(&dev, &app, files)?;
    assert!(output.contains("build failed: ") && output.contains("disk"), "{output}");
    responsive(&dev, &app)?;

    let output = attack(&dev, &app, "a = []; loop { a << 'x' * 10_000_000 }")?;
    assert!(output.contains("killed: memory"), "{output}");
    responsive(&dev, &app)?;

    // Secrets: none in the environment, none in what can be read.
    let look = r#"
found = ENV.to_h.select { |k, _| k =~ /secret|token|password|key/i }.keys
found += Dir.glob("/proc/[0-9]*/environ").flat_map { |f| (File.read(f).scan(/[A-Z_]*(?:SECRET|TOKEN|PASSWORD)[A-Z_]*/) rescue []) }
readable = %w[/etc/shadow /root /proc/1/mem /proc/kcore].select { |f| (File.directory?(f) ? Dir.children(f) : File.open(f) { |io| io.read(1) }) rescue nil }
# Nothing of another app: its package holds this word, and so does its environment.
mine = %w[/app /cache /output /source.tar /proc /sys /dev]
others = (Dir.children("/") - mine.map { |f| f[1..] }).select { |d| system("grep", "--recursive", "--quiet", "--no-messages", "--max-count=1", "--devices=skip", "neighbour-%s" % "word", "/#{d}") }
readable.concat(others)
abort "secrets: #{found.uniq.inspect} readable: #{readable.inspect}"
"#;
    let output = attack(&dev, &app, look)?;
    assert!(output.contains("secrets: [] readable: []"), "{output}");

    // The host's network: only the gem index answers.
    let reach = r#"
require "socket"
open = [["10.88.0.1", 8080], ["10.88.0.1", 7701], ["10.88.0.1", 7702], ["127.0.0.1", 7701]].select { |host, port|
  begin; Socket.tcp(host, port, connect_timeout: 2).close; true; rescue SystemCallError; false; end
}
abort "open: #{open.inspect}"
"#;
    let output = attack(&dev, &app, reach)?;
    assert!(output.contains("open: []"), "{output}");
    responsive(&dev, &app)?;

    // And an honest build works after all that.
    let gemfile = std::fs::read_to_string(app.dir.join("Gemfile"))?;
    let rest = gemfile.split("# attack ends\n").last().unwrap_or_default().to_owned();
    dev.write(&app, "Gemfile", &rest)?;
    dev.push(&app)?;
    dev.mogok(&app, &["build"])?;
    platform.finish()
}
