//! What a hostile app sees and can do from inside its container.

use anyhow::{Result, ensure};
use mogok_tests::{App, Developer, Platform};

/// An app that runs any shell command a visitor sends: the tenant as attacker.
const SHELL: &str = r#"
require "open3"
run lambda { |env|
  command = Rack::Utils.parse_query(env["QUERY_STRING"])["c"]
  command ||= "true"
  output, status = Open3.capture2e("/bin/sh", "-c", command)
  [200, { "content-type" => "text/plain" }, [output, "\nstatus=#{status.exitstatus || status.termsig + 128}\n"]]
}
"#;

/// Percent-encodes all but letters and digits.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            },
        )
        .collect()
}

struct Shell<'a> {
    platform: &'a Platform,
    app: App,
}

impl<'a> Shell<'a> {
    fn deploy(platform: &'a Platform, dev: &Developer, name: &str) -> Result<Self> {
        let app = dev.create("rack", name)?;
        dev.write(&app, "config.ru", SHELL)?;
        dev.push(&app)?;
        dev.mogok(&app, &["build"])?;
        dev.mogok(&app, &["start"])?;
        Ok(Self { platform, app })
    }

    /// What the command printed, and `status=N` as the last line.
    fn run(&self, command: &str) -> Result<String> {
        let answer = self.platform.visit(&self.app, &format!("/?c={}", encoded(command)))?;
        ensure!(answer.status == 200, "HTTP {} for {command:?}: {}", answer.status, answer.body);
        Ok(answer.body)
    }

    fn refused(&self, command: &str) -> Result<()> {
        let output = self.run(command)?;
        ensure!(!output.trim().ends_with("status=0"), "{command:?} succeeded: {output}");
        Ok(())
    }
}

#[test]
fn a_container_sees_itself_alone_and_can_do_nothing_to_the_host() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let ann = platform.developer("ann@example.com")?;
    let bob = platform.developer("bob@example.com")?;
    let one = Shell::deploy(&platform, &ann, "one")?;
    let two = Shell::deploy(&platform, &bob, "two")?;

    assert!(one.run("id -u; id -g; id -G")?.starts_with("1000\n1000\n1000\n"));
    let status = one.run("cat /proc/self/status")?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");

    // Own user ids: those of the two apps do not overlap, and neither is the host's.
    let range = |shell: &Shell| -> Result<u64> {
        let map = shell.run("cat /proc/self/uid_map")?;
        let fields: Vec<u64> = map.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        ensure!(fields.len() == 3 && fields[0] == 0 && fields[2] == 65_536, "{map}");
        Ok(fields[1])
    };
    let (first, second) = (range(&one)?, range(&two)?);
    assert!(first >= 65_536 && second >= 65_536 && first.abs_diff(second) >= 65_536, "{first} {second}");

    // Nothing of the other app or the host is visible.
    let processes = one.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")?;
    assert!(!processes.contains("mogok-agent") && !processes.contains("nginx"), "{processes}");
    let mounts = one.run("cat /proc/self/mountinfo")?;
    assert!(!mounts.contains("mogok-test") || !mounts.contains("control-plane"), "{mounts}");

    for command in [
        "unshare -Ur true",
        "unshare -m true",
        "mount -t tmpfs none /mnt",
        "mknod /tmp/null c 1 3",
        "echo 1 > /proc/sys/kernel/core_pattern",
        "echo b > /proc/sysrq-trigger",
        "cat /proc/kcore",
        "dmesg",
        "touch /etc/passwd",
        "su -c true",
    ] {
        one.refused(command)?;
    }
    // ptrace (101 on x86-64) of the own parent, by raw system call.
    let traced = one.run("ruby -e 'begin; syscall(101, 16, Process.ppid, 0, 0); puts :traced; rescue SystemCallError => e; puts e.class; end'")?;
    assert!(traced.contains("EPERM") || traced.contains("ENOSYS"), "{traced}");

    // The other app's address, found from its own side, does not answer.
    let address = two.run("ruby -rsocket -e 'puts Socket.ip_address_list.reject(&:ipv4_loopback?).select(&:ipv4?).first.ip_address'")?;
    let address = address.lines().next().unwrap_or_default().to_owned();
    ensure!(address.parse::<std::net::Ipv4Addr>().is_ok(), "no address: {address}");
    one.refused(&format!("ruby -rsocket -e 'Socket.tcp(\"{address}\", 5000, connect_timeout: 2)'"))?;
    // Neither do the platform's own ports on the gateway.
    for port in [8080, 7701, 7702, 7703] {
        one.refused(&format!("ruby -rsocket -e 'Socket.tcp(\"10.88.0.1\", {port}, connect_timeout: 2)'"))?;
    }
    platform.finish()
}

#[test]
fn limits_bind_and_the_neighbour_does_not_notice() -> Result<()> {
    let Some(platform) = Platform::start()? else { return Ok(()) };
    let ann = platform.developer("ann@example.com")?;
    let bob = platform.developer("bob@example.com")?;
    let attacker = Shell::deploy(&platform, &ann, "attacker")?;
    let victim = Shell::deploy(&platform, &bob, "victim")?;

    // Processes: the bomb meets the limit.
    let output = attacker.run("while sleep 3 & do :; done")?;
    assert!(output.contains("Cannot fork"), "{output}");
    assert!(victim.run("echo fine")?.starts_with("fine"));

    // Disk: the writable layer is full long before the host's is.
    let filled = attacker.run("dd if=/dev/zero of=/app/fill bs=1M count=3000 2>&1; rm -f /app/fill")?;
    assert!(filled.contains("No space left on device"), "{filled}");
    let inodes = attacker.run("mkdir /app/i && cd /app/i && ruby -e '(1..200000).each { |n| File.write(n.to_s, \"\") }' 2>&1 | head -n 1; rm -rf /app/i")?;
    assert!(inodes.contains("No space left"), "{inodes}");

    // Memory: the whole container is killed as one and started again.
    let _ = attacker.run("ruby -e 'a = []; loop { a << \"x\" * 10_000_000 }'");
    mogok_tests::program::wait_until("the kill is reported", std::time::Duration::from_secs(30), || {
        ann.mogok(&attacker.app, &["logs", "-n", "1000"]).is_ok_and(|log| log.contains("killed: memory"))
    })?;
    assert!(victim.run("echo fine")?.starts_with("fine"));
    platform.finish()
}
