//! Output of one container into its log, against the kernel's floor (`cat` from a pipe to a file, at the same bytes);
//! memory and wake-ups of idle shims, alone and among twenty.
//!
//! The program writes lines of 100 bytes as fast as the kernel lets it (sendfile(2) into the pipe), and every one
//! of them must be in the log.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mogok_agent::cgroup::{Cgroup, Cgroups};
use mogok_api::app::Limits;
use mogok_api::id::InstanceId;
use mogok_shim::client::Client;
use mogok_shim::protocol::Started;
use mogok_shim::spec::{Bind, BindKind, Log, Spec, Writable, file};
use mogok_tests::bench::{self, Row, median};
use mogok_tests::platform::bin_dir;
use mogok_tests::program::{wait_until, wait_until_idle};
use tempfile::TempDir;

const NAME: &str = "mogok-bench-logs";
const FIRST_ID: u32 = 1 << 24;
const ROUNDS: usize = 5;
/// Lines of the file that is written so many times.
const LINES: u64 = 640 * 1024;
const TIMES: usize = 8;
/// Bytes of a line, and of its record: time, stream, piece, blanks.
const LINE: u64 = 100;
const RECORD: u64 = LINE + 32;
/// Shims that share their executable's pages.
const MANY: usize = 20;
const QUIET: Duration = Duration::from_secs(10);
const WITHIN: Duration = Duration::from_secs(60);

struct Bench {
    dir: TempDir,
    rootfs: PathBuf,
    lines: PathBuf,
    records: PathBuf,
    cgroups: Cgroups,
}

struct Running {
    state: PathBuf,
    cgroup: Cgroup,
    shim: Child,
}

fn main() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this benchmark makes containers: run it as root");
    let bench = Bench::new()?;
    let mut rows = bench.throughput()?;
    rows.extend(bench.idle()?);
    bench.cgroups.remove_root();
    bench::report("logs", &rows)
}

impl Bench {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(NAME).tempdir()?;
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
            fs::create_dir_all(rootfs.join(name))?;
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).context("install busybox-static")?;
        for name in ["cat", "sleep"] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name))?;
        }
        let (lines, records) = (dir.path().join("lines"), dir.path().join("records"));
        write_lines(&lines, LINE as usize - 1)?;
        write_lines(&records, RECORD as usize - 1)?;
        Ok(Self { dir, rootfs, lines, records, cgroups: Cgroups::detect(NAME)? })
    }

    fn start(&self, place: usize, command: Vec<String>, log: Log) -> Result<Running> {
        let id = InstanceId::new();
        let cgroup = self.cgroups.create(&id, &Limits::app())?;
        let state = self.dir.path().join(id.to_string());
        fs::create_dir(&state)?;
        let spec = Spec {
            id: id.to_string(),
            hostname: "bench".to_owned(),
            layers: vec![self.rootfs.clone()],
            writable: Writable::Tmpfs { bytes: 1 << 20, inodes: 4096 },
            binds: vec![Bind {
                source: self.lines.clone(),
                target: "/lines".to_owned(),
                kind: BindKind::ReadOnlyFile,
            }],
            files: Vec::new(),
            id_base: FIRST_ID + u32::try_from(place)? * 65_536,
            uid: 1000,
            gid: 1000,
            cgroup: cgroup.v2_path().to_owned(),
            cgroups_v1: cgroup.v1_paths().to_vec(),
            disk_limits: vec![],
            command,
            env: Vec::new(),
            cwd: "/".to_owned(),
            open_files: 1024,
            file_bytes: None,
            tmp_bytes: 1 << 20,
            log,
        };
        fs::write(state.join(file::SPEC), serde_json::to_vec(&spec)?)?;
        let shim = Command::new(bin_dir().join("mogok-shim"))
            .args(["run".as_ref(), "--state-dir".as_ref(), state.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Running { state, cgroup, shim })
    }

    fn throughput(&self) -> Result<Vec<Row>> {
        let (mut ours, mut floor, mut cpu) = (vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            let (speed, spent) = self.flood()?;
            ours.push(speed);
            cpu.push(spent);
            floor.push(self.floor()?);
        }
        let (ours, floor) = (median(&mut ours), median(&mut floor));
        let figure = "log of one container, 100-byte lines, none lost";
        Ok(vec![
            Row {
                figure: figure.to_owned(),
                unit: "MB/s".into(),
                ours,
                peer: Some("cat".to_owned()),
                peer_value: Some(floor),
                ratio: Some(ours / floor),
                aim: ">= 200 MB/s".to_owned(),
                aim_met: ours >= 200.0,
            },
            Row::alone("CPU of the shim for 100 MB of output", "ms", median(&mut cpu), 500.0),
        ])
    }

    /// MB of output a second from the start of the shim to the end of the container, and the shim's CPU time in
    /// milliseconds for 100 MB.
    fn flood(&self) -> Result<(f64, f64)> {
        let command = std::iter::once("/bin/cat").chain(std::iter::repeat_n("/lines", TIMES));
        let log = Log { file_bytes: 64 << 20, files: 100, rate_bytes: 0 };
        let begin = Instant::now();
        let mut running = self.start(0, command.map(str::to_owned).collect(), log)?;
        wait_for(&running.state, file::STARTED)?;
        Client::connect(&running.state, WITHIN)?.wait(WITHIN)?;
        let took = begin.elapsed().as_secs_f64();
        let lines = LINES * TIMES as u64;
        let log = running.state.join(file::LOG_DIR);
        ensure!(log_bytes(&log)? == lines * RECORD, "output was lost");
        let stat = fs::read_to_string(format!("/proc/{}/stat", running.shim.id()))?;
        let fields = stat.rsplit_once(") ").context("no stat")?.1;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        running.end()?;
        let output = (lines * LINE) as f64 / 1e6;
        // A tick is 10 ms.
        Ok((output / took, ticks * 10.0 / output * 100.0))
    }

    /// The same by the kernel alone: what `cat` moves from a pipe to a file, when each line has the size of its
    /// record, counted as output.
    fn floor(&self) -> Result<f64> {
        let out = self.dir.path().join("floor");
        let begin = Instant::now();
        let mut from = Command::new("/bin/busybox");
        from.arg("cat").args(std::iter::repeat_n(&self.records, TIMES)).stdout(Stdio::piped());
        let mut from = from.spawn()?;
        let pipe = from.stdout.take().context("no pipe")?;
        let to = Command::new("cat").stdin(pipe).stdout(File::create(&out)?).status()?;
        ensure!(to.success() && from.wait()?.success(), "cat failed");
        let took = begin.elapsed().as_secs_f64();
        ensure!(fs::metadata(&out)?.len() == LINES * TIMES as u64 * RECORD, "cat lost output");
        fs::remove_file(out)?;
        Ok((LINES * TIMES as u64 * LINE) as f64 / 1e6 / took)
    }

    fn idle(&self) -> Result<Vec<Row>> {
        let log = Log { file_bytes: 1 << 20, files: 4, rate_bytes: 1 << 20 };
        let mut all = Vec::new();
        let mut rows = Vec::new();
        for place in 0..MANY {
            let sleep = ["/bin/sleep", "600"].map(str::to_owned).to_vec();
            let running = self.start(place, sleep, log)?;
            wait_for(&running.state, file::STARTED)?;
            // As the agent does: it waits for the end.
            Client::connect(&running.state, WITHIN)?.hello()?;
            all.push(running);
            if place == 0 {
                rows.extend(Self::memory("alone", &all[0])?);
            }
        }
        rows.extend(Self::memory(&format!("one of {MANY}"), &all[0])?);
        let before = all[0].switches()?;
        std::thread::sleep(QUIET);
        let woken = (all[0].switches()? - before) / QUIET.as_secs_f64();
        rows.push(Row::alone("wake-ups of an idle shim", "1/s", woken, 0.0));
        for mut running in all {
            running.end()?;
        }
        Ok(rows)
    }

    fn memory(which: &str, running: &Running) -> Result<Vec<Row>> {
        let started: Started = serde_json::from_slice(&fs::read(running.state.join(file::STARTED))?)?;
        wait_until_idle(running.shim.id(), WITHIN)?;
        let shim = running.shim.id().to_string();
        let init = started.init_pid.to_string();
        Ok(vec![
            Row::alone(&format!("idle shim, {which}, PSS"), "KiB", kib(&shim, "Pss:")?, 400.0),
            Row::alone(&format!("idle shim, {which}, anonymous"), "KiB", kib(&shim, "Anonymous:")?, 150.0),
            Row::alone(&format!("its pid 1, {which}, PSS"), "KiB", kib(&init, "Pss:")?, 400.0),
        ])
    }
}

impl Running {
    fn end(&mut self) -> Result<()> {
        self.cgroup.kill()?;
        Client::connect(&self.state, WITHIN)?.wait(WITHIN)?;
        Client::connect(&self.state, WITHIN)?.quit()?;
        self.shim.wait()?;
        self.cgroup.remove()?;
        Ok(fs::remove_dir_all(&self.state)?)
    }

    /// Times it was put to sleep or made way, so far.
    fn switches(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.shim.id()))?;
        let counts = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
        Ok(counts.map(|(_, count)| count.trim().parse::<f64>()).sum::<Result<f64, _>>()?)
    }
}

fn wait_for(state: &Path, name: &str) -> Result<()> {
    wait_until(name, WITHIN, || state.join(name).exists())
}

fn write_lines(path: &Path, digits: usize) -> Result<()> {
    let mut file = std::io::BufWriter::new(File::create(path)?);
    for number in 0..LINES {
        writeln!(file, "{number:0digits$}")?;
    }
    Ok(file.flush()?)
}

/// Where the log ends: what was ever written to it.
fn log_bytes(dir: &Path) -> Result<u64> {
    let mut end = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap_or_default();
        let start: u64 = name.trim_end_matches(".log").parse()?;
        end = end.max(start + entry.metadata()?.len());
    }
    Ok(end)
}

/// A figure of a process's memory.
fn kib(pid: &str, name: &str) -> Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find(|line| line.starts_with(name)).context("no such figure")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}
